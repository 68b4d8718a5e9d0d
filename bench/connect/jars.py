"""The program files of a lock: from Maven Central once, each checked."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jgo.maven import MavenContext

from bench.progress import Progress
from heartbeat_app.embedded.kafka_jars import cache_folder

FOLDER = Path(__file__).parent
PARALLEL = 6


def ensure_jars(name: str, progress: Progress) -> list[Path]:
    """The files of bench/connect/NAME.lock, in Maven's own cache.

    Raises:
        RuntimeError: One could not be downloaded, or is not the file of the lock.
    """
    lock = (FOLDER / f"{name}.lock").read_text().splitlines()
    lines = [line for line in lock if not line.startswith("#")]
    with (
        progress.task(
            f"Program files of Kafka Connect ({name})", len(lines)
        ) as advance,
        ThreadPoolExecutor(PARALLEL) as pool,
    ):
        found = []
        for path in pool.map(_ensure, lines):
            found.append(path)
            advance(1)
    return found


def _ensure(line: str) -> Path:
    sha256, coordinate = line.split()
    group, artifact, version = coordinate.split(":")
    context = MavenContext(repo_cache=cache_folder())
    path = context.project(group, artifact).at_version(version).artifact().resolve()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(
            f"{path} is not the file of the lock (SHA-256 {found}, expected {sha256}). "
            "Remove it and start again."
        )
    return Path(path)
