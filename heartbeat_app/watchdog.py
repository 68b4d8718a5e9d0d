"""Watches whether the worker does its work: readiness, and an end to standstill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException
from mode import Service
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.exceptions import StandstillError
from heartbeat_app.storage import errors
from heartbeat_app.storage.books import read_books
from heartbeat_app.storage.reads import probe

LOOK_SECONDS = 1.0
BOOKS_SECONDS = 15.0
# Not ready after so long without a move, although there is something to read.
STALLED_SECONDS = 20.0
# Ended after so long, since nothing but a new start helps. A single statement may
# take as long as its time-out, after which its attempt counts as a sign of life.
STANDSTILL_SECONDS = 75.0
# A rebalance waits for the slowest member, at most as long as a session and a
# rebalance may take together.
REBALANCE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the worker is ready, why not, and how far it is behind."""

    reasons: tuple[str, ...]
    lag: int | None

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
        self._clock = clock
        self._books_due = 0.0
        self._problems: list[str] = []
        # Since when neither (a) an offset was acknowledged, nor (b) a write ended.
        self._moved: tuple[object, float] = (None, clock())
        self._lived: tuple[object, float] = (None, clock())
        super().__init__(**kwargs)

    @Service.timer(LOOK_SECONDS)
    async def _watch(self) -> None:
        try:
            stalled = await self.look()
        except Exception as error:  # a timer that raises ends the worker
            self.log.exception("The watchdog could not look: %r", error)
            return
        if stalled:
            await self.app.crash(StandstillError(stalled))

    async def look(self) -> str | None:
        """Look once and update `health`; says why when the process has to end."""
        reasons: list[str] = []
        database = await self._look_at_database(reasons)
        lag = await self._look_at_kafka(reasons)
        stalled = self._look_at_progress(reasons, lag, database)
        self.health = Health(tuple(reasons), lag)
        return stalled

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

    async def _look_at_kafka(self, reasons: list[str]) -> int | None:
        """Records that are in Kafka and not in the database; None: nobody knows."""
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
        lag = 0
        for tp, partition in partitions.items():
            log = logs.get(tp.topic)
            if log is not None and tp.partition in log.partitions:
                lag += max(0, log.partitions[tp.partition].end - partition.done)
        return lag

    def _look_at_progress(
        self, reasons: list[str], lag: int | None, database: bool
    ) -> str | None:
        now = self._clock()
        done = {tp: each.done for tp, each in self.app.lane.partitions.items()}
        if not lag or done != self._moved[0]:
            self._moved = (done, now)
        life = (done, self.app.writer.attempts, self.app.rebalancing)
        if not lag or not database or life != self._lived[0]:
            self._lived = (life, now)
        still, lifeless = now - self._moved[1], now - self._lived[1]
        if not self.app.rebalancing_count:
            reasons.append("the worker has not joined its group yet")
        if self.app.rebalancing:
            reasons.append("the group's partitions are being assigned")
            limit = REBALANCE_SECONDS
        else:
            limit = STANDSTILL_SECONDS
        if still >= STALLED_SECONDS:
            reasons.append(f"nothing was stored for {still:.0f} s, {lag:,} are waiting")
        if lifeless < limit:
            return None
        return (
            f"Nothing moved for {lifeless:.0f} s although {lag:,} records are waiting "
            "and the database answers. Ending, to be started anew."
        )
