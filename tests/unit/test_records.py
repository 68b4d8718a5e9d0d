"""What is unpacked is what was sent, and what aiokafka itself would have unpacked."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heartbeat_app.lane import batch_reader, decompress
from heartbeat_app.lane.fetched import FetchedRecords, Unpacked
from heartbeat_app.lane.records import LargeRecord, Record
from heartbeat_app.lane.unpack import Unpacker
from tests.record_batches import ABORT, CODECS, COMMIT, Entry, RecordBatch, marker

Headers = list[tuple[bytes, bytes | None]]
Seen = tuple[int, bytes | None, bytes | None, Headers]

MAX = 1_000_000


def unpack(
    source: Any, max_records: int, max_bytes: int, max_record_bytes: int = 16 * MAX
) -> Unpacked:
    return Unpacker(max_record_bytes, LargeRecord).unpack(
        source, max_records, max_bytes
    )


def fetched(
    data: bytes, offset: int, aborted: Sequence[tuple[int, int]], kind: Any
) -> Any:
    """aiokafka's own class around a fetch."""
    return PartitionRecords(
        TopicPartition("beats", 0), kind(data), list(aborted), offset, None, None,
        True, READ_COMMITTED,
    )  # fmt: skip


def names(headers: Sequence[tuple[str, bytes | None]]) -> Headers:
    """Headers with their names as the bytes that they were."""
    return [(name.encode("utf-8", "surrogateescape"), value) for name, value in headers]


def seen(records: Sequence[Any]) -> list[Seen]:
    return [(r.offset, r.key, r.value, names(r.headers)) for r in records]


@dataclasses.dataclass
class Log:
    """A part of a log, and what a reader of committed records has to see of it."""

    batches: list[RecordBatch]
    aborted: list[tuple[int, int]]
    expected: list[Seen]

    @property
    def data(self) -> bytes:
        return b"".join(batch.encode() for batch in self.batches)

    @property
    def end(self) -> int:
        return self.batches[-1].end


some_bytes = st.none() | st.binary(max_size=12) | st.just(b"x" * 300)
utf8_names = st.text(max_size=4).map(str.encode)
any_names = utf8_names | st.binary(max_size=4) | st.just(b"\xed\xa0\x80")


@st.composite
def logs(draw: st.DrawFn, header_names: st.SearchStrategy[bytes] = any_names) -> Log:
    """Batches one after the other, with transactions that overlap."""
    at = draw(st.integers(0, 2**40))
    open_since: dict[int, int] = {}  # first offset of a producer's transaction
    made: list[tuple[RecordBatch, bool]] = []  # with: belongs to a transaction
    aborted: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 6))):
        at += draw(st.sampled_from([0, 0, 0, 1, 5]))  # whole batches compacted away
        ends = draw(st.booleans())
        if open_since and ends:
            producer = draw(st.sampled_from(sorted(open_since)))
            control = draw(st.sampled_from([COMMIT, ABORT]))
            since = open_since.pop(producer)
            if control == ABORT:
                aborted.append((producer, since))
            empty = control == COMMIT and draw(st.booleans())
            made.append((marker(at, producer, control, empty=empty), False))
            at += 1
            continue
        length = draw(st.integers(1, 5))
        deltas = draw(st.sets(st.integers(0, length - 1)))
        headers = st.lists(st.tuples(header_names, some_bytes), max_size=2)
        entries = [
            Entry(delta, draw(some_bytes), draw(some_bytes), draw(headers))
            for delta in sorted(deltas)
        ]
        transactional = draw(st.booleans())
        producer = draw(st.sampled_from([1, 2] if transactional else [-1, 7]))
        if transactional:
            open_since.setdefault(producer, at)
        codec = draw(st.sampled_from(CODECS))
        batch = RecordBatch(at, length, entries, codec, producer, transactional)
        made.append((batch, transactional))
        at = batch.end
    expected = [
        (batch.first + each.delta, each.key, each.value, list(each.headers))
        for batch, in_transaction in made
        if batch.control is None
        and not (in_transaction and is_aborted(batch, made, aborted))
        for each in batch.entries
    ]
    return Log([batch for batch, _ in made], aborted, expected)


