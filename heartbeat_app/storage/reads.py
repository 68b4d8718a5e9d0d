"""What people look at: how fast beats come in, how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine, func, select

from heartbeat_app.storage.tables import ingest_minute


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


def read_recent(engine: Engine) -> Recent:
    """Look at what came in lately."""
    minutes = ingest_minute.c
    since = func.date_trunc("minute", func.now() - timedelta(minutes=1))
    lately = (
        select(
            func.histogram_sum(minutes.delay_histogram).label("delays"),
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
                func.delay_quantile(lately.delays, 0.5),
                func.delay_quantile(lately.delays, 0.95),
                lately.longest,
            )
        ).one()
    if p50 is None:
        longest = None  # whatever came in, none of it was a new beat
    else:
        # Between the bounds of a bucket it is a guess; it must not exceed the longest.
        p50, p95 = min(p50, longest), min(p95, longest)
    rate = None if stored is None else float(stored) / max(1.0, float(seconds))
    return Recent(rate, p50, p95, longest)


def probe(engine: Engine) -> None:
    """Raise unless the database answers."""
    with engine.connect() as connection:
        connection.execute(select(1))
