"""When records flow, and that nothing of one flow gets into the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from faust.tables.recovery import RebalanceAgain

from heartbeat_app.lane.consumer import LaneConsumer
from heartbeat_app.lane.recovery import LaneRecovery


async def test_a_rebalance_that_has_begun_ends_the_recovery_of_the_last() -> None:
    """Faust starts the flow in its midst, and then seeks while records flow."""
    app = SimpleNamespace(
        conf=SimpleNamespace(stream_recovery_delay=0.0), rebalancing_count=1
    )
    recovery: Any = LaneRecovery(app, None)  # type: ignore[arg-type]
    recovery._rebalance = 1

    async def seek(begins: int) -> None:
        app.rebalancing_count += begins

    await recovery._wait(seek(begins=0))
    with pytest.raises(RebalanceAgain):
        await recovery._wait(seek(begins=1))


async def test_what_was_fetched_before_a_stop_is_not_handed_out_after_it() -> None:
    """It was sought anew meanwhile: what is left of it would go missing or twice."""
    consumer: Any = LaneConsumer.__new__(LaneConsumer)
    consumer.flow, consumer.flow_active = 1, True
    consumer.not_waiting_next_records = SimpleNamespace(set=lambda: None)
    consumer.app = SimpleNamespace(client_only=False)
    consumer._active_partitions = {"some"}
    consumer._get_active_partitions = lambda: {"some"}
    stops = 0

    async def fetch(flow: int, tps: Any, timeout: float) -> dict[str, list[int]]:
        consumer.flow += stops
        return {"some": [flow]}

    consumer._thread = SimpleNamespace(fetch=fetch)
    assert await consumer._wait_next_records(1.0) == ({"some": [1]}, {"some"})
    stops = 1
    assert await consumer._wait_next_records(1.0) == (None, {"some"})
    stops = 0
    assert await consumer._wait_next_records(1.0) == ({"some": [2]}, {"some"})
