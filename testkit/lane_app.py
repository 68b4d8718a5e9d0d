"""A Faust app of its own on the lane, for the tests: what it stores is a file.

    python -m testkit.lane_app worker

LANE_APP (JSON) says how it behaves; `stored` is its file, one JSON line a record.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from heartbeat_app.lane import Chunk, LaneApp, LaneSchema, Rewind, consume
from heartbeat_app.lane.lane import Lane

OPTIONS: dict[str, Any] = json.loads(os.environ["LANE_APP"])
FOLDER = Path(OPTIONS["folder"])
SERVERS = OPTIONS["servers"]
NAME = OPTIONS["name"]


class FileLedger:
    """Offsets in a JSON file; hangs while a file `ledger-away` is there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path = FOLDER / "ledger.json"

    def _wait(self) -> None:
        while (FOLDER / "ledger-away").exists():
            time.sleep(0.1)

    def _read(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        found: dict[str, int] = json.loads(self._path.read_text())
        return found

    def next_offsets(
        self, topic_id: str, partitions: Collection[int]
    ) -> Mapping[int, int]:
        self._wait()
        with self._lock:
            rows = self._read()
        keys = {partition: f"{topic_id}/{partition}" for partition in partitions}
        return {p: rows[key] for p, key in keys.items() if key in rows}

    def open(self, topic: str, topic_id: str, beginnings: Mapping[int, int]) -> None:
        for partition, offset in beginnings.items():
            self.set(topic_id, partition, offset)

    def set(self, topic_id: str, partition: int, offset: int) -> None:
        with self._lock:
            rows = {**self._read(), f"{topic_id}/{partition}": offset}
            aside = self._path.with_suffix(".new")
            aside.write_text(json.dumps(rows))
            aside.replace(self._path)


def topic_ids(topics: Collection[str]) -> dict[str, str]:
    admin = AdminClient({"bootstrap.servers": SERVERS})
    futures = admin.describe_topics(TopicCollection(sorted(topics)))
    return {topic: str(future.result().topic_id) for topic, future in futures.items()}


ledger = FileLedger()
lane = Lane({NAME}, ledger, topic_ids)
app = LaneApp(
    f"{NAME}-lane",
    lane=lane,
    broker=f"kafka://{SERVERS}",
    web_enabled=False,
    topic_disable_leader=True,
    **OPTIONS.get("conf", {}),
)
chunks = app.topic(
    NAME,
    schema=LaneSchema(encode=lambda value: value),
)
singles = app.topic(f"{NAME}-singles", value_type=bytes, value_serializer="raw")
failures = OPTIONS.get("failures", 0)


@app.agent(chunks)
async def store_chunks(stream: Any) -> None:
    await consume(stream, lane, store)


async def store(chunks: Sequence[Chunk]) -> None:
    global failures
    if len(chunks) > 1:
        raise RuntimeError("one by one")  # a file has no transactions
    [chunk] = chunks
    if failures:
        failures -= 1
        raise RuntimeError("told to fail")
    while (FOLDER / "hold").exists():
        await asyncio.sleep(0.05)
    known = ledger.next_offsets(chunk.topic_id, [chunk.partition])[chunk.partition]
    if chunk.asked > known:
        raise Rewind(f"{chunk}: the ledger stands at {known}")
    with (FOLDER / "stored").open("a") as file:
        for record in chunk.records:
            if record.offset >= known:
                row = [chunk.partition, record.offset, (record.value or b"").decode()]
                file.write(json.dumps(row) + "\n")
    with (FOLDER / "chunks").open("a") as file:
        row = [chunk.partition, chunk.asked, chunk.position, chunk.missing]
        file.write(json.dumps([*row, len(chunk.records)]) + "\n")
    ledger.set(chunk.topic_id, chunk.partition, chunk.position)


@app.agent(singles)
async def store_singles(stream: Any) -> None:
    async for value in stream:
        with (FOLDER / "singles").open("a") as file:
            file.write(value.decode() + "\n")
        if value == b"raise":
            raise RuntimeError("an ordinary agent that raises")


if __name__ == "__main__":
    app.main()
