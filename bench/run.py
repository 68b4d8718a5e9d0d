"""One contender on one task: run, timed by what the database tells, checked."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, text

from bench.beats import COPY, WHOLE_DAY, Window, copy_line
from bench.contender import Contender, Task
from bench.process import Usage
from bench.stage import Stage
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.storage.db.copy import COPY_BLOCK

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
) -> Outcome:
    """Run a contender until all is stored, then stop it and check what it stored.

    Raises:
        RunFailedError: It is not to be counted; says why.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if contender.table_sql is not None:
            connection.execute(text(contender.table_sql))
        before = connection.scalar(SEQUENCE)
        started = time.time()
        contender.start(task)
        try:
            watch = Watch(contender, connection, before)
            began = watch.wait_for_first_row()
            watch.wait_for_all(expected.rows, task.window)
            usage = contender.usage()
        except psutil.NoSuchProcess:
            raise RunFailedError(
                f"{contender.title} ended:\n{contender.log()}"
            ) from None
        finally:
            contender.stop()
        found = summary(connection, task.window)
        if found != expected:
            raise RunFailedError(
                f"{contender.title} stored {found.rows:,} rows, {expected.rows:,} were "
                "sent; the checksums differ."
            )
        first, last = connection.execute(COMMITS, parameters(task.window)).one()
    return Outcome(
        contender.name,
        task.count,
        last.timestamp() - began,
        first.timestamp() - started,
        usage,
    )


def summary(connection: Connection, window: Window) -> Summary:
    """What the table holds."""
    rows, checksum = connection.execute(SUMMARY, parameters(window)).one()
    return Summary(rows, int(checksum))


def parameters(window: Window) -> dict[str, datetime]:
    """What the queries above are given."""
    return {"since": window.since, "until": window.until}


def copy_beats(engine: Engine, beats: Iterable[Heartbeat]) -> None:
    """Put beats into the table by COPY, in one transaction."""
    rest = iter(beats)
    connection = engine.raw_connection()
    cursor: Any = connection.cursor()  # psycopg2's own, for COPY
    with cursor:
        while some := list(islice(rest, 100_000)):
            lines = "".join(map(copy_line, some))
            cursor.copy_expert(COPY, io.StringIO(lines), size=COPY_BLOCK)
    connection.commit()
    connection.close()


def expect(stage: Stage, beats: Iterable[Heartbeat]) -> Summary:
    """What the table has to hold of these beats: asked of a table that has them."""
    name = stage.new_name("reference")
    engine = stage.new_database(name)
    copy_beats(engine, beats)
    with engine.connect() as connection:
        found = summary(connection, WHOLE_DAY)
    stage.drop_database(engine)
    return found


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
        self.wait_until(lambda: self._written() >= count)
        self.wait_until(lambda: self._committed(window) >= count)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds, looked at rarely."""
        while not condition():
            self._written()
            self._check()
            time.sleep(POLL_SECONDS)

    def _written(self) -> int:
        value: int = self._connection.scalar(SEQUENCE) or 0
        if value != self._seen:
            self._seen = value
            self._moved = time.monotonic()
        return value - self._before

    def _committed(self, window: Window) -> int:
        return self._connection.scalar(COUNT, parameters(window)) or 0

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
