"""What comes in, byte for byte: from a fetch of Kafka's to the tables."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.structs import TopicPartition
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from heartbeat_app.audit import reference
from heartbeat_app.domain.batches import Batch, decode_records
from heartbeat_app.domain.validation import Rules
from heartbeat_app.lane.fetch import MAX_CHUNK_BYTES
from heartbeat_app.lane.fetched import FetchedRecords
from heartbeat_app.lane.records import LargeRecord, Record
from heartbeat_app.lane.unpack import Unpacker
from heartbeat_app.storage.write.writer import Writer
from tests.fuzz.verdict import NOW, RULES, instant
from tests.record_batches import Entry, RecordBatch
from tests.record_strategies import ANY_VALUE, RIGHT
from tests.storing import TOPIC, TOPIC_ID, Kept

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]

some_bytes = st.none() | st.binary(max_size=20) | st.just("é\x00\\'%s".encode())
header_names = st.text(max_size=5).map(str.encode) | st.binary(max_size=5)
headers = st.lists(st.tuples(header_names, some_bytes), max_size=3)


def made(entries: st.SearchStrategy[Entry], count: int) -> list[Entry]:
    """As many examples as asked for, to store in one batch: a round trip for each
    would take minutes.
    """
    found: list[Entry] = []

    @hypothesis_settings(
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(entries)
    def collect(entry: Entry) -> None:
        found.append(dataclasses.replace(entry, delta=len(found)))

    collect()
    return found


def fetch(entries: list[Entry], codec: str) -> list[Record]:
    """The records as the lane takes them out of one of Kafka's answers."""
    in_order = [dataclasses.replace(each, delta=n) for n, each in enumerate(entries)]
    data = RecordBatch(0, len(entries), in_order, codec).encode()
    fetched: Any = PartitionRecords(
        TopicPartition(TOPIC, 0), FetchedRecords(data), [], 0, None, None, True,
        READ_COMMITTED,
    )  # fmt: skip
    unpacker = Unpacker(MAX_CHUNK_BYTES, LargeRecord)
    found: list[Record] = []
    while not fetched._records.is_done:
        found += unpacker.unpack(fetched, len(entries), MAX_CHUNK_BYTES).records
    return found


def batch(records: list[Record], rules: Rules = RULES) -> Batch:
    """The batch that the agent makes of them."""
    beats, sources, refused = decode_records(records, rules)
    position = max(record.offset for record in records) + 1
    return Batch(
        topic=TOPIC, topic_id=TOPIC_ID, partition=0, asked=0, position=position,
        missing=0, end_offset=position, beats=beats, sources=sources, refused=refused,
    )  # fmt: skip


def judged(value: bytes | None) -> tuple[reference.Beat | None, set[str]]:
    return reference.judge(
        value, earliest=instant(RULES.earliest), latest=instant(RULES.latest)
    )


def rows(kept: Kept) -> list[tuple[bytes, int, int]]:
    """What the table holds, each customer as bytes, each instant in microseconds."""
    found = kept.all(
        "SELECT convert_to(customer_id, 'UTF8'),"
        ' (extract(epoch FROM "timestamp") * 1000000)::bigint, heart_rate'
        " FROM heartbeats"
    )
    return sorted((bytes(row[0]), row[1], row[2]) for row in found)


def as_bytes(kept: Any) -> bytes | None:
    """What a header's name or value was before it became JSON."""
    if isinstance(kept, dict):
        return base64.b64decode(kept["base64"])
    return None if kept is None else str(kept).encode()


@pytest.mark.parametrize("staged", [False, True])
def test_an_accepted_beat_is_kept_byte_for_byte(
    make_writer: MakeWriter, kept: Kept, staged: bool
) -> None:
    """Whatever its letters, escapes, offset and fraction of a second."""
    entries = made(st.builds(Entry, st.just(0), some_bytes, RIGHT, headers), 500)
    expected: dict[tuple[str, int], tuple[reference.Beat, Entry]] = {}
    for entry in entries:
        beat, _ = judged(entry.value)
        assert beat is not None
        expected.setdefault((beat.customer_id, beat.instant), (beat, entry))
    alone = [entry for _, entry in expected.values()]
    # With one twice they go through the staging table.
    records = fetch([*alone, *(alone[:1] if staged else [])], "zstd")
    written = make_writer(clock=lambda: NOW).write(batch(records))
    assert (written.stored, written.duplicate, written.dead) == (
        len(alone), int(staged), 0,
    )  # fmt: skip
    assert rows(kept) == sorted(
        (beat.customer_id.encode(), beat.instant, beat.heart_rate)
        for beat, _ in expected.values()
    )


def test_a_refused_record_is_kept_byte_for_byte(
    make_writer: MakeWriter, kept: Kept
) -> None:
    """Key, value, headers and their names, whatever they are."""
    entries = made(st.builds(Entry, st.just(0), some_bytes, ANY_VALUE, headers), 500)
    records = fetch(entries, "none")
    written = make_writer(clock=lambda: NOW).write(batch(records))
    accepted: dict[tuple[str, int], int] = {}
    reasons: list[set[str]] = []
    for entry in entries:
        beat, why = judged(entry.value)
        if beat is not None:
            key = (beat.customer_id, beat.instant)
            first = accepted.setdefault(key, beat.heart_rate)
            why = set() if first == beat.heart_rate else {"conflict"}
        reasons.append(why)
    assert written.consumed == len(entries)
    assert rows(kept) == sorted(
        (customer_id.encode(), at, rate) for (customer_id, at), rate in accepted.items()
    )
    letters = kept.all(
        'SELECT "offset", key, value, headers, reason FROM dead_letters'
        ' ORDER BY "offset"'
    )
    assert [row.offset for row in letters] == [
        offset for offset, why in enumerate(reasons) if why
    ]
    for row in letters:
        entry = entries[row.offset]
        assert row.reason in reasons[row.offset], entry
        assert (_bytes(row.key), _bytes(row.value)) == (entry.key, entry.value)
        found = [(as_bytes(name), as_bytes(value)) for name, value in row.headers]
        assert found == list(entry.headers)


def _bytes(found: Any) -> bytes | None:
    return None if found is None else bytes(found)


def test_large_refused_records_are_kept_a_few_at_a_time(
    make_writer: MakeWriter, kept: Kept
) -> None:
    """PostgreSQL ends a session whose statement has 1 GB; 500 of these would make it.

    A fetch of some MB may hold as many, compressed.
    """
    value = b"x" * 1_048_576
    entries = [Entry(n, b"key", value) for n in range(30)]
    sizes: list[int] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(*arguments: Any) -> None:
        held = [each for each in arguments[3] if isinstance(each, list)]
        sizes.append(sum(len(e) for es in held for e in es if isinstance(e, bytes)))

    try:
        written = make_writer(clock=lambda: NOW).write(batch(fetch(entries, "zstd")))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert written.dead == len(entries)
    assert sum(sizes) >= len(entries) * len(value)  # they were seen
    assert max(sizes) < 10 * len(value)
    found = kept.all(
        "SELECT count(*), min(octet_length(value)), max(octet_length(value))"
        " FROM dead_letters"
    )
    assert found == [(len(entries), len(value), len(value))]
