"""The books: what the ledger says was read, held against what the database holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, func, select, text

from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog
from heartbeat_app.storage.db.tables import (
    dead_letters,
    dropped_days,
    dropped_dead_letters,
    erased_customers,
    partition_ledger,
)
from heartbeat_app.storage.rollup import ingest, rollup_check

# Counting locks a day's partition and its indexes until the transaction ends, and
# all days at once are more than a server with PostgreSQL's defaults has locks for
# when others work beside it.
DAYS_A_COUNT = 50


@dataclass(frozen=True, slots=True)
class PartitionBooks:
    """One row of the ledger, and how many dead letters there are of its partition.

    Attributes:
        unreadable: Offsets of batches that could not be taken apart.
        dead_letters: How many there are, of records.
        dropped_dead_letters: How many there were that the retention dropped.
        unreadable_letters: Offsets that the letters of unreadable batches are about.
        dropped_unreadable: How many those were about that the retention dropped.
    """

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
    dropped_dead_letters: int = 0
    unreadable: int = 0
    unreadable_letters: int = 0
    dropped_unreadable: int = 0

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
        accounted = self.consumed + self.missing + self.gap + self.unreadable
        if offsets != accounted:
            yield (
                f"{self}: offsets {self.first_offset:,} to {self.next_offset - 1:,} "
                f"are {offsets:,}, but consumed {self.consumed:,} + missing "
                f"{self.missing:,} + gap {self.gap:,} + unreadable "
                f"{self.unreadable:,} = {accounted:,}; "
                f"{_off_by(offsets - accounted)}."
            )
        letters = self.dead_letters + self.dropped_dead_letters
        if self.dead != letters:
            dropped = ""
            if self.dropped_dead_letters:
                dropped = f" + dropped by retention {self.dropped_dead_letters:,}"
            yield (
                f"{self}: dead {self.dead:,}, but counted dead letters are "
                f"{self.dead_letters:,}{dropped}; {_off_by(letters - self.dead)}."
            )
        unreadable = self.unreadable_letters + self.dropped_unreadable
        if self.unreadable != unreadable:
            yield (
                f"{self}: unreadable {self.unreadable:,}, but the dead letters of "
                f"unreadable batches are about {unreadable:,} offsets; "
                f"{_off_by(unreadable - self.unreadable)}."
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
    unreadable: int


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows `heartbeats` has, and what its roll-ups make of them.

    Attributes:
        counted: How many rows there are.
        replayed: How many a replay of dead letters stored.
        dropped: How many there were that the retention dropped.
        rollups: What of the roll-ups is not what the rows give, in words.
        erased: How many went with their customers.
    """

    counted: int
    replayed: int
    dropped: int = 0
    rollups: Sequence[str] = ()
    erased: int = 0


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
            unreadable=sum(p.unreadable for p in self.partitions),
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
        rows = self.rows
        expected = stored + rows.replayed - rows.dropped - rows.erased
        if rows.counted != expected:
            less = "".join(
                f" - {why} {number:,}"
                for why, number in (
                    ("dropped by retention", rows.dropped),
                    ("erased", rows.erased),
                )
                if number
            )
            yield (
                f"heartbeats has {rows.counted:,} rows, but stored {stored:,} + "
                f"stored by replay {rows.replayed:,}{less} = {expected:,}; "
                f"{_off_by(self.rows.counted - expected)}."
            )
        yield from self.rows.rollups


def _off_by(difference: int) -> str:
    return f"off by {difference:+,}"


