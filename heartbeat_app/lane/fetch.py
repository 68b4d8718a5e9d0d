"""The consumer's thread: takes whole fetches out of aiokafka, a chunk each."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import aiokafka
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import (
    ConsumerStoppedError,
    CorruptRecordException,
    IllegalStateError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from heartbeat_app.lane.chunk import Chunk, Chunks
from heartbeat_app.lane.fetched import Damage, NotAllowed
from heartbeat_app.lane.lane import (
    LEAST_CHUNK_BYTES,
    MOST_WAITING_BYTES,
    Lane,
    Partition,
)
from heartbeat_app.lane.outlast import outlast_start

log = logging.getLogger(__name__)

# A fetch is bounded in compressed bytes only; these bound what it may grow to: a
# megabyte of one letter is some hundred bytes.
MAX_CHUNK_RECORDS = 50_000
MAX_CHUNK_BYTES = 12 * 1024 * 1024
# For so long the thread's loop may do nothing else but unpack: of one partition, in CPU
# time (a busy machine would cut chunks, and so transactions, in pieces), and of all. It
# is the group's heartbeat that waits, and the other partitions.
UNPACK_SECONDS = 0.1
ROUND_SECONDS = 0.1
# To count what waits of thousands of partitions takes a while. What was counted longer
# ago is too much: chunks would be cut that have room by now.
COUNTED_SECONDS = 0.002
# An answer of Kafka is held twice while it is taken apart, and may hold this much of
# each partition but for this limit, which is all brokers' together.
MAX_FETCH_BYTES = 4 * 1024 * 1024
LEAST_FETCH_BYTES = 1024 * 1024
# One that did not come in time is asked for in smaller parts, down to this, and as much
# more again with each that comes: the line may be slow.
SLOW_FETCH_BYTES = 64 * 1024
# So much of what was fetched may wait for its turn. Half of it is for partitions of
# which a chunk waits already: one that is held up must not hold up the others.
MAX_FETCHED_BYTES = 8 * 1024 * 1024
# So long a batch that came damaged is not fetched again, and not told again.
DAMAGE_SECONDS = 1.0
DAMAGE_TOLD_SECONDS = 60.0
# So long after a log seemed to have lost its end it is looked at again; so often where
# nothing was read of it yet that could be looked for.
LOOK_AGAIN_SECONDS = 2.0
LOOKS = 3
# While records come one after the other, Kafka answers when it has so many bytes or
# after about as long as the last ones took to be stored: what came sooner would wait
# for them, and an answer for each record would cost more than storing it. The first
# after a pause is answered at once.
LINGER_BYTES = 64 * 1024
LEAST_LINGER_MS = 3
MOST_LINGER_MS = 10
# While chunks wait for the agent, after so long: aiokafka has one request at a time for
# a broker, and what it asks for a partition without records would hold up the next
# fetch of one that has more.
BUSY_MS = 50
IDLE_MS = 1500
PAUSE_SECONDS = 0.05
# Leaving the group takes some ms, the rest of a fetch that waits for records 1.5 s.
CLOSE_SECONDS = 2.0
COMMIT_SECONDS = 2.0
# glibc keeps what was freed, tens of megabytes for each of its arenas. So there are two
# of them, and while something large comes, and for some seconds after, it is told to
# give back what it keeps. To have it give back each buffer at once (a small
# M_MMAP_THRESHOLD) costs a tenth of the worker's speed.
ARENAS = 2
TRIM_SECONDS = 0.1
TRIMMED_AFTER_SECONDS = 5.0
LARGE_RECORD_BYTES = 16 * 1024
_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)
_trim = getattr(_libc, "malloc_trim", None)  # None: another libc than glibc
if _trim is not None:
    _libc.mallopt(_M_ARENA_MAX, ARENAS)


class _Held:
    """In the place of a partition's records while aiokafka is not to fetch any."""

    @staticmethod
    def calculate_backoff() -> float:
        """How long the others of its broker are to wait for it, seconds."""
        return 0.0


