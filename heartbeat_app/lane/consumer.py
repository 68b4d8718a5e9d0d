"""Faust's consumer, resuming the lane's partitions from the ledger."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.errors import IllegalStateError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, EventT, Message
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from heartbeat_app.exceptions import LaneError, first_words
from heartbeat_app.lane.chunk import Chunk, Chunks
from heartbeat_app.lane.fetch import LaneThread, Start
from heartbeat_app.lane.given import Given
from heartbeat_app.lane.lane import Lane

# So long a rebalance or a stop waits for ordinary agents; what one has in hand for
# longer is processed again.
FINISH_SECONDS = 5.0
# So often, and after so long, a log is asked again for its end that ends before what is
# stored.
END_LOOKS = 3
END_PAUSE_SECONDS = 1.0


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help. tenacity takes a cancellation for a fault, too."""
    return isinstance(error, Exception) and not isinstance(
        error, LaneError | IllegalStateError
    )


class _NoReadOffsets(defaultdict[TP, int | None]):
    """Faust's read offsets, by which it drops what it read before, and sees gaps.

    There are none: nothing is read twice between two seeks, what is committed follows
    from what was handed out, and an offset that was noted late, after a seek back,
    would make Faust drop the records below it, and commit over them.
    """

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __getitem__(self, tp: TP) -> None:
        return None


