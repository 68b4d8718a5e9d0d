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
lock, which ends with its session, lets one at a time write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from heartbeat_app.storage.marks import DAY, HOUR, MINUTE, day_span, merged
from heartbeat_app.storage.tables import (
    heartbeats_hour,
    heartbeats_hour_all,
    rollup_marks,
)

# All that change roll-ups, or what they are made of, take it: see migration 0002.
ADVISORY_LOCK = 0x726F6C6C
EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
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
        with self._engine.connect() as connection:
            hours = {hour for each in read_marks(connection) for hour in _hours(each)}
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
    """The marks that there are between these instants."""
    c = rollup_marks.c
    query = select(c.id, c.since, c.until).where(c.since < until, c.until > since)
    return [
        Mark(row.id, row.since.astimezone(UTC), row.until.astimezone(UTC))
        for row in connection.execute(query)
    ]


def read_backlog(connection: Connection) -> Backlog:
    """What is still to be worked out."""
    spans = merged((each.since, each.until) for each in read_marks(connection))
    oldest = connection.scalar(select(func.min(rollup_marks.c.marked_at)))
    return Backlog(
        sum((until - since) // MINUTE for since, until in spans),
        oldest and oldest.astimezone(UTC),
    )


def _hours(mark: Mark) -> Iterator[datetime]:
    """The hours that a mark touches."""
    hour = mark.since.replace(minute=0)
    while hour < mark.until:
        yield hour
        hour += HOUR


def _lock(connection: Connection) -> bool:
    locked = connection.scalar(select(func.pg_try_advisory_xact_lock(ADVISORY_LOCK)))
    return bool(locked)


def _settle(connection: Connection, hour: datetime, marks: Sequence[Mark]) -> None:
    """Take away what of these marks lies in the hour.

    By their ids: what was marked since they were read is not settled.
    """
    ids = [each.id for each in marks]
    connection.execute(select(func.settle_marks(ids, hour, hour + HOUR)))
