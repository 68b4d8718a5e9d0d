"""The agent that stores heartbeats."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from faust.types import TP, StreamT

from heartbeat_app import models
from heartbeat_app.application import app
from heartbeat_app.batches import Batch, decode_records
from heartbeat_app.exceptions import LedgerWentBackError
from heartbeat_app.lane import Chunk, LaneSchema, Rewind, consume
from heartbeat_app.storage.writer import Written
from heartbeat_app.validation import Rules

log = logging.getLogger(__name__)

# A batch in hand when the worker stops may end; one that hangs is broken off, since
# a stop has 10 s in all.
STOP_GRACE_SECONDS = 3.0


def decode(chunk: Chunk) -> Batch:
    """Make a batch of a chunk, by the rules of this moment."""
    rules = Rules.at(
        datetime.now(UTC),
        max_future_seconds=app.settings.max_future_seconds,
        retention_days=app.settings.retention_days,
    )
    beats, sources, refused = decode_records(chunk.records, rules)
    return Batch(
        topic=chunk.topic,
        topic_id=chunk.topic_id,
        partition=chunk.partition,
        asked=chunk.asked,
        position=chunk.position,
        missing=chunk.missing,
        end_offset=chunk.end_offset,
        beats=beats,
        sources=sources,
        refused=refused,
    )


heartbeats = app.topic(
    app.settings.heartbeats_topic,
    schema=LaneSchema(decode=decode, encode=models.encode),
    partitions=app.settings.heartbeats_partitions,
)


@app.agent(heartbeats, name="store_heartbeats")
async def store_heartbeats(stream: StreamT[Any]) -> None:
    """Store every batch, in one transaction if it can be."""
    await consume(stream, app.lane, store)


async def store(batch: Batch) -> None:
    """Write a batch, and count each part that is stored.

    Raises:
        Rewind: The ledger went back; nothing more was written.
    """
    rest: Batch | None = batch
    while rest is not None:
        try:
            written = await write(rest)
        except LedgerWentBackError as error:
            app.metrics.count_retry(error)
            raise Rewind(str(error)) from error
        except Exception as error:
            app.metrics.count_retry(error)
            raise
        app.metrics.count(batch.topic, batch.partition, written)
        report(rest, written)
        rest = written.rest


async def write(batch: Batch) -> Written:
    """Write a batch in one of the writers' threads."""
    writing = app.writing.submit(app.writer.write, batch)
    app.writes[TP(batch.topic, batch.partition)] = writing
    try:
        return await asyncio.shield(asyncio.wrap_future(writing))
    except asyncio.CancelledError:
        if not writing.cancel():  # it has begun
            await asyncio.wait(
                {asyncio.wrap_future(writing)}, timeout=STOP_GRACE_SECONDS
            )
        if not writing.done():
            log.warning("%s: broken off, to be read again after the start", batch)
            app.writer.uses.break_off()
        raise


def report(batch: Batch, written: Written) -> None:
    """Log what a batch was."""
    if written.missing:
        log.error(
            "%s: %s records fell out of the log before they were read (retention?); "
            "counted as missing",
            batch,
            f"{written.missing:,}",
        )
    if written.consumed:
        log.info(
            "Stored %s heartbeats %s (%s duplicates, %s refused) in %.0f ms",
            f"{written.stored:,}",
            batch,
            f"{written.duplicate:,}",
            f"{written.dead:,}",
            written.seconds * 1000,
        )