class Start(NamedTuple):
    """Where to begin with a partition, and where its log ends now."""

    topic_id: str
    offset: int
    end: int


class LaneThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread; fetches of lane topics come out as chunks.

    All but `wake` and `generation` run in the thread's own loop, so that nothing else
    moves a partition's position while a chunk is made of it.
    """

    lane: Lane
    _room: asyncio.Event
    # When memory was given back, and when something large came, last.
    _trimmed = _large_came = -math.inf

    async def on_start(self) -> None:
        """Call when the consumer starts."""
        self._room = asyncio.Event()
        # aiokafka's state of each partition when we sought in it. A rebalance makes
        # another, which stands at Kafka's committed offset until we seek again.
        self._sought: dict[TP, Any] = {}
        self._goes_on = False  # one has more to be unpacked at once
        # Of other topics, that state and where it stood when we took from it first.
        self._began: dict[TP, tuple[Any, int]] = {}
        self._took = -math.inf  # when there were chunks last, by the loop's time
        # What is asked for at once of brokers whose answers did not come in time.
        self._slow_fetch_bytes: dict[int, int] = {}
        consumer = self._consumer = self._create_consumer(loop=self.thread_loop)
        self.time_started = time.monotonic()
        await outlast_start("consumer", consumer._client, consumer.start)
        fetcher = consumer._fetcher
        self._all_actions = fetcher._get_actions_per_node
        fetcher._get_actions_per_node = partial(self._actions, fetcher)
        client = fetcher._client
        client.send = partial(self._send, client.send)

    async def _send(self, send: Any, node_id: int, request: Any, **options: Any) -> Any:
        """Ask Kafka; what it cannot read itself of the lane's partitions is noted here.

        aiokafka would ask again at once, and log that each time.
        """
        if not isinstance(request, FetchRequest):
            return await send(node_id, request, **options)
        try:
            response = await send(node_id, request, **options)
        except RequestTimedOutError:
            size = self._slow_fetch_bytes.get(node_id, MAX_FETCH_BYTES)
            self._slow_fetch_bytes[node_id] = max(SLOW_FETCH_BYTES, size // 4)
            raise
        self._note_answer(node_id, response)
        asked = {
            TP(topic, partition): offset
            for topic, partitions in request.topics
            for partition, offset, _ in partitions
        }
        for topic, partitions in response.topics:
            for answer in list(partitions):
                tp = TP(topic, answer[0])
                partition = self.lane.partitions.get(tp)
                if (
                    partition
                    and answer[1] == CorruptRecordException.errno
                    and self._position(tp) == asked[tp]
                ):
                    damage = Damage(asked[tp], None, "Kafka itself cannot read it")
                    self._note(tp, partition, damage, goes_on=False)
                    partitions.remove(answer)
                elif (
                    partition
                    and not answer[1]
                    and isinstance(partition.damage, NotAllowed)
                ):
                    self._note(tp, partition, None, goes_on=True)
        return response

    def _note_answer(self, node_id: int, response: Any) -> None:
        """Ask for more at once where a broker that had been slow sent records."""
        slow = self._slow_fetch_bytes
        if node_id in slow and any(
            answer[-1] for _, partitions in response.topics for answer in partitions
        ):
            slow[node_id] += SLOW_FETCH_BYTES
            if slow[node_id] >= MAX_FETCH_BYTES:
                del slow[node_id]

    def _actions(self, fetcher: Any, assignment: Any) -> Any:
        """What aiokafka asks Kafka for next, within what may be held."""
        partitions = dict(self.lane.partitions)  # the main thread may forget some
        fetched: dict[TP, int] = {}
        for tp, result in list(fetcher._records.items()):
            if tp not in partitions:
                continue
            if partitions[tp].truncated and partitions[tp].last_batch is None:
                del fetcher._records[tp]  # nobody takes it any more
            elif type(result) is FetchResult and result._partition_records is not None:
                fetched[tp] = result._partition_records._records.size_in_bytes()
        held = sum(fetched.values())
        if held >= MAX_FETCHED_BYTES:
            # It is fetched again when it has room.
            for tp, size in fetched.items():
                if partitions[tp].waiting:
                    del fetcher._records[tp]
                    held -= size
        if held >= MAX_FETCHED_BYTES or self.lane.is_full():
            self.lane.crowded = time.monotonic()
        brokers = {fetcher._select_read_replica(tp) for tp in assignment.tps}
        share = max(LEAST_FETCH_BYTES, MAX_FETCH_BYTES // max(1, len(brokers)))
        fetcher._fetch_max_bytes = min([share, *self._slow_fetch_bytes.values()])
        now = time.monotonic()
        not_now = []
        for tp in assignment.tps:
            partition = partitions.get(tp)
            if partition is None or tp in fetcher._records:
                continue
            if partition.damage and self._position(tp) > partition.damage.offset:
                # It was deleted, and nothing behind it came.
                self._note(tp, partition, None, goes_on=True)
            limit = MAX_FETCHED_BYTES // (2 if partition.waiting else 1)
            waits = now < partition.fetched_again or (
                partition.truncated and partition.last_batch is None
            )
            if waits or held >= limit:
                not_now.append(tp)
        fetcher._records.update(dict.fromkeys(not_now, _Held))
        try:
            return self._all_actions(assignment)
        finally:
            for tp in not_now:
                del fetcher._records[tp]

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Log it where a partition stands still, which is all that Faust does here.

        It looks at what aiokafka's thread knows of the partition. While that is being
        sought, such as after Kafka has deleted what was to be read next, or was just
        taken away, there is nothing; the error would end the worker.
        """
        with suppress(AssertionError, AttributeError):
            super().verify_event_path(now, tp)

    async def on_thread_stop(self) -> None:
        """Call when the thread stops: leave the group, and do not wait for goodbyes.

        aiokafka waits until each connection is closed. With TLS that may take half a
        minute where an answer was on its way.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(super().on_thread_stop(), CLOSE_SECONDS)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit, and wait a little for Kafka to say so.

        What is committed is a hint only, and a stop has 8 s in all: it would wait as
        long as aiokafka asks a coordinator that does not answer.
        """
        # aiokafka takes nothing to commit for a fault, at which Faust ends the worker:
        # all of it may have been taken away since this was asked for.
        if self.assignment().isdisjoint(offsets):
            return False
        with suppress(TimeoutError):
            return await asyncio.wait_for(super()._commit(offsets), COMMIT_SECONDS)
        return False

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust reads aborted records unless it runs transactions itself.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_bytes = MAX_FETCH_BYTES
        # Without tables and standbys Faust takes Kafka's round robin: it keeps no two
        # topics' partitions together, and tells no worker where the others' are.
        consumer._partition_assignment_strategy = [self.app.assignor]
        return consumer

    @property
    def generation(self) -> int:
        """Of the group, as this member joined it last; -1: it is no member."""
        consumer: Any = self._consumer
        # There is none before Kafka was reached.
        coordinator = None if consumer is None else consumer._coordinator
        return -1 if coordinator is None else int(coordinator.generation)

    def wake(self) -> None:
        """Tell the fetch that waits that there is room again; from any thread."""
        self.thread_loop.call_soon_threadsafe(self._room.set)

    async def lane_seek(self, starts: Mapping[TP, Start]) -> None:
        """Go on reading there.

        Raises:
            IllegalStateError: A partition is not assigned any more, or the group is
                about to assign all of them anew.
        """
        consumer = self._ensure_consumer()
        self._refuse_while_assigning(consumer)
        for tp, start in starts.items():
            aiotp = driver.ensure_aiokafka_TP(tp)
            consumer.seek(aiotp, start.offset)
            self._sought[tp] = self._state(consumer._fetcher, aiotp)
            self.lane.start(tp, start.topic_id, start.offset, end=start.end)

    async def give_back(self, tp: TP, epoch: int) -> None:
        """Read again what was not stored, if the partition was not sought meanwhile.

        Raises:
            IllegalStateError: As `lane_seek` does.
        """
        if self.lane.is_current(tp, epoch):
            partition = self.lane.partitions[tp]
            start = Start(partition.topic_id, partition.done, partition.done)
            await self.lane_seek({tp: start})

    @staticmethod
    def _refuse_while_assigning(consumer: Any) -> None:
        # Until then aiokafka goes on with those that were ours; the lane has forgotten
        # them, and would wait for ever for those that become another's.
        if consumer._fetcher._subscriptions.reassignment_in_progress:
            raise IllegalStateError("the group is assigning its partitions anew")

    async def lane_commit(self, starts: Mapping[TP, Start]) -> Mapping[TP, int]:
        """Commit what the ledger says, where nothing may come for a long time.

        Returns what the group had committed; -1: nothing.

        Raises:
            KafkaError, TimeoutError: Kafka did not take it. It is a hint only.
        """
        consumer = self._ensure_consumer()
        aiotps = {tp: driver.ensure_aiokafka_TP(tp) for tp in starts}
        async with asyncio.timeout(COMMIT_SECONDS):
            found = await consumer._coordinator.fetch_committed_offsets(
                list(aiotps.values())
            )
        # As far as it is by now: Faust may have committed what came since.
        offsets = {
            aiotp: OffsetAndMetadata(self.lane.partitions[tp].done, "")
            for tp, aiotp in aiotps.items()
            if tp in self.lane.partitions and tp in self.assignment()
        }
        # What is about to become another's is that one's to commit.
        subscriptions = consumer._fetcher._subscriptions
        if offsets and not subscriptions.reassignment_in_progress:
            async with asyncio.timeout(COMMIT_SECONDS):
                await consumer.commit(offsets)
        return {
            tp: found[aiotp].offset if aiotp in found else -1
            for tp, aiotp in aiotps.items()
        }

    async def seek_others(
        self, tps: Iterable[TP], applied: Mapping[TP, int]
    ) -> Mapping[TP, int | None]:
        """Seek partitions that are not the lane's; returns what is committed of them.

        Arguments:
            applied: Where to go on with changelogs, of which nothing is committed.

        Raises:
            IllegalStateError: As `lane_seek` does.
        """
        consumer: Any = self._ensure_consumer()
        aiotps = {tp: driver.ensure_aiokafka_TP(tp) for tp in tps}
        known = await consumer._coordinator.fetch_committed_offsets(
            list(aiotps.values())
        )
        self._refuse_while_assigning(consumer)
        committed: dict[TP, int | None] = {}
        for tp, aiotp in aiotps.items():
            offset = known[aiotp].offset if aiotp in known else -1
            committed[tp] = None if offset < 0 else offset
            goes_on = applied.get(tp, offset)
            state, first = self._began.get(tp, (None, -1))
            if goes_on < 0 and state is self._state(consumer._fetcher, aiotp):
                goes_on = first  # what we took was not handed out, or not done
            if goes_on >= 0:
                consumer.seek(aiotp, goes_on)
        return committed

    async def fetch(
        self, flow: int, active_partitions: set[TP] | None, timeout: float
    ) -> Any:
        """Fetch, as long as it is for the consumer's flow of that number."""
        consumer = self._ensure_consumer()
        if active_partitions is None:  # not a worker
            return await self.getmany(active_partitions, timeout)
        return await self.call_thread(
            self._fetch,
            consumer,
            active_partitions,
            flow=flow,
            timeout=timeout,
            max_records=consumer._max_poll_records,
        )

    async def _fetch(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        *,
        flow: int,
        timeout: float,
        max_records: int | None,
    ) -> Any:
        """Return records by partition: of a lane topic all chunks as those of one.

        Waits until something came, a chunk may be handed out again or the time is
        over. Called again and again also while there is no room, so that aiokafka
        never takes the worker for idle.
        """
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError()
        lane_tps = self.lane.of(active_partitions)
        others = active_partitions - lane_tps
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        with fetcher._subscriptions.fetch_context():
            # What is taken for a flow that has ended is lost, where it was sought for
            # the next one already: between this look and the taking nothing may wait.
            while self._flows(flow):
                if fetcher._subscriptions.reassignment_in_progress:
                    await fetcher._subscriptions.wait_for_assignment()
                    continue
                self._room.clear()
                found: dict[TP, Any] = self._take_chunks(fetcher, lane_tps)
                self._linger(fetcher, loop.time(), bool(found))
                if others:
                    self._note_beginnings(fetcher, others)
                    # With no time to wait it returns at once.
                    found.update(
                        await fetcher.fetched_records(
                            others, timeout=0, max_records=max_records
                        )
                    )
                if found or loop.time() >= deadline or fetcher._closed:
                    return found
                if self._goes_on:  # when the loop has done what else there is
                    await asyncio.sleep(0)
                    continue
                await self._wait_for_more(
                    fetcher, min(deadline - loop.time(), PAUSE_SECONDS)
                )
        return {}  # a rebalance has begun

    def _flows(self, flow: int) -> bool:
        consumer: Any = self.consumer
        return bool(consumer.flow_active) and consumer.flow == flow

    def _note_beginnings(self, fetcher: Any, tps: Iterable[TP]) -> None:
        for tp in tps:
            aiotp = driver.ensure_aiokafka_TP(tp)
            if aiotp in fetcher._records:
                state = self._state(fetcher, aiotp)
                known, _ = self._began.get(tp, (None, -1))
                if state is not known and state and state.has_valid_position:
                    self._began[tp] = (state, state.position)

    def _linger(self, fetcher: Any, now: float, found: bool) -> None:
        """Decide how long Kafka may wait for more, from the next request on."""
        lingers = now - self._took < PAUSE_SECONDS
        if found:
            self._took = now
        fetcher._fetch_min_bytes = LINGER_BYTES if lingers else 1
        fetcher._fetch_max_wait_ms = (
            self._gathering_ms() if lingers else self._rest_ms()
        )

    def _gathering_ms(self) -> int:
        stored_ms = round(self.lane.seconds_to_store * 1000)
        return min(max(LEAST_LINGER_MS, stored_ms), MOST_LINGER_MS)

    def _rest_ms(self) -> int:
        return IDLE_MS if self.lane.is_idle() else BUSY_MS

    async def _wait_for_more(self, fetcher: Any, seconds: float) -> None:
        """Wait for a fetch or for room, no longer than that."""
        fetched = fetcher._create_fetch_waiter()
        room = asyncio.ensure_future(self._room.wait())
        try:
            done, _ = await asyncio.wait(
                {fetched, room},
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if fetched in done:
                fetched.result()  # raises what the fetcher ran into
        finally:
            fetched.cancel()
            room.cancel()

    def _take_chunks(self, fetcher: Any, tps: Iterable[TP]) -> dict[TP, list[Chunks]]:
        by_topic: defaultdict[str, list[Chunk]] = defaultdict(list)
        self._goes_on = False
        began = time.monotonic()
        self._trim_memory(began)
        waiting, counted = self.lane.waiting_bytes(), began
        # Who had its turn last is the last one.
        for tp in self.lane.in_turn(tps):
            now = time.monotonic()
            if now - began > ROUND_SECONDS:
                self._goes_on = True
                break
            if driver.ensure_aiokafka_TP(tp) not in fetcher._records:
                continue
            if now - counted > COUNTED_SECONDS:  # the main thread may have made room
                waiting, counted = self.lane.waiting_bytes(), now
            partition = self.lane.partitions.get(tp)
            if partition and self._is_not_allowed(fetcher, tp, partition):
                continue
            if partition and partition.truncated:
                self._look_again(fetcher, tp, partition)
            elif partition and self.lane.has_room(tp, waiting):
                partition.served = now
                room = max(LEAST_CHUNK_BYTES, MOST_WAITING_BYTES - waiting)
                chunk = self._take_chunk(
                    fetcher, tp, partition, min(MAX_CHUNK_BYTES, room)
                )
                if chunk is not None:
                    partition.waiting[chunk.position] = chunk.size
                    waiting += chunk.size
                    by_topic[tp.topic].append(chunk)
        return {chunks[0].tp: [Chunks(chunks)] for chunks in by_topic.values()}

    def _is_not_allowed(self, fetcher: Any, tp: TP, partition: Partition) -> bool:
        """Whether Kafka lets this login not read it; it is asked again.

        aiokafka's error would end the worker, and a new one would end so, too.
        """
        aiotp = driver.ensure_aiokafka_TP(tp)
        result = fetcher._records[aiotp]
        if type(result) is FetchResult or not isinstance(
            result._error, TopicAuthorizationFailedError
        ):
            return False
        self._drop(fetcher, aiotp)
        damage = NotAllowed(partition.expected)
        self._note(tp, partition, damage, goes_on=False)
        return True

    def _look_again(self, fetcher: Any, tp: TP, partition: Partition) -> None:
        """Look whether a log that seemed to have lost its end has it still.

        A broker that was frozen takes itself for the leader for a moment, and its log
        ends earlier. Where the last batch that was read is there, all before it is.
        """
        aiotp = driver.ensure_aiokafka_TP(tp)
        result = fetcher._records[aiotp]
        state = self._state(fetcher, aiotp)
        if id(state) != id(self._sought.get(tp)):
            self._drop(fetcher, aiotp)
            return  # assigned anew, and about to be sought
        is_right = type(result) is FetchResult and result.check_assignment(aiotp)
        fetched = result._partition_records if is_right else None
        offset, identity = partition.last_batch or (partition.expected, None)
        if identity is None:
            partition.truncated = partition.looks + 1 >= LOOKS
        elif fetched and fetched._records.begins_with(identity):
            log.info("%s[%d]: the log has all that was read, going on", *tp)
            self._drop(fetcher, aiotp)
            partition.truncated, partition.looks = False, 0
            state.seek(partition.expected)
            return
        elif (
            fetched
            and partition.looks
            and fetched.next_fetch_offset > max(offset, partition.expected - 1)
        ):
            # Kafka has deleted all up to there, the last batch with it. What is there
            # is taken in its turn.
            partition.truncated, partition.looks = False, 0
            return
        self._drop(fetcher, aiotp)
        partition.looks += 1
        partition.fetched_again = time.monotonic() + LOOK_AGAIN_SECONDS
        state.seek(offset)

    def _trim_memory(self, now: float) -> None:
        """Give memory back to the system, if that is due by time.monotonic()."""
        if (
            _trim is not None
            and now - self._large_came < TRIMMED_AFTER_SECONDS
            and now - self._trimmed >= TRIM_SECONDS
        ):
            _trim(0)
            self._trimmed = now

    def _take_chunk(
        self, fetcher: Any, tp: TP, partition: Partition, max_bytes: int
    ) -> Chunk | None:
        """Take what was fetched for one partition, or None if that was nothing."""
        aiotp = driver.ensure_aiokafka_TP(tp)
        result = fetcher._records.get(aiotp)
        if result is None:
            return None
        if type(result) is not FetchResult:
            self._drop(fetcher, aiotp)
            result.check_raise()
        state = self._state(fetcher, aiotp)
        if id(state) != id(self._sought.get(tp)):
            return None  # assigned anew, and about to be sought
        if not result.check_assignment(aiotp):  # overtaken by a seek
            self._drop(fetcher, aiotp)
            return None
        begin = result._partition_records.next_fetch_offset
        if begin < partition.expected:
            # aiokafka began anew at the log's start, since the log ends before what
            # was already read: it lost its end, or is another topic of that name.
            partition.truncated, partition.reported = True, False
            partition.truncated_at = time.monotonic()
            self._look_again(fetcher, tp, partition)
            return None
        fetched = result._partition_records
        try:
            unpacked = self.lane.unpacker.unpack(
                fetched,
                MAX_CHUNK_RECORDS,
                max_bytes,
                time.thread_time() + UNPACK_SECONDS,
                math.inf if state.highwater is None else state.highwater,
            )
        except BaseException:
            self._drop(fetcher, aiotp)
            raise
        result._update_position()
        partition.last_batch = fetched._records.last_batch or partition.last_batch
        usual = LARGE_RECORD_BYTES * len(unpacked.records)
        if unpacked.large or fetched._records.reader or unpacked.size > usual:
            self._large_came = time.monotonic()
        is_done = fetched._records.is_done
        damage = unpacked.damage
        if damage is None and is_done and state.position == begin:
            damage = Damage(begin, None, "no record that was fetched has this offset")
        self._note(tp, partition, damage, goes_on=state.position > begin)
        if damage or is_done:
            self._drop(fetcher, aiotp)
        elif unpacked.is_cut_short:
            self._goes_on = True
            partition.steps += 1
        asked, position = partition.expected, state.position
        if position == asked:
            return None
        partition.expected, partition.looks = position, 0
        return Chunk(
            topic=tp.topic,
            topic_id=partition.topic_id,
            partition=tp.partition,
            asked=asked,
            position=position,
            # Above what was expected only when aiokafka had to begin anew at the
            # log's start, since the log begins after it.
            missing=begin - asked,
            end_offset=max(position, state.lso or state.highwater or 0),
            records=unpacked.records,
            large=unpacked.large,
            unread=unpacked.unread,
            size=unpacked.size,
            epoch=partition.epoch,
            unexplained=position - begin - unpacked.explained,
        )

    @staticmethod
    def _note(
        tp: TP,
        partition: Partition,
        damage: Damage | NotAllowed | None,
        *,
        goes_on: bool,
    ) -> None:
        """Note why nothing can be read, or that it can be read again, and tell it."""
        now = time.monotonic()
        if damage is None:
            if goes_on and partition.damage is not None:
                log.info(
                    "%s[%d]: not %s any more, going on at %d",
                    *tp,
                    "damaged" if isinstance(partition.damage, Damage) else "refused",
                    partition.damage.offset,
                )
                partition.damage, partition.damage_told = None, -math.inf
            return
        if partition.damage is None or partition.damage.offset != damage.offset:
            partition.damage_told = -math.inf
        partition.damage, partition.fetched_again = damage, now + DAMAGE_SECONDS
        if now - partition.damage_told >= DAMAGE_TOLD_SECONDS:
            partition.damage_told = now
            advice = "Allow it what docs/how-to/deployment.md lists."
            if isinstance(damage, Damage):
                advice = (
                    "Where no broker has it right, delete it by kafka-delete-records; "
                    "see docs/how-to/troubleshooting.md."
                )
            log.error(
                "%s[%d]: %s. It is fetched again every second, and nothing behind it "
                "is read before. %s",
                *tp,
                damage,
                advice,
            )

    def _position(self, tp: TP) -> int:
        """What aiokafka is to fetch next; -1 while it does not know."""
        consumer: Any = self._consumer
        subscription = consumer._fetcher._subscriptions.subscription
        if subscription is None or subscription.assignment is None:
            return -1
        state = subscription.assignment.state_value(driver.ensure_aiokafka_TP(tp))
        return state.position if state and state.has_valid_position else -1

    @staticmethod
    def _state(fetcher: Any, aiotp: Any) -> Any:
        return fetcher._subscriptions.subscription.assignment.state_value(aiotp)

    @staticmethod
    def _drop(fetcher: Any, aiotp: Any) -> None:
        """Let aiokafka fetch for the partition again."""
        del fetcher._records[aiotp]
        fetcher._notify(fetcher._wait_consume_future)
