"""The app of `python -m prove.beside`: one lane topic, and ordinary ones beside it.

    python -m prove.beside_app worker

BESIDE (JSON) says how it behaves. With `"lane": false` it is a plain `faust.App` that
reads the lane's topic record by record.
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

import faust
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from heartbeat_app.lane import Chunk, Lane, LaneApp, LaneSchema, Rewind, consume

OPTIONS: dict[str, Any] = json.loads(os.environ["BESIDE"])
FOLDER = Path(OPTIONS["folder"])
SERVERS = OPTIONS["servers"]
NAME = OPTIONS["name"]
WORKER = OPTIONS["worker"]


class FileLedger:
    """Offsets in files, one a partition, since two workers write them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def _path(self, topic_id: str, partition: int) -> Path:
        return FOLDER / f"ledger-{topic_id.replace('/', '_')}-{partition}"

    def next_offsets(
        self, topic_id: str, partitions: Collection[int]
    ) -> Mapping[int, int]:
        paths = {partition: self._path(topic_id, partition) for partition in partitions}
        return {p: int(path.read_text()) for p, path in paths.items() if path.exists()}

    def open(self, topic: str, topic_id: str, beginnings: Mapping[int, int]) -> None:
        for partition, offset in beginnings.items():
            if not self._path(topic_id, partition).exists():
                self.set(topic_id, partition, offset)

    def set(self, topic_id: str, partition: int, offset: int) -> None:
        path = self._path(topic_id, partition)
        aside = path.with_name(f"{path.name}.{WORKER}")
        with self._lock:
            aside.write_text(str(offset))
            aside.replace(path)


admin = AdminClient({"bootstrap.servers": SERVERS})


def topic_ids(topics: Collection[str]) -> dict[str, str]:
    while (FOLDER / "ids-away").exists():
        time.sleep(0.02)
    futures = admin.describe_topics(TopicCollection(sorted(topics)))
    return {topic: str(future.result().topic_id) for topic, future in futures.items()}


ledger = FileLedger()
lane = Lane({NAME}, ledger, topic_ids)
conf: dict[str, Any] = {
    "broker": f"kafka://{SERVERS}",
    "topic_disable_leader": True,
    "web_host": "127.0.0.1",
    "web_bind": "127.0.0.1",
    "web_port": int(os.environ["WEB_PORT"]),
    "datadir": FOLDER / f"data-{WORKER}",
    # So that a killed one is missed soon, in both kinds of app.
    "broker_session_timeout": 6.0,
    "broker_heartbeat_interval": 1.0,
    **OPTIONS.get("conf", {}),
}
app: faust.App = (
    LaneApp(NAME, lane=lane, **conf) if OPTIONS["lane"] else faust.App(NAME, **conf)
)


def keep(name: str, *row: Any) -> None:
    """Write down what was processed, and by whom; a line is written whole."""
    line = json.dumps([WORKER, *row]) + "\n"
    file = os.open(FOLDER / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line.encode())
    os.close(file)


if OPTIONS["lane"]:
    chunks = app.topic(NAME, schema=LaneSchema(encode=lambda value: value))

    @app.agent(chunks)
    async def store_chunks(stream: Any) -> None:
        await consume(stream, lane, store)

    async def store(chunks: Sequence[Chunk]) -> None:
        if len(chunks) > 1:
            raise RuntimeError("one by one")  # a file has no transactions
        [chunk] = chunks
        known = ledger.next_offsets(chunk.topic_id, [chunk.partition])[chunk.partition]
        if chunk.asked > known:
            raise Rewind(f"{chunk}: the ledger stands at {known}")
        for record in chunk.records:
            if record.offset >= known:
                keep("lane", (record.value or b"").decode())
        ledger.set(chunk.topic_id, chunk.partition, chunk.position)

else:
    plain = app.topic(NAME, value_type=bytes, value_serializer="raw")

    @app.agent(plain)
    async def store_plain(stream: Any) -> None:
        async for value in stream:
            keep("lane", value.decode())


def ordinary(name: str) -> Any:
    """A topic of plain records."""
    return app.topic(
        f"{NAME}-{name}",
        key_type=str,
        key_serializer="raw",
        value_type=bytes,
        value_serializer="raw",
    )


singles, pairs = ordinary("singles"), ordinary("pairs")
counts: Any = (
    app.Table("counts", default=int, partitions=OPTIONS["partitions"], key_type=str)
    if OPTIONS.get("table")
    else None
)


@app.agent(singles)
async def store_singles(stream: Any) -> None:
    """Takes a while for each record, and has processed it at the end of that."""
    async for event in stream.events():
        await asyncio.sleep(OPTIONS["seconds"])
        if counts is not None:
            counts[event.key] += 1
        message = event.message
        keep("singles", event.value.decode(), message.partition, message.offset)


@app.agent(pairs)
async def store_pairs(stream: Any) -> None:
    """Quick, with the same keys."""
    async for value in stream:
        keep("pairs", value.decode())


@app.page("/owner/")
@app.topic_route(topic=singles, query_param="key")
async def owner(web: Any, request: Any) -> Any:
    """Which worker processes the key."""
    return web.json({"worker": WORKER})


@app.page("/counts/")
async def all_counts(web: Any, request: Any) -> Any:
    """What the table of this worker holds."""
    return web.json(dict(counts.items()))


if __name__ == "__main__":
    app.main()
