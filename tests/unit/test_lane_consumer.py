"""The consumer's questions to Kafka, where it does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from faust.types import TP

from heartbeat_app.lane import fetch
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
