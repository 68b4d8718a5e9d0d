"""What people look at: how fast beats come in, how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Engine, func, select, text

from heartbeat_app.storage.db import catalog
from heartbeat_app.storage.db.tables import ingest_minute, partition_ledger


@dataclass(frozen=True, slots=True)
class Recent:
    """The current minute of arrival and the one before it.

    Attributes:
        stored_per_second: None before the first minute.
        delay_p50_seconds, delay_p95_seconds: From a beat's timestamp to its row; None
            when nothing came in.
    """

    stored_per_second: float | None
    delay_p50_seconds: float | None
    delay_p95_seconds: float | None
    delay_max_seconds: float | None


@dataclass(frozen=True, slots=True)
class LastMinute:
    """The beats of the last 60 s by their timestamps; rates None where there are none.

    Attributes:
        customers: How many customers they are of.
        min, max, mean: Of their heart rates.
    """

    beats: int
    customers: int
    min: int | None
    max: int | None
    mean: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything at a glance.

    Attributes:
        first_day, last_day: UTC days that have a partition; None where there is none.
        consumed, stored, duplicate, dead, missing: Sums of the ledger.
    """

    last_minute: LastMinute
    recent: Recent
    days: int
    first_day: date | None
    last_day: date | None
    consumed: int
    stored: int
    duplicate: int
    dead: int
    missing: int


LAST_MINUTE = text("""
SELECT count(*), count(DISTINCT customer_id), min(heart_rate), max(heart_rate),
       round(avg(heart_rate), 3)::DOUBLE PRECISION
FROM heartbeats
WHERE "timestamp" >= now() - INTERVAL '1 minute' AND "timestamp" < now()
""")


def read_summary(engine: Engine) -> Summary:
    """Look at all of it; how much there is makes no difference."""
    ledger = partition_ledger.c
    sums = (
        func.coalesce(func.sum(column), 0)
        for column in (
            ledger.consumed,
            ledger.stored,
            ledger.duplicate,
            ledger.dead,
            ledger.missing,
        )
    )
    recent = read_recent(engine)
    with engine.connect() as connection:
        there = catalog.existing_days(connection)
        minute = connection.execute(LAST_MINUTE).one()
        totals = connection.execute(select(*sums)).one()
    return Summary(
        LastMinute(*minute),
        recent,
        len(there),
        min(there, default=None),
        max(there, default=None),
        *(int(total) for total in totals),
    )


def read_recent(engine: Engine) -> Recent:
    """Look at what came in lately."""
    minutes = ingest_minute.c
    since = func.date_trunc("minute", func.now() - timedelta(minutes=1))
    lately = (
        select(
            func.histogram_sum(minutes.delay_histogram).label("delays"),
            func.min(minutes.delay_min_seconds).label("shortest"),
            func.max(minutes.delay_max_seconds).label("longest"),
            func.sum(minutes.stored).label("stored"),
            func.extract("epoch", func.now() - since).label("seconds"),
        )
        .where(minutes.minute >= since)
        .subquery()
        .c
    )
    with engine.connect() as connection:
        stored, seconds, p50, p95, longest = connection.execute(
            select(
                lately.stored,
                lately.seconds,
                func.delay_quantile(
                    lately.delays, 0.5, lately.shortest, lately.longest
                ),
                func.delay_quantile(
                    lately.delays, 0.95, lately.shortest, lately.longest
                ),
                lately.longest,
            )
        ).one()
    if p50 is None:
        longest = None  # whatever came in, none of it was a new beat
    rate = None if stored is None else float(stored) / max(1.0, float(seconds))
    return Recent(rate, p50, p95, longest)


def probe(engine: Engine) -> None:
    """Raise unless the database answers."""
    with engine.connect() as connection:
        connection.execute(select(1))
