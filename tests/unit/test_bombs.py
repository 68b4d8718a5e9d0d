"""Whatever a batch expands to, little is held and no step takes long."""

from __future__ import annotations

import struct
import time
from typing import Any

import psutil
import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.structs import TopicPartition
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.domain.excerpts import Excerpt, Excerpting
from heartbeat_app.lane import batch_reader, decompress
from heartbeat_app.lane.fetched import FetchedRecords, Unpacked
from heartbeat_app.lane.unpack import Unpacker
from tests.bombs import COMPRESSED, MIB, batch, bomb, compress, record, varint

CODECS = [*COMPRESSED, "raw snappy"]
LARGE = MIB


def fetched(data: bytes, offset: int = 0) -> Any:
    return PartitionRecords(
        TopicPartition("beats", 0), FetchedRecords(data), [], offset, None, None,
        True, READ_COMMITTED,
    )  # fmt: skip


class Taken:
    """All of a fetch, taken as the lane does, and what that cost."""

    def __init__(self, data: bytes, *, offset: int = 0) -> None:
        self.records = 0
        self.values: list[bytes | None] = []
        self.large: list[Excerpt] = []
        self.unread: list[tuple[int, int]] = []
        self.words = ""
        self.longest_step = self.most_memory = 0.0
        process = psutil.Process()
        source = fetched(data, offset)
        unpacker = Unpacker(LARGE, Excerpting)
        before = process.memory_info().rss
        while not source._records.is_done:
            began = time.thread_time()
            part: Unpacked = unpacker.unpack(
                source, 50_000, 6 * MIB, time.thread_time() + 0.05
            )
            self.longest_step = max(self.longest_step, time.thread_time() - began)
            self.most_memory = max(self.most_memory, process.memory_info().rss - before)
            self.records += len(part.records)
            if len(self.values) < 1_000:
                self.values += [r.value for r in part.records[:1_000]]
            self.large += part.large
            self.unread += [(each.first, each.last) for each in part.unread]
            self.words += "".join(each.why for each in part.unread)
        self.position = source.next_fetch_offset


@pytest.mark.parametrize("where", ["value", "key", "header", "headers", "records"])
@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_bomb_is_read_to_its_end(codec: str, where: str) -> None:
    size = MIB if where == "records" else 96 * MIB
    data, count = bomb(codec, size, where)
    good = batch(b"".join(record(0, 3)), first=count)
    found = Taken(data + good)
    assert found.position == count + 1
    assert found.values[-1] == b"aaa" or where == "records"
    if where == "records":
        assert (found.records, found.large) == (count + 1, [])
    else:
        [excerpt] = found.large
        assert (found.records, excerpt.offset) == (1, 0)
        assert excerpt.size >= (size if where != "headers" else 1)
    assert found.unread == []
    assert found.longest_step < 0.2
    assert found.most_memory < 64 * MIB


@pytest.mark.parametrize("size", [63 * MIB, 65 * MIB])
def test_a_block_of_snappy_is_all_or_nothing(size: int) -> None:
    data, _ = bomb("raw snappy", size, "value")
    found = Taken(data)
    assert (len(found.large), found.unread) == (
        (1, []) if size < 64 * MIB else (0, [(0, 0)])
    )
    assert found.longest_step < 0.2
    assert found.most_memory < 72 * MIB


@pytest.mark.parametrize("codec", CODECS)
def test_no_batch_expands_without_end(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompress, "MOST_BYTES", 8 * MIB)
    pieces = [*record(0, 3), *record(1, 16 * MIB), *record(2, 3)]
    found = Taken(batch(compress(codec, pieces), codec, first=7, count=3), offset=7)
    assert (found.values, found.unread) == ([b"aaa"], [(8, 9)])
    assert "expand to more than" in found.words
    assert found.position == 10


ONE = b"".join(record(0, 3))
TWO = b"".join(record(1, 3))
# What it is, and how many records come before that is found out.
BROKEN = {
    "a length that is too long": (b"\xff" * 11 + TWO, 0),
    "a negative length": (varint(-5) + TWO, 0),
    "a length beyond the end": (ONE + varint(500) + TWO[1:], 1),
    "a length of gigabytes": (ONE + varint(2**31 - 1) + TWO[1:], 1),
    "a length that is too short": (ONE + varint(3) + TWO[1:], 1),
    "the same offset again": (ONE + ONE, 1),
    "an offset beyond the batch": (ONE + b"".join(record(2, 3)), 1),
    "a negative offset": (b"".join(record(-1, 3)) + TWO, 0),
    "a key beyond its record": (ONE + b"\x10\0\0\2" + varint(900) + TWO, 1),
    "headers that are not there": (
        ONE + varint(8) + b"\0\0\2\1\1" + varint(300_000), 1,
    ),
    "a negative number of headers": (ONE + varint(6) + b"\0\0\2\1\1\1", 1),
    "a header without a name": (ONE + varint(8) + b"\0\0\2\1\1\2\1\1", 1),
    "too few records": (ONE, 1),
    "nothing": (b"", 0),
}  # fmt: skip


