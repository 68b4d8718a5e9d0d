"""The records: made anew whenever they are needed, always the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from heartbeat_app.domain.models import Heartbeat, encode

DAY = date(2026, 1, 1)
DAY_BEGIN = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
DAY_LENGTH = timedelta(days=1)

CUSTOMERS = 1000
# A producer's retry comes this many records later, at most.
LATELY = 1000
# One record in so many is sent again, or is bad.
ONE_IN = 100

BAD_VALUES = (
    b"not json",
    b'{"customer_id": "customer-0001", "heart_rate": 70}',
    b'{"customer_id": "customer-0001", "timestamp": "2026-01-01T00:00:00+00:00",'
    b' "heart_rate": 9000}',
)


@dataclass(frozen=True)
class Window:
    """A part of the day: from `since` to before `until`."""

    since: datetime = DAY_BEGIN
    until: datetime = DAY_BEGIN + DAY_LENGTH


WHOLE_DAY = Window()


def make_beats(count: int, window: Window = WHOLE_DAY) -> Iterator[Heartbeat]:
    """1,000 customers in turn, evenly over the window."""
    step = (window.until - window.since) / (count + 1)
    for number in range(count):
        yield Heartbeat(
            f"customer-{number % CUSTOMERS:04d}",
            window.since + number * step,
            60 + number % 41,
        )


def lately_sent_again(count: int) -> Iterator[Heartbeat]:
    """`count` beats, 1 % of them sent before, at most 1,000 records ago."""
    return _sent_again(count, LATELY)


def sent_again_from_anywhere(count: int) -> Iterator[Heartbeat]:
    """`count` beats, 1 % of them sent before at any time."""
    return _sent_again(count, count)


def _sent_again(count: int, back: int) -> Iterator[Heartbeat]:
    chosen = random.Random(1)
    sent: list[Heartbeat] = []
    fresh = make_beats(count)
    for number in range(count):
        if number % ONE_IN == ONE_IN - 1:
            yield sent[chosen.randrange(max(0, len(sent) - back), len(sent))]
        else:
            beat = next(fresh)
            sent.append(beat)
            yield beat


def some_bad(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of `count` records, 1 % of which are no heartbeats."""
    for number, beat in enumerate(make_beats(count)):
        bad = number % ONE_IN == ONE_IN - 1
        which = number // ONE_IN % len(BAD_VALUES)
        yield beat.customer_id.encode(), BAD_VALUES[which] if bad else encode(beat)


# What raw COPY is, the limit: PostgreSQL's own format, which everybody uses.
COPY = 'COPY heartbeats (customer_id, "timestamp", heart_rate) FROM STDIN'


def copy_line(beat: Heartbeat) -> str:
    """The beat as COPY reads it."""
    return f"{beat.customer_id}\t{beat.timestamp}\t{beat.heart_rate}\n"
