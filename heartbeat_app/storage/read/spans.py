"""Spans of time: which of them are read from the beats, some days of them at once.

Where many days are asked about, that is done some at a time, each in a transaction of
its own: a day costs locks until it ends, and a server has a limited number.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import islice

import psycopg2
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from heartbeat_app.exceptions import TooSlowError
from heartbeat_app.storage.db import catalog
from heartbeat_app.storage.read.questions import ANSWER_SECONDS
from heartbeat_app.storage.rollup.marks import HOUR, LAST, day_span, merged
from heartbeat_app.storage.rollup.rollup import read_marks

# From the first instant up to, not including, the second.
Span = tuple[datetime, datetime]

# Each costs a lock for its table and for each of its indexes.
DAYS_A_QUERY = 50

ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
END = datetime(9999, 12, 31, tzinfo=UTC)


@contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """A connection that reads, each statement in a transaction of its own."""
    with engine.connect() as connection:
        try:
            connection = connection.execution_options(
                isolation_level="AUTOCOMMIT", postgresql_readonly=True
            )
        except psycopg2.Error as error:
            # SQLAlchemy takes no notice of what this tells of a connection that was
            # cut; the others may have been, too.
            connection.invalidate(error)
            engine.dispose()
            raise OperationalError(
                None, None, error, connection_invalidated=True
            ) from error
        yield connection


def widen(since: datetime, until: datetime, step: timedelta) -> Span:
    """The whole steps that hold the span."""
    # The remainder of a division, so that it is never negative.
    begin = since - (since - ORIGIN) % step
    rest = (ORIGIN - until) % step
    return begin, until + rest if rest <= LAST - until else LAST


def not_rolled_up(
    connection: Connection, since: datetime, until: datetime, step: timedelta
) -> Iterator[Span]:
    """The marked times, in whole steps, where there are beats to be counted.

    In whole hours at least, as the roll-ups' job takes them: few questions.
    """
    whole = max(step, HOUR)
    wide = merged(
        widen(each.since, each.until, whole)
        for each in read_marks(connection, since, until)
    )
    existing = catalog.existing_days(connection) if wide else set()
    for first, end in wide:
        yield from by_days(existing, max(since, first), min(until, end))


def by_days(
    existing: Collection[date], since: datetime, until: datetime
) -> Iterator[Span]:
    """The span cut into some that have few enough days each; where there are any."""
    there = iter(
        sorted(
            span
            for span in map(day_span, existing)
            if span[0] < until and span[1] > since
        )
    )
    while some := list(islice(there, DAYS_A_QUERY)):
        yield max(since, some[0][0]), min(until, some[-1][1])


def in_time(spans: Iterable[Span]) -> Iterator[Span]:
    """The spans, for as long as there is time to ask about another one."""
    # A statement's limit is the connection's; this is that of all of one answer.
    deadline = time.monotonic() + ANSWER_SECONDS
    for span in spans:
        if time.monotonic() > deadline:
            raise TooSlowError(ANSWER_SECONDS)
        yield span
