"""The partitions of `heartbeats`, one a UTC day, made when the first beat comes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, timedelta
from itertools import islice

from sqlalchemy import Connection, Engine, func, select, text

from heartbeat_app.models import Heartbeat

# Each day costs a few locks in every statement that cannot leave it out (a scan over
# 3,000 days ran out of lock slots with PostgreSQL's defaults), so their number is
# bounded; days around today are always made, that real beats are never refused.
MAX_DAYS = 2_500
MAX_NEW_DAYS_A_BATCH = 400
ALWAYS = timedelta(days=2)
# One transaction's locks are bounded, too.
DAYS_A_TRANSACTION = 25


def bounds(day: date) -> tuple[str, str]:
    """The instant that the day begins at, and that the next one does."""
    return f"{day} 00:00:00+00", f"{day + timedelta(days=1)} 00:00:00+00"


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


def existing_days(connection: Connection) -> set[date]:
    """The days that have a partition."""
    names = connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'heartbeats'::regclass"
            r" AND c.relname ~ '^heartbeats_\d{4}_\d\d_\d\d$'"
        )
    ).scalars()
    prefix = len("heartbeats_")
    return {date.fromisoformat(name[prefix:].replace("_", "-")) for name in names}


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
                connection.execute(select(func.make_day(day)))


def affordable(new: Collection[date], existing: int, today: date) -> set[date]:
    """Which of the new days may be made beside that many existing ones."""
    near = {day for day in new if abs(day - today) <= ALWAYS}
    room = min(MAX_NEW_DAYS_A_BATCH, max(0, MAX_DAYS - existing))
    # The latest first: they are the likeliest to be real.
    far = sorted(set(new) - near, reverse=True)
    return near | set(far[:room])
