"""What the beats of customers were: answers that stay cheap on years of them.

Minutes, hours and days are read from the roll-ups, so also those of days whose beats
were dropped; where beats came in that are not rolled up yet, they are counted.

Where many days are asked about, that is done some at a time, each in a transaction of
its own: a day costs locks until it ends, and a server has a limited number.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from itertools import islice
from operator import itemgetter

from sqlalchemy import Connection, Engine, text

from heartbeat_app.exceptions import TooManyBeatsError, TooSlowError
from heartbeat_app.storage import days
from heartbeat_app.storage.marks import merged
from heartbeat_app.storage.questions import ANSWER_SECONDS
from heartbeat_app.storage.rollup import read_marks

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

# Each costs a lock for its table and for each of its indexes.
DAYS_A_QUERY = 50

ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
END = datetime(9999, 12, 31, tzinfo=UTC)

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

# The same of those that are rolled up: a descent for each customer and month.
CUSTOMERS_ROLLED_UP = text("""
WITH RECURSIVE found AS (
    SELECT customer_id, 1 AS number FROM (
        SELECT customer_id FROM heartbeats_hour
        WHERE customer_id > :after
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id, number + 1
    FROM found CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats_hour
        WHERE customer_id > found.customer_id
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


@dataclass(frozen=True, slots=True)
class Latest:
    """A customer's last beat."""

    customer_id: str
    timestamp: datetime
    heart_rate: int


def list_customers(engine: Engine, *, after: str, limit: int) -> list[str]:
    """The ids that have beats and come after `after`, in the database's order.

    Also those of whom nothing is kept but hours.
    """
    values: dict[str, object] = {"after": after, "limit": limit}
    with _connected(engine) as connection:
        # The marks first: what is rolled up after that is found in either way.
        counted = list(_not_rolled_up(connection, ORIGIN, END, STEPS["day"]))
        found = list(connection.scalars(CUSTOMERS_ROLLED_UP, values))
        for since, until in _in_time(counted):
            span = {"since": since, "until": until}
            found.extend(connection.scalars(CUSTOMERS, {**values, **span}))
        return list(connection.scalars(MERGE, {"ids": found, "limit": limit}))


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
        step: raw or one of STEPS; None: the finest that the span, the beats and the
            retention allow.

    Raises:
        TooManyBeatsError: The step is raw, and there are more than MAX_POINTS.
        TooSlowError: It takes too long.
    """
    wanted = step or finest_step(until - since)
    with _connected(engine) as connection:
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
        dropped = days.existing_months(connection, "heartbeats_hour")
        dropped -= days.existing_months(connection, "heartbeats_minute")
        if not dropped.isdisjoint({first.replace(day=1), last.replace(day=1)}):
            step = "hour"
    return step


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
    for first, end in _in_time(_spans(days.existing_days(connection), since, until)):
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
    counted = list(_not_rolled_up(connection, since, until, STEPS[step]))
    values = {"customer_id": customer_id, "step": STEPS[step], "origin": ORIGIN}
    rows = [
        row
        for row in connection.execute(
            ROLLED_UP[step], {**values, "since": since, "until": until}
        )
        if not _is_in(counted, row[0])
    ]
    for first, end in _in_time(counted):
        rows += connection.execute(BUCKETS, {**values, "since": first, "until": end})
    return [
        Bucket(begin, int(count), least, most, round(int(total) / int(count), 3))
        for begin, count, least, most, total in sorted(rows)
    ]


def _not_rolled_up(
    connection: Connection, since: datetime, until: datetime, step: timedelta
) -> Iterator[Span]:
    """The marked times, in whole steps, where there are beats to be counted.

    In whole hours at least, as the roll-ups' job takes them: few questions.
    """
    whole = max(step, STEPS["hour"])
    wide = merged(
        widen(each.since, each.until, whole)
        for each in read_marks(connection, since, until)
    )
    existing = days.existing_days(connection) if wide else set()
    for first, end in wide:
        yield from _spans(existing, max(since, first), min(until, end))


def _is_in(spans: Sequence[Span], instant: datetime) -> bool:
    """Whether it lies in one of the spans, which are ascending and apart."""
    place = bisect_right(spans, instant, key=itemgetter(0)) - 1
    return place >= 0 and instant < spans[place][1]


def _spans(
    existing: Collection[date], since: datetime, until: datetime
) -> Iterator[Span]:
    """The span cut into some that have few enough days each; where there are any."""
    there = iter(
        sorted(
            day
            for day in existing
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
    # A statement's limit is the connection's; this is that of all of one answer.
    deadline = time.monotonic() + ANSWER_SECONDS
    for span in spans:
        if time.monotonic() > deadline:
            raise TooSlowError(ANSWER_SECONDS)
        yield span
