"""Beats in their order, a page at a time, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day

from sqlalchemy import Engine, text

from heartbeat_app.exceptions import DayGoneError
from heartbeat_app.storage.db import catalog

# Some ten megabytes of memory, and some hundred milliseconds of a statement.
PAGE = 50_000

# A day's bounds are in each, so that PostgreSQL opens that day only. A page goes on
# behind the last beat of the one before.
OF_ONE = text("""
SELECT customer_id, "timestamp", heart_rate FROM heartbeats
WHERE customer_id = :customer_id AND "timestamp" >= :since AND "timestamp" < :until
  AND "timestamp" > :after_time
ORDER BY "timestamp" LIMIT :limit
""")
OF_ALL = text("""
SELECT customer_id, "timestamp", heart_rate FROM heartbeats
WHERE "timestamp" >= :since AND "timestamp" < :until
  AND ("timestamp", customer_id) > (:after_time, :after_id)
ORDER BY "timestamp", customer_id LIMIT :limit
""")

Row = tuple[str, datetime, int]


@dataclass(frozen=True, slots=True)
class Page:
    """Some beats, ascending by their instants, and how much of the time is done.

    Attributes:
        rows: customer_id, timestamp, heart_rate; at most PAGE of them.
        done, total: Seconds of the days that there are.
    """

    rows: Sequence[Row]
    done: float
    total: float


def read_pages(
    engine: Engine,
    *,
    customer_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Page]:
    """All beats from `since` up to, not including, `until`; at least one page.

    Each page is a transaction of its own: nothing is held while the reader writes it
    down, however long that takes. What is stored meanwhile is there if it lies ahead,
    on a day that was there at the beginning.

    Arguments:
        customer_id: Only this customer's.

    Raises:
        DayGoneError: A day was dropped or detached before all of it was read.
    """
    with engine.connect() as connection:
        existing = sorted(catalog.existing_days(connection))
    spans = [
        (begin, end)
        for begin, end in (_within(day, since, until) for day in existing)
        if begin < end
    ]
    total = sum((end - begin).total_seconds() for begin, end in spans)
    done = 0.0
    yield Page([], done, total)
    for begin, end in spans:
        after = begin - timedelta(microseconds=1), ""
        while True:
            with engine.connect() as connection:
                found = connection.execute(
                    OF_ALL if customer_id is None else OF_ONE,
                    {
                        "customer_id": customer_id,
                        "since": max(begin, after[0]),
                        "until": end,
                        "after_time": after[0],
                        "after_id": after[1],
                        "limit": PAGE,
                    },
                )
                rows = [(row[0], row[1], row[2]) for row in found]
                # While this transaction has read the day, it does not go away.
                is_last = len(rows) < PAGE
                if is_last and begin.date() not in catalog.existing_days(connection):
                    raise DayGoneError(begin.date())
            if is_last:
                break
            after = rows[-1][1], rows[-1][0]
            yield Page(rows, done + (after[0] - begin).total_seconds(), total)
        done += (end - begin).total_seconds()
        yield Page(rows, done, total)


def _within(
    day: date, since: datetime | None, until: datetime | None
) -> tuple[datetime, datetime]:
    begin = datetime.combine(day, time_of_day.min, UTC)
    end = begin + timedelta(days=1)
    return max(begin, since or begin), min(end, until or end)
