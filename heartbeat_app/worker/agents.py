"""The agent that stores heartbeats."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from faust.types import TP, StreamT

from heartbeat_app.domain import models
from heartbeat_app.domain.batches import Batch, Refused, Unreadable, decode_records
from heartbeat_app.domain.excerpts import Excerpt
from heartbeat_app.domain.validation import Reason, Refusal, Rules
from heartbeat_app.exceptions import LedgerWentBackError
from heartbeat_app.lane import Chunk, LaneSchema, Rewind, consume
from heartbeat_app.lane.records import HEADER_BYTES
from heartbeat_app.storage.write.writer import Written
from heartbeat_app.worker.application import app

log = logging.getLogger(__name__)

# A batch in hand when the worker stops may end; one that hangs is broken off, since
# a stop has 10 s in all.
STOP_GRACE_SECONDS = 3.0

SUMMARY_SECONDS = 1.0


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
        refused=[*refused, *map(refuse_large, chunk.large)],
        unreadable=[
            Unreadable(each.first, each.last, each.why) for each in chunk.unread
        ],
        unexplained=chunk.unexplained,
    )


def refuse_large(found: Excerpt) -> Refused:
    """What becomes of a record that is too large."""
    kept = "its first 4 KiB are kept"
    if found.value is None and found.key is None:
        kept = "it names too many customers for anything of it to be kept"
    detail = (
        f"The record has {found.size:,} bytes; at most "
        f"{app.settings.max_record_bytes:,} are taken (MAX_RECORD_BYTES; each header "
        f"counts {HEADER_BYTES} more); {kept}."
    )
    return Refused(found, Refusal(Reason.TOO_LARGE, detail))


heartbeats = app.topic(
    app.settings.heartbeats_topic,
    schema=LaneSchema(encode=models.encode),
    partitions=app.settings.heartbeats_partitions,
)


@app.agent(heartbeats, name="store_heartbeats")
async def store_heartbeats(stream: StreamT[Any]) -> None:
    """Store every chunk, in one transaction if it can be."""
    try:
        await consume(stream, app.lane, store)
    finally:
        summary.tell()


class Summary:
    """Logs once a second what was stored: there may be hundreds of batches a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._offsets: dict[TP, tuple[int, int]] = {}  # the first, the one after
        self._due: asyncio.TimerHandle | None = None

    def add(self, batch: Batch, written: Written) -> None:
        """Add a batch that is stored, in any thread; tell at once what is missing."""
        if written.missing:
            log.error(
                "%s: %s records fell out of the log before they were read (retention?);"
                " counted as missing",
                batch,
                f"{written.missing:,}",
            )
        if written.unexplained:
            log.error(
                "%s: %s offsets hold no record, and no transaction explains them (is "
                "the topic compacted?); counted as gap",
                batch,
                f"{written.unexplained:,}",
            )
        if written.unreadable:
            log.error(
                "%s: %s offsets are of a batch that could not be taken apart; counted "
                "as unreadable, see `heartbeat_app dead-letters list --reason "
                "unreadable_batch`",
                batch,
                f"{written.unreadable:,}",
            )
        log.debug("%s: stored: %s", batch, written.counts)
        if written.consumed:
            with self._lock:
                self._counts.update({**written.counts, "batches": 1})
                tp = TP(batch.topic, batch.partition)
                first, _ = self._offsets.get(tp, (batch.asked, 0))
                self._offsets[tp] = first, batch.position

    def tell_soon(self) -> None:
        """Log what was added, and what will be within a second."""
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(SUMMARY_SECONDS, self.tell)

    def tell(self) -> None:
        """Log what was added since it was told last."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        with self._lock:
            counts, self._counts = self._counts, Counter()
            offsets, self._offsets = self._offsets, {}
        if offsets:
            log.info(
                "Stored %s heartbeats (%s duplicates, %s refused) in %s batches: %s",
                f"{counts['stored']:,}",
                f"{counts['duplicate']:,}",
                f"{counts['dead']:,}",
                f"{counts['batches']:,}",
                ", ".join(
                    f"{tp.topic}[{tp.partition}]@{first}-{end - 1}"
                    for tp, (first, end) in sorted(offsets.items())
                ),
            )


summary = Summary()


async def store(chunks: Sequence[Chunk]) -> None:
    """Store chunks of different partitions.

    Raises:
        Rewind: The ledger went back; nothing more was written.
    """
    try:
        rest = await in_a_writer(chunks, decode_and_write, chunks)
        while rest:  # in its turn: the other partitions have theirs
            rest = await in_a_writer(chunks, write, rest)
    except LedgerWentBackError as error:
        raise Rewind(str(error)) from error
    finally:
        summary.tell_soon()


async def in_a_writer(
    chunks: Sequence[Chunk], work: Callable[[Any], list[Batch]], given: Any
) -> list[Batch]:
    """Do work on these chunks in one of the writers' threads."""
    writing = app.writing.submit(work, given)
    for chunk in chunks:
        app.writes[chunk.tp] = writing
    try:
        return await asyncio.shield(asyncio.wrap_future(writing))
    except asyncio.CancelledError:
        if not writing.cancel():  # it has begun
            await asyncio.wait(
                {asyncio.wrap_future(writing)}, timeout=STOP_GRACE_SECONDS
            )
        if not writing.done():
            log.warning(
                "%s: broken off, to be read again after the start",
                ", ".join(map(str, chunks)),
            )
            app.writer.uses.break_off()
        raise


def decode_and_write(chunks: Sequence[Chunk]) -> list[Batch]:
    """Decode chunks, and write them."""
    return write([decode(chunk) for chunk in chunks])


def write(batches: Sequence[Batch]) -> list[Batch]:
    """Write batches in one transaction, and count what is stored; returns the rest."""
    try:
        written = app.writer.write_together(batches)
    except LedgerWentBackError as error:
        app.metrics.count_retry(error)
        app.reads.dispose()  # the ledger is asked in the database that is there now
        raise
    except Exception as error:
        app.metrics.count_retry(error)
        raise
    if any(each.consumed or each.missing or each.unreadable for each in written):
        app.metrics.count_transaction(written[0].seconds)
    for batch, each in zip(batches, written, strict=True):
        app.metrics.count(batch.topic, batch.partition, each)
        summary.add(batch, each)
    return [each.rest for each in written if each.rest is not None]
