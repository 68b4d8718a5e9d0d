"""Marks the minutes that beats came into, for the roll-ups to be worked out again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection

from heartbeat_app.storage.db.prepared import Bound, Prepared, run

# From whole minute up to, not including, whole minute.
Span = tuple[datetime, datetime]

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# There is no later instant.
LAST = datetime.max.replace(tzinfo=UTC)

# Beats come almost in order. So many in a row lie close together as a rule, and then
# their first and their last say enough: a few minutes more are worked out again.
RUN = 256
CLOSE = 5 * MINUTE
# Otherwise they are looked at minute by minute; after so many steps in a batch hour by
# hour, and after as many again by their days. More is worked out again then than was
# touched, but a batch of years leaves a few hundred marks, and one a day.
STEPS = 200

INSERT = Prepared(
    "marks_insert",
    ("TIMESTAMPTZ[]", "TIMESTAMPTZ[]"),
    "INSERT INTO rollup_marks (since, until) SELECT * FROM unnest($1, $2)",
)


def touched(timestamps: Sequence[datetime]) -> list[Span]:
    """Spans that hold the timestamps, ascending, apart from each other, in UTC.

    It must cost next to nothing: PostgreSQL stores a beat in about 5 µs.
    """
    if 0 < len(timestamps) <= RUN:  # what comes live: nothing to put together
        first, last = min(timestamps), max(timestamps)
        if last - first <= CLOSE:
            return [span(first, last)]
    spans: set[Span] = set()
    days: set[date] = set()
    steps = 0
    for start in range(0, len(timestamps), RUN):
        run = timestamps[start : start + RUN]
        first, last = min(run), max(run)
        if last - first <= CLOSE:
            spans.add(span(first, last))
        elif steps < 2 * STEPS:
            run = sorted(run)
            at = 0
            while at < len(run):
                unit = MINUTE if steps < STEPS else HOUR
                since = _floor(run[at], unit)
                spans.add((since, since + unit))
                at = bisect_left(run, since + unit, at + 1)
                steps += 1
        else:
            days.update([each.astimezone(UTC).date() for each in run])
    return merged([*spans, *map(day_span, days)])


def span(first: datetime, last: datetime) -> Span:
    """The minutes from the first timestamp to the last."""
    return _floor(first, MINUTE), _floor(last, MINUTE) + MINUTE


def day_span(day: date) -> Span:
    """The day, in UTC."""
    since = datetime(day.year, day.month, day.day, tzinfo=UTC)
    # The last day has no next one.
    return since, LAST if day == date.max else since + DAY


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same minutes as spans that are ascending and apart from each other."""
    found: list[Span] = []
    for since, until in sorted(spans):
        if found and since <= found[-1][1]:
            before = found.pop()
            since, until = before[0], max(before[1], until)
        found.append((since, until))
    return found


def _floor(timestamp: datetime, unit: timedelta) -> datetime:
    timestamp = timestamp.astimezone(UTC)
    minute = 0 if unit == HOUR else timestamp.minute
    return timestamp.replace(minute=minute, second=0, microsecond=0)


def marking(timestamps: Sequence[datetime]) -> list[Bound]:
    """What marks the minutes of rows that are new, for the transaction of the rows."""
    return _inserting(touched(timestamps))


def mark(connection: Connection, timestamps: Sequence[datetime]) -> None:
    """Mark the minutes of rows that are new, in the transaction that stores them."""
    mark_spans(connection, touched(timestamps))


def mark_spans(connection: Connection, spans: Iterable[Span]) -> None:
    """Mark these minutes."""
    if statements := _inserting(spans):
        run(connection, statements)


def _inserting(spans: Iterable[Span]) -> list[Bound]:
    marked = list(spans)
    return [INSERT.bind(*map(list, zip(*marked, strict=True)))] if marked else []