def read_books(
    engine: Engine,
    *,
    deep: bool = False,
    compare: Callable[[str, Sequence[PartitionBooks]], None] | None = None,
) -> Books:
    """Read the books in one snapshot, so that workers may write meanwhile.

    Arguments:
        deep: Also count the rows of `heartbeats` and compare its roll-ups, which reads
            them all and takes a second connection of the engine.
        compare: With `deep`, is given the snapshot's name and the ledger, and may use
            that connection while the snapshot is there.
    """
    with snapshot_of(engine) as connection:
        if deep:
            # No day is detached meanwhile. Before the snapshot is taken: what was
            # detached before is then known to be.
            connection.execute(text("LOCK TABLE ONLY heartbeats IN ACCESS SHARE MODE"))
        # Of records, and offsets of unreadable batches.
        d = dead_letters.c
        letters: dict[tuple[str, int], tuple[int, int]] = {
            (topic_id, partition): (count, int(offsets or 0))
            for topic_id, partition, count, offsets in connection.execute(
                select(
                    d.topic_id,
                    d.partition,
                    func.count() - func.count(d.last_offset),
                    func.sum(d.last_offset - d.offset + 1),
                ).group_by(d.topic_id, d.partition)
            )
        }
        c = dropped_dead_letters.c
        dropped: dict[tuple[str, int], tuple[int, int]] = {
            (topic_id, partition): (count, offsets)
            for topic_id, partition, count, offsets in connection.execute(
                select(c.topic_id, c.partition, c.letters, c.unreadable)
            )
        }
        ledger = partition_ledger.c
        partitions = []
        for row in connection.execute(
            select(partition_ledger).order_by(
                ledger.topic, ledger.topic_id, ledger.partition
            )
        ):
            where = row.topic_id, row.partition
            there, unreadable = letters.pop(where, (0, 0))
            gone, gone_unreadable = dropped.get(where, (0, 0))
            partitions.append(
                PartitionBooks(
                    **row._mapping,
                    dead_letters=there,
                    dropped_dead_letters=gone,
                    unreadable_letters=unreadable,
                    dropped_unreadable=gone_unreadable,
                )
            )
        strays = [
            f"Dead letters: {count:,} and {offsets:,} unreadable offsets of topic id "
            f"{topic_id}, partition {partition}, which is not in the ledger."
            if offsets
            else f"Dead letters: {count:,} of topic id {topic_id}, partition "
            f"{partition}, which is not in the ledger."
            for (topic_id, partition), (count, offsets) in sorted(letters.items())
        ]
        rows = None
        if deep:
            name: str = connection.scalar(select(func.pg_export_snapshot())) or ""
            rows = _count_rows(engine, connection, name)
            if compare is not None:
                compare(name, partitions)
    return Books(partitions, strays, rows)


@contextmanager
def snapshot_of(engine: Engine, exported: str | None = None) -> Iterator[Connection]:
    """A transaction that sees one state; that of another one, where it exported it."""
    with engine.connect() as connection:
        connection = connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        with connection.begin():
            if exported is not None:
                # Before anything else: it may not follow a query.
                connection.execute(
                    text("SET TRANSACTION SNAPSHOT :snapshot"), {"snapshot": exported}
                )
            yield connection


def _count_rows(engine: Engine, connection: Connection, snapshot: str) -> Rows:
    """Count in the connection's snapshot, some days at a time, on a second one."""
    # What reads for hours is not stuck; and the first connection idles meanwhile.
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    replayed = connection.execute(
        select(func.count()).where(dead_letters.c.replay_outcome == "stored")
    ).scalar_one()
    replayed += _sum(connection, dropped_dead_letters.c.replayed)
    dropped = _sum(connection, dropped_days.c.rows)
    existing = sorted(catalog.existing_days(connection))
    # An erasure waits for whoever has read this table, and the writers for it.
    with snapshot_of(engine, snapshot) as short:
        erased = _sum(short, erased_customers.c.beats)
    counted = 0
    wrong: list[str] = []
    for first in range(0, len(existing), DAYS_A_COUNT):
        with snapshot_of(engine, snapshot) as counting:
            counting.execute(text("SET LOCAL statement_timeout = 0"))
            for day in existing[first : first + DAYS_A_COUNT]:
                counted += days.count(counting, day)
                wrong.extend(rollup_check.problems(counting, day))
    wrong.extend(_dropped_problems(connection))
    wrong.extend(ingest.problems(connection))
    return Rows(counted, replayed, dropped, tuple(wrong), erased)


def _sum(connection: Connection, column: ColumnElement[int]) -> int:
    return int(connection.scalar(select(func.sum(column))) or 0)


def _dropped_problems(connection: Connection) -> Iterator[str]:
    """Dropped days whose roll-ups do not have as many beats as the day had."""
    c = dropped_days.c
    kept = catalog.existing_months(connection, "heartbeats_hour")
    for day, rows in connection.execute(select(c.day, c["rows"]).order_by(c.day)):
        rolled_up = rollup_check.count_rolled_up(connection, day)
        if day.replace(day=1) in kept and rolled_up != rows:
            yield (
                f"heartbeats_hour_all has {rolled_up:,} beats of {day}, which had "
                f"{rows:,} when it was dropped; {_off_by(rolled_up - rows)}."
            )
