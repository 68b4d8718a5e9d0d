"""The consumer's question where to go on reading."""

from __future__ import annotations

import asyncio
from typing import Any

from faust.types import TP

from heartbeat_app.lane.consumer import LaneConsumer


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
