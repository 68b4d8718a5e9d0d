"""Which code it was that was measured or proved."""

from __future__ import annotations

import subprocess

from testkit.servers import PROJECT

# What a worker runs on; results and documents change by what is measured.
SOURCES = ("heartbeat_app", "alembic", "setup.cfg", "constraints.txt")


def commit() -> str:
    """The commit, with `-changed` where the application's files are not its."""
    found = _git("rev-parse", "--short=12", "HEAD")
    if found.returncode != 0:
        return "unknown"
    changed = _git("diff", "--quiet", "HEAD", "--", *SOURCES).returncode != 0
    return found.stdout.strip() + ("-changed" if changed else "")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
