"""Keeps the roll-ups exact and the partitions as they should be, beside the worker.

Every worker has it; locks in the database let one at a time do the work, so there is
no leader to lose.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mode import Service

from heartbeat_app.config import Settings
from heartbeat_app.storage.days.retention import Kept, Retention
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import (
    STATEMENT_TIMEOUT_MS,
    Uses,
    end_waits,
    make_engine,
)
from heartbeat_app.storage.rollup import ingest, rollup

# Passes begin at these seconds of each minute, the first when the last beats of the
# minute before are there. Oftener, and the present minute's rows are written anew for
# little; less often, and beats that come in just after a pass are not in the roll-ups
# within 60 s for sure where the worker that has the next pass is killed in it.
PASS_AT_SECONDS = (3.0, 23.0, 43.0)
# Between passes when there is more to do than one pass does.
CATCH_UP_SECONDS = 5.0
RETENTION_SECONDS = 60.0
# A connection that neither answers nor closes is broken off after so long: a statement
# of the roll-ups has a time-out; a round of the retention may read a whole day.
ROLLUP_ANSWER_SECONDS = STATEMENT_TIMEOUT_MS / 1000 + 5.0
RETENTION_ROUND_SECONDS = 3600.0
CANCEL_SECONDS = 1.0

Result = TypeVar("Result")


def until_next_pass(now: float) -> float:
    """Seconds until a pass is due; more than none.

    Arguments:
        now: Seconds since the epoch.
    """
    second = now % 60
    first, *_ = PASS_AT_SECONDS
    return (
        next((each for each in PASS_AT_SECONDS if each > second), first + 60) - second
    )


class Maintenance(Service):
    """Two threads: one for the roll-ups, one for partitions and retention.

    Attributes:
        backlog: What is still to be rolled up, by all workers, as it was after the last
            pass; None: nobody knows.
    """

    def __init__(self, settings: Settings, **kwargs: Any) -> None:
        self.backlog: rollup.Backlog | None = None
        self._stopping = threading.Event()
        name = "heartbeat_app maintenance"
        rollups = make_engine(settings, application_name=name)
        retention = make_engine(settings, application_name=name, pool_size=2)
        self._job = rollup.Job(rollups)
        self._ingest = ingest.Hours(rollups)
        self._retention = Retention(retention, Kept.of(settings), stop=self._stopping)
        self._limits = (
            (Uses(rollups, by_statement=True), ROLLUP_ANSWER_SECONDS),
            (Uses(retention), RETENTION_ROUND_SECONDS),
        )
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="maintenance")
        super().__init__(**kwargs)

    @Service.task
    async def _roll_up(self) -> None:
        while not self.should_stop:
            done = await self._run(
                lambda: self._job.run_pass(self._stopping.is_set), "The roll-ups"
            )
            self.backlog = await self._run(
                self._job.read_backlog, "The look at what is to be rolled up"
            )
            added_up = await self._run(
                lambda: self._ingest.run_pass(self._stopping.is_set),
                "The hours of what came in",
            )
            more = done is False or added_up is False
            await self.sleep(CATCH_UP_SECONDS if more else until_next_pass(time.time()))

    @Service.task
    async def _retain(self) -> None:
        while not self.should_stop:
            await self._run(self._retention.run_round, "The retention")
            await self.sleep(RETENTION_SECONDS)

    @Service.timer(1.0)
    async def _end_waits(self) -> None:
        end_waits(self._limits, self.log)

    async def _run(self, work: Callable[[], Result], what: str) -> Result | None:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work)
        except Exception as error:  # noqa: BLE001 (a task that raises ends the worker)
            if not self._stopping.is_set():
                self.log.warning(
                    "%s stopped short, to be tried again: %s", what, errors.words(error)
                )
        return None

    async def on_stop(self) -> None:
        """Break off what runs: all of it is done again, and a stop has 10 s in all."""
        self._stopping.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        # A server that hangs does not answer this either, and Python would wait for the
        # thread before it ends.
        asking = threading.Thread(target=self._cancel, daemon=True)
        asking.start()
        await asyncio.to_thread(asking.join, CANCEL_SECONDS)
        for uses, _ in self._limits:
            uses.break_off()
        await super().on_stop()

    def _cancel(self) -> None:
        for uses, _ in self._limits:
            uses.cancel()
