"""Writes the two locks of this folder anew: run it when a version changes.

.venv/bin/python -m bench.connect.lock

Resolves from Maven Central what Kafka Connect and what Debezium's JDBC sink need, and
notes each file's SHA-256.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from jgo.maven import MavenContext

from heartbeat_app.embedded.kafka_jars import KAFKA_VERSION

FOLDER = Path(__file__).parent
DEBEZIUM_VERSION = "3.6.0.Final"

RUNTIME = (
    "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",
    f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}",
)
# Debezium asks for 7.2.6 of both, and for hibernate-agroal under the group that it had
# before it moved, where it comes without the pool that it is for. This is the version
# nearest to it that Maven Central's mirrors have of both. First, so that it wins.
HIBERNATE_VERSION = "7.2.19.Final"
SINK = (
    "com.fasterxml.jackson.datatype:jackson-datatype-jsr310:2.19.0",
    f"org.hibernate.orm:hibernate-core:{HIBERNATE_VERSION}",
    f"org.hibernate.orm:hibernate-agroal:{HIBERNATE_VERSION}",
    f"io.debezium:debezium-connector-jdbc:{DEBEZIUM_VERSION}",
)
# Other databases' drivers.
NOT_NEEDED = {
    "mysql-connector-j",
    "mariadb-java-client",
    "mssql-jdbc",
    "ojdbc11",
}
# What Connect has in its own class path. Of Jackson a plugin must not have a second
# copy: Debezium hands its nodes to Connect's converter, and Hibernate finds modules of
# Connect's. The module above is of Connect's version for the same reason.
FROM_CONNECT = {
    "connect-api",
    "jackson-annotations",
    "jackson-core",
    "jackson-databind",
    "jakarta.ws.rs-api",
    "kafka-clients",
    "lz4-java",
    "slf4j-api",
    "snappy-java",
    "zstd-jni",
}


def main() -> None:
    """Write both locks, sorted, so that a diff shows what changed."""
    write("runtime.lock", RUNTIME, ())
    write("sink.lock", SINK, NOT_NEEDED | FROM_CONNECT)


def write(name: str, wanted: tuple[str, ...], without: Collection[str]) -> None:
    """Resolve and write one lock."""
    lines: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache))
        for coordinate in wanted:
            given, needed = context.resolver.resolve(
                [context.create_dependency(coordinate)]
            )
            running = [d for d in needed if d.scope in ("compile", "runtime")]
            for found in [*given, *running]:
                artifact = f"{found.groupId}:{found.artifactId}"
                relocated = artifact == "org.hibernate:hibernate-agroal"
                if found.artifactId in without or relocated or artifact in lines:
                    continue
                print(found, file=sys.stderr)
                content = found.artifact.resolve().read_bytes()
                sha256 = hashlib.sha256(content).hexdigest()
                lines[artifact] = f"{sha256} {artifact}:{found.version}"
    (FOLDER / name).write_text(
        f"# SHA-256, group:artifact:version of {wanted[-1]} and what it needs.\n"
        "# Written by bench/connect/lock.py, which resolves it anew.\n"
        + "".join(f"{lines[artifact]}\n" for artifact in sorted(lines))
    )


if __name__ == "__main__":
    main()