class LaneConsumer(driver.Consumer):
    """Faust's consumer with a lane beside the ordinary way."""

    _thread: LaneThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.app
        self.lane: Lane = app.lane
        self._thread.lane = self.lane
        self._read_offset = _NoReadOffsets()
        # How often the flow was stopped. Each stop ends in a seek before it starts
        # again, so that what was fetched before one is not handed out after it.
        self.flow = 0
        self._fetched_in = 0
        self._given: defaultdict[TP, Given] = defaultdict(Given)  # ordinary ones only
        self._others_ended = False

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

    async def give_back(self, tp: TP, epoch: int) -> None:
        """Let go of what waits of a partition; it is read again in its turn.

        Arguments:
            epoch: Of what waits. What was sought meanwhile stays.
        """
        with suppress(IllegalStateError):  # taken away meanwhile
            await self._thread.call_thread(self._thread.give_back, tp, epoch)
        self.wake()

    def wake(self) -> None:
        """Let the fetch look again whether there is room."""
        self._thread.wake()

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit, for the lane the highest that is done + 1.

        Its chunks are done strictly in order, so there is nothing to search for. For
        others it is the first that an agent was given and is not done with. Faust's
        own search begins at what happens to be done, and so commits over what is not.
        """
        if tp.topic in self.lane.topics:
            done = self._acked[tp]
            highest = max(done, default=None)
            done.clear()
            return None if highest is None else highest + 1
        if self._others_ended:
            return None
        return self._given[tp].done(self._acked_index[tp])

    async def _commit_offsets(
        self, offsets: Mapping[TP, int], start_new_transaction: bool = True
    ) -> bool:
        """Commit; what was not committed is committed next time."""
        before = {tp: self._committed_offset[tp] for tp in offsets}
        did = await super()._commit_offsets(offsets, start_new_transaction)
        if not did:
            self._committed_offset.update(before)
            return False
        for tp, offset in offsets.items():
            if tp.topic not in self.lane.topics:
                self._given[tp].committed(offset)
                index = self._acked_index[tp]
                index.difference_update([each for each in index if each < offset])
                self._acked[tp].clear()  # the same offsets once more
        return True

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """Hand out what was fetched, until the flow stops."""
        acks = self.app.topics.acks_enabled_for
        async for tp, message in super().getmany(timeout):
            if self.flow != self._fetched_in:
                return
            topic = tp.topic
            if topic not in self.lane.topics and acks(topic):
                self._given[tp].add(message.offset)
            yield tp, message

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        """Fetch; nothing, where the flow was stopped meanwhile.

        Faust seeks to what is committed then, at a time of its own, beside the seek
        that starts the flow again.
        """
        records, active = await super()._wait_next_records(timeout)
        flows = self.flow_active and self.flow == self._fetched_in
        return (records if flows else None), active

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        self._fetched_in = self.flow
        return await self._thread.fetch(self.flow, active_partitions, timeout)

    def stop_flow(self) -> None:
        """Hand out nothing more of what was fetched up to now."""
        self.flow += 1
        # What waits for an agent is about to be cleared; nobody has it in hand.
        app: Any = self.app
        for queue in app.flow_control._queues:
            for event in list(queue._queue):
                if isinstance(event, EventT):
                    self._unacked_messages.discard(event.message)
        super().stop_flow()

    async def finish_others(self) -> None:
        """Let ordinary agents finish what they have in hand, and commit it.

        Faust waits for them without an end, which the lane cannot afford: its own
        partitions would stand still as long.
        """
        deadline = time.monotonic() + FINISH_SECONDS
        while time.monotonic() < deadline and self._in_hand():
            await self._wait_for_ack(timeout=1.0)
        if self._given:
            await self.maybe_wait_for_commit_to_finish()
            await self.commit(set(self._given))

    def _in_hand(self) -> bool:
        """Whether an agent of an ordinary topic works on a message."""
        return any(
            not message.acked and message.topic not in self.lane.topics
            for message in list(self._unacked_messages)
        )

    def end_others(self) -> None:
        """Commit nothing more of ordinary topics.

        The agents are about to be cancelled, and Faust takes a message whose agent was
        cancelled for processed.
        """
        self._others_ended = True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Call when partitions are taken away: their chunks become stale.

        Faust forgets what is not committed yet, and only then waits for the agents.
        """
        self.lane.forget(revoked)
        # Faust lets both go on where nothing was assigned, and so into the assignment.
        self.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()
        if not self.should_stop and not self.app.should_stop:
            await self.finish_others()
        for tp in revoked:
            self._given.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Seek all partitions to where they go on; the flow is stopped until then.

        What is handed out while it lasts would be dropped when the flow starts.
        """
        self.stop_flow()
        await super().perform_seek()
        self._given.clear()  # it is handed out again

    async def _seek(self, partition: TP, offset: int) -> None:
        self._given.pop(partition, None)
        await super()._seek(partition, offset)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the ledger's offsets, and other topics to what is committed."""
        assignment = self.assignment()
        lane_tps = self.lane.of(assignment)
        offsets: dict[TP, int] = {}
        offsets.update(await self.restart_at_ledger(lane_tps))
        if others := assignment - lane_tps:
            found = await self._thread.call_thread(
                self._thread.seek_others, others, self._applied(others)
            )
            offsets.update(found)
        return offsets

    def _applied(self, tps: Iterable[TP]) -> dict[TP, int]:
        """The offset after the last that was taken into a table, by its changelog's.

        Faust clears the queue of changelogs when the flow starts.
        """
        app: Any = self.app
        recovery = app.tables.recovery
        last = {**recovery.active_offsets, **recovery.standby_offsets}
        return {tp: last[tp] + 1 for tp in tps if last.get(tp) is not None}

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
        self.add_future(self._commit_starts(starts))
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
            first_words(str(error)),
        )

    async def _find_starts(self, tps: set[TP]) -> dict[TP, Start]:
        """Where to begin, by partition."""
        topics = {tp.topic for tp in tps}
        # Before the offsets: an id that is too old is noticed by the watch.
        ids = await asyncio.to_thread(self.lane.topic_ids, topics)
        if topics - ids.keys():
            raise KafkaError(f"no such topic: {', '.join(sorted(topics - ids.keys()))}")
        begins = await self.earliest_offsets(*tps)
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
                starts[tp] = Start(ids[topic], offsets[partition], -1)
        return await self._with_ends(starts)

    async def _with_ends(self, starts: Mapping[TP, Start]) -> dict[TP, Start]:
        """The same with the logs' ends, asked again where one is below the offset.

        A broker that was frozen takes itself for the leader for a moment.
        """
        ends = dict(await self.highwaters(*starts))
        for _ in range(END_LOOKS):
            below = [tp for tp, start in starts.items() if ends[tp] < start.offset]
            if not below:
                break
            await asyncio.sleep(END_PAUSE_SECONDS)
            ends.update(await self.highwaters(*below))
        return {tp: start._replace(end=ends[tp]) for tp, start in starts.items()}

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
