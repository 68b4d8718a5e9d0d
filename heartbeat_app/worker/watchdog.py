"""Watches whether the worker does its work: readiness, and an end to standstill."""

from __future__ import annotations

import asyncio
import faulthandler
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException
from faust.types import TP
from mode import Service
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.exceptions import StandstillError
from heartbeat_app.kafka.client import TopicLog
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import STATEMENT_TIMEOUT_MS, end_waits
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.read.reads import probe
from heartbeat_app.worker.waiting import Waiting

LOOK_SECONDS = 1.0
BOOKS_SECONDS = 15.0
# Where it takes longer to read them, as with very many dead letters, they are read less
# often: for a tenth of the time at most.
BOOKS_SHARE = 0.1
# Not ready after so long without a move, although there is something to read.
STALLED_SECONDS = 20.0
# Ended after so long, since nothing but a new start helps: with the time that the end
# takes within a minute. A single statement may take as long as its time-out, after
# which its attempt counts as a sign of life.
STANDSTILL_SECONDS = 45.0
# Broken off after so long, whatever the other side does: a look, so that the health is
# never an old one, and a write, which may take its statement's time-out.
READ_SECONDS = 15.0
WRITE_SECONDS = STATEMENT_TIMEOUT_MS / 1000 + 5.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a partition is behind: records, and since when the oldest waits."""

    records: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the worker is ready, why not, and how far it is behind.

    Attributes:
        lag: Records in all; None: nobody knows, Kafka does not answer.
        lags: The same by assigned partition; empty where nobody knows.
    """

    reasons: tuple[str, ...]
    lag: int | None
    lags: Mapping[TP, Lag] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Ready: the database answers, the books balance, and what comes is stored."""
        return not self.reasons


class Watchdog(Service):
    """Looks every second; ends the process when it stands still."""

    def __init__(
        self, app: Any, clock: Callable[[], float] = time.monotonic, **kwargs: Any
    ) -> None:
        self.app = app
        self.health = Health(("the worker has just started",), None)
        self.logs: Mapping[str, TopicLog] | None = None  # as Kafka told last
        self._clock = clock
        self._books_due = 0.0
        self._about_books: list[str] = []  # why they are against readiness
        self._unread = False  # they could not be read
        # What showed last that something moves, and since when it is the same.
        self._signs: dict[object, tuple[object, float]] = {}
        self._before: dict[object, tuple[object, float]] = {}  # the look before
        self._waiting: dict[TP, Waiting] = {}
        self._looked = clock()
        self._awake = 0.0  # seconds, without those in which the process was frozen
        super().__init__(**kwargs)

    def _watch_itself(self) -> None:
        """Have the process ended when the look does not go on from here.

        By a thread of C, which needs neither the event loop nor Python's lock. It tells
        standard error where each thread was. A process that was frozen for so long ends
        as it wakes up: its partitions are others' by then.
        """
        if not self.should_stop:
            faulthandler.dump_traceback_later(STANDSTILL_SECONDS, exit=True, file=2)

    async def on_stop(self) -> None:
        """Call when the worker stops, which has a limit of its own."""
        faulthandler.cancel_dump_traceback_later()

    @Service.timer(LOOK_SECONDS)
    async def _watch(self) -> None:
        try:
            stalled = await self.look()
        except Exception as error:  # a timer that raises ends the worker
            self.log.exception("The watchdog could not look: %r", error)
            return
        if stalled:
            await self.app.crash(StandstillError(stalled))

    @Service.timer(LOOK_SECONDS)
    async def _end_waits(self) -> None:
        """Beside the look, which may be what waits."""
        self.age_health()
        limits = (
            (self.app.reads_in_use, READ_SECONDS),
            # Else two questions to a server that hangs would keep their threads for
            # ever.
            (self.app.questions.uses, READ_SECONDS),
            (self.app.feed.uses, READ_SECONDS),
            (self.app.writer.uses, WRITE_SECONDS),
        )
        end_waits(limits, self.log)

    def age_health(self) -> None:
        """Not ready when a look takes so long that `health` would be an old one."""
        ago = self._clock() - self._looked
        if ago >= STALLED_SECONDS:
            self.health = Health((f"the last look was {ago:.0f} s ago",), None)

    async def look(self) -> str | None:
        """Look once and update `health`; says why when the process has to end."""
        if self.app.should_stop:
            # Python waits at its end for a question to a server that hangs.
            self.health = Health(("the worker stops",), None)
            return None
        reasons: list[str] = []
        database = await self._look_at_database(reasons)
        lags = await self._look_at_kafka(reasons)
        stalled = self._look_at_progress(reasons, lags, database)
        lag = None if lags is None else sum(lags.values())
        self.health = Health(tuple(reasons), lag, self._how_far_behind(lags or {}))
        return stalled

    def _how_far_behind(self, lags: Mapping[TP, int]) -> dict[TP, Lag]:
        found = {}
        if lags:  # else Kafka does not answer: it is still waited for
            self._waiting = {tp: self._waiting.get(tp) or Waiting() for tp in lags}
        for tp, records in lags.items():
            partition = self.app.lane.partitions.get(tp)
            if partition is None:  # taken away just now
                continue
            done = partition.done
            seconds = self._waiting[tp].look(
                self._clock(), done=done, end=done + records
            )
            found[tp] = Lag(records, seconds)
        return found

    async def _look_at_database(self, reasons: list[str]) -> bool:
        self._watch_itself()
        try:
            await asyncio.to_thread(probe, self.app.reads)
        except SQLAlchemyError as error:
            reasons.append(f"the database does not answer: {errors.words(error)}")
            return False
        well = self._clock() < self._books_due or await self._look_at_books()
        reasons.extend(self._about_books)
        return well

    async def _look_at_books(self) -> bool:
        """Whether the database did its part; too long an answer is no sign against."""
        self._watch_itself()
        again, self._unread = self._unread, False
        began = self._clock()
        try:
            books = await asyncio.to_thread(read_books, self.app.reads)
            self._about_books = [
                f"the books are off: {each}" for each in books.problems
            ]
        except SQLAlchemyError as error:
            self._about_books = [f"the books could not be read: {errors.words(error)}"]
            self._unread = True
        took = self._clock() - began
        pause = took / BOOKS_SHARE
        if not self._unread:
            pause = max(pause, BOOKS_SECONDS)
        elif not again:  # the database may have gone away just then
            pause = 0.0
        self._books_due = self._clock() + pause
        return not self._unread or took >= LOOK_SECONDS

    async def _look_at_kafka(self, reasons: list[str]) -> dict[TP, int] | None:
        """Records that are in Kafka and not in the database, by assigned partition.

        None: nobody knows.
        """
        self._watch_itself()
        partitions = dict(self.app.lane.partitions)
        for tp, partition in partitions.items():
            if partition.truncated:
                reasons.append(
                    f"{tp.topic}[{tp.partition}]: the log ends before what is stored"
                )
            if partition.damage is not None:
                reasons.append(f"{tp.topic}[{tp.partition}]: {partition.damage}")
        try:
            logs = await asyncio.to_thread(
                self.app.admin.topic_logs, self.app.lane.topics
            )
        except KafkaException as error:
            self.logs = None
            reasons.append(f"Kafka does not answer: {error.args[0].str()}")
            return None
        if unknown := self.app.lane.topics - logs.keys():
            # Deleted. A new start would make it again, which is for a person to do.
            reasons.append(f"Kafka has no topic {', '.join(sorted(unknown))}")
            return None
        self.logs = logs
        lags = {}
        for tp, partition in partitions.items():
            log = logs.get(tp.topic)
            if log is not None and tp.partition in log.partitions:
                lags[tp] = log.partitions[tp.partition].unread(partition.done)
        return lags

    def _look_at_progress(
        self, reasons: list[str], lags: Mapping[TP, int] | None, database: bool
    ) -> str | None:
        """Look whether anything stands still; says why when the process has to end."""
        well = database and lags is not None
        self._before, self._signs = self._signs, {}
        # A process that was frozen between two looks has done nothing wrong.
        self._awake += min(READ_SECONDS, self._clock() - self._looked)
        self._looked = self._clock()
        # While others come and go it may join again and again before it gets any.
        group = self.app.rebalancing_count, self.app.consumer.generation
        joining = self._look_at_group(reasons, group, well)
        return self._look_at_partitions(reasons, lags or {}, group, well) or joining

    def _look_at_group(
        self, reasons: list[str], group: tuple[int, int], well: bool
    ) -> str | None:
        joined = self.app.rebalancing_count > 0
        if not joined:
            reasons.append("the worker has not joined its group yet")
        if self.app.rebalancing:
            reasons.append("the group's partitions are being assigned")
        joining = self._unchanged(
            "group", group, waited_for=well and (self.app.rebalancing or not joined)
        )
        if joining < STANDSTILL_SECONDS:
            return None
        return (
            f"The worker got no partitions for {joining:.0f} s although Kafka and the "
            "database answer. Ending, to be started anew."
        )

    def _look_at_partitions(
        self,
        reasons: list[str],
        lags: Mapping[TP, int],
        group: tuple[int, int],
        well: bool,
    ) -> str | None:
        """Look at each: one may stand still while the others move."""
        still = lifeless = 0.0
        for tp, partition in self.app.lane.partitions.items():
            # One that was truncated, or is damaged, may wait for a person.
            waits = partition.truncated or (
                partition.damage is not None and not partition.waiting
            )
            lag = not waits and lags.get(tp, 0) > 0
            done = partition.done
            steps = partition.steps
            writes = self.app.writer.signs_of_life
            write = self.app.writes.get(tp)
            is_in_line = (write and not (write.running() or write.done())) or (
                not partition.waiting and self.app.lane.is_crowded()
            )
            life = (
                done,
                steps,
                writes[tp.topic, tp.partition],
                group,
                self.app.rebalancing,
                # While it waits for its turn, the turns of the others count.
                is_in_line and writes.total(),
            )
            still = max(
                still, self._unchanged((tp, "done"), (done, steps), waited_for=lag)
            )
            lifeless = max(
                lifeless, self._unchanged((tp, "life"), life, waited_for=lag and well)
            )
        waiting = sum(lags.values())
        if still >= STALLED_SECONDS:
            reasons.append(
                f"nothing of a partition was stored for {still:.0f} s, "
                f"{waiting:,} are waiting"
            )
        if lifeless < STANDSTILL_SECONDS:
            return None
        return (
            f"Nothing of a partition moved for {lifeless:.0f} s although {waiting:,} "
            "records are waiting and the database answers. Ending, to be started anew."
        )

    def _unchanged(self, what: object, signs: object, *, waited_for: bool) -> float:
        """For how long it was waited for and showed no other sign, seconds."""
        sign, since = self._before.get(what, (None, self._awake))
        if not waited_for or sign != signs:
            since = self._awake
        self._signs[what] = signs, since
        return self._awake - since
