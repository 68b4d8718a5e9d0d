"""The books: what the ledger says was read, held against what the database holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import Connection, Engine, func, select, text

from heartbeat_app.storage import days
from heartbeat_app.storage.tables import dead_letters, heartbeats, partition_ledger

# Counting locks a day's partition and its indexes until the transaction ends, and
# all days at once are more than a server with PostgreSQL's defaults has locks for
# when others work beside it.
DAYS_A_COUNT = 50


@dataclass(frozen=True, slots=True)
class PartitionBooks:
    """One row of the ledger, and how many dead letters there are of its partition."""

    topic: str
    topic_id: str
    partition: int
    first_offset: int
    next_offset: int
    end_offset: int
    consumed: int
    stored: int
    duplicate: int
    dead: int
    missing: int
    gap: int
    updated_at: datetime
    dead_letters: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] (topic id {self.topic_id})"

    @property
    def problems(self) -> Iterator[str]:
        """What does not add up, in words."""
        sorted_out = self.stored + self.duplicate + self.dead
        if self.consumed != sorted_out:
            yield (
                f"{self}: consumed {self.consumed:,} is not stored {self.stored:,} "
                f"+ duplicate {self.duplicate:,} + dead {self.dead:,} = "
                f"{sorted_out:,}; {_off_by(self.consumed - sorted_out)}."
            )
        offsets = self.next_offset - self.first_offset
        accounted = self.consumed + self.missing + self.gap
        if offsets != accounted:
            yield (
                f"{self}: offsets {self.first_offset:,} to {self.next_offset - 1:,} "
                f"are {offsets:,}, but consumed {self.consumed:,} + missing "
                f"{self.missing:,} + gap {self.gap:,} = {accounted:,}; "
                f"{_off_by(offsets - accounted)}."
            )
        if self.dead != self.dead_letters:
            yield (
                f"{self}: dead {self.dead:,}, but counted dead letters are "
                f"{self.dead_letters:,}; {_off_by(self.dead_letters - self.dead)}."
            )


@dataclass(frozen=True, slots=True)
class Total:
    """The sums over all partitions."""

    consumed: int
    stored: int
    duplicate: int
    dead: int
    missing: int
    gap: int


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows `heartbeats` has, and how many a replay of dead letters stored."""

    counted: int
    replayed: int


@dataclass(frozen=True, slots=True)
class Books:
    """The books at one moment.

    Attributes:
        partitions: By topic, topic id and partition.
        strays: Words about dead letters of partitions that the ledger does not know.
        rows: None unless they were counted.
    """

    partitions: Sequence[PartitionBooks]
    strays: Sequence[str] = ()
    rows: Rows | None = None

    @property
    def total(self) -> Total:
        """The sums over all partitions."""
        return Total(
            consumed=sum(p.consumed for p in self.partitions),
            stored=sum(p.stored for p in self.partitions),
            duplicate=sum(p.duplicate for p in self.partitions),
            dead=sum(p.dead for p in self.partitions),
            missing=sum(p.missing for p in self.partitions),
            gap=sum(p.gap for p in self.partitions),
        )

    @property
    def balanced(self) -> bool:
        """Whether everything adds up."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What does not add up: which partition, and by how much."""
        return [
            *(problem for each in self.partitions for problem in each.problems),
            *self.strays,
            *self._row_problems(),
        ]

    def _row_problems(self) -> Iterator[str]:
        if self.rows is None:
            return
        stored = self.total.stored
        expected = stored + self.rows.replayed
        if self.rows.counted != expected:
            yield (
                f"heartbeats has {self.rows.counted:,} rows, but stored {stored:,} + "
                f"stored by replay {self.rows.replayed:,} = {expected:,}; "
                f"{_off_by(self.rows.counted - expected)}."
            )


def _off_by(difference: int) -> str:
    return f"off by {difference:+,}"


def read_books(engine: Engine, *, deep: bool = False) -> Books:
    """Read the books in one snapshot, so that workers may write meanwhile.

    Arguments:
        deep: Also count the rows of `heartbeats`, which reads them all and takes a
            second connection of the engine.
    """
    with _snapshot(engine) as connection:
        letters: dict[tuple[str, int], int] = {
            (topic_id, partition): count
            for topic_id, partition, count in connection.execute(
                select(
                    dead_letters.c.topic_id, dead_letters.c.partition, func.count()
                ).group_by(dead_letters.c.topic_id, dead_letters.c.partition)
            )
        }
        ledger = partition_ledger.c
        partitions = [
            PartitionBooks(
                **row._mapping,
                dead_letters=letters.pop((row.topic_id, row.partition), 0),
            )
            for row in connection.execute(
                select(partition_ledger).order_by(
                    ledger.topic, ledger.topic_id, ledger.partition
                )
            )
        ]
        strays = [
            f"Dead letters: {count:,} of topic id {topic_id}, partition "
            f"{partition}, which is not in the ledger."
            for (topic_id, partition), count in sorted(letters.items())
        ]
        rows = _count_rows(engine, connection) if deep else None
    return Books(partitions, strays, rows)


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection = connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        with connection.begin():
            yield connection


def _count_rows(engine: Engine, connection: Connection) -> Rows:
    """Count in the connection's snapshot, some days at a time, on a second one."""
    # What reads for hours is not stuck; and the first connection idles meanwhile.
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    replayed = connection.scalar(
        select(func.count()).where(dead_letters.c.replay_outcome == "stored")
    )
    existing = sorted(days.existing_days(connection))
    snapshot: str = connection.execute(select(func.pg_export_snapshot())).scalar_one()
    counted = 0
    for first in range(0, len(existing), DAYS_A_COUNT):
        with _snapshot(engine) as counting:
            # Before anything else: it may not follow a query.
            counting.execute(
                text("SET TRANSACTION SNAPSHOT :snapshot"), {"snapshot": snapshot}
            )
            counting.execute(text("SET LOCAL statement_timeout = 0"))
            counted += _count(counting, existing[first : first + DAYS_A_COUNT])
    return Rows(counted, replayed or 0)


def _count(connection: Connection, some: Iterable[date]) -> int:
    """Day by day, through the table: the worker's role has no right to a partition.

    With a day's bounds PostgreSQL opens and locks that day's partition only.
    """
    at = heartbeats.c.timestamp
    total = 0
    for day in some:
        begin = datetime.combine(day, time.min, UTC)
        total += connection.execute(
            select(func.count()).where(at >= begin, at < begin + timedelta(days=1))
        ).scalar_one()
    return total
