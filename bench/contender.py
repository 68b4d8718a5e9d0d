"""What takes part: a program that moves records from a topic into the table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.beats import WHOLE_DAY, Window
from bench.formats import Format
from bench.process import Program, Usage
from bench.progress import Progress
from bench.stage import Stage

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Task:
    """One run: which records go into which database.

    Attributes:
        count: How many records the topic holds.
        group: Name of a consumer group that is new.
        window: The part of the day that the records lie in.
        live: Records come as they happen: short delays are asked for, not throughput.
        log_name: Where several programs share a group.
    """

    stage: Stage
    database: str
    topic: str
    count: int
    group: str
    window: Window = WHOLE_DAY
    live: bool = False
    log_name: str | None = None

    def environ(self) -> dict[str, str]:
        """What the programs in bench/programs read; libpq's variables among it."""
        return {
            **self.stage.libpq(self.database),
            "BENCH_BOOTSTRAP_SERVERS": self.stage.bootstrap_servers,
            "BENCH_TOPIC": self.topic,
            "BENCH_GROUP": self.group,
            "BENCH_COUNT": str(self.count),
            "BENCH_SINCE": self.window.since.isoformat(),
            "BENCH_UNTIL": self.window.until.isoformat(),
            "BENCH_FOLDER": str(self.stage.folder / f"{self.group}-state"),
            "PYTHONUNBUFFERED": "1",
        }

    def log(self) -> Path:
        """Where the program's output goes."""
        return self.stage.folder / f"{self.log_name or self.group}.log"


class Contender(Protocol):
    """One contender.

    Attributes:
        name: On the command line and in the results.
        title: For people.
        settings: How it was set up, for the document.
        format: What it reads.
        most_records: So many records are enough to tell its speed; None: all.
        is_limit: Not a contender but what they are held against.
        is_consumer: Reads the topic. What another takes itself says nothing.
        can_stream: Stores beats as they come, so that its delay can be measured.
        table_sql: What it asks of the empty table, the indexes staying the same.
    """

    name: str
    title: str
    settings: str
    format: Format
    most_records: int | None
    is_limit: bool
    is_consumer: bool
    can_stream: bool
    table_sql: str | None

    def prepare(self, progress: Progress) -> None:
        """Install what it needs and is not there yet."""

    def start(self, task: Task) -> None:
        """Start it on the task, without waiting for it."""

    def is_running(self) -> bool:
        """Whether it lives; it stays when all is stored."""

    def usage(self) -> Usage:
        """What the application's process took so far."""

    def log(self) -> str:
        """The end of what it printed."""

    def stop(self) -> None:
        """End it."""


class Started:
    """What a contender of one program tells of it."""

    name: str
    _running: Program | None = None

    @property
    def program(self) -> Program:
        """What was started."""
        assert self._running is not None, f"{self.name} was not started"
        return self._running

    def is_running(self) -> bool:
        return self.program.is_running()

    def usage(self) -> Usage:
        return self.program.usage()

    def log(self) -> str:
        return self.program.log()

    def stop(self) -> None:
        self.program.stop()


class PythonContender(Started):
    """A program of bench/programs, run by a Python that has what it imports.

    Arguments:
        environ: Further variables for the program.
        live: Those that are others where a short delay is asked for.
    """

    format = Format.JSON
    is_limit = False
    is_consumer = True
    can_stream = True

    def __init__(
        self,
        name: str,
        title: str,
        program: str,
        settings: str,
        *,
        requirements: str | None = None,
        most_records: int | None = None,
        environ: Mapping[str, str] | None = None,
        live: Mapping[str, str] | None = None,
        table_sql: str | None = None,
    ) -> None:
        self.name = name
        self.title = title
        self.settings = settings
        self.most_records = most_records
        self.table_sql = table_sql
        self._program = program
        self._requirements = requirements
        self._environ = dict(environ or {})
        self._live = {**self._environ, **(live or {})}
        self._python = sys.executable

    def prepare(self, progress: Progress) -> None:
        from bench.environments import ensure_environment

        if self._requirements is not None:
            self._python = str(ensure_environment(self._requirements, progress))

    def start(self, task: Task) -> None:
        more = self._live if task.live else self._environ
        self._running = Program(
            self.command(), {**self.environ(task), **more}, task.log()
        )

    def command(self) -> list[str]:
        """The command line."""
        return [self._python, str(PROGRAMS / self._program)]

    def environ(self, task: Task) -> dict[str, str]:
        """The variables that it is given."""
        return task.environ()
