"""The loop of a lane agent: one batch after the other, retried in place."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, cast

from faust import Stream
from faust.types import TP, StreamT

from heartbeat_app.lane.chunk import Chunk
from heartbeat_app.lane.lane import Lane

log = logging.getLogger(__name__)


class Rewind(Exception):
    """Raised by a batch's handler: the ledger is behind; read again from it."""


async def consume(
    stream: StreamT[Any],
    lane: Lane,
    handle: Callable[[Any], Awaitable[None]],
) -> None:
    """Hand every batch to `handle` until the app stops.

    In order within a partition; batches of several partitions at once, as many as
    wait (the lane bounds them). `handle` must be idempotent: the batch is handed to
    it again until it returns. It never raises and never returns while the app runs,
    since Faust would acknowledge the batch and restart the agent: records would be
    lost.

    Acknowledges only what `handle` returned from, also when cancelled: a stream that
    acknowledges by itself does so for the batch that was cancelled, too.
    """
    consumer: Any = stream.app.consumer
    # asyncio's locks are taken in the order in which they were asked for.
    turns: defaultdict[TP, asyncio.Lock] = defaultdict(asyncio.Lock)
    async with asyncio.TaskGroup() as group:
        async for event in cast(Stream[Any], stream).noack().events():
            turn = turns[event.message.tp]
            group.create_task(_process(event, turn, consumer, lane, handle))


async def _process(
    event: Any,
    turn: asyncio.Lock,
    consumer: Any,
    lane: Lane,
    handle: Callable[[Any], Awaitable[None]],
) -> None:
    chunk: Any = event.message.value
    tp = event.message.tp
    failures = 0
    async with turn:
        while lane.is_current(tp, chunk.epoch):
            try:
                await handle(event.value)
            except asyncio.CancelledError:
                raise
            except Rewind as why:
                log.warning("%s", why)
                await consumer.restart_at_ledger({tp})
                return
            except Exception as error:  # noqa: BLE001 (see above)
                failures += 1
                await _pause(chunk, failures, error)
            else:
                if failures:
                    log.info("%s: stored at attempt %d", chunk, failures + 1)
                event.ack()
                return


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
        # The first line: what drivers add below it are hints and statements.
        str(error).partition("\n")[0],
    )
    await asyncio.sleep(seconds)
