"""A guard, and how to take it out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prove.world import Outcome
from testkit.servers import PROJECT

# What a worker, Alembic and the tests need of the project.
SOURCES = (
    "heartbeat_app",
    "alembic",
    "testkit",
    "tests",
    "alembic.ini",
    "setup.cfg",
    "pyproject.toml",
)


@dataclass(frozen=True, slots=True)
class Patch:
    """Replaces a text that is exactly once in a file below the project's folder."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard, and how to take it out.

    Attributes:
        name: As it is asked for.
        holds: What it guards, for the report.
        fails: The scenario that fails without it, or the test where what it guards
            against comes too seldom to be waited for.
        shows: What is then said, among whatever else: a proof that fails for another
            reason has not seen that the guard is gone.
        patches: Take it out, and any other guard that would do its work.
    """

    name: str
    holds: str
    fails: str
    shows: str
    patches: tuple[Patch, ...]

    def is_missed(self, outcome: Outcome) -> bool:
        """Whether what was run without it says so."""
        return any(self.shows in complaint for complaint in outcome.complaints)


@contextmanager
def without(guard: Guard) -> Iterator[Path]:
    """A copy of the application in which the guard is taken out.

    Raises:
        ValueError: The patch does not fit any more.
    """
    with TemporaryDirectory(prefix="prove-source-") as folder:
        copy = Path(folder)
        for name in SOURCES:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(
                    source, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(source, copy / name)
        for patch in guard.patches:
            file = copy / patch.file
            text = file.read_text()
            if text.count(patch.old) != 1:
                raise ValueError(
                    f"A patch of {guard.name} does not fit {patch.file}: its text is "
                    f"there {text.count(patch.old)} times. Mend prove/guards/."
                )
            file.write_text(text.replace(patch.old, patch.new))
        yield copy
