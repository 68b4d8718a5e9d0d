"""How chunks are taken out of aiokafka, on its real classes, without a broker."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import (
    READ_COMMITTED,
    FetchError,
    FetchResult,
    PartitionRecords,
)
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import (
    IllegalStateError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetResetStrategy
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from faust.types import TP

from heartbeat_app.lane import Chunk, Lane, fetch
from heartbeat_app.lane.fetch import (
    BUSY_MS,
    IDLE_MS,
    LEAST_LINGER_MS,
    LINGER_BYTES,
    LOOKS,
    MAX_CHUNK_BYTES,
    MAX_FETCH_BYTES,
    MOST_LINGER_MS,
    PAUSE_SECONDS,
    SLOW_FETCH_BYTES,
    LaneThread,
    Start,
)
from heartbeat_app.lane.fetched import Damage, FetchedRecords

BEATS = TP("beats", 0)
AIO = TopicPartition("beats", 0)


class Reader:
    """A lane thread with the parts of aiokafka's consumer that it looks at."""

    def __init__(self) -> None:
        self.lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
        self.thread: Any = LaneThread.__new__(LaneThread)
        self.thread.lane = self.lane
        self.thread._sought = {}
        self.thread._slow_fetch_bytes = {}
        self.subscriptions = SubscriptionState()
        self.subscriptions.subscribe({AIO.topic})
        self.fetcher = SimpleNamespace(
            _subscriptions=self.subscriptions,
            _records={},
            _notify=lambda future: None,
            _wait_consume_future=None,
        )
        self.thread._consumer = SimpleNamespace(
            _fetcher=self.fetcher,
            seek=lambda tp, offset: self.state.seek(offset),
        )
        self.assign()

    def assign(self) -> None:
        """As after a rebalance: a state of its own for the partition."""
        self.subscriptions.assign_from_subscribed({AIO})

    @property
    def state(self) -> Any:
        return self.subscriptions.subscription.assignment.state_value(AIO)

    async def seek(self, offset: int, *, end: int = 1_000) -> None:
        await self.thread.lane_seek({BEATS: Start("id", offset, end)})

    def fetched(self, first: int, *counts: int) -> None:
        """A fetch at the partition's position has come in, of so many batches."""
        data = bytearray()
        for count in counts:
            builder: Any = DefaultRecordBatchBuilder(
                magic=2, compression_type=0, is_transactional=0, producer_id=-1,
                producer_epoch=-1, base_sequence=0, batch_size=100_000,
            )  # fmt: skip
            for offset in range(count):
                builder.append(offset, 0, None, b"value", [])
            data += first.to_bytes(8, "big") + builder.build()[8:]
            first += count
        records = PartitionRecords(
            AIO, FetchedRecords(bytes(data)), [], self.state.position, None, None,
            False, READ_COMMITTED,
        )  # fmt: skip
        self.fetcher._records[AIO] = FetchResult(
            AIO,
            assignment=self.subscriptions.subscription.assignment,
            partition_records=records,
            backoff=0,
        )

    def out_of_range(self, begin: int) -> None:
        """Kafka has not got the position; aiokafka goes on at the log's begin."""
        self.state.await_reset(OffsetResetStrategy.EARLIEST)
        self.state.reset_to(begin)

    def take(self) -> Chunk | None:
        chunk: Chunk | None = self.thread._take_chunk(
            self.fetcher, BEATS, self.lane.partitions[BEATS], MAX_CHUNK_BYTES
        )
        return chunk


@pytest.fixture
async def reader() -> Reader:
    return Reader()


async def test_a_fetch_is_a_chunk(reader: Reader) -> None:
    await reader.seek(100)
    reader.fetched(100, 5)
    chunk = reader.take()
    assert chunk is not None
    assert (chunk.asked, chunk.position, chunk.missing) == (100, 105, 0)
    assert [record.offset for record in chunk.records] == [*range(100, 105)]


async def test_a_fetch_may_begin_inside_a_batch(reader: Reader) -> None:
    """Kafka answers with the whole batch that holds the offset that was asked for."""
    await reader.seek(103)
    reader.fetched(100, 5)
    chunk = reader.take()
    assert chunk is not None
    assert (chunk.asked, chunk.position, chunk.missing) == (103, 105, 0)
    assert [record.offset for record in chunk.records] == [103, 104]
    assert not reader.fetcher._records  # all of it was taken


