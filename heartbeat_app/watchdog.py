"""Watches whether the worker does its work: readiness, and an end to standstill."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException
from faust.types import TP
from mode import Service
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.exceptions import StandstillError
from heartbeat_app.storage import errors
from heartbeat_app.storage.books import read_books
from heartbeat_app.storage.engine import STATEMENT_TIMEOUT_MS
from heartbeat_app.storage.reads import probe
from heartbeat_app.waiting import Waiting

LOOK_SECONDS = 1.0
BOOKS_SECONDS = 15.0
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
# A rebalance waits for the slowest member, at most as long as a session and a
# rebalance may take together.
REBALANCE_SECONDS = 180.0


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


@dataclass(slots=True)
class Seen:
    """How a partition was seen last.

    Attributes:
        done, moved: The offset up to which it was acknowledged, and since when.
        life, lived: What shows that somebody works on it, and since when.
    """

    done: int
    moved: float
    life: tuple[object, ...]
    lived: float


class Watchdog(Service):
    """Looks every second; ends the process when it stands still."""

    def __init__(
        self, app: Any, clock: Callable[[], float] = time.monotonic, **kwargs: Any
    ) -> None:
        self.app = app
        self.health = Health(("the worker has just started",), None)
        self._clock = clock
        self._books_due = 0.0
        self._problems: list[str] = []
        self._seen: dict[TP, Seen] = {}
        self._beats = 0  # of the event loop
        self._waiting: dict[TP, Waiting] = {}
        super().__init__(**kwargs)

    async def on_start(self) -> None:
        """Call when the worker starts."""
        threading.Thread(
            target=self._watch_loop, name="loop watch", daemon=True
        ).start()

    def _watch_loop(self) -> None:
        """End the process when its event loop is blocked, and with it all else here.

        By counted looks, not by the clock: a process that was frozen has done nothing
        wrong.
        """
        seen, looks = self._beats, 0
        while looks * LOOK_SECONDS < STANDSTILL_SECONDS:
            time.sleep(LOOK_SECONDS)
            if self.should_stop:  # the stop has a limit of its own
                return
            looks = looks + 1 if seen == self._beats else 0
            seen = self._beats
        self.log.critical(
            "The event loop is blocked for %g s. Ending, to be started anew.",
            STANDSTILL_SECONDS,
        )
        os._exit(1)

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
        self._beats += 1
        for uses, limit in (
            (self.app.reads_in_use, READ_SECONDS),
            (self.app.writer.uses, WRITE_SECONDS),
        ):
            if broken := uses.break_off(after_seconds=limit):
                self.log.warning(
                    "PostgreSQL did not answer for %g s: broke off %d connections, to "
                    "ask again on new ones.",
                    limit,
                    broken,
                )

    async def look(self) -> str | None:
        """Look once and update `health`; says why when the process has to end."""
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
        try:
            await asyncio.to_thread(probe, self.app.reads)
            if self._clock() >= self._books_due:
                books = await asyncio.to_thread(read_books, self.app.reads)
                self._problems = books.problems
                self._books_due = self._clock() + BOOKS_SECONDS
        except SQLAlchemyError as error:
            reasons.append(f"the database does not answer: {errors.words(error)}")
            return False
        reasons.extend(f"the books are off: {each}" for each in self._problems)
        return True

    async def _look_at_kafka(self, reasons: list[str]) -> dict[TP, int] | None:
        """Records that are in Kafka and not in the database, by assigned partition.

        None: nobody knows.
        """
        partitions = dict(self.app.lane.partitions)
        for tp, partition in partitions.items():
            if partition.truncated:
                reasons.append(
                    f"{tp.topic}[{tp.partition}]: the log ends before what is stored"
                )
        try:
            logs = await asyncio.to_thread(
                self.app.admin.topic_logs, self.app.lane.topics
            )
        except KafkaException as error:
            reasons.append(f"Kafka does not answer: {error.args[0].str()}")
            return None
        lags = {}
        for tp, partition in partitions.items():
            log = logs.get(tp.topic)
            if log is not None and tp.partition in log.partitions:
                lags[tp] = max(0, log.partitions[tp.partition].end - partition.done)
        return lags

    def _look_at_progress(
        self, reasons: list[str], lags: Mapping[TP, int] | None, database: bool
    ) -> str | None:
        """Look at each partition: one may stand still while the others move."""
        now = self._clock()
        before, self._seen = self._seen, {}
        for tp, partition in self.app.lane.partitions.items():
            lag = (lags or {}).get(tp, 0)
            attempts = self.app.writer.attempts[tp.topic, tp.partition]
            life = (partition.done, attempts, self.app.rebalancing)
            seen = self._seen[tp] = before.get(tp) or Seen(partition.done, now, (), now)
            if not lag or seen.done != partition.done:
                seen.done, seen.moved = partition.done, now
            if not lag or not database or seen.life != life:
                seen.life, seen.lived = life, now
        still = max((now - seen.moved for seen in self._seen.values()), default=0.0)
        lifeless = max((now - seen.lived for seen in self._seen.values()), default=0.0)
        if not self.app.rebalancing_count:
            reasons.append("the worker has not joined its group yet")
        if self.app.rebalancing:
            reasons.append("the group's partitions are being assigned")
            limit = REBALANCE_SECONDS
        else:
            limit = STANDSTILL_SECONDS
        waiting = sum((lags or {}).values())
        if still >= STALLED_SECONDS:
            reasons.append(
                f"nothing of a partition was stored for {still:.0f} s, "
                f"{waiting:,} are waiting"
            )
        if lifeless < limit:
            return None
        return (
            f"Nothing of a partition moved for {lifeless:.0f} s although {waiting:,} "
            "records are waiting and the database answers. Ending, to be started anew."
        )
