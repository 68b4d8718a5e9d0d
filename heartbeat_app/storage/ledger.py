"""The ledger: which offsets of which partition are in the database."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, Engine, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from heartbeat_app.exceptions import BooksError
from heartbeat_app.storage.tables import partition_ledger as ledger

COUNTED = ("consumed", "stored", "duplicate", "dead", "missing", "gap")

# Made once: to put them together took a tenth of a small batch's time.
_IS_ROW = (
    ledger.c.topic_id == bindparam("of_topic_id"),
    ledger.c.partition == bindparam("of_partition"),
)
LOCK = select(ledger.c.next_offset).where(*_IS_ROW).with_for_update()
BOOK = (
    update(ledger)
    .where(*_IS_ROW)
    .values(
        next_offset=bindparam("next_offset"),
        end_offset=bindparam("end_offset"),
        updated_at=func.clock_timestamp(),
        **{name: ledger.c[name] + bindparam(f"more_{name}") for name in COUNTED},
    )
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


def lock(connection: Connection, topic_id: str, partition: int) -> int | None:
    """Lock the partition's row until the transaction ends; its next offset.

    None where there is no row.
    """
    row = {"of_topic_id": topic_id, "of_partition": partition}
    offset: int | None = connection.scalar(LOCK, row)
    return offset


def book(
    connection: Connection,
    topic_id: str,
    partition: int,
    *,
    next_offset: int,
    end_offset: int,
    counts: Mapping[str, int],
) -> None:
    """Add what a batch was, and move on; the row must be locked.

    Arguments:
        counts: consumed, stored, duplicate, dead, missing and gap.

    Raises:
        BooksError: They do not add up.
    """
    sorted_out = sum(counts[name] for name in ("stored", "duplicate", "dead"))
    if counts["consumed"] != sorted_out or min(counts.values()) < 0:
        raise BooksError(
            f"A batch of {topic_id}[{partition}] up to {next_offset - 1} does not add "
            f"up: {dict(counts)}. It was rolled back; please report this."
        )
    connection.execute(
        BOOK,
        {
            "of_topic_id": topic_id,
            "of_partition": partition,
            "next_offset": next_offset,
            "end_offset": end_offset,
            **{f"more_{name}": counts[name] for name in COUNTED},
        },
    )
