"""What the beats of customers were: answers that stay cheap on years of them.

Where many days are asked about, that is done some at a time, each in a transaction of
its own: a day costs locks until it ends, and a server has a limited number.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from itertools import islice

from sqlalchemy import Connection, Engine, text

from heartbeat_app.exceptions import TooManyBeatsError, TooSlowError
from heartbeat_app.storage import days

# From the first instant up to, not including, the second.
Span = tuple[datetime, datetime]

RAW = "raw"
STEPS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
# More points than a screen has pixels help nobody.
MAX_POINTS = 5_000
# Two or three beats a second fit.
MAX_RAW_SPAN = timedelta(hours=1)

# A statement's limit is the connection's; this is that of all statements of one answer.
ANSWER_SECONDS = 5.0

# Each costs a lock for its table and for each of its indexes.
DAYS_A_QUERY = 50

ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)

# One descent into the index for each customer and day, however many beats they have.
# The days are whole ones: inside of one the index would be read on for as long as a
# customer's beats do not fit.
CUSTOMERS = text("""
WITH RECURSIVE found AS (
    SELECT customer_id, 1 AS number FROM (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until AND customer_id > :after
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id, number + 1
    FROM found CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until
          AND customer_id > found.customer_id
        ORDER BY customer_id LIMIT 1
    ) AS next
    WHERE number < :limit
)
SELECT customer_id FROM found
""")

# In the database's own order, which is the index's.
MERGE = text(
    "SELECT DISTINCT customer_id FROM unnest(CAST(:ids AS VARCHAR[])) AS customer_id"
    " ORDER BY customer_id LIMIT :limit"
)

# The recursion goes on only for as long as the limit lets it.
LATEST = text("""
WITH RECURSIVE found AS (
    SELECT customer_id FROM (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until AND customer_id > :after
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id
    FROM found CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until
          AND customer_id > found.customer_id
        ORDER BY customer_id LIMIT 1
    ) AS next
)
SELECT found.customer_id, latest."timestamp", latest.heart_rate
FROM found CROSS JOIN LATERAL (
    SELECT "timestamp", heart_rate FROM heartbeats
    WHERE heartbeats.customer_id = found.customer_id
      AND "timestamp" >= :since AND "timestamp" < :until
    ORDER BY "timestamp" DESC LIMIT 1
) AS latest
WHERE latest."timestamp" >= :exact_since
LIMIT :limit
""")

BEATS = text("""
SELECT "timestamp", heart_rate FROM heartbeats
WHERE customer_id = :customer_id AND "timestamp" >= :since AND "timestamp" < :until
ORDER BY "timestamp" LIMIT :limit
""")

BUCKETS = text("""
SELECT date_bin(:step, "timestamp", :origin) AS begin, count(*), min(heart_rate),
       max(heart_rate), sum(heart_rate)
FROM heartbeats
WHERE customer_id = :customer_id AND "timestamp" >= :since AND "timestamp" < :until
GROUP BY begin ORDER BY begin
""")


@dataclass(frozen=True, slots=True)
class Beat:
    """One beat, as it was sent."""

    timestamp: datetime
    heart_rate: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """The beats of one step; of a step without any there is none."""

    begin: datetime
    count: int
    min: int
    max: int
    mean: float


@dataclass(frozen=True, slots=True)
class History:
    """A customer's heart rate from `since` up to, not including, `until`.

    Attributes:
        step: raw, minute, hour or day; since and until are widened to whole ones.
        points: Beats where the step is raw, else buckets; ascending, at most
            MAX_POINTS.
    """

    customer_id: str
    since: datetime
    until: datetime
    step: str
    points: Sequence[Beat] | Sequence[Bucket]


@dataclass(frozen=True, slots=True)
class Latest:
    """A customer's last beat."""

    customer_id: str
    timestamp: datetime
    heart_rate: int


def list_customers(engine: Engine, *, after: str, limit: int) -> list[str]:
    """The ids that have beats and come after `after`, in the database's order."""
    found: list[str] = []
    with _connected(engine) as connection:
        spans = list(_spans(connection, ORIGIN, datetime.max.replace(tzinfo=UTC)))
        for since, until in _in_time(spans):
            values = {"since": since, "until": until, "after": after, "limit": limit}
            found.extend(connection.scalars(CUSTOMERS, values))
        if len(spans) > 1:
            merged = connection.scalars(MERGE, {"ids": found, "limit": limit})
            found = list(merged)
    return found


