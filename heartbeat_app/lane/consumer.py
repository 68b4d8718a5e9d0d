"""Faust's consumer, resuming the lane's partitions from the ledger."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import IllegalStateError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, Message
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from heartbeat_app.exceptions import LaneError
from heartbeat_app.lane.chunk import Chunk, Chunks
from heartbeat_app.lane.fetch import LaneThread, Start
from heartbeat_app.lane.lane import Lane


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help. tenacity takes a cancellation for a fault, too."""
    return isinstance(error, Exception) and not isinstance(
        error, LaneError | IllegalStateError
    )


class _ReadOffsets(defaultdict[TP, int | None]):
    """Faust's read offsets, by which it drops what it read before, and sees gaps.

    For the lane's partitions there are none: the ledger decides what was read, and a
    seek back that races with a message in flight must not make Faust drop records.
    """

    def __init__(self, lane: Lane) -> None:
        super().__init__(lambda: None)
        self._lane = lane

    def __getitem__(self, tp: TP) -> int | None:
        return None if tp.topic in self._lane.topics else super().__getitem__(tp)


class LaneConsumer(driver.Consumer):
    """Faust's consumer with a lane beside the ordinary way."""

    _thread: LaneThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.app
        self.lane: Lane = app.lane
        self._thread.lane = self.lane
        self._read_offset = _ReadOffsets(self.lane)

    @property
    def generation(self) -> int:
        """Of the group, as this member joined it last; -1: it is no member."""
        return self._thread.generation

    def _new_consumer_thread(self) -> LaneThread:
        return LaneThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, Chunks):
            return super()._to_message(tp, record)
        chunks: Any = record  # in the place of the value's bytes; LaneSchema knows
        return ConsumerMessage(
            topic=tp.topic,
            partition=tp.partition,
            offset=record[0].position - 1,
            timestamp=0.0,
            timestamp_type=0,
            headers=[],
            key=None,
            value=chunks,
            checksum=None,
            serialized_value_size=sum(chunk.size for chunk in record),
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def ack(self, message: Message) -> bool:
        """Mark a message as processed; says nothing of the lane's chunks in it."""
        if message.topic not in self.lane.topics:
            return super().ack(message)
        self._unacked_messages.discard(message)
        return True

    def done(self, chunks: Iterable[Chunk]) -> None:
        """Have what was stored committed, and make room for the next chunks."""
        for chunk in chunks:
            # Of one that was sought meanwhile the ledger knows; another chunk may end
            # at the same offset by now.
            if self.lane.is_current(chunk.tp, chunk.epoch):
                self.lane.release(chunk.tp, chunk.position)
                self._acked[chunk.tp].append(chunk.position - 1)
        self.wake()

    def wake(self) -> None:
        """Let the fetch look again whether there is room."""
        self._thread.wake()

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: for the lane the highest that is done + 1.

        Its chunks are done strictly in order, so there is nothing to search for.
        Faust's own search misses a gap of one at the head and commits over it.
        """
        if tp.topic not in self.lane.topics:
            return super()._new_offset(tp)
        acked = self._acked[tp]
        if not acked:
            return None
        highest = max(acked)
        acked.clear()
        return highest + 1

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Call when partitions are taken away: their chunks become stale."""
        self.lane.forget(revoked)
        await super().on_partitions_revoked(revoked)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the ledger's offsets, and other topics to what is committed."""
        assignment = self.assignment()
        lane_tps = self.lane.of(assignment)
        offsets: dict[TP, int] = {}
        if assignment - lane_tps:
            offsets.update(
                await self._thread.call_thread(
                    self._thread.seek_others_to_committed, assignment - lane_tps
                )
            )
        offsets.update(await self.restart_at_ledger(lane_tps))
        return offsets

    async def restart_at_ledger(self, tps: set[TP]) -> Mapping[TP, int]:
        """Go on reading where the ledger says; returns what was sought.

        Waits for as long as the ledger or Kafka cannot be asked: to fall back on
        Kafka's committed offset would lose or double what the ledger knows. What was
        read before becomes stale.

        Raises:
            IllegalStateError: A partition was taken away meanwhile, or is about to be.
        """
        if not tps:
            return {}
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            before_sleep=self._log_retry,
            sleep=asyncio.sleep,
            reraise=True,
        ):
            with attempt:
                asked = time.monotonic()
                starts = await self._find_starts(tps)
        await self._thread.call_thread(self._thread.lane_seek, starts)
        # Only now, when nothing under an older id is left.
        self.lane.ids_are_right(asked)
        for tp, start in sorted(starts.items()):
            self.log.info(
                "%s[%d]: going on at %d of %d",
                tp.topic,
                tp.partition,
                start.offset,
                start.end,
            )
        self.wake()
        # Beside what follows: nothing waits for a hint.
        # self.add_future(self._commit_starts(starts))
        return {tp: start.offset for tp, start in starts.items()}

    async def _commit_starts(self, starts: Mapping[TP, Start]) -> None:
        """Commit the ledger's offsets, and tell where the group's were others.

        Who looks at the group from outside sees only these, and of a partition to which
        nothing comes Faust would never commit any.
        """
        try:
            committed = await self._thread.call_thread(self._thread.lane_commit, starts)
        except Exception as error:  # noqa: BLE001 (a future that raises ends the worker)
            self.log.info(
                "Cannot commit the ledger's offsets now, so what Kafka shows of the "
                "group may be old: %s: %s",
                type(error).__name__,
                error,
            )
            return
        differ = [
            f"{tp.topic}[{tp.partition}]: "
            f"{committed[tp] if committed[tp] >= 0 else 'none'}, "
            f"the ledger {start.offset}"
            for tp, start in sorted(starts.items())
            if committed[tp] != start.offset and (start.offset or committed[tp] >= 0)
        ]
        if differ:
            self.log.info(
                "The offsets that the group has committed are not the ledger's, which "
                "are taken: %s",
                "; ".join(differ),
            )

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        # An error of Kafka's client often says nothing but its type.
        self.log.warning(
            "Cannot find out where to go on reading, asking again: %s: %s",
            type(error).__name__,
            error,
        )

    async def _find_starts(self, tps: set[TP]) -> dict[TP, Start]:
        """Where to begin, by partition."""
        topics = {tp.topic for tp in tps}
        # Before the offsets: an id that is too old is noticed by the watch.
        ids = await asyncio.to_thread(self.lane.topic_ids, topics)
        if topics - ids.keys():
            raise KafkaError(f"no such topic: {', '.join(sorted(topics - ids.keys()))}")
        begins = await self.earliest_offsets(*tps)
        ends = await self.highwaters(*tps)
        starts: dict[TP, Start] = {}
        for topic in topics:
            wanted = {tp.partition: tp for tp in tps if tp.topic == topic}
            offsets = await asyncio.to_thread(
                self._offsets_of_ledger,
                topic,
                ids[topic],
                {partition: begins[tp] for partition, tp in wanted.items()},
            )
            for partition, tp in wanted.items():
                starts[tp] = Start(ids[topic], offsets[partition], ends[tp])
        return starts

    def _offsets_of_ledger(
        self, topic: str, topic_id: str, begins: Mapping[int, int]
    ) -> Mapping[int, int]:
        """Ask the ledger, in a thread; begins books where there are none yet."""
        ledger = self.lane.ledger
        known = ledger.next_offsets(topic_id, begins.keys())
        unknown = {p: offset for p, offset in begins.items() if p not in known}
        if unknown:
            # Nothing of these was ever kept, so everything has to be read, whatever
            # the group has committed.
            ledger.open(topic, topic_id, unknown)
            known = ledger.next_offsets(topic_id, begins.keys())
        return known
