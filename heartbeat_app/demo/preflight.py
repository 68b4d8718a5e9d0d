"""What must be so before the demo starts, and some of it while it runs."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterable
from pathlib import Path

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import EmbeddedServerError

ROOM_TO_START_BYTES = 1_000_000_000
"""A new database takes 50 MB, an hour of 1,000 beats a second about 1 GB."""

ROOM_TO_RUN_BYTES = 200_000_000
"""With less left, stop in order before Kafka and PostgreSQL run into the wall."""

FILES = 1024
"""Open files: Kafka alone has about 150 as it starts, and two more for a partition."""

_LOOPBACK = ("127.0.0.1", "localhost")


def require_room(folders: Iterable[Path], needed: int) -> None:
    """Raises EmbeddedServerError when a disk of the folders has too little room."""
    for folder in folders:
        existing = _existing(folder)
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise EmbeddedServerError(
                f"The disk of {existing} is nearly full: {free / 1e6:,.0f} MB are "
                f"free, the demo needs {needed / 1e6:,.0f} MB.\n"
                "Make room and start again: what was kept is still there."
            )


def require_files() -> None:
    """Raise our limit of open files as far as it is needed; servers inherit it.

    Raises EmbeddedServerError where that is not allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        raise EmbeddedServerError(
            f"A process may have {hard} files open here; the demo's servers need "
            f"{FILES:,}.\nRaise the limit (`ulimit -n {FILES}`, or the hard limit of "
            "this user or container) and start again: what was kept is still there."
        )
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def require_local(settings: Settings) -> None:
    """The demo runs its own servers: settings that name others are a mistake."""
    host, _, _ = settings.kafka_bootstrap_servers.rpartition(":")
    allowed: dict[str, tuple[str, bool, str]] = {
        "KAFKA_BOOTSTRAP_SERVERS": (
            settings.kafka_bootstrap_servers,
            host in _LOOPBACK,
            "127.0.0.1 with one port, such as 127.0.0.1:9092",
        ),
        "POSTGRESQL_HOST": (
            settings.postgresql_host,
            settings.postgresql_host in _LOOPBACK,
            "127.0.0.1",
        ),
        "POSTGRESQL_SSLMODE": (
            settings.postgresql_sslmode,
            settings.postgresql_sslmode in ("disable", "allow", "prefer"),
            "disable, allow or prefer",
        ),
        "KAFKA_SECURITY_PROTOCOL": (
            settings.kafka_security_protocol,
            settings.kafka_security_protocol == "PLAINTEXT",
            "PLAINTEXT",
        ),
    }
    wrong = [
        f"{name} is {value!r}; allowed is {words}"
        for name, (value, good, words) in allowed.items()
        if not good
    ]
    if wrong:
        raise EmbeddedServerError(
            "The demo starts its own Kafka and PostgreSQL on this machine:\n  "
            + "\n  ".join(wrong)
            + "\nFor servers of your own start `heartbeat_app worker` instead."
        )
