"""The loop of a lane agent: chunks that wait together, retried in place."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from aiokafka.errors import IllegalStateError
from faust import Stream
from faust.types import TP, StreamT

from heartbeat_app.exceptions import first_words
from heartbeat_app.lane.chunk import Chunk
from heartbeat_app.lane.lane import Lane

log = logging.getLogger(__name__)

# A chunk of so many bytes is handed on by itself. Smaller ones, as they come while
# records arrive one by one, wait for each other: to store one takes longer than to
# store what is in it.
SMALL_BYTES = 512 * 1024
# Not for longer, since what holds up one partition must not hold up the others.
PATIENCE_SECONDS = 0.05
# For the same reason what failed so often makes room where there is none.
PATIENT_FAILURES = 3

Handle = Callable[[Sequence[Chunk]], Awaitable[None]]


class Rewind(Exception):
    """Raised by a handler: the ledger is behind; read again from it."""


async def consume(stream: StreamT[Any], lane: Lane, handle: Handle) -> None:
    """Hand all chunks to `handle` until the app stops.

    In order within a partition; those of several partitions at once. Small ones come
    together, of each partition one, when those before them are done, or after 50 ms;
    large ones come alone, at once. `handle` must be idempotent, and do all of what it
    is given or nothing: when it raises for several they are handed to it one by one,
    and one again until it returns.

    Only what `handle` returned from is committed. It never raises and never returns
    while the app runs, since Faust would restart the agent without what it has in hand:
    records would be lost.
    """
    consumer: Any = stream.app.consumer
    async with asyncio.TaskGroup() as tasks:
        turns = _Turns(consumer, lane, handle, tasks)
        # A stream that acknowledges by itself counts all as stored, past the consumer.
        try:
            async for event in cast(Stream[Any], stream).noack().events():
                turns.add(event.value)
                event.value.clear()  # Faust keeps the last event, and so all in it
                event.ack()
        finally:
            turns.end()


class _Turns:
    """The chunks that wait, and whose turn it is."""

    def __init__(
        self, consumer: Any, lane: Lane, handle: Handle, tasks: asyncio.TaskGroup
    ) -> None:
        self._consumer = consumer
        self._lane = lane
        self._handle = handle
        self._tasks = tasks
        self._waiting: defaultdict[TP, deque[Chunk]] = defaultdict(deque)
        # Of these one is being handled.
        self._busy: set[TP] = set()
        # How often what comes next of them failed, also where it was given back.
        self._failures: defaultdict[TP, int] = defaultdict(int)
        self._small_ones: asyncio.Task[None] | None = None
        self._has_ended = False

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Add those that came, behind the others of their partitions."""
        for chunk in chunks:
            self._waiting[chunk.tp].append(chunk)
        self._go_on()

    def end(self) -> None:
        """Start nothing any more."""
        self._has_ended = True

    def _go_on(self) -> None:
        """Start whatever can be started."""
        if self._has_ended:
            return
        small = []
        for tp, chunks in self._waiting.items():
            if not chunks or tp in self._busy:
                continue
            if chunks[0].size >= SMALL_BYTES:
                self._busy.add(tp)
                self._tasks.create_task(self._alone(chunks.popleft()))
            elif self._small_ones is None:
                self._busy.add(tp)
                small.append(chunks.popleft())
        if small:
            several = len(small) > 1
            turn = self._together(small) if several else self._alone(small[0])
            task = self._small_ones = self._tasks.create_task(turn)
            task.add_done_callback(self._let_the_next_go)
            loop = asyncio.get_running_loop()
            loop.call_later(PATIENCE_SECONDS, self._let_the_next_go, task)

    def _let_the_next_go(self, task: asyncio.Task[None]) -> None:
        """Small ones wait for those before them, but not for ever."""
        if self._small_ones is task:
            self._small_ones = None
            self._go_on()

    def _end(self, chunks: Sequence[Chunk]) -> None:
        """Let the next ones of these partitions have their turn."""
        self._busy.difference_update(chunk.tp for chunk in chunks)
        self._go_on()

    async def _together(self, chunks: Sequence[Chunk]) -> None:
        """Handle small ones at once; if that fails, each alone."""
        current = [chunk for chunk in chunks if self._is_current(chunk)]
        failed = []
        try:
            if current:
                await self._store(current)
                for chunk in current:
                    self._failures.pop(chunk.tp, None)
                self._consumer.done(current)
        except Exception as error:  # noqa: BLE001 (each alone tells it again)
            log.debug("Not together, but one by one: %r", error)
            failed = current
        for chunk in failed:
            self._tasks.create_task(self._alone(chunk))
        self._end([chunk for chunk in chunks if chunk not in failed])

    async def _alone(self, chunk: Chunk) -> None:
        """Handle one until it is stored."""
        failures = 0
        while self._is_current(chunk):
            try:
                await self._store([chunk])
            except Rewind as why:
                log.warning("%s", why)
                self._failures.pop(chunk.tp, None)
                with suppress(IllegalStateError):  # taken away meanwhile
                    await self._consumer.restart_at_ledger({chunk.tp})
                break
            except Exception as error:  # noqa: BLE001 (see consume)
                failures += 1
                self._failures[chunk.tp] += 1
                await _pause(chunk, self._failures[chunk.tp], error)
                if failures >= PATIENT_FAILURES and self._lane.is_full():
                    await self._consumer.give_back(chunk.tp, chunk.epoch)
                    break
            else:
                failures = self._failures.pop(chunk.tp, 0)
                if failures:
                    log.info("%s: stored at attempt %d", chunk, failures + 1)
                self._consumer.done([chunk])
                break
        self._end([chunk])

    async def _store(self, chunks: Sequence[Chunk]) -> None:
        began = time.monotonic()
        await self._handle(chunks)
        self._lane.seconds_to_store = time.monotonic() - began

    def _is_current(self, chunk: Chunk) -> bool:
        return self._lane.is_current(chunk.tp, chunk.epoch)


async def _pause(chunk: Chunk, failures: int, error: Exception) -> None:
    # Growing, jittered waits of at most 2 s: a database that comes back is noticed
    # soon, and many workers do not ask it all at once.
    seconds = random.uniform(0.05, min(2.0, 0.1 * 2 ** min(failures - 1, 10)))
    log.warning(
        "%s: attempt %d failed, again in %.1f s; nothing is lost: %s: %s",
        chunk,
        failures,
        seconds,
        type(error).__name__,
        first_words(str(error)),
    )
    await asyncio.sleep(seconds)
