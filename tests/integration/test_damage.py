"""Record batches that Kafka's disk damaged, through a real Kafka and a worker."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from sqlalchemy import Engine, text

from heartbeat_app.storage.read.books import read_books
from testkit.oracle import Oracle
from testkit.servers import Servers, Topic, Worker

pytestmark = pytest.mark.integration

EACH = 20


class Segment:
    """The log of a partition, whose file Kafka reads anew at each fetch."""

    def __init__(self, servers: Servers, topic: Topic, partition: int) -> None:
        folder = servers.kafka.home / "data" / f"{topic.name}-{partition}"
        self._path: Path = folder / "00000000000000000000.log"

    def begins(self) -> list[int]:
        """Where the file's batches begin."""
        data, found, at = self._path.read_bytes(), [], 0
        while at < len(data):
            found.append(at)
            at += 12 + int(struct.unpack_from(">i", data, at + 8)[0])
        return found

    def swap(self, at: int, new: bytes) -> bytes:
        """Write there, and return what was there."""
        with self._path.open("r+b") as file:
            file.seek(at)
            old = file.read(len(new))
            file.seek(at)
            file.write(new)
        return old


# Where in a batch, what is written there, and what is said of it.
PAYLOAD = (100, b"\xff\xff", "its checksum is wrong")
FORMAT = (16, b"\x07", "its format has the number 7")
LENGTH = (8, b"\xff", "Kafka itself cannot read it")
FIRST_OFFSET = (3, b"\x01", "the log ends at")


def test_a_damaged_batch_holds_up_its_partition_only(
    topic: Topic,
    servers: Servers,
    engine: Engine,
    make_worker: Callable[..., Worker],
) -> None:
    topic.make(partitions=2)
    oracle = Oracle(seed=1, partitions=1)
    worker = make_worker(RETENTION_DAYS="3650")

    def send(partition: int) -> None:
        beats = [value for _, _, value in oracle.make(EACH, bad=0.0)]
        topic.produce(beats, partition=partition, config={"linger.ms": 500})

    def rows() -> int:
        with engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM heartbeats")) or 0

    def stored(count: int) -> None:
        worker.wait_until(lambda: rows() == count, f"{count} beats are stored")

    def told(words: str) -> None:
        said = f"{topic.name}[0]: the record batch at offset {EACH}"
        worker.wait_until(
            lambda: any(
                reason.startswith(said) and words in reason
                for reason in (worker.get("/health/ready")[1] or {}).get("reasons", [])
            ),
            f"it is told that {words}",
        )

    for _ in range(3):
        send(0)
    send(1)
    segment = Segment(servers, topic, 0)
    second = segment.begins()[1]

    def damage(where: int, what: bytes, words: str = "") -> tuple[int, bytes]:
        return where, segment.swap(second + where, what)

    payload = damage(*PAYLOAD)
    worker.start()
    stored(2 * EACH)  # the first batches of both
    told(PAYLOAD[2])
    for each in (FORMAT, LENGTH):
        before = damage(*each)
        told(each[2])
        damage(*before)
    before = damage(*FIRST_OFFSET)
    damage(*payload)
    told(FIRST_OFFSET[2])
    send(1)
    stored(3 * EACH)
    assert worker.log().count("is damaged") == 1
    assert "Unexpected error" not in worker.log()
    damage(*before)  # as if another broker had it right
    stored(5 * EACH)
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")

    # What no broker has right is deleted by a person, and then missing.
    send(0)
    send(0)
    stored(7 * EACH)
    worker.end()
    send(0)
    send(0)
    second = segment.begins()[5]
    damage(*PAYLOAD)
    worker.start()
    worker.wait_until(lambda: "damaged" in worker.log()[-3000:], "it is told")
    after = 6 * EACH
    partition = TopicPartition(topic.name, 0, after)
    topic.admin.delete_records([partition])[partition].result()
    stored(8 * EACH)
    assert read_books(engine).total.missing == EACH
    assert worker.is_running()
