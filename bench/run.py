"""One contender on one task: run, timed by what the database tells, checked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

import psutil
from sqlalchemy import Connection, Engine, text

from bench.beats import DAY_BEGIN, DAY_LENGTH
from bench.contender import Contender, Task
from bench.process import Usage

# How often the database is asked whether the first row was written: the error of the
# begin. Once it was, it is asked rarely, since that takes time of the machine.
FIRST_ROW_POLL_SECONDS = 0.005
POLL_SECONDS = 0.2
# A contender that stores nothing for so long has failed.
STANDSTILL_SECONDS = 90.0

# Every row takes its id from the sequence, whoever writes it.
SEQUENCE = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END"
                " FROM heartbeats_id_seq")  # fmt: skip
COUNT = text(
    'SELECT count(*) FROM heartbeats WHERE "timestamp" >= :since'
    ' AND "timestamp" < :until'
)
# Order does not matter to a sum; beats of the same key and rate are the same.
SUMMARY = text(
    "SELECT count(*), coalesce(sum(hashtextextended(customer_id || '|'"
    " || extract(epoch FROM \"timestamp\") || '|' || heart_rate, 0)), 0)"
    ' FROM heartbeats WHERE "timestamp" >= :since AND "timestamp" < :until'
)
COMMITS = text(
    "SELECT min(at), max(at) FROM (SELECT pg_xact_commit_timestamp(xmin) AS at"
    ' FROM heartbeats WHERE "timestamp" >= :since AND "timestamp" < :until'
    " GROUP BY xmin) AS commits"
)


@dataclass(frozen=True)
class Window:
    """The rows of a run: those with a timestamp from `since` to before `until`."""

    since: datetime = DAY_BEGIN
    until: datetime = DAY_BEGIN + DAY_LENGTH

    def parameters(self) -> dict[str, datetime]:
        return {"since": self.since, "until": self.until}


@dataclass(frozen=True)
class Summary:
    """Number of rows and a sum over the hashes of all of them."""

    rows: int
    checksum: int


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        records: How many were to be stored, and were.
        seconds: From the first row that was written to the last commit.
        start_seconds: From the start of the program to the first commit.
        usage: Of the application's process, from its start to the last commit.
    """

    contender: str
    records: int
    seconds: float
    start_seconds: float
    usage: Usage

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds


class RunFailedError(Exception):
    """A contender ended, stood still, or stored something else than was sent."""


def run(
    contender: Contender,
    task: Task,
    engine: Engine,
    expected: Summary,
    window: Window = Window(),  # noqa: B008 (frozen)
) -> Outcome:
    """Run a contender until all is stored, then stop it and check what it stored.

    Raises:
        RunFailedError: It is not to be counted; says why.
    """
    with engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        if contender.table_sql is not None:
            connection.execute(text(contender.table_sql))
        before = connection.scalar(SEQUENCE)
        started = time.time()
        contender.start(task)
        try:
            watch = Watch(contender, connection, before)
            began = watch.wait_for_first_row()
            watch.wait_for_all(expected.rows, window)
            usage = contender.usage()
        except psutil.NoSuchProcess:
            raise RunFailedError(f"{contender.title} ended:\n{contender.log()}") from None
        finally:
            contender.stop()
        found = summary(connection, window)
        if found != expected:
            raise RunFailedError(
                f"{contender.title} stored {found.rows:,} rows, {expected.rows:,} were "
                "sent; the checksums differ."
            )
        first, last = connection.execute(COMMITS, window.parameters()).one()
    return Outcome(
        contender.name,
        task.count,
        last.timestamp() - began,
        first.timestamp() - started,
        usage,
    )


def summary(connection: Connection, window: Window) -> Summary:
    """What the table holds."""
    rows, checksum = connection.execute(SUMMARY, window.parameters()).one()
    return Summary(rows, int(checksum))


class Watch:
    """Waits for rows while the contender lives and moves."""

    def __init__(
        self, contender: Contender, connection: Connection, before: int
    ) -> None:
        self._contender = contender
        self._connection = connection
        self._before = before
        self._seen = before
        self._moved = time.monotonic()

    def wait_for_first_row(self) -> float:
        """The time at which the first row was seen to be written, not yet committed."""
        while self._written() == 0:
            self._check()
            time.sleep(FIRST_ROW_POLL_SECONDS)
        return time.time()

    def wait_for_all(self, count: int, window: Window) -> None:
        """Until so many rows are committed."""
        while self._written() < count:
            self._check()
            time.sleep(POLL_SECONDS)
        while self._committed(window) < count:
            self._check()
            time.sleep(POLL_SECONDS)

    def _written(self) -> int:
        value: int = self._connection.scalar(SEQUENCE) or 0
        if value != self._seen:
            self._seen = value
            self._moved = time.monotonic()
        return value - self._before

    def _committed(self, window: Window) -> int:
        return self._connection.scalar(COUNT, window.parameters()) or 0

    def _check(self) -> None:
        if not self._contender.is_running():
            raise RunFailedError(
                f"{self._contender.title} ended:\n{self._contender.log()}"
            )
        if time.monotonic() - self._moved > STANDSTILL_SECONDS:
            raise RunFailedError(
                f"{self._contender.title} stored nothing for {STANDSTILL_SECONDS:g} s "
                f"({self._seen - self._before:,} rows so far):\n{self._contender.log()}"
            )
