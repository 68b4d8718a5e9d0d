"""What the deep audit looks up for records of Kafka: rows, letters, who is erased."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from sqlalchemy import Engine, func, select, text

from heartbeat_app.storage.db.tables import dead_letters, dropped_days
from heartbeat_app.storage.read.books import DAYS_A_COUNT, snapshot_of
from heartbeat_app.storage.write.erasures import READ, Erased

# A day's bounds are in each, so that PostgreSQL opens and locks that day only.
ROWS = text("""
SELECT wanted.n, CAST(there.tableoid AS BIGINT), CAST(there.ctid AS TEXT),
    there.heart_rate
FROM unnest(CAST(:customers AS TEXT[]), CAST(:instants AS TIMESTAMPTZ[]))
    WITH ORDINALITY AS wanted (customer_id, instant, n)
JOIN heartbeats AS there
    ON there.customer_id = wanted.customer_id AND there."timestamp" = wanted.instant
WHERE there."timestamp" BETWEEN :first AND :last
""")


# What a row takes of a block at the least: its header and its pointer.
SMALLEST_ROW_BYTES = 28


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `heartbeats`.

    Attributes:
        table: The day's.
        place: Where it is in there; in one snapshot no other row is.
    """

    table: int
    place: int
    heart_rate: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of a record.

    Attributes:
        sha256: Of the value that it holds; None: it holds none.
        is_excerpt: Its record was not kept whole.
    """

    offset: int
    reason: str
    sha256: bytes | None
    is_excerpt: bool


class Lookup:
    """Looks up in one snapshot, in short transactions of its own.

    Arguments:
        engine: A connection of it is free.
        snapshot: Its exported name.
    """

    def __init__(self, engine: Engine, snapshot: str) -> None:
        self._engine = engine
        self._snapshot = snapshot
        with snapshot_of(engine, snapshot) as connection:
            self.dropped_days: set[date] = set(
                connection.scalars(select(dropped_days.c.day))
            )
            size = int(connection.scalar(text("SHOW block_size")) or 0)
            self._rows_a_block = size // SMALLEST_ROW_BYTES
        # By itself: an erasure waits for whoever has read this table.
        with snapshot_of(engine, snapshot) as connection:
            found = connection.exec_driver_sql(READ, (0,)).all()
        self._erased = Erased().and_these(found)
        # Whether dead letters may have been emptied.
        self.has_erasures = bool(found)

    def erased_among(self, customers: Iterable[str]) -> set[str]:
        """Those of them that were erased."""
        return self._erased.among(customers)

    def rows(self, keys: Sequence[tuple[str, datetime]]) -> dict[int, Row]:
        """The rows of customers and instants (aware), by the keys' indexes."""
        by_day: defaultdict[date, list[int]] = defaultdict(list)
        for index, (_, instant) in enumerate(keys):
            by_day[instant.astimezone(UTC).date()].append(index)
        found: dict[int, Row] = {}
        days = sorted(by_day)
        for some in range(0, len(days), DAYS_A_COUNT):
            with snapshot_of(self._engine, self._snapshot) as connection:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                for day in days[some : some + DAYS_A_COUNT]:
                    indexes = by_day[day]
                    for n, table, ctid, rate in connection.execute(
                        ROWS,
                        {
                            "customers": [keys[index][0] for index in indexes],
                            "instants": [keys[index][1] for index in indexes],
                            # Behind the last of all days there is no other.
                            "first": datetime.combine(day, time.min, UTC),
                            "last": datetime.combine(day, time.max, UTC),
                        },
                    ):
                        block, number = ctid[1:-1].split(",")
                        place = int(block) * self._rows_a_block + int(number) - 1
                        found[indexes[n - 1]] = Row(table, place, rate)
        return found

    def letters(
        self, topic_id: str, partition: int, first: int, end: int
    ) -> Mapping[int, Letter]:
        """The dead letters of records from `first` up to, not including, `end`."""
        c = dead_letters.c
        wanted = select(
            c.offset, c.reason, func.sha256(c.value), c.record_size.is_not(None)
        ).where(
            c.topic_id == topic_id,
            c.partition == partition,
            c.offset >= first,
            c.offset < end,
            c.last_offset.is_(None),
        )
        with snapshot_of(self._engine, self._snapshot) as connection:
            return {
                offset: Letter(offset, reason, digest and bytes(digest), is_excerpt)
                for offset, reason, digest, is_excerpt in connection.execute(wanted)
            }

    def unreadable(self, topic_id: str, partition: int) -> list[tuple[int, int]]:
        """First and last offsets of the batches that have a letter, ascending."""
        c = dead_letters.c
        wanted = (
            select(c.offset, c.last_offset)
            .where(
                c.topic_id == topic_id,
                c.partition == partition,
                c.last_offset.is_not(None),
            )
            .order_by(c.offset)
        )
        with snapshot_of(self._engine, self._snapshot) as connection:
            return [(first, last) for first, last in connection.execute(wanted)]
