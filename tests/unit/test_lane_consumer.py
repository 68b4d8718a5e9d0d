"""The consumer's questions to Kafka, where it does not answer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest
from faust.types import TP

from heartbeat_app.lane import Chunk, Lane, fetch
from heartbeat_app.lane.consumer import LaneConsumer
from heartbeat_app.lane.fetch import LaneThread


async def test_a_stop_ends_the_question_where_to_go_on() -> None:
    """Asked again it would hold up the stop, and the group, until both gave up."""
    consumer: Any = LaneConsumer.__new__(LaneConsumer)
    asked = asyncio.Event()

    async def never(tps: set[TP]) -> None:
        asked.set()
        await asyncio.Event().wait()

    consumer._find_starts = never
    consumer.log = None  # it has nothing to say
    question = asyncio.create_task(consumer.restart_at_ledger({TP("beats", 0)}))
    await asyncio.wait_for(asked.wait(), 5)
    question.cancel()
    await asyncio.wait({question}, timeout=2)
    assert question.cancelled()


def test_what_a_seek_overtook_leaves_the_books_of_the_new_chunk_alone() -> None:
    """Both end at the same offset: its room would be given away twice."""
    beats = TP("beats", 0)
    consumer: Any = LaneConsumer.__new__(LaneConsumer)
    lane = consumer.lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
    consumer._acked = defaultdict(list)
    consumer.wake = lambda: None
    lane.start(beats, "id", 100, end=200)
    old = make_chunk(lane, beats, 100, 200)
    lane.start(beats, "id", 100, end=200)
    new = make_chunk(lane, beats, 100, 200)
    consumer.done([old])
    assert lane.partitions[beats].waiting == {200: 1}
    assert lane.partitions[beats].done == 100
    assert not consumer._acked
    consumer.done([new])
    assert lane.partitions[beats].waiting == {}
    assert consumer._acked == {beats: [199]}


def make_chunk(lane: Lane, tp: TP, asked: int, position: int) -> Chunk:
    """A chunk that was handed out."""
    lane.partitions[tp].waiting[position] = 1
    return Chunk(
        topic=tp.topic, topic_id="id", partition=tp.partition, asked=asked,
        position=position, missing=0, end_offset=position, records=[],
        large=[], unread=[], size=1,
        epoch=lane.partitions[tp].epoch,
    )  # fmt: skip


async def test_a_coordinator_that_does_not_answer_does_not_hold_up_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Silent:
        async def commit(self, offsets: Any) -> None:
            await asyncio.Event().wait()

    beats = TP("beats", 0)
    thread: Any = LaneThread.__new__(LaneThread)
    thread._consumer = Silent()
    thread.tp_last_committed_at = {}
    monkeypatch.setattr(thread, "assignment", lambda: {beats}, raising=False)
    monkeypatch.setattr(fetch, "COMMIT_SECONDS", 0.05)
    committed = await asyncio.wait_for(thread._commit({beats: 7}), 5)
    assert committed is False