async def test_offsets_without_records_are_told(reader: Reader) -> None:
    """As compaction leaves them: a batch begins above what was asked for."""
    await reader.seek(100)
    reader.fetched(130, 5)
    chunk = reader.take()
    assert chunk is not None
    assert (chunk.asked, chunk.position, chunk.missing) == (100, 135, 0)
    assert chunk.unexplained == 30


async def test_after_a_rebalance_nothing_is_taken_before_the_seek(
    reader: Reader,
) -> None:
    """aiokafka begins at the committed offset, which may lie below what is stored."""
    await reader.seek(100)
    reader.assign()
    reader.state.seek(80)
    reader.fetched(80, 5)
    assert reader.take() is None
    assert not reader.lane.partitions[BEATS].truncated
    await reader.seek(100)
    reader.fetched(100, 5)
    chunk = reader.take()
    assert chunk is not None
    assert chunk.asked == 100


async def test_a_log_that_begins_later_has_lost_records(reader: Reader) -> None:
    await reader.seek(100)
    reader.out_of_range(150)
    reader.fetched(150, 5)
    chunk = reader.take()
    assert chunk is not None
    assert (chunk.asked, chunk.position, chunk.missing) == (100, 155, 50)


async def test_a_log_that_ends_earlier_is_truncated(reader: Reader) -> None:
    await reader.seek(100)
    reader.fetched(100, 5)
    reader.take()
    reader.out_of_range(0)
    reader.fetched(0, 5)
    assert reader.take() is None
    assert reader.lane.partitions[BEATS].truncated


async def test_a_log_of_which_nothing_was_read_is_looked_at_some_times(
    reader: Reader,
) -> None:
    """There is nothing yet to tell whether it was a broker's mistake."""
    await reader.seek(100)
    partition = reader.lane.partitions[BEATS]
    for look in range(LOOKS):
        assert not partition.truncated
        assert reader.state.position == 100
        reader.out_of_range(0)
        reader.fetched(0, 5)
        assert reader.take() is None
        assert partition.looks == look + 1
    assert partition.truncated


async def test_a_log_that_has_all_again_is_read_on(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that was frozen takes itself for the leader; its log ends earlier."""
    monkeypatch.setattr(fetch, "LOOK_AGAIN_SECONDS", 0.0)
    await reader.seek(100)
    reader.fetched(100, 5)
    reader.take()
    partition = reader.lane.partitions[BEATS]
    reader.out_of_range(0)
    reader.fetched(0, 5)
    assert reader.take() is None
    assert partition.truncated

    def looks(offset: int, count: int) -> bool:
        assert reader.state.position == 100
        reader.fetched(offset, count)
        reader.lane.ids_are_right(time.monotonic())
        assert reader.thread._take_chunks(reader.fetcher, {BEATS}) == {}
        return partition.truncated

    assert looks(0, 5)
    # It has grown beyond what was read, with other records.
    assert looks(100, 6)
    assert not looks(100, 5)
    assert reader.state.position == 105
    reader.fetched(105, 5)
    chunk = reader.take()
    assert chunk is not None
    assert (chunk.asked, chunk.position, chunk.missing) == (105, 110, 0)


async def test_a_log_that_begins_behind_what_was_read_meanwhile_is_read_on(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka deletes the last batch that was read while it is looked for."""
    monkeypatch.setattr(fetch, "LOOK_AGAIN_SECONDS", 0.0)
    await reader.seek(100)
    reader.fetched(100, 5)
    reader.take()
    reader.out_of_range(0)
    reader.fetched(0, 5)
    reader.take()
    reader.out_of_range(110)
    reader.fetched(110, 5)
    reader.lane.ids_are_right(time.monotonic())
    assert reader.thread._take_chunks(reader.fetcher, {BEATS}) == {}
    [[[chunk]]] = reader.thread._take_chunks(reader.fetcher, {BEATS}).values()
    assert (chunk.asked, chunk.position, chunk.missing) == (105, 115, 5)


async def test_a_damaged_batch_is_not_the_last_that_was_read(reader: Reader) -> None:
    """What comes before it was, and only that tells what the log has lost."""
    await reader.seek(100)
    reader.fetched(100, 5, 5)
    result = reader.fetcher._records[AIO]._partition_records
    data = bytearray(result._records._data)
    second = len(data) // 2
    data[second + 17] ^= 0xFF  # its checksum
    result._records = FetchedRecords(bytes(data))
    result._check_crcs = True
    chunk = reader.take()
    assert chunk is not None
    assert chunk.position == 105
    partition = reader.lane.partitions[BEATS]
    assert partition.damage
    assert partition.last_batch == (100, bytes(data[:21]))


async def test_what_a_seek_overtook_is_dropped(reader: Reader) -> None:
    await reader.seek(100)
    reader.fetched(100, 5)
    await reader.seek(90)
    assert reader.take() is None
    assert not reader.fetcher._records  # so that it is fetched again


async def test_a_seek_while_the_group_assigns_anew_brings_nothing_back(
    reader: Reader,
) -> None:
    """Until then aiokafka still has what was ours, and may be another's by then."""
    await reader.seek(100)
    reader.lane.forget({BEATS})
    reader.subscriptions.begin_reassignment()
    with suppress(IllegalStateError):
        await reader.seek(100)
    assert not reader.lane.partitions
    reader.assign()
    await reader.seek(100)
    assert reader.lane.partitions


async def test_nothing_to_commit_is_no_fault(reader: Reader) -> None:
    """All of it may be another's by now; aiokafka raises, which ends the worker."""
    reader.thread.assignment = set
    assert await reader.thread._commit({BEATS: 7}) is False


async def test_kafka_waits_for_more_only_while_records_keep_coming(
    reader: Reader,
) -> None:
    """The first after a pause is answered at once, and a pause costs no requests."""

    def asked() -> tuple[int, int]:
        fetcher = reader.fetcher
        return fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms

    at_once, lingering = (1, IDLE_MS), (LINGER_BYTES, LEAST_LINGER_MS)
    reader.thread._took = -math.inf
    reader.thread._linger(reader.fetcher, 100.0, found=True)
    assert asked() == at_once
    for now in (100.01, 100.02):
        reader.thread._linger(reader.fetcher, now, found=True)
        assert asked() == lingering
    reader.thread._linger(reader.fetcher, 100.03, found=False)
    assert asked() == lingering
    reader.thread._linger(reader.fetcher, 100.02 + 2 * PAUSE_SECONDS, found=False)
    assert asked() == at_once


@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0.001, LEAST_LINGER_MS), (0.0056, 6), (30.0, MOST_LINGER_MS)],
)
async def test_kafka_gathers_about_as_long_as_it_takes_to_store(
    reader: Reader, seconds: float, ms: int
) -> None:
    """What came sooner would wait for those before it."""
    reader.lane.seconds_to_store = seconds
    reader.thread._took = 100.0
    reader.thread._linger(reader.fetcher, 100.01, found=True)
    assert reader.fetcher._fetch_max_wait_ms == ms


