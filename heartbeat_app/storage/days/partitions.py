"""The partitions, to look at: how big, how far rolled up, how long they stay."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date

from sqlalchemy import Connection, Engine, func, select, text

from heartbeat_app.storage.days.retention import Kept
from heartbeat_app.storage.db import catalog
from heartbeat_app.storage.db.tables import dropped_days, heartbeats_hour_all
from heartbeat_app.storage.rollup.marks import MINUTE, day_span, merged
from heartbeat_app.storage.rollup.rollup import read_marks

# The statistics know the rows that are there now. A server that was not shut down in
# order has lost them, and then what ANALYZE counted is told.
SIZES = text(
    """
SELECT child.relname, pg_total_relation_size(child.oid) AS size,
       greatest(coalesce(nullif(stat.n_live_tup, 0), child.reltuples), 0)::BIGINT
           AS rows
FROM pg_inherits
JOIN pg_class AS child ON child.oid = inhrelid
LEFT JOIN pg_stat_user_tables AS stat ON stat.relid = child.oid
WHERE inhparent = CAST(:parent AS REGCLASS)
"""
)


@dataclass(frozen=True, slots=True)
class Day:
    """A day of beats.

    Attributes:
        rows: About how many.
        bytes: On disk, with its indexes.
        rolled_up: How many beats its roll-ups hold.
        marked_minutes: How many of its minutes are still to be rolled up.
        drop_on: When it will be dropped; None: kept for ever.
    """

    day: date
    rows: int
    bytes: int
    rolled_up: int
    marked_minutes: int
    drop_on: date | None


@dataclass(frozen=True, slots=True)
class Month:
    """A month of roll-ups; the same as of a day."""

    table: str
    month: date
    rows: int
    bytes: int
    drop_on: date | None


@dataclass(frozen=True, slots=True)
class Partitions:
    """All that are there, ascending, and how much the retention has dropped.

    Attributes:
        dropped_days, dropped_rows: How many days, and beats of them.
        leaving: Days that are out of the table and about to be dropped.
    """

    days: Sequence[Day]
    months: Sequence[Month]
    dropped_days: int
    dropped_rows: int
    leaving: Sequence[date]


def read_partitions(engine: Engine) -> Partitions:
    """Look at the partitions; reads no beats."""
    with engine.connect() as connection:
        # A worker may make a day between two of these looks.
        connection.execution_options(isolation_level="REPEATABLE READ")
        kept = Kept.read(connection)
        existing = sorted(catalog.existing_days(connection))
        marked = _marked_minutes(connection, existing)
        rolled_up = _rolled_up(connection)
        sizes = _sizes(connection, "heartbeats")
        found = [
            Day(
                day,
                *sizes[catalog.day_table(day)],
                rolled_up.get(day, 0),
                marked.get(day, 0),
                kept.drop_day_on(day),
            )
            for day in existing
        ]
        months = []
        for table, drop_on in (
            ("heartbeats_minute", kept.drop_minutes_on),
            ("heartbeats_hour", kept.drop_hours_on),
        ):
            sizes = _sizes(connection, table)
            months += [
                Month(table, month, *sizes[f"{table}_{month:%Y_%m}"], drop_on(month))
                for month in sorted(catalog.existing_months(connection, table))
            ]
        dropped = connection.execute(
            select(
                dropped_days.c["rows"], dropped_days.c.day, dropped_days.c.dropped_at
            )
        ).all()
    return Partitions(
        found,
        months,
        len(dropped),
        sum(row[0] for row in dropped),
        sorted(row[1] for row in dropped if row[2] is None),
    )


def _sizes(connection: Connection, parent: str) -> dict[str, tuple[int, int]]:
    """Rows and bytes by name."""
    return {
        name: (rows, size)
        for name, size, rows in connection.execute(SIZES, {"parent": parent})
    }


def _marked_minutes(connection: Connection, existing: Sequence[date]) -> Counter[date]:
    """How many minutes of these ascending days are marked."""
    found: Counter[date] = Counter()
    for since, until in merged((m.since, m.until) for m in read_marks(connection)):
        for day in existing[bisect_left(existing, since.date()) :]:
            begin, end = day_span(day)
            if begin >= until:
                break
            found[day] += (min(until, end) - max(since, begin)) // MINUTE
    return found


def _rolled_up(connection: Connection) -> dict[date, int]:
    """Beats in the roll-ups by day."""
    hours = heartbeats_hour_all.c
    day = func.date_trunc("day", hours.hour, "UTC")
    query = select(day, func.sum(hours["count"])).group_by(day)
    return {
        when.astimezone(UTC).date(): int(count)
        for when, count in connection.execute(query)
    }
