"""Makes daily partitions ahead of time, and drops what the retention is over for.

A day of beats is dropped in three steps, each a transaction of its own:
1. Check it: no minute of it is marked, and its roll-ups equal its beats. Otherwise the
   day stays for now.
2. Detach it, and note how many beats it has. No session waits longer than 50 ms for it.
3. Count its beats again, now that nobody can add any. Drop the day, or, where the count
   is not what was rolled up, attach it again and have it rolled up anew.

A worker that was killed after the second step goes on with the third in its next round.
A beat of a detached day is rejected, and does not bring the day back.

The database says how long what is kept: `alembic upgrade` takes it from the settings
(`Kept.write`), and the database's functions hold every worker to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

from sqlalchemy import Connection, Engine, delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog, errors, tables
from heartbeat_app.storage.rollup import marks, rollup_check

log = logging.getLogger(__name__)

DAYS_AHEAD = 3
# To get a table for an instant; others may wait 50 ms for each.
TRIES = 20
PAUSE_SECONDS = 0.5
# One transaction.
LETTERS = 5_000

# In the order of the fields of `Kept`.
KEPT_TABLES = ("heartbeats", "heartbeats_minute", "heartbeats_hour", "dead_letters")
VARIABLES = (
    "RETENTION_DAYS",
    "MINUTES_RETENTION_DAYS",
    "HOURS_RETENTION_DAYS",
    "DEAD_LETTERS_RETENTION_DAYS",
)


@dataclass(frozen=True, slots=True)
class Kept:
    """For how many days what is kept; None: for ever."""

    beats: int | None
    minutes: int | None
    hours: int | None
    dead_letters: int | None

    @classmethod
    def of(cls, settings: Settings) -> Kept:
        """As the settings say."""
        return cls(
            settings.retention_days,
            settings.minutes_retention_days,
            settings.hours_retention_days,
            settings.dead_letters_retention_days,
        )

    @classmethod
    def read(cls, connection: Connection) -> Kept:
        """As the database says, which is what counts."""
        c = tables.retention.c
        rows = connection.execute(select(c.table_name, c.days)).all()
        found = {row.table_name: row.days for row in rows}
        return cls(*map(found.get, KEPT_TABLES))

    def write(self, connection: Connection) -> None:
        """Have the database go by it from now on; for the owner."""
        connection.execute(delete(tables.retention))
        rows = [
            {"table_name": name, "days": days}
            for name, days in zip(KEPT_TABLES, astuple(self), strict=True)
            if days is not None
        ]
        if rows:
            connection.execute(insert(tables.retention), rows)

    def differences(self, wanted: Kept) -> Iterator[str]:
        """In which way the settings want something else than the database does."""
        for name, variable, kept, setting in zip(
            KEPT_TABLES, VARIABLES, astuple(self), astuple(wanted), strict=True
        ):
            if kept != setting:
                yield (
                    f"{variable} is {setting or 'not set'}, but the database keeps "
                    f"{name} {f'for {kept} days' if kept else 'for ever'}, and that "
                    "counts. If the setting is right, have the owner run `alembic "
                    "upgrade head` with it."
                )

    def drop_day_on(self, day: date) -> date | None:
        """When a day of beats is dropped: a day after its last beat is refused.

        So no clock that goes wrong by less makes it again.
        """
        return _after(day + timedelta(days=1), self.beats)

    def drop_minutes_on(self, month: date) -> date | None:
        """When the minutes of a month are dropped."""
        return _after(next_month(month), self.minutes)

    def drop_hours_on(self, month: date) -> date | None:
        """When the hours of a month are dropped."""
        return _after(next_month(month), self.hours)


def _after(end: date, kept: int | None) -> date | None:
    return None if kept is None else end + timedelta(days=kept + 1)


def next_month(month: date) -> date:
    """The first day of the month that follows."""
    return (month.replace(day=1) + timedelta(days=31)).replace(day=1)


class Retention:
    """Keeps the partitions as they should be, round by round; of one thread.

    Arguments:
        engine: Of two connections.
        wanted: What the worker's settings say; said where the database differs.
        clock: Tells the time, aware.
        stop: Set to end a round early.
    """

    def __init__(
        self,
        engine: Engine,
        wanted: Kept,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        stop: threading.Event | None = None,
    ) -> None:
        self._engine = engine
        self._wanted = wanted
        self._kept = wanted
        self._clock = clock
        self._stop = stop or threading.Event()
        # Rows of days that were found right, so that a day which cannot be detached
        # just now is not read again and again. They are counted once more afterwards.
        self._checked: dict[date, int] = {}

    def run_round(self) -> None:
        """Do what is due, unless another worker is at it; what fails is said.

        Raises:
            sqlalchemy.exc.DBAPIError: The database does not answer.
        """
        with self._alone() as alone:
            if not alone:
                return
            self._read_kept()
            for step in (
                self._finish_detaching,
                self._make_ahead,
                self._drop_days,
                self._drop_months,
                self._drop_letters,
            ):
                if self._stop.is_set():
                    return
                try:
                    step()
                except DBAPIError as error:
                    if error.connection_invalidated:
                        raise
                    log.warning(
                        "%s, to be tried again: %s",
                        (step.__doc__ or "").rstrip("."),
                        errors.words(error),
                    )

    def _read_kept(self) -> None:
        with self._engine.connect() as connection:
            kept = Kept.read(connection)
        if kept not in (self._kept, self._wanted):
            for line in kept.differences(self._wanted):
                log.warning(line)
        self._kept = kept

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody else's round is on, and none begins meanwhile."""
        with self._engine.begin() as connection:
            # It holds a lock and no snapshot, however long the round takes.
            connection.execute(
                text("SET LOCAL idle_in_transaction_session_timeout = 0")
            )
            yield bool(connection.scalar(select(func.take_lock("retention"))))

    def _finish_detaching(self) -> None:
        """Finish what a DETACH CONCURRENTLY left that was cut short."""
        with self._engine.begin() as connection:
            for name in connection.scalars(select(func.finish_detaching())).all():
                log.warning(
                    "%s was left half detached; it is detached now, and comes back "
                    "when a beat for it comes",
                    name,
                )

    def _make_ahead(self) -> None:
        """Make the partitions of the next days."""
        today = self._clock().astimezone(UTC).date()
        ahead = [today + timedelta(days=n) for n in range(DAYS_AHEAD)]
        with self._engine.connect() as connection:
            missing = (
                set(ahead)
                - catalog.existing_days(connection)
                - days.dropped_days(connection)
            )
        days.ensure_days(self._engine, missing)
        with self._engine.begin() as connection:
            for month in {day.replace(day=1) for day in ahead}:
                connection.execute(select(func.make_rollup_month(month)))

    def _drop_days(self) -> None:
        """Drop the days whose time is over."""
        with self._engine.connect() as connection:
            begun = self._begun(connection)
            existing = sorted(catalog.existing_days(connection))
        due = [day for day in existing if self._is_due(self._kept.drop_day_on(day))]
        self._each(
            [
                *(partial(self._drop, day) for day in begun),
                *(partial(self._drop_if_right, day) for day in due),
            ]
        )

    def _is_due(self, on: date | None) -> bool:
        return on is not None and on <= self._clock().astimezone(UTC).date()

    def _each(self, work: Iterable[Callable[[], None]]) -> None:
        """Do each; what fails is raised at the end, so that it holds up no other."""
        failed: DBAPIError | None = None
        for each in work:
            if self._stop.is_set():
                return
            try:
                each()
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                failed = failed or error
        if failed is not None:
            raise failed

    def _drop_if_right(self, day: date) -> None:
        if self._check(day) and self._detach(day):
            self._drop(day)

    def _begun(self, connection: Connection) -> list[date]:
        c = tables.dropped_days.c
        query = select(c.day).where(c.dropped_at.is_(None)).order_by(c.day)
        return list(connection.scalars(query))

    def _check(self, day: date) -> bool:
        """Whether a day is rolled up, and its roll-ups are right."""
        with self._engine.connect() as connection:
            if self._is_marked(connection, day):
                self._checked.pop(day, None)
                return False  # the roll-ups' job comes to it
            if day in self._checked:
                return True
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            wrong = list(rollup_check.problems(connection, day))
            counted = days.count(connection, day)
        if not wrong:
            self._checked[day] = counted
            return True
        for problem in wrong:
            log.error("%s is not dropped, but rolled up again: %s", day, problem)
        with self._engine.begin() as connection:
            marks.mark_spans(connection, [marks.day_span(day)])
        return False

    def _is_marked(self, connection: Connection, day: date) -> bool:
        since, until = marks.day_span(day)
        c = tables.rollup_marks.c
        query = select(c.id).where(c.since < until, c.until > since).limit(1)
        return connection.scalar(query) is not None

    def _detach(self, day: date) -> bool:
        """Take the day out of the table as soon as nobody is in the way."""
        for _ in range(TRIES):
            try:
                with self._engine.begin() as connection:
                    connection.execute(select(func.detach_day(day, self._checked[day])))
            except DBAPIError as error:
                if not errors.is_lock_timeout(error):
                    raise
            else:
                del self._checked[day]
                return True
            if self._stop.wait(PAUSE_SECONDS):
                return False
        log.info("%s is due to be dropped, but in use; to be tried again", day)
        return False

    def _drop(self, day: date) -> None:
        with self._engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            dropped = connection.scalar(select(func.drop_day(day)))
        if dropped:
            log.info("Dropped the beats of %s (RETENTION_DAYS)", day)
        else:
            log.warning("%s was not dropped: beats had come in meanwhile", day)

    def _drop_months(self) -> None:
        """Drop the roll-ups of months whose time is over."""
        work = []
        with self._engine.connect() as connection:
            for parent, drop_on in (
                ("heartbeats_minute", self._kept.drop_minutes_on),
                ("heartbeats_hour", self._kept.drop_hours_on),
            ):
                months = sorted(catalog.existing_months(connection, parent))
                work += [
                    partial(self._drop_month, parent, month)
                    for month in months
                    if self._is_due(drop_on(month))
                ]
        self._each(work)

    def _drop_month(self, parent: str, month: date) -> None:
        with self._engine.begin() as connection:
            connection.execute(select(func.drop_rollup_month(parent, month)))
        log.info("Dropped %s of %s", parent, f"{month:%Y-%m}")

    def _drop_letters(self) -> None:
        """Drop the dead letters whose time is over."""
        if self._kept.dead_letters is None:
            return
        before = self._clock() - timedelta(days=self._kept.dead_letters)
        dropped = 0
        while not self._stop.is_set():
            with self._engine.begin() as connection:
                some = connection.scalar(
                    select(func.drop_dead_letters(before, LETTERS))
                )
            if not some:
                break
            dropped += some
        if dropped:
            log.info("Dropped %s dead letters", f"{dropped:,}")
