"""The lane's state and schema, without Kafka."""

from __future__ import annotations

import time
from typing import Any

import pytest
from faust.types import TP

from heartbeat_app.lane import Lane, LaneSchema
from heartbeat_app.lane.lane import (
    MAX_ID_AGE_SECONDS,
    MAX_WAITING_BYTES,
    MOST_WAITING_BYTES,
)

ZERO, ONE = TP("beats", 0), TP("beats", 1)


@pytest.fixture
def lane() -> Lane:
    lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
    lane.start(ZERO, "id", 0, end=1_000)
    lane.start(ONE, "id", 0, end=1_000)
    lane.ids_are_right(time.monotonic())
    return lane


def has_room(lane: Lane, tp: TP) -> bool:
    return lane.has_room(tp, lane.waiting_bytes())


def test_two_chunks_of_a_partition_may_wait(lane: Lane) -> None:
    for position in (10, 20):
        assert has_room(lane, ZERO)
        lane.partitions[ZERO].waiting[position] = 1
    assert not has_room(lane, ZERO)
    assert has_room(lane, ONE)
    lane.release(ZERO, 10)
    assert has_room(lane, ZERO)


def test_the_bytes_of_all_partitions_are_bounded_but_one_chunk_always_goes(
    lane: Lane,
) -> None:
    lane.partitions[ZERO].waiting[10] = MAX_WAITING_BYTES
    assert not has_room(lane, ZERO)
    assert has_room(lane, ONE)  # or a huge chunk of one would starve the others
    lane.partitions[ONE].waiting[10] = 1
    assert not has_room(lane, ONE)


def test_all_partitions_together_have_a_bound(lane: Lane) -> None:
    lane.partitions[ZERO].waiting[10] = MOST_WAITING_BYTES
    assert lane.is_full()
    assert not has_room(lane, ONE)
    lane.release(ZERO, 10)
    assert has_room(lane, ONE)


def test_nothing_is_read_while_the_ids_are_not_looked_up(lane: Lane) -> None:
    """A process that was frozen would take a new topic's records for the old one's."""
    lane.ids_are_right(time.monotonic() - MAX_ID_AGE_SECONDS - 0.1)
    assert not has_room(lane, ZERO)
    lane.ids_are_right(time.monotonic())
    assert has_room(lane, ZERO)


def test_what_was_read_before_a_seek_is_stale(lane: Lane) -> None:
    before = lane.partitions[ZERO].epoch
    assert lane.is_current(ZERO, before)
    lane.start(ZERO, "id", 5, end=1_000)
    assert not lane.is_current(ZERO, before)
    lane.forget([ZERO])
    assert not lane.is_current(ZERO, before + 1)


def test_a_log_that_ends_before_what_was_read_stays_truncated(lane: Lane) -> None:
    """Grown past the offset again, it would hide that its records are others."""
    lane.start(ZERO, "id", 100, end=50)
    assert not has_room(lane, ZERO)
    lane.start(ZERO, "id", 100, end=200)
    assert not has_room(lane, ZERO)
    lane.start(ZERO, "another id", 0, end=200)
    assert has_room(lane, ZERO)


def test_only_its_own_topics_belong_to_it(lane: Lane) -> None:
    assert lane.of([ZERO, TP("other", 0)]) == {ZERO}


def test_values_are_encoded_and_bytes_go_out_as_they_are() -> None:
    schema: Any = LaneSchema(encode=lambda v: b"<%d>" % v)
    assert schema.dumps_value(None, 7, headers=None)[0] == b"<7>"
    assert schema.dumps_value(None, b"as it is", headers=None)[0] == b"as it is"