def is_aborted(
    batch: RecordBatch,
    made: Sequence[tuple[RecordBatch, bool]],
    aborted: Sequence[tuple[int, int]],
) -> bool:
    """Whether the next marker of its producer is an abort."""
    for other, _ in made:
        if (
            other.first > batch.first
            and other.producer == batch.producer
            and other.control is not None
        ):
            return other.control == ABORT
    return False


@settings(max_examples=200)
@given(logs(), st.data())
def test_what_is_unpacked_is_what_was_committed(log: Log, data: st.DataObject) -> None:
    """Any codec, any header names, from any offset, in any number of parts."""
    offset = data.draw(st.integers(log.batches[0].first, log.batches[0].end - 1))
    limit = data.draw(st.integers(1, 10) | st.just(MAX))
    source = fetched(log.data, offset, log.aborted, FetchedRecords)
    found: list[Record] = []
    while not source._records.is_done:
        before = source.next_fetch_offset
        part = unpack(source, limit, MAX).records
        assert len(part) < limit + 5  # a whole batch more at most
        assert all(before <= each.offset < source.next_fetch_offset for each in part)
        found += part
    assert seen(found) == [each for each in log.expected if each[0] >= offset]
    assert source.next_fetch_offset == log.end


@settings(max_examples=300)
@given(st.data(), st.sampled_from(CODECS))
def test_what_is_taken_apart_is_what_was_sent(data: st.DataObject, codec: str) -> None:
    """Piece by piece, small ones in groups, whatever is among them."""
    largest = data.draw(st.sampled_from([150, 400, MAX]))
    entry = st.builds(
        Entry,
        st.integers(1, 3),  # from the one before
        some_bytes,
        some_bytes | st.binary(max_size=2) | st.just(bytes(200)),
        st.just([]) | st.lists(st.tuples(any_names, some_bytes), max_size=3),
    )
    entries, delta = [], -1
    for each in data.draw(st.lists(entry, min_size=1, max_size=60)):
        delta += each.delta
        entries.append(dataclasses.replace(each, delta=delta))
    batch = RecordBatch(1_000, delta + 1, entries, codec)
    offset = 1_000 + data.draw(st.integers(0, delta))
    limit = data.draw(st.integers(1, 20) | st.just(MAX))
    with pytest.MonkeyPatch.context() as patch:
        for module in (batch_reader, decompress):
            patch.setattr(module, "PIECE_BYTES", data.draw(st.integers(50, 2_000)))
        patch.setattr(batch_reader, "MOST_AT_ONCE", 1)
        patch.setattr(batch_reader, "LEAST_IN_A_GROUP", 2)
        patch.setattr(batch_reader, "HARMLESS_BYTES", 500)
        source = fetched(batch.encode(), offset, [], FetchedRecords)
        unpacker = Unpacker(largest, LargeRecord)
        found: list[Record] = []
        large: list[int] = []
        while not source._records.is_done:
            part = unpacker.unpack(source, limit, MAX)
            assert not part.unread
            found += part.records
            large += [each.offset for each in part.large]
    expected = [
        (1_000 + each.delta, each.key, each.value, list(each.headers))
        for each in entries
        if 1_000 + each.delta >= offset
    ]
    assert seen(found) == [each for each in expected if weight(each) <= largest]
    assert large == [each[0] for each in expected if weight(each) > largest]
    assert source.next_fetch_offset == batch.end


def weight(record: Seen) -> int:
    _, key, value, headers = record
    parts = [key, value, *(part for header in headers for part in header)]
    return sum(len(part or b"") for part in parts) + 64 * len(headers)


def test_offsets_of_transactions_are_told_from_those_that_nothing_explains() -> None:
    log = [
        RecordBatch(0, 3, [Entry(0), Entry(2)], "lz4"),  # 1 was compacted
        RecordBatch(5, 4, [Entry(0), Entry(1)], producer=7, transactional=True),
        marker(9, 7, ABORT),
        RecordBatch(10, 2, [Entry(0), Entry(1)], producer=7, transactional=True),
        marker(12, 7, COMMIT),
    ]
    data = b"".join(each.encode() for each in log)
    source = fetched(data, 2, [(7, 5)], FetchedRecords)
    found = unpack(source, MAX, MAX)
    assert [each.offset for each in found.records] == [2, 10, 11]
    # The aborted batch, compacted or not, and both markers; 3 and 4 are gone.
    assert found.passed_over == 4 + 1 + 1
    assert source.next_fetch_offset == 13
    # A fetch that begins inside of an aborted batch.
    source = fetched(data[len(log[0].encode()) :], 7, [(7, 5)], FetchedRecords)
    assert unpack(source, MAX, MAX).passed_over == 2 + 1 + 1


