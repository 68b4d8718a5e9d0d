"""Records that expand to much more than they are, through a real Kafka and a worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine, text

from heartbeat_app.storage.read.books import read_books
from testkit.oracle import Oracle
from testkit.servers import Topic, Worker

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
SIZE = 100 * MIB
# librdkafka's snappy is one raw block, which is all or nothing.
BOMBS = (
    ("gzip", SIZE, "value"),
    ("lz4", SIZE, "headers"),
    ("zstd", SIZE, "value"),
    ("zstd", SIZE, "key"),
    ("snappy", 40 * MIB, "value"),
)


def send(topic: Topic, codec: str, partition: int, **record: Any) -> None:
    producer = Producer(
        {
            **topic.config,
            "compression.type": codec,
            "message.max.bytes": 10**9,
            "batch.size": 10**9,
        }
    )
    producer.produce(topic.name, partition=partition, **record)
    assert producer.flush(60) == 0


def beats_of(oracle: Oracle, count: int) -> list[bytes | None]:
    return [value for _, _, value in oracle.make(count, bad=0.0)]


def test_bombs_stop_nobody(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=2, **{"max.message.bytes": str(16 * MIB)})
    oracle = Oracle(seed=1, partitions=1)
    worker = make_worker(RETENTION_DAYS="3650").start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    topic.produce(beats_of(oracle, 1_000))

    def rows() -> int:
        with engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM heartbeats")) or 0

    worker.wait_until(lambda: rows() == 1_000, "the first ones are stored")
    process = psutil.Process(worker.pid)
    before = most = process.memory_info().rss
    for codec, size, part in BOMBS:
        whole: Any = b"a" * size
        if part == "headers":
            whole = [("h", whole)]
        send(topic, codec, 0, **{part: whole})
        topic.produce(beats_of(oracle, 10), partition=0)
        topic.produce(beats_of(oracle, 10), partition=1)
    sent = 1_000 + 20 * len(BOMBS)

    def stored() -> bool:
        nonlocal most
        most = max(most, process.memory_info().rss)
        return rows() == sent

    worker.wait_until(stored, "the good ones behind them are stored", seconds=60)
    with engine.connect() as connection:
        letters = connection.execute(
            text(
                "SELECT record_size, octet_length(value), octet_length(key)"
                " FROM dead_letters WHERE reason = 'too_large' ORDER BY \"offset\""
            )
        ).all()
    assert [tuple(row) for row in letters] == [
        (SIZE, 4096, None),
        (SIZE + 1, None, None),
        (SIZE, 4096, None),
        (SIZE, None, 4096),
        (40 * MIB, 4096, None),
    ]
    assert read_books(engine, deep=True).problems == []
    assert most - before < 64 * MIB
    assert worker.is_running()
    assert "Ending, to be started anew" not in worker.log()


def test_many_partitions_full_of_large_records_take_no_more(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    """What waits has one bound, not one for each partition."""
    partitions = int(os.environ.get("BOMBED_PARTITIONS", "48"))
    topic.make(partitions=partitions, **{"max.message.bytes": str(16 * MIB)})
    oracle = Oracle(seed=1, partitions=1)
    worker = make_worker(RETENTION_DAYS="3650").start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    topic.produce(beats_of(oracle, 20_000))

    def consumed() -> int:
        statement = "SELECT sum(consumed) FROM partition_ledger"
        with engine.connect() as connection:
            return connection.scalar(text(statement)) or 0

    worker.wait_until(lambda: consumed() == 20_000, "the first ones are stored")
    process = psutil.Process(worker.pid)
    before = most = process.memory_info().rss
    worker.pause()
    producer = Producer(
        {
            **topic.config,
            "compression.type": "zstd",
            "message.max.bytes": 10**9,
            "batch.size": 10**9,
        }
    )
    bomb, junk = b"a" * 20 * MIB, os.urandom(900_000)
    for partition in range(partitions):
        for value in (junk, bomb, junk, junk):
            producer.produce(topic.name, value, partition=partition)
            producer.flush(60)
    worker.resume()

    def done() -> bool:
        nonlocal most
        most = max(most, process.memory_info().rss)
        return consumed() == 20_000 + 4 * partitions

    worker.wait_until(done, "all are dealt with", seconds=90 + partitions)
    print(f"{partitions} partitions: {(most - before) / MIB:.0f} MiB more")
    assert most - before < 64 * MIB
    assert worker.is_running()
