"""The ledger: which offsets of which partition are in the database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert

from heartbeat_app.exceptions import BooksError
from heartbeat_app.storage.db.prepared import Bound, Prepared
from heartbeat_app.storage.db.tables import partition_ledger as ledger

COUNTED = (
    "consumed", "stored", "duplicate", "dead", "missing", "gap", "unreadable",
)  # fmt: skip

BOOK = Prepared(
    "ledger_book",
    ("TEXT[]", "INTEGER[]", *["BIGINT[]"] * (2 + len(COUNTED))),
    """
    UPDATE partition_ledger AS old SET
        next_offset = new.next_offset,
        end_offset = new.end_offset,
        updated_at = clock_timestamp(),
        consumed = old.consumed + new.consumed,
        stored = old.stored + new.stored,
        duplicate = old.duplicate + new.duplicate,
        dead = old.dead + new.dead,
        missing = old.missing + new.missing,
        gap = old.gap + new.gap,
        unreadable = old.unreadable + new.unreadable
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS new (
        topic_id, partition, next_offset, end_offset,
        consumed, stored, duplicate, dead, missing, gap, unreadable)
    WHERE old.topic_id = new.topic_id AND old.partition = new.partition
    """,
)


class PostgresLedger:
    """Answers where to resume; a `heartbeat_app.lane.Ledger`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def next_offsets(
        self, topic_id: str, partitions: Collection[int]
    ) -> Mapping[int, int]:
        """The offset to go on at, for the partitions that have a row."""
        query = select(ledger.c.partition, ledger.c.next_offset).where(
            ledger.c.topic_id == topic_id, ledger.c.partition.in_(list(partitions))
        )
        with self._engine.connect() as connection:
            return {row.partition: row.next_offset for row in connection.execute(query)}

    def open(self, topic: str, topic_id: str, beginnings: Mapping[int, int]) -> None:
        """Make the rows of partitions of which nothing was kept."""
        rows = [
            {
                "topic": topic,
                "topic_id": topic_id,
                "partition": partition,
                "first_offset": offset,
                "next_offset": offset,
                "end_offset": offset,
                "updated_at": func.now(),
            }
            for partition, offset in sorted(beginnings.items())
        ]
        with self._engine.begin() as connection:
            connection.execute(insert(ledger).values(rows).on_conflict_do_nothing())


@dataclass(frozen=True, slots=True)
class Entry:
    """What is added to a partition's row.

    Attributes:
        counts: consumed, stored, duplicate, dead, missing, gap and unreadable.
    """

    topic_id: str
    partition: int
    next_offset: int
    end_offset: int
    counts: Mapping[str, int]


def booking(entries: Sequence[Entry]) -> Bound:
    """What adds what batches were, and moves on; their rows must be locked.

    Raises:
        BooksError: They do not add up.
    """
    for each in entries:
        counts = each.counts
        sorted_out = sum(counts[name] for name in ("stored", "duplicate", "dead"))
        if counts["consumed"] != sorted_out or min(counts.values()) < 0:
            raise BooksError(
                f"A batch of {each.topic_id}[{each.partition}] up to "
                f"{each.next_offset - 1} does not add up: {dict(counts)}. It was "
                "rolled back; please report this."
            )
    columns = ("topic_id", "partition", "next_offset", "end_offset")
    return BOOK.bind(
        *([getattr(each, name) for each in entries] for name in columns),
        *([each.counts[name] for each in entries] for name in COUNTED),
    )
