"""Writes heartbeat_app/embedded/kafka.lock anew: run it when Kafka's version changes.

Change KAFKA_VERSION in heartbeat_app/embedded/kafka_jars.py first, and LOG4J_VERSION
here to what that Kafka brings along. Resolves everything that Kafka needs from Maven
Central, as Maven would, and notes each file's SHA-256.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

from jgo.maven import MavenContext

from heartbeat_app.embedded.kafka_jars import KAFKA_VERSION

LOG4J_VERSION = "2.24.3"
WANTED = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka logs through SLF4J; without this its log is empty.
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
)
LOCK = Path(__file__).parents[2] / "heartbeat_app" / "embedded" / "kafka.lock"


def main() -> None:
    """Write the lock, sorted, so that a diff shows what changed."""
    lines = set()
    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache))
        for wanted in WANTED:
            given, needed = context.resolver.resolve(
                [context.create_dependency(wanted)]
            )
            running = [d for d in needed if d.scope in ("compile", "runtime")]
            for dependency in [*given, *running]:
                print(dependency, file=sys.stderr)
                content = dependency.artifact.resolve().read_bytes()
                lines.add(
                    f"{hashlib.sha256(content).hexdigest()} {dependency.groupId}:"
                    f"{dependency.artifactId}:{dependency.version}"
                )
    LOCK.write_text(
        f"# The files that make up Apache Kafka {KAFKA_VERSION}: SHA-256, "
        "group:artifact:version.\n"
        "# Written by scripts/lib/lock_kafka.py, which resolves Kafka's dependencies "
        "anew.\n" + "".join(f"{line}\n" for line in sorted(lines, key=_coordinate))
    )


def _coordinate(line: str) -> str:
    return line.split()[1]


if __name__ == "__main__":
    main()
