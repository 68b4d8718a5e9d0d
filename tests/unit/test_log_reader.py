"""The audit's own parser of Kafka's log, held against what is in it."""

from __future__ import annotations

import itertools
import tracemalloc

import cramjam
import pytest
from aiokafka.codec import snappy_encode
from hypothesis import given, settings
from hypothesis import strategies as st

from heartbeat_app.audit.deep import LATEST, PAGE, SeenRows, judged, pages
from heartbeat_app.audit.log_reader import MOST_BYTES, Part, Record, parts_of
from heartbeat_app.audit.reference import MICROSECOND_OF_2000, judge
from tests.record_batches import CODECS, Entry, RecordBatch
from tests.unit.test_records import Log, logs


@settings(max_examples=200)
@given(logs(), st.data())
def test_it_reads_what_was_committed_and_accounts_for_every_offset(
    log: Log, data: st.DataObject
) -> None:
    at = data.draw(st.integers(log.batches[0].first, log.batches[0].end - 1))
    end = data.draw(st.integers(at + 1, log.end))
    parts = list(parts_of((log.data, log.aborted), at, end))
    assert parts[0].first == at
    assert parts[-1].end == end
    for one, other in itertools.pairwise(parts):
        assert one.end == other.first
    records = [each for part in parts for each in part.records]
    assert [(each.offset, each.value) for each in records] == [
        (offset, value) for offset, _, value, _ in log.expected if at <= offset < end
    ]
    assert all(part.holes >= 0 for part in parts)
    assert not [part for part in parts if part.unreadable]


@pytest.mark.parametrize("codec", CODECS[1:])
def test_what_a_batch_expands_to_is_bounded(codec: str) -> None:
    """And the next batch is read."""
    bomb = b"a" * (MOST_BYTES + 20_000_000)
    log = [
        RecordBatch(0, 1, [Entry(0, b"k", bomb)], codec),
        RecordBatch(1, 1, [Entry(0)]),
    ]
    data = b"".join(batch.encode() for batch in log)
    del bomb, log
    tracemalloc.start()
    first, second = parts_of((data, []), 0, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first.first, first.end, first.unreadable) == (0, 1, "too large")
    assert [each.offset for each in second.records] == [1]
    # At most twice, while the library makes room for more.
    assert peak < 2.5 * MOST_BYTES


def test_a_snappy_block_without_a_frame_is_read() -> None:
    batch = RecordBatch(0, 1, [Entry(0, b"key", b"value")])
    plain = batch.encode()
    body = bytes(cramjam.snappy.compress_raw(plain[61:]))
    length = int.from_bytes(plain[8:12], "big") - len(plain[61:]) + len(body)
    data = plain[:8] + length.to_bytes(4, "big") + plain[12:22] + b"\x02" + plain[23:61]
    [part] = parts_of((data + body, []), 0, 1)
    assert [each.value for each in part.records] == [b"value"]
    assert snappy_encode(b"x") != cramjam.snappy.compress_raw(b"x")


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_damaged_is_said_to_be(codec: str) -> None:
    data = bytearray(
        RecordBatch(0, 3, [Entry(n, b"k", b"v" * 50) for n in range(3)], codec).encode()
    )
    data[61:] = bytes(len(data) - 61)
    [part] = parts_of((bytes(data), []), 0, 3)
    assert part.unreadable == "damaged"
    assert (part.first, part.end) == (0, 3)


ids = st.text(
    st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=9
)
stamps = st.from_regex(
    r"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,7})?(Z|[+-][0-2][0-9]:[0-5][0-9])",
    fullmatch=True,
)


@settings(max_examples=1_000)
@given(ids, stamps, st.integers(0, 302), st.sampled_from(["", " "]))
def test_the_quick_judgement_is_the_reference(
    customer: str, stamp: str, rate: int, blank: str
) -> None:
    value = (
        f'{{"customer_id":{blank}"{customer}",{blank}"timestamp":{blank}"{stamp}",'
        f'{blank}"heart_rate":{blank}{rate}}}'
    ).encode()
    beat, reasons = judge(value, earliest=MICROSECOND_OF_2000, latest=LATEST)
    assert judged(Record(0, value, False)) == (beat, reasons, True)


def test_pages_are_bounded_and_whole() -> None:
    many = Part(0, 2 * PAGE + 7, [Record(n, b"", False) for n in range(2 * PAGE + 5)])
    found = list(pages(iter([many, Part(2 * PAGE + 7, 2 * PAGE + 9, transactions=2)])))
    assert max(sum(len(part.records) for part in page) for page in found) <= PAGE
    parts = [part for page in found for part in page]
    assert parts[0].first == 0
    assert all(a.end == b.first for a, b in itertools.pairwise(parts))
    assert sum(part.holes for part in parts) == 2
    assert parts[-1].end == 2 * PAGE + 9


def test_pages_of_transactions_alone_are_bounded() -> None:
    markers = (Part(n, n + 1, transactions=1) for n in range(2 * PAGE + 5))
    assert [len(page) for page in pages(markers)] == [PAGE, PAGE, 5]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2_000_000))))
def test_rows_are_counted_once(rows: list[tuple[int, int]]) -> None:
    seen = SeenRows()
    for table, place in rows:
        seen.add(table, place)
    assert len(seen) == len(set(rows))


def test_what_may_be_too_deep_or_too_large_is_not_sure() -> None:
    deep = b'{"customer_id":"anna","timestamp":"2026-01-01T10:00:00Z","heart_rate":72,'
    deep += b'"more":' + b"[" * 200 + b"]" * 200 + b"}"
    assert not judged(Record(0, deep, False)).is_sure
    assert not judged(Record(0, None, True)).is_sure
    assert judged(Record(0, None, False)) == (None, {"empty"}, True)