async def test_no_partition_waits_long_for_one_without_records(reader: Reader) -> None:
    """aiokafka's next fetch for any partition of a broker comes after the answer."""
    await reader.seek(100)
    reader.fetched(100, 5)
    reader.lane.ids_are_right(time.monotonic())
    [[[chunk]]] = reader.thread._take_chunks(reader.fetcher, {BEATS}).values()
    long_after = 100.0 + 2 * PAUSE_SECONDS
    reader.thread._took = 100.0
    reader.thread._linger(reader.fetcher, long_after, found=False)
    assert reader.fetcher._fetch_max_wait_ms == BUSY_MS
    reader.lane.release(BEATS, chunk.position)
    reader.thread._linger(reader.fetcher, long_after, found=False)
    assert reader.fetcher._fetch_max_wait_ms == IDLE_MS


async def test_a_partition_without_a_position_ends_no_worker(reader: Reader) -> None:
    """Faust looks for what stands still at any time, also while aiokafka seeks."""
    await reader.seek(100)
    reader.thread.time_started = 0.0
    reader.thread._verify_aiokafka_event_path = lambda now, tp: False
    topics = SimpleNamespace(acks_enabled_for=lambda topic: True)
    app = SimpleNamespace(monitor=object(), topics=topics)
    reader.thread.consumer = SimpleNamespace(app=app)
    reader.state.await_reset(OffsetResetStrategy.EARLIEST)
    reader.thread.verify_event_path(1_000.0, BEATS)
    reader.subscriptions.assign_from_subscribed(set())
    reader.thread.verify_event_path(1_000.0, BEATS)


def actions_of(reader: Reader) -> list[set[str]]:
    """Of what aiokafka may fetch nothing, each time it asks for its next requests."""
    asked: list[set[str]] = []
    reader.thread._all_actions = lambda assignment: asked.append(
        {tp.topic for tp in reader.fetcher._records}
    )
    reader.fetcher._select_read_replica = lambda tp: 1
    return asked


