"""What the beats of customers were: answers that stay cheap on years of them.

Minutes, hours and days are read from the roll-ups, so also those of days whose beats
were dropped; where beats came in that are not rolled up yet, they are counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter

from sqlalchemy import Connection, Engine, text

from heartbeat_app.exceptions import TooManyBeatsError
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog
from heartbeat_app.storage.read.spans import (
    ORIGIN,
    Span,
    by_days,
    connected,
    in_time,
    not_rolled_up,
    widen,
)
from heartbeat_app.storage.rollup.marks import DAY, HOUR, MINUTE

RAW = "raw"
STEPS = {
    "minute": MINUTE,
    "hour": HOUR,
    "day": DAY,
}
# More points than a screen has pixels help nobody.
MAX_POINTS = 5_000
# Two or three beats a second fit.
MAX_RAW_SPAN = timedelta(hours=1)

BEATS = text("""
SELECT "timestamp", heart_rate FROM heartbeats
WHERE customer_id = :customer_id AND "timestamp" >= :since AND "timestamp" < :until
ORDER BY "timestamp" LIMIT :limit
""")

# A month costs locks as well, but even 5,000 days are no more than 165 of them.
ROLLED_UP = {
    "minute": text("""
SELECT minute, count, min, max, sum FROM heartbeats_minute
WHERE customer_id = :customer_id AND minute >= :since AND minute < :until
ORDER BY minute
"""),
    "hour": text("""
SELECT hour, count, min, max, sum FROM heartbeats_hour
WHERE customer_id = :customer_id AND hour >= :since AND hour < :until
ORDER BY hour
"""),
    "day": text("""
SELECT date_trunc('day', hour, 'UTC') AS day, sum(count), min(min), max(max), sum(sum)
FROM heartbeats_hour
WHERE customer_id = :customer_id AND hour >= :since AND hour < :until
GROUP BY day ORDER BY day
"""),
}

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


def read_history(
    engine: Engine,
    customer_id: str,
    since: datetime,
    until: datetime,
    step: str | None = None,
) -> History:
    """A customer's heart rate in a span.

    Arguments:
        step: raw or one of STEPS; None: the finest that the span, the beats and the
            retention allow.

    Raises:
        TooManyBeatsError: The step is raw, and there are more than MAX_POINTS.
        TooSlowError: It takes too long.
    """
    wanted = step or finest_step(until - since)
    with connected(engine) as connection:
        if step is None:
            wanted = _finest_kept(connection, wanted, since, until)
        if wanted == RAW:
            beats = _read_beats(connection, customer_id, since, until)
            if len(beats) <= MAX_POINTS:
                return History(customer_id, since, until, RAW, beats)
            if step == RAW:
                raise TooManyBeatsError(MAX_POINTS)
            wanted = "minute"
        since, until = widen(since, until, STEPS[wanted])
        buckets = _read_buckets(connection, customer_id, since, until, wanted)
    return History(customer_id, since, until, wanted, buckets)


def finest_step(span: timedelta) -> str:
    """The finest step that makes no more than MAX_POINTS of a span."""
    if span <= MAX_RAW_SPAN:
        return RAW
    # One more where neither end is at a step's.
    fitting = (name for name, step in STEPS.items() if span <= longest_span(step))
    return next(fitting, "day")


def _finest_kept(
    connection: Connection, step: str, since: datetime, until: datetime
) -> str:
    """The step, or the next one where the retention dropped what that is read from."""
    first, last = since.date(), until.date()
    if step == RAW and any(
        first <= day <= last for day in days.dropped_days(connection)
    ):
        step = "minute"
    if step == "minute":
        dropped = catalog.existing_months(connection, "heartbeats_hour")
        dropped -= catalog.existing_months(connection, "heartbeats_minute")
        if not dropped.isdisjoint({first.replace(day=1), last.replace(day=1)}):
            step = "hour"
    return step


def longest_span(step: timedelta) -> timedelta:
    """The longest span that never has more than MAX_POINTS of a step."""
    return (MAX_POINTS - 1) * step


def _read_beats(
    connection: Connection, customer_id: str, since: datetime, until: datetime
) -> list[Beat]:
    """One more than MAX_POINTS where there are more."""
    found: list[Beat] = []
    for first, end in in_time(by_days(catalog.existing_days(connection), since, until)):
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
    step: str,
) -> list[Bucket]:
    """The steps that have beats, ascending."""
    # The marks first: what is rolled up after that is right in either way.
    counted = list(not_rolled_up(connection, since, until, STEPS[step]))
    values = {"customer_id": customer_id, "step": STEPS[step], "origin": ORIGIN}
    rows = [
        row
        for row in connection.execute(
            ROLLED_UP[step], {**values, "since": since, "until": until}
        )
        if not _is_in(counted, row[0])
    ]
    for first, end in in_time(counted):
        rows += connection.execute(BUCKETS, {**values, "since": first, "until": end})
    return [
        Bucket(begin, int(count), least, most, round(int(total) / int(count), 3))
        for begin, count, least, most, total in sorted(rows)
    ]


def _is_in(spans: Sequence[Span], instant: datetime) -> bool:
    """Whether it lies in one of the spans, which are ascending and apart."""
    place = bisect_right(spans, instant, key=itemgetter(0)) - 1
    return place >= 0 and instant < spans[place][1]
