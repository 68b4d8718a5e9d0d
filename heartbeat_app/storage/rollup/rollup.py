"""Works the roll-ups out again where beats came in: exact, whatever their order.

A pass of the job looks at the hours that are marked, the latest first, each in a
transaction of its own:
1. take the lock of the roll-ups, or leave the work to the session that has it
2. read the marks of the hour
3. count their minutes anew from the beats, in later statements, which so see all beats
   whose marks were read; add the hour up from its minutes
4. take away the marks that were read, as far as this hour reaches
5. commit

A mark that was made meanwhile stays for the next pass, so no beat that was not seen is
forgotten. Killed at any point, the rest is still marked. Any worker may run passes: the
lock, which ends with its transaction, lets one at a time write.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.storage.db.catalog import existing_days
from heartbeat_app.storage.db.tables import (
    heartbeats_hour,
    heartbeats_hour_all,
    rollup_marks,
)
from heartbeat_app.storage.rollup.marks import DAY, HOUR, MINUTE, day_span, merged

# There are no days of beats before or after.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
# So many are looked at, the latest first. More are there only after a year's import, or
# if somebody makes them: whatever is there, it must fit into the memory.
MOST_MARKS = 50_000
# A pass ends after about so long, so that the present is not behind years that are
# being worked out.
PASS_SECONDS = 10.0
# A statement that takes longer than the first gets fewer minutes the next time, one
# that takes less than the second gets more; from one minute to an hour.
LONG_SECONDS = 2.0
SHORT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Mark:
    """Minutes to be worked out, from `since` up to, not including, `until`; in UTC."""

    id: int
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is still to be worked out.

    Attributes:
        minutes: How many minutes are marked.
        oldest: When the oldest mark was made; None where there is none.
    """

    minutes: int
    oldest: datetime | None