def list_latest(
    engine: Engine, *, since: datetime, after: str, limit: int
) -> list[Latest]:
    """The last beat of each customer that has one since then, by id."""
    midnight = datetime.combine(since.astimezone(UTC).date(), time_of_day.min, UTC)
    values = {
        "since": midnight,
        "until": "infinity",
        "exact_since": since,
        "after": after,
        "limit": limit,
    }
    with _connected(engine) as connection:
        return [Latest(*row) for row in connection.execute(LATEST, values)]


def read_history(
    engine: Engine,
    customer_id: str,
    since: datetime,
    until: datetime,
    step: str | None = None,
) -> History:
    """A customer's heart rate in a span.

    Arguments:
        step: raw or one of STEPS; None: the finest that the span and the beats allow.

    Raises:
        TooManyBeatsError: The step is raw, and there are more than MAX_POINTS.
        TooSlowError: It takes too long.
    """
    wanted = step or finest_step(until - since)
    with _connected(engine) as connection:
        if wanted == RAW:
            beats = _read_beats(connection, customer_id, since, until)
            if len(beats) <= MAX_POINTS:
                return History(customer_id, since, until, RAW, beats)
            if step == RAW:
                raise TooManyBeatsError(MAX_POINTS)
            wanted = "minute"
        since, until = widen(since, until, STEPS[wanted])
        buckets = _read_buckets(connection, customer_id, since, until, STEPS[wanted])
    return History(customer_id, since, until, wanted, buckets)


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection.execution_options(
            isolation_level="AUTOCOMMIT", postgresql_readonly=True
        )


def finest_step(span: timedelta) -> str:
    """The finest step that makes no more than MAX_POINTS of a span."""
    if span <= MAX_RAW_SPAN:
        return RAW
    # One more where neither end is at a step's.
    fitting = (name for name, step in STEPS.items() if span <= longest_span(step))
    return next(fitting, "day")


def longest_span(step: timedelta) -> timedelta:
    """The longest span that never has more than MAX_POINTS of a step."""
    return (MAX_POINTS - 1) * step


def widen(since: datetime, until: datetime, step: timedelta) -> Span:
    """The whole steps that hold the span."""
    # The remainder of a division, so that it is never negative.
    begin = since - (since - ORIGIN) % step
    return begin, until + (ORIGIN - until) % step


def _read_beats(
    connection: Connection, customer_id: str, since: datetime, until: datetime
) -> list[Beat]:
    """One more than MAX_POINTS where there are more."""
    found: list[Beat] = []
    for first, end in _in_time(_spans(connection, since, until)):
        values = {
            "customer_id": customer_id,
            "since": first,
            "until": end,
            "limit": MAX_POINTS + 1 - len(found),
        }
        found.extend(Beat(*row) for row in connection.execute(BEATS, values))
    return found


def _read_buckets(
    connection: Connection,
    customer_id: str,
    since: datetime,
    until: datetime,
    step: timedelta,
) -> list[Bucket]:
    """The steps that have beats, ascending.

    Counted from the beats, as long as there are no roll-ups. With roll-ups this is
    the one place that changes: where they are up to date (no mark in the span), whole
    minutes can be read from heartbeats_minute, hours and days from heartbeats_hour.
    """
    # A step lies in one day, so days can be asked about some at a time.
    found: list[Bucket] = []
    for first, end in _in_time(_spans(connection, since, until)):
        values = {
            "customer_id": customer_id,
            "since": first,
            "until": end,
            "step": step,
            "origin": ORIGIN,
        }
        found.extend(
            Bucket(begin, count, least, most, round(total / count, 3))
            for begin, count, least, most, total in connection.execute(BUCKETS, values)
        )
    return found


def _spans(connection: Connection, since: datetime, until: datetime) -> Iterator[Span]:
    """The span cut into some that have few enough days each; where there are any."""
    there = iter(
        sorted(
            day
            for day in days.existing_days(connection)
            if _midnight(day) < until and _midnight(day + timedelta(days=1)) > since
        )
    )
    while some := list(islice(there, DAYS_A_QUERY)):
        yield (
            max(since, _midnight(some[0])),
            min(until, _midnight(some[-1] + timedelta(days=1))),
        )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time_of_day.min, UTC)


def _in_time(spans: Iterable[Span]) -> Iterator[Span]:
    """The spans, for as long as there is time to ask about another one."""
    deadline = time.monotonic() + ANSWER_SECONDS
    for span in spans:
        if time.monotonic() > deadline:
            raise TooSlowError(ANSWER_SECONDS)
        yield span
