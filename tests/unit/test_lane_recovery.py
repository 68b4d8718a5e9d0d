"""The lane's app does not wait for tables that nobody made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from heartbeat_app.lane.app import LaneApp
from heartbeat_app.lane.lane import Lane
from heartbeat_app.lane.recovery import LaneTableManager


@pytest.mark.parametrize("has_table", [False, True])
def test_faust_waits_a_second_only_where_there_are_tables(
    monkeypatch: pytest.MonkeyPatch, has_table: bool
) -> None:
    waits: list[Any] = []

    async def sleep(self: LaneTableManager, seconds: Any) -> None:
        waits.append(seconds)

    async def nothing(self: LaneTableManager) -> None:
        self._tables_registered.set()

    async def start() -> bool:
        lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
        app = LaneApp("tables", lane=lane, broker="kafka://127.0.0.1:1")
        if has_table:
            app.Table("counts", default=int)
        recovered: list[None] = []

        async def recover() -> None:
            recovered.append(None)

        tables: Any = app.tables
        monkeypatch.setattr(tables.recovery, "start", recover)
        await tables.on_start()
        return tables._tables_registered.is_set() and bool(recovered)

    monkeypatch.setattr(LaneTableManager, "sleep", sleep)
    monkeypatch.setattr(LaneTableManager, "_update_channels", nothing)
    assert asyncio.run(start())
    assert waits == ([1.0] if has_table else [])