class Job:
    """Works out what is marked, pass by pass; of one thread.

    Arguments:
        engine: Of one connection.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._step = 10 * MINUTE  # for one statement
        # Hours that failed or took a whole pass, in the order in which they did.
        self._put_off: dict[datetime, None] = {}
        # The hours from here on have the rates of their minutes.
        self._rates_since = LATEST
        self._has_rates = False

    def run_pass(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Work out what is marked now; whether all of it was done, by whomever.

        Arguments:
            stopped: Asked before each hour; the rest is left to the next pass.

        Raises:
            sqlalchemy.exc.DBAPIError: The first of an hour that could not be worked
                out; the others had their turn, unless the connection is gone.
        """
        enough = time.monotonic() + PASS_SECONDS
        failed: DBAPIError | None = None
        with self._engine.begin() as connection:
            hours, needless = _look(connection)
            if needless and _lock(connection):
                _take_away(connection, needless)
        done = True
        for number, hour in enumerate(self._in_turn(hours)):
            if stopped() or (number >= 2 and time.monotonic() > enough):
                done = False
                break
            began = time.monotonic()
            self._put_off.pop(hour, None)
            try:
                with self._engine.begin() as connection:
                    if not _lock(connection):
                        break  # another worker is at it
                    marks = read_marks(connection, hour, hour + HOUR)
                    if marks:
                        self._work_out(connection, hour, marks)
                        _settle(connection, hour, marks)
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                failed = failed or error
                self._put_off[hour] = None
            else:
                if time.monotonic() - began > PASS_SECONDS:
                    self._put_off[hour] = None
        if failed is not None:
            raise failed
        if done:
            self._add_minute_rates(enough, stopped)
        return done

    def _add_minute_rates(self, enough: float, stopped: Callable[[], bool]) -> None:
        """Add them to hours that were rolled up before migration 0009.

        Day by day, the latest first; each worker looks at each hour once.
        """
        c = heartbeats_hour.c
        all_hours = heartbeats_hour_all.c.hour
        while not self._has_rates and not stopped() and time.monotonic() < enough:
            with self._engine.begin() as connection:
                if not _lock(connection):
                    return
                newest = connection.scalar(
                    select(func.max(all_hours)).where(all_hours < self._rates_since)
                )
                if newest is None:
                    self._has_rates = True
                    return
                day, _ = day_span(newest.astimezone(UTC).date())
                unknown = (
                    select(c.hour)
                    .where(c.hour >= day, c.hour < day + DAY)
                    .where(c.minute_rates.is_(None))
                    .distinct()
                )
                for hour in connection.scalars(unknown).all():
                    connection.execute(select(func.roll_up_hour(hour)))
            self._rates_since = day

    def _in_turn(self, hours: Collection[datetime]) -> list[datetime]:
        """The latest first; of those that were put off one early, the others last.

        As a pass tries two hours at least, one that is too much or at fault neither
        keeps the others from their turn nor waits for all of them.
        """
        self._put_off = {hour: None for hour in self._put_off if hour in hours}
        late = list(self._put_off)
        first = sorted(set(hours).difference(late), reverse=True)
        return [*first[:1], *late[:1], *first[1:], *late[1:]]

    def read_backlog(self) -> Backlog:
        """What is still to be worked out."""
        with self._engine.connect() as connection:
            return read_backlog(connection)

    def _work_out(
        self, connection: Connection, hour: datetime, marks: Sequence[Mark]
    ) -> None:
        for since, until in merged((each.since, each.until) for each in marks):
            since, until = max(since, hour), min(until, hour + HOUR)
            while since < until:
                part = min(until, since + self._step)
                began = time.monotonic()
                try:
                    connection.execute(select(func.roll_up_minutes(since, part)))
                finally:  # one that was cut off was long, too
                    self._adapt(time.monotonic() - began)
                since = part
        connection.execute(select(func.roll_up_hour(hour)))

    def _adapt(self, seconds: float) -> None:
        if seconds > LONG_SECONDS:
            self._step = max(MINUTE, self._step // 2 // MINUTE * MINUTE)
        elif seconds < SHORT_SECONDS:
            self._step = min(HOUR, self._step * 2)


def read_marks(
    connection: Connection,
    since: datetime = EARLIEST,
    until: datetime = LATEST,
) -> list[Mark]:
    """The marks that there are between these instants; at most MOST_MARKS."""
    c = rollup_marks.c
    # Whatever stands there, Python can hold it.
    first, last = func.greatest(c.since, EARLIEST), func.least(c.until, LATEST)
    query = (
        select(c.id, first.label("since"), last.label("until"))
        .where(c.since < until, c.until > since, first < last)
        .order_by(c.until.desc())
        .limit(MOST_MARKS)
    )
    return [
        Mark(row.id, row.since.astimezone(UTC), row.until.astimezone(UTC))
        for row in connection.execute(query)
    ]


def read_backlog(connection: Connection) -> Backlog:
    """What is still to be worked out; of MOST_MARKS at most."""
    spans = merged((each.since, each.until) for each in read_marks(connection))
    oldest = connection.scalar(select(func.min(rollup_marks.c.marked_at)))
    return Backlog(
        sum((until - since) // MINUTE for since, until in spans),
        oldest and oldest.astimezone(UTC),
    )


def _look(connection: Connection) -> tuple[set[datetime], list[Mark]]:
    """The hours that are marked, and the marks of times that no day of beats has.

    There are only so many days. The marks are read first: a day is made before anything
    in it is marked, and one that comes back is marked as a whole.
    """
    marks = read_marks(connection)
    # Ascending and apart from each other.
    there = list(merged(map(day_span, existing_days(connection))))
    ends = [until for _, until in there]
    hours: set[datetime] = set()
    needless = []
    for each in marks:
        at = bisect_right(ends, each.since)
        touches = at < len(there) and there[at][0] < each.until
        if not touches:
            needless.append(each)
        while at < len(there) and there[at][0] < each.until:
            since, until = there[at]
            hours.update(_hours(max(since, each.since), min(until, each.until)))
            at += 1
    return hours, needless


def _hours(since: datetime, until: datetime) -> Iterator[datetime]:
    """The hours that the span touches."""
    hour = since.replace(minute=0, second=0, microsecond=0)
    while hour < until:
        yield hour
        hour += HOUR


def _lock(connection: Connection) -> bool:
    return bool(connection.scalar(select(func.take_lock("rollups"))))


def _take_away(connection: Connection, marks: Sequence[Mark]) -> None:
    """Take these marks away, whatever they reach."""
    ids = [each.id for each in marks]
    connection.execute(
        text("SELECT settle_marks(:ids, '-infinity', 'infinity')"), {"ids": ids}
    )


def _settle(connection: Connection, hour: datetime, marks: Sequence[Mark]) -> None:
    """Take away what of these marks lies in the hour.

    By their ids: what was marked since they were read is not settled.
    """
    ids = [each.id for each in marks]
    connection.execute(select(func.settle_marks(ids, hour, hour + HOUR)))