@pytest.mark.parametrize("codec", ["none", *CODECS])
@pytest.mark.parametrize(("data", "good"), BROKEN.values(), ids=BROKEN)
def test_what_lies_is_unreadable_from_there_on(
    data: bytes, good: int, codec: str
) -> None:
    whole = batch(compress(codec, [data]), codec, first=5, count=2)
    after = batch(ONE, first=7)
    found = Taken(whole + after, offset=5)
    assert (found.records, found.unread) == (good + 1, [(5 + good, 6)])
    assert found.position == 8
    assert found.words.endswith(".")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, -1])
def test_what_is_cut_off_is_unreadable(codec: str, keep: float) -> None:
    whole = compress(codec, record(0, 300_000, fill=bytes(range(256)) * 7))
    data = whole[: int(keep * len(whole)) if keep == 0.5 else int(keep)]
    found = Taken(batch(data, codec))
    # All of the record is there; what the codec has to say about its end is not asked.
    is_whole = keep == -1 and codec in ("gzip", "lz4")
    assert (found.records, found.unread) == ((1, []) if is_whole else (0, [(0, 0)]))


@pytest.mark.parametrize("codec", COMPRESSED[:1] + COMPRESSED[2:])
def test_frames_may_follow_each_other(codec: str) -> None:
    data = compress(codec, [ONE]) + compress(codec, [b""]) + compress(codec, [TWO])
    assert Taken(batch(data, codec, count=2)).values == [b"aaa", b"aaa"]
    endless = compress(codec, [b""]) * 20_000
    found = Taken(batch(endless, codec, count=2))
    assert (found.unread, found.longest_step < 0.2) == ([(0, 1)], True)
    assert "more than 1,000" in found.words


def test_blocks_of_nothing_take_no_long_step() -> None:
    block = struct.pack(">i", 1) + b"\0"
    data = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1) + block * 200_000
    found = Taken(batch(data, "snappy", count=2))
    assert (found.unread, found.longest_step < 0.2) == ([(0, 1)], True)


def test_a_window_of_zstd_is_memory() -> None:
    """The highest levels declare 128 MiB, also where they hold little."""
    parameters: dict[int, int] = {
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    stream = zstd.ZstdCompressor(options=parameters)
    small = b"".join([*map(stream.compress, record(0, 3)), stream.flush()])
    assert Taken(batch(small, "zstd")).values == [b"aaa"]
    stream = zstd.ZstdCompressor(options=parameters)
    noise = bytes(range(256)) * 3 + b"x"
    large = [*map(stream.compress, record(0, 200 * MIB, fill=noise)), stream.flush()]
    found = Taken(batch(b"".join(large), "zstd"))
    assert (found.unread, "window" in found.words) == ([(0, 0)], True)
    assert found.most_memory < 64 * MIB


def test_a_record_is_too_large_by_its_bytes_and_headers() -> None:
    for value, headers, is_large in (
        (LARGE, 0, False), (LARGE + 1, 0, True), (LARGE - 64, 1, False),
        (LARGE - 63, 1, True), (0, LARGE // 64, False), (0, LARGE // 64 + 1, True),
    ):  # fmt: skip
        for codec in ("none", "zstd"):
            pieces = record(0, value, headers=headers)
            found = Taken(batch(compress(codec, pieces), codec))
            assert (len(found.large), found.records) == (is_large, not is_large)


def test_an_excerpt_has_what_was_sent() -> None:
    name = b'"customer_id": "anna"}'
    pieces = [*record(0, 3), *record(1, 5 * MIB, key=7, fill=b"xy", end=name)]
    whole = Taken(batch(compress("lz4", pieces), "lz4", count=2))
    [found] = whole.large
    assert (found.offset, found.size, list(found.customer_ids)) == (
        1, 5 * MIB + 7 + len(name), ["anna", "xyxyxyx"],
    )  # fmt: skip
    assert (found.key, found.value) == (b"xyxyxyx", (b"xy" * 4096)[: 4096 - 7])


@given(st.data(), st.sampled_from(CODECS))
def test_no_bytes_are_taken_for_more_than_they_are(
    data: st.DataObject, codec: str
) -> None:
    """Any flipped bytes, under a right checksum, end in records or in words."""
    whole = bytearray(compress(codec, [*record(0, 40), *record(1, 3), *record(2, 9)]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    found = Taken(batch(bytes(whole), codec, count=3))
    assert found.position == 3
    unread = sum(last - first + 1 for first, last in found.unread)
    assert found.records + len(found.large) + unread == 3


def test_a_batch_has_no_more_than_so_many_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_reader, "MOST_RECORDS", 100_000)
    data, count = bomb("lz4", MIB, "records")
    found = Taken(data)
    assert (found.records, found.unread) == (100_000, [(100_000, count - 1)])


@pytest.mark.parametrize("cut", [0, 1, 17, 100_000])
def test_it_goes_on_in_the_middle_of_a_batch(cut: int) -> None:
    """After a restart Kafka gives the whole batch again; nothing is given twice."""
    data, count = bomb("gzip", MIB, "records")
    found = Taken(data, offset=cut)
    assert (found.records, found.position) == (count - cut, count)


def test_a_framed_block_of_snappy_is_memory_too() -> None:
    block = compress("raw snappy", [bytes(20 * MIB)])
    framed = b"\x82SNAPPY\0" + struct.pack(">iii", 1, 1, len(block)) + block
    for data in (block, framed):
        assert decompress.memory(2, memoryview(data)) == 20 * MIB
    assert decompress.memory(2, memoryview(framed[:-1])) == 0
