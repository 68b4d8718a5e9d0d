"""Whose turn it is: small chunks together, large ones alone, a partition in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from heartbeat_app.lane import Chunk, Lane, Rewind, agent, consume
from heartbeat_app.lane.agent import PATIENCE_SECONDS, SMALL_BYTES
from heartbeat_app.lane.chunk import Chunks


class Worker:
    """An agent of its own: what was handed to it, what it finished, what is done."""

    def __init__(self) -> None:
        self.lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
        self.handed: list[list[str]] = []
        self.done: list[str] = []
        self.rewound: list[Any] = []
        self.given_back: list[str] = []
        self.hold: set[int] = set()  # partitions whose chunks are not stored
        self.faults: list[Exception] = []  # raised by the next calls
        self._messages: asyncio.Queue[Chunks] = asyncio.Queue()
        self._positions: dict[int, int] = {}

    def add(self, *partitions: int, size: int = 10) -> None:
        """A message with a chunk of each of these."""
        chunks = []
        for partition in partitions:
            asked = self._positions.get(partition, 0)
            self._positions[partition] = asked + 5
            chunk = Chunk(
                "beats", "id", partition, asked, asked + 5, 0, asked + 5, [], [], [],
                size, 1,
            )  # fmt: skip
            if chunk.tp not in self.lane.partitions:
                self.lane.start(chunk.tp, "id", 0, end=0)
                self.lane.partitions[chunk.tp].epoch = 1
            chunks.append(chunk)
        self._messages.put_nowait(Chunks(chunks))

    async def run(self) -> None:
        stream: Any = SimpleNamespace(
            app=SimpleNamespace(
                consumer=SimpleNamespace(
                    done=self._note,
                    restart_at_ledger=self._restart,
                    give_back=self._give_back,
                )
            ),
            noack=lambda: SimpleNamespace(events=self._events),
        )
        await consume(stream, self.lane, self._store)

    async def _events(self) -> AsyncIterator[Any]:
        while True:
            chunks = await self._messages.get()
            yield SimpleNamespace(value=chunks, ack=lambda: None)

    async def _store(self, chunks: Sequence[Chunk]) -> None:
        self.handed.append([_name(chunk) for chunk in chunks])
        if self.faults:
            raise self.faults.pop(0)
        while any(chunk.partition in self.hold for chunk in chunks):
            await asyncio.sleep(0.001)

    def _note(self, chunks: Iterable[Chunk]) -> None:
        self.done += map(_name, chunks)

    async def _give_back(self, tp: Any, epoch: int) -> None:
        self.given_back.append(f"{tp.partition}@{self.lane.partitions[tp].done}")
        self._positions[tp.partition] = self.lane.partitions[tp].done

    async def _restart(self, tps: set[Any]) -> None:
        self.rewound += tps


def _name(chunk: Chunk) -> str:
    return f"{chunk.partition}@{chunk.asked}"


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    found = Worker()
    task = asyncio.create_task(found.run())
    yield found
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def soon(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)


async def test_small_ones_that_wait_are_handed_on_together(worker: Worker) -> None:
    worker.hold = {0}
    worker.add(0)
    await soon()
    worker.add(1, 2)
    worker.add(0, 1)
    await soon()
    assert worker.handed == [["0@0"]]
    worker.hold = set()
    await soon()
    assert worker.handed == [["0@0"], ["0@5", "1@0", "2@0"], ["1@5"]]
    assert sorted(worker.done) == ["0@0", "0@5", "1@0", "1@5", "2@0"]


async def test_large_ones_go_alone_and_wait_for_none(worker: Worker) -> None:
    worker.hold = {0, 1}
    worker.add(0)
    worker.add(1, 2, size=SMALL_BYTES)
    worker.add(1, size=SMALL_BYTES)
    await soon()
    assert worker.handed == [["0@0"], ["1@0"], ["2@0"]]
    assert worker.done == ["2@0"]
    worker.hold = set()
    await soon()
    assert worker.handed[3:] == [["1@5"]]


async def test_who_is_held_up_does_not_hold_up_the_others(worker: Worker) -> None:
    worker.hold = {0}
    worker.add(0)
    await soon()
    worker.add(0, 1)
    await soon(2 * PATIENCE_SECONDS)
    assert worker.done == ["1@0"]
    worker.hold = set()
    await soon()
    assert worker.done == ["1@0", "0@0", "0@5"]


async def test_what_fails_together_is_tried_one_by_one(worker: Worker) -> None:
    worker.hold = {0}
    worker.add(0)
    await soon()
    worker.add(1, 2)
    worker.add(1)
    worker.faults = [RuntimeError("not together")]
    worker.hold = set()
    await soon()
    assert worker.handed == [["0@0"], ["1@0", "2@0"], ["1@0"], ["2@0"], ["1@5"]]
    assert worker.done == ["0@0", "1@0", "2@0", "1@5"]


async def test_one_that_fails_is_tried_again_before_the_next(worker: Worker) -> None:
    worker.faults = [RuntimeError("once"), RuntimeError("twice")]
    worker.add(0)
    worker.add(0)
    await soon(0.5)
    assert worker.handed == [["0@0"], ["0@0"], ["0@0"], ["0@5"]]
    assert worker.done == ["0@0", "0@5"]


async def test_in_an_outage_what_was_given_back_is_not_read_again_at_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses grow, as for what stays."""
    pauses: list[int] = []

    async def pause(chunk: Chunk, failures: int, error: Exception) -> None:
        pauses.append(failures)

    monkeypatch.setattr(agent, "_pause", pause)
    monkeypatch.setattr(worker.lane, "is_full", lambda: True)
    worker.faults = [RuntimeError("away")] * 5
    worker.add(0)
    await soon()
    assert (pauses, worker.given_back) == ([1, 2, 3], ["0@0"])
    worker.add(0)
    await soon()
    assert (pauses, worker.done) == ([1, 2, 3, 4, 5], ["0@0"])
    worker.faults = [RuntimeError("another one")]
    worker.add(0)
    await soon()
    assert pauses == [1, 2, 3, 4, 5, 1]


async def test_after_a_rewind_nothing_is_done(worker: Worker) -> None:
    worker.faults = [Rewind("it went back")]
    worker.add(0)
    await soon()
    assert (worker.done, worker.rewound) == ([], [("beats", 0)])


async def test_what_is_stale_is_neither_handed_on_nor_done(worker: Worker) -> None:
    worker.hold = {0}
    worker.add(0)
    await soon()
    worker.add(0, 1, 2)
    for tp, partition in worker.lane.partitions.items():
        if tp.partition != 2:
            partition.epoch = 2
    worker.hold = set()
    await soon()
    assert worker.handed == [["0@0"], ["2@0"]]


async def test_how_long_it_took_to_store_is_told_to_who_fetches(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([10.0, 10.5, 20.0, 20.25])
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(agent, "time", clock)
    for partitions, seconds in (((0,), 0.5), ((1, 2), 0.25)):
        worker.add(*partitions)
        await soon()
        assert worker.lane.seconds_to_store == seconds
