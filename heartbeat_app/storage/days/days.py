"""The partitions of `heartbeats`, one a UTC day, made when the first beat comes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, timedelta
from itertools import islice

from sqlalchemy import Connection, Engine, func, select

from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.storage.db import tables
from heartbeat_app.storage.rollup import marks

# Each day costs a few locks in every statement that cannot leave it out (a scan over
# 3,000 days ran out of lock slots with PostgreSQL's defaults), so their number is
# bounded; days around today are always made, that real beats are never refused.
MAX_DAYS = 2_500
MAX_NEW_DAYS_A_BATCH = 400
ALWAYS = timedelta(days=2)
# One transaction's locks are bounded, too.
DAYS_A_TRANSACTION = 25


def days_of(beats: Sequence[Heartbeat]) -> set[date]:
    """The UTC days of the beats."""
    if not beats:
        return set()
    timestamps = [beat.timestamp for beat in beats]
    first = min(timestamps).astimezone(UTC).date()
    last = max(timestamps).astimezone(UTC).date()
    if first == last:
        return {first}
    return {timestamp.astimezone(UTC).date() for timestamp in timestamps}


def count(connection: Connection, day: date) -> int:
    """How many beats a day has."""
    at = tables.heartbeats.c.timestamp
    since, until = marks.day_span(day)
    counted = select(func.count()).where(at >= since, at < until)
    return connection.execute(counted).scalar_one()


def dropped_days(connection: Connection) -> set[date]:
    """The days that the retention dropped, or is about to."""
    return set(connection.scalars(select(tables.dropped_days.c.day)))


def ensure_days(engine: Engine, days: Iterable[date]) -> None:
    """Make the partitions of these days, unless they are there.

    The database's make_day() does it with the owner's rights: the worker may make no
    tables. In short transactions of their own, since two workers that make days inside
    their batches wait for each other for ever.
    """
    wanted = iter(sorted(days))
    while some := list(islice(wanted, DAYS_A_TRANSACTION)):
        with engine.begin() as connection:
            for day in some:
                if connection.scalar(select(func.make_day(day))):
                    _mark_day(connection, day)


def _mark_day(connection: Connection, day: date) -> None:
    """Mark a day that somebody detached, and that has come back.

    All of it: beats may have been deleted meanwhile (see `erase`), even the last one.
    """
    since, until = marks.day_span(day)
    for at in (tables.heartbeats.c.timestamp, tables.heartbeats_minute_all.c.minute):
        found = select(at).where(at >= since, at < until).limit(1)
        if connection.scalar(found) is not None:
            marks.mark_spans(connection, [(since, until)])
            return


def affordable(new: Collection[date], existing: int, today: date) -> set[date]:
    """Which of the new days may be made beside that many existing ones."""
    near = {day for day in new if abs(day - today) <= ALWAYS}
    room = min(MAX_NEW_DAYS_A_BATCH, max(0, MAX_DAYS - existing))
    # The latest first: they are the likeliest to be real.
    far = sorted(set(new) - near, reverse=True)
    return near | set(far[:room])