@settings(max_examples=150)
@given(logs(utf8_names), st.data())
def test_aiokafka_unpacks_the_same(log: Log, data: st.DataObject) -> None:
    offset = data.draw(st.integers(log.batches[0].first, log.batches[0].end - 1))
    log.batches = [
        # It raises where compaction took a marker out of its batch.
        batch if batch.entries or batch.control is None else marker_of(batch)
        for batch in log.batches
    ]
    theirs = fetched(log.data, offset, log.aborted, MemoryRecords)
    ours = fetched(log.data, offset, log.aborted, FetchedRecords)
    assert seen(unpack(ours, MAX, MAX).records) == seen(list(theirs))
    assert ours.next_fetch_offset == theirs.next_fetch_offset


def marker_of(batch: RecordBatch) -> RecordBatch:
    whole: RecordBatch = marker(batch.first, batch.producer, COMMIT)
    return whole


@pytest.mark.parametrize(
    ("magic", "codec"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
)
@settings(max_examples=20)
@given(st.lists(st.tuples(some_bytes, some_bytes), min_size=1, max_size=5))
def test_the_formats_before_are_unpacked_too(
    magic: int, codec: int, sent: list[tuple[bytes | None, bytes | None]]
) -> None:
    """A topic may hold records from before Kafka 0.11."""
    builder: Any = LegacyRecordBatchBuilder(
        magic=magic, compression_type=codec, batch_size=MAX
    )
    for offset, (key, value) in enumerate(sent):
        builder.append(offset, timestamp=0 if magic else None, key=key, value=value)
    data = bytes(builder.build())
    if codec:  # the broker gives the message around them the offset of the last
        data = (len(sent) - 1).to_bytes(8, "big") + data[8:]
    theirs = fetched(data, 0, [], MemoryRecords)
    ours = fetched(data, 0, [], FetchedRecords)
    found = unpack(ours, MAX, MAX).records
    assert seen(found) == seen(list(theirs))
    assert [(each.key, each.value) for each in found] == sent
    assert ours.next_fetch_offset == theirs.next_fetch_offset == len(sent)


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=4))
@example([b"\xff"])
@example([b"\xed\xa0\x80", b"\xc3", b"\xa9"])
@example([b"\x00"])
def test_the_name_of_a_header_may_be_any_bytes(header_names: list[bytes]) -> None:
    """aiokafka raises, and would do so for ever, since the batch is read again."""
    entries = [
        Entry(n, b"k", b"v", [(name, b"1")]) for n, name in enumerate(header_names)
    ]
    for codec in CODECS:
        batch = RecordBatch(0, len(entries), entries, codec)
        source = fetched(batch.encode(), 0, [], FetchedRecords)
        found = unpack(source, MAX, MAX).records
        assert [names(each.headers)[0][0] for each in found] == header_names


def test_a_marker_that_compaction_took_is_a_gap() -> None:
    """aiokafka raises, and would do so for ever: the batch stays in the log."""
    log = [
        RecordBatch(
            0, 1, [Entry(0, None, b"committed")], producer=1, transactional=True
        ),
        marker(1, 1, COMMIT, empty=True),
        RecordBatch(2, 1, [Entry(0, None, b"after")]),
    ]
    source = fetched(b"".join(b.encode() for b in log), 0, [], FetchedRecords)
    assert [each.value for each in unpack(source, MAX, MAX).records] == [
        b"committed",
        b"after",
    ]
    assert source.next_fetch_offset == 3


def test_a_batch_below_the_offset_does_not_move_it_back() -> None:
    log = [RecordBatch(0, 2, [Entry(0), Entry(1)]), RecordBatch(2, 1, [Entry(0)])]
    source = fetched(b"".join(b.encode() for b in log), 2, [], FetchedRecords)
    assert [each.offset for each in unpack(source, MAX, MAX).records] == [2]