async def test_what_came_of_a_truncated_log_takes_no_room(reader: Reader) -> None:
    """Nobody takes it, and what it holds is missing for the other partitions."""
    asked = actions_of(reader)
    await reader.seek(100)
    assignment = reader.subscriptions.subscription.assignment
    reader.fetched(100, 5)
    reader.lane.partitions[BEATS].truncated = True
    for _ in range(2):
        reader.thread._actions(reader.fetcher, assignment)
        assert reader.fetcher._records == {}
    assert asked == [{"beats"}, {"beats"}]  # nor is it fetched again


async def test_a_partition_may_go_while_requests_are_made(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread forgets it between two looks; an error would end the fetcher."""
    actions_of(reader)
    await reader.seek(100)
    reader.fetched(100, 5)
    monkeypatch.setattr(fetch, "MAX_FETCHED_BYTES", 1)

    class Forgotten(dict[TP, Any]):
        def __contains__(self, tp: object) -> bool:
            found = super().__contains__(tp)
            self.clear()
            return found

    reader.lane.partitions = Forgotten(reader.lane.partitions)
    assignment = reader.subscriptions.subscription.assignment
    reader.thread._actions(reader.fetcher, assignment)


async def test_what_was_damaged_and_is_deleted_is_not_damaged_any_more(
    reader: Reader,
) -> None:
    """It was the log's last, so that nothing comes that could tell."""
    actions_of(reader)
    await reader.seek(100)
    partition = reader.lane.partitions[BEATS]
    partition.damage = Damage(100, 105, "its checksum is wrong")
    assignment = reader.subscriptions.subscription.assignment
    reader.thread._actions(reader.fetcher, assignment)
    assert partition.damage
    reader.out_of_range(105)
    reader.thread._actions(reader.fetcher, assignment)
    assert partition.damage is None


async def test_on_a_slow_line_less_is_asked_for_at_once(reader: Reader) -> None:
    """An answer that takes longer than a request may would never come."""
    actions_of(reader)
    await reader.seek(100)
    assignment = reader.subscriptions.subscription.assignment
    request = FetchRequest(500, 1, MAX_FETCH_BYTES, READ_COMMITTED, [])

    def asked_for() -> int:
        reader.thread._actions(reader.fetcher, assignment)
        return int(reader.fetcher._fetch_max_bytes)

    async def times_out(*args: Any) -> Any:
        raise RequestTimedOutError

    async def comes(*args: Any) -> Any:
        return SimpleNamespace(topics=[("others", [(0, 0, 5, 5, [], b"records")])])

    async def comes_empty(*args: Any) -> Any:
        return SimpleNamespace(topics=[("others", [(0, 0, 5, 5, [], b"")])])

    assert asked_for() == MAX_FETCH_BYTES
    for _ in range(9):
        with suppress(RequestTimedOutError):
            await reader.thread._send(times_out, 1, request)
    assert asked_for() == SLOW_FETCH_BYTES
    await reader.thread._send(comes_empty, 1, request)
    await reader.thread._send(comes, 2, request)
    assert asked_for() == SLOW_FETCH_BYTES
    await reader.thread._send(comes, 1, request)
    assert asked_for() == 2 * SLOW_FETCH_BYTES
    for _ in range(99):
        await reader.thread._send(comes, 1, request)
    assert asked_for() == MAX_FETCH_BYTES


async def test_what_is_given_back_is_read_again(reader: Reader) -> None:
    await reader.seek(100)
    reader.fetched(100, 5)
    chunk = reader.take()
    assert chunk is not None
    await reader.thread.give_back(BEATS, chunk.epoch)
    assert not reader.lane.is_current(BEATS, chunk.epoch)
    assert reader.state.position == 100
    # What was sought meanwhile stays.
    await reader.seek(90)
    await reader.thread.give_back(BEATS, chunk.epoch)
    assert reader.lane.partitions[BEATS].expected == reader.state.position == 90


async def test_a_topic_that_may_not_be_read_ends_no_worker(reader: Reader) -> None:
    """It is said, and read on as soon as Kafka allows it."""
    actions_of(reader)
    await reader.seek(100)
    reader.fetcher._records[AIO] = FetchError(
        error=TopicAuthorizationFailedError("beats"), backoff=0
    )
    assert reader.thread._take_chunks(reader.fetcher, {BEATS}) == {}
    partition = reader.lane.partitions[BEATS]
    assert "ACL: Read" in str(partition.damage)
    assert not reader.fetcher._records

    async def comes(*args: Any) -> Any:
        return SimpleNamespace(topics=[("beats", [(0, 0, 100, 100, [], b"")])])

    request = FetchRequest(500, 1, 1, READ_COMMITTED, [("beats", [(0, 100, 1)])])
    await reader.thread._send(comes, 1, request)
    assert partition.damage is None