def test_records_of_a_megabyte_come_whole() -> None:
    values = [bytes([n]) * 1_048_576 for n in range(3)]
    entries = [Entry(n, value, value) for n, value in enumerate(values)]
    for codec in CODECS:
        data = RecordBatch(0, 3, entries, codec).encode()
        source = fetched(data, 0, [], FetchedRecords)
        found = unpack(source, MAX, 10 * MAX).records
        assert [each.value for each in found] == values
        assert [each.key for each in found] == values


def test_records_that_unpack_to_much_come_in_parts() -> None:
    log = [
        RecordBatch(n, 1, [Entry(0, b"key", b"x" * 999_997)], "zstd") for n in range(5)
    ]
    data = b"".join(each.encode() for each in log)
    assert len(data) < 5_000
    source = fetched(data, 0, [], FetchedRecords)
    parts = [unpack(source, MAX, 2 * MAX) for _ in range(3)]
    assert [[r.offset for r in part.records] for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.size // MAX for part in parts] == [2, 2, 1]


def test_a_bit_that_flipped_is_no_record() -> None:
    data = bytearray(RecordBatch(0, 1, [Entry(0, b"key", b"value")]).encode())
    data[-3] ^= 1
    found = unpack(fetched(bytes(data), 0, [], FetchedRecords), MAX, MAX)
    assert found.damage
    assert found.records == []


# Where in a batch, what is written there, and whether its checksum is right again.
DAMAGED = {
    "a payload": (70, b"\xff", False),
    "a format to come": (16, b"\3", True),
    "a format of before": (16, b"\0", True),
    "a negative format": (16, b"\xff", True),
    "a length beyond the fetch": (8, b"\x7f", True),
    "a length of nothing": (8, bytes(4), True),
    "a negative length": (8, b"\xff", True),
    "an offset beyond the log": (2, b"\1", True),
    "offsets that are negative": (23, b"\x80", True),
    "a codec that is not there": (22, b"\7", False),
    "a control record that is none": (22, b"\x30", True),
}


@pytest.mark.parametrize(("at", "new", "right"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("good", [0, 1])
def test_what_comes_before_damage_is_given(
    at: int, new: bytes, right: bool, good: int
) -> None:
    one = RecordBatch(0, 3, [Entry(2, None, b"one")]).encode()
    two = bytearray(
        RecordBatch(3, 3, [Entry(0, b"key", b"x" * 99)], producer=7).encode()
    )
    two[at : at + len(new)] = new
    if right:
        two[17:21] = calc_crc32c(bytes(two[21:])).to_bytes(4, "big")
    if new == b"\x7f" and good:
        return  # it looks like one that was cut off, and comes first in the next fetch
    data = one * good + bytes(two) + RecordBatch(6, 1, [Entry(0)]).encode()
    source = fetched(data, 3 if not good else 0, [], FetchedRecords)
    for _ in range(2):  # it is not passed over
        found = Unpacker(MAX, LargeRecord).unpack(source, MAX, MAX, log_end=7)
        assert found.damage, found
        assert (found.damage.offset, source.next_fetch_offset) == (3, 3)
        assert [each.value for each in found.records] == [b"one"] * good
        good = 0


@given(logs(), st.integers(1, 200))
def test_a_batch_that_was_cut_off_is_left_for_the_next_fetch(
    log: Log, cut: int
) -> None:
    """Kafka may end an answer in the middle of a batch."""
    part = log.data[:-cut]
    source = fetched(part, log.batches[0].first, log.aborted, FetchedRecords)
    found = seen(unpack(source, MAX, MAX).records)
    assert found == log.expected[: len(found)]
    assert source.next_fetch_offset <= log.end
    kept, at = 0, 0
    for batch in log.batches:
        at += len(batch.encode())
        kept += at <= len(part)
    position = log.batches[kept - 1].end if kept else log.batches[0].first
    assert source.next_fetch_offset == position
    assert found == [each for each in log.expected if each[0] < position]


def test_a_fetch_goes_when_it_was_unpacked() -> None:
    """Not when the garbage collector comes by: it is megabytes, many times a second."""
    batch = RecordBatch(0, 1, [Entry(0, b"key", b"value")])
    taken = fetched(batch.encode(), 0, [], FetchedRecords)
    gone = weakref.ref(taken)
    gc.disable()
    try:
        unpack(taken, MAX, MAX)
        del taken
        assert gone() is None
    finally:
        gc.enable()
