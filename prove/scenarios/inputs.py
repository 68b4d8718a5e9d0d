"""Records that are many, big, odd, or packed in every way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psutil
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer

from prove.scenario import scenario
from prove.scenarios.postgres import require_no_restart
from prove.world import PARTITIONS, TOPIC, World
from testkit.oracle import BAD, BASE, Record, good
from testkit.servers import Crowd

MEGABYTE = 1_000_000
MIB = 1024 * 1024
# What a bomb expands to; a block of raw snappy is held whole.
BOMB_BYTES, SNAPPY_BYTES = 100 * MIB, 40 * MIB
CODECS = ("gzip", "lz4", "zstd", "raw snappy", "framed snappy")
PARTS = ("value", "key", "headers")
ODD = (
    "tab\there", "line\nbreak", "carriage\rreturn", "back\\slash", "\\N", "\\.", "NULL",
    "'quoted'", '"quoted"', " blanks ", "$$", "%s", "{}", "\x01\x7f", "ab\u0301",
    "\u202eright to left", "\U0001f493", "\ufeffbom", "x" * 255, "\U0001f493" * 255,
)  # fmt: skip

# As text or number of JSON, and the instant that it is (UTC) or the reason against it.
TIMESTAMPS: tuple[tuple[str, datetime | str], ...] = (
    ('"2026-01-01T14:00:00+14:00"', datetime(2026, 1, 1, tzinfo=UTC)),
    ('"2025-12-31T10:00:00.5-14:00"', datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)),
    ('"2024-02-29T23:59:59.999999Z"', datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC)),
    (
        '"2025-12-30T23:59:59.1234564Z"',
        datetime(2025, 12, 30, 23, 59, 59, 123_456, UTC),
    ),
    ('"2025-12-31T23:59:59.999999999Z"', datetime(2026, 1, 1, tzinfo=UTC)),
    ('"2016-12-31T23:59:60Z"', "timestamp_invalid"),
    ('"2026-01-01T24:00:00Z"', "timestamp_invalid"),
    ('"2026-01-01T00:00:00+24:00"', "timestamp_invalid"),
    ('"2025-02-29T00:00:00Z"', "timestamp_invalid"),
    ('"0000-01-01T00:00:00Z"', "timestamp_invalid"),
    ('"0001-01-01T00:00:00+23:59"', "timestamp_too_old"),
    ('"9999-12-31T23:59:59-23:59"', "timestamp_in_future"),
    ("1767225600", "wrong_type"),
    ("1767225600000", "wrong_type"),
    ('"1767225600"', "timestamp_invalid"),
)
ENCODINGS = ("utf-16", "utf-32", "latin-1", "utf-8-sig")


def flow(world: World) -> None:
    """Beats of all kinds, before and after what a scenario sends."""
    feed = world.feed()
    feed.send_recordings()
    feed.send(2_000)


@scenario("bursts of 50,000 bad records among good ones", quick=True)
def bad_bursts(world: World) -> None:
    world.start_worker()
    flow(world)
    world.wait_until(lambda: world.lag() == 0, "the first ones are read")
    feed = world.feed()
    for number in range(2):
        feed.send_records(burst(world, 50_000))
        world.did("burst of 50,000 bad records")
        # Behind the burst in the same partitions.
        feed.send_beats(
            (f"after-burst-{number}", BASE + timedelta(seconds=each), 70)
            for each in range(100)
        )
        wait_for(world, f"after-burst-{number}", 100)


def wait_for(world: World, customer: str, beats: int) -> None:
    """Wait until so many beats of a customer are stored."""
    count = "SELECT count(*) FROM heartbeats WHERE customer_id = :customer"
    began = time.monotonic()
    world.wait_until(
        lambda: world.scalar(count, customer=customer) == beats,
        "the good ones behind the burst are stored",
    )
    world.note("good ones behind a burst waited", f"{time.monotonic() - began:.1f} s")


def burst(world: World, count: int) -> Iterator[Record]:
    """Bad records of every kind, and a good one in a hundred."""
    kinds = list(BAD)
    oracle = world.oracle
    for number in range(count):
        if number % 100 == 0:
            yield from oracle.make(1)
            continue
        reason = kinds[number % len(kinds)]
        yield oracle.record(BAD[reason](number), reason)


@scenario("records of 1 MB, beats and junk")
def megabytes(world: World) -> None:
    world.topic.configure({"max.message.bytes": "2000000"})
    world.start_worker()
    flow(world)
    world.feed().send_records(big(world))
    world.did("record of 1 MB", 60)
    flow(world)


def big(world: World) -> Iterator[Record]:
    """Thirty beats with a field of 1 MB that is to be ignored, thirty times junk."""
    for number in range(60):
        if number % 2:
            yield world.oracle.record(b"x" * MEGABYTE, "not_json")
            continue
        row = f"big-{number}", BASE + timedelta(seconds=number), 70
        beat = {**json.loads(good(*row)), "note": "n" * MEGABYTE}
        yield world.oracle.record(json.dumps(beat).encode(), row)


@scenario("every compression: gzip, snappy, lz4, zstd", quick=True)
def compressions(world: World) -> None:
    world.start_worker()
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        world.feed(compression=codec).send(5_000)
        world.did(f"5,000 records with compression {codec}")


@scenario("customers with every odd name, told apart to the byte", quick=True)
def odd_customers(world: World) -> None:
    world.start_worker()
    flow(world)
    feed = world.feed()
    feed.send_beats(
        (customer, BASE + timedelta(milliseconds=number), 60 + number % 50)
        for number in range(50)
        for customer in ODD
    )
    world.did("beat of a customer with an odd name", 50 * len(ODD))
    flow(world)


@scenario("headers with any bytes as names")
def odd_headers(world: World) -> None:
    world.start_worker()
    flow(world)
    for number in range(20):
        row = f"header-{number}", BASE + timedelta(seconds=number), 70
        value, name = good(*row), bytes([0xFF, number])
        partition, *_ = world.oracle.record(value, row)
        world.topic.produce_with_header(value, name, partition=partition)
        world.did("record with a header whose name is not UTF-8")
    flow(world)


@scenario("one partition gets everything, as fast as it goes")
def one_partition(world: World) -> None:
    for _ in range(2):
        world.start_worker()
    flow(world)
    world.feed().send_beats(
        (
            (f"hot-{number % 997}", BASE + timedelta(milliseconds=number), 70)
            for number in range(300_000)
        ),
        partition=2,
    )
    world.did("beat into one of four partitions", 300_000)


@scenario("timestamps at every edge: leap second, 24:00, years 1 and 9999, epochs")
def odd_timestamps(world: World) -> None:
    world.start_worker()
    flow(world)
    world.feed().send_records(on_the_edge(world))
    world.did("record with a timestamp at an edge", 20 * len(TIMESTAMPS))
    flow(world)


def on_the_edge(world: World) -> Iterator[Record]:
    """Each of the timestamps for twenty customers."""
    for customer in range(20):
        for edge, (timestamp, found) in enumerate(TIMESTAMPS):
            name = f"edge-{customer}-{edge}"
            value = f'{{"customer_id": "{name}", "timestamp": {timestamp}, '
            yield world.oracle.record(
                f'{value}"heart_rate": 70}}'.encode(),
                found if isinstance(found, str) else (name, found, 70),
            )


@scenario("records in other encodings than UTF-8")
def odd_encodings(world: World) -> None:
    world.start_worker()
    flow(world)
    world.feed().send_records(encoded(world))
    world.did("record in another encoding", 50 * len(ENCODINGS))
    flow(world)


def encoded(world: World) -> Iterator[Record]:
    """Beats that would be good, in each of the encodings."""
    for each in range(50):
        beat = good("Zoë", BASE + timedelta(seconds=each), 70)
        text = json.dumps(json.loads(beat), ensure_ascii=False)
        for encoding in ENCODINGS:
            yield world.oracle.record(text.encode(encoding), "not_json")


@scenario(
    "records and a batch that expand to much more than they are, in every codec, among "
    "good beats in all partitions, and one of two workers killed",
    alone=True,
)
def bombs(world: World) -> None:
    world.topic.configure({"max.message.bytes": str(16 * MIB)})
    workers = [world.start_worker() for _ in range(2)]
    flow(world)
    world.wait_until(lambda: world.lag() == 0, "the first ones are read")
    feed = world.feed()
    with Watched(world) as watched:
        feed.send_beats(
            ((f"before-{each}", BASE, 60) for each in range(400)),
        )
        drop_bombs(world)
        victim = world.choice.choice(workers)
        victim.kill()
        victim.start()
        world.did("kill -9 of a worker")
        crowded = world.choice.randrange(PARTITIONS)
        send_a_million(world, crowded)
        began = time.monotonic()
        behind: dict[str, list[str]] = {"the bombs": [], "a million": []}
        for partition in range(PARTITIONS):
            names = [f"behind-{partition}-{each}" for each in range(100)]
            behind["a million" if partition == crowded else "the bombs"] += names
            feed.send_beats(((name, BASE, 60) for name in names), partition=partition)
        waited = {}
        for what, names in behind.items():
            world.wait_until(
                partial(are_stored, world, names),
                f"the good ones behind {what} are stored",
            )
            waited[what] = time.monotonic() - began
            world.note(f"good ones behind {what} waited", f"{waited[what]:.1f} s")
        world.wait_until(lambda: world.lag() == 0, "all is read")
    world.note("memory grew by", f"{watched.growth / MIB:.0f} MiB")
    world.note("/health/live answered within", f"{watched.slowest:.2f} s")
    world.require(waited["the bombs"] < 30, "others waited for a million")
    # Which have to be stored before: 33,000 a second at least.
    world.require(waited["a million"] < 30, "a million took too long")
    world.require(watched.growth < 64 * MIB, "memory is beyond its bound")
    require_no_restart(world)


def are_stored(world: World, customers: list[str]) -> bool:
    """Whether each of them has its beat."""
    count = "SELECT count(*) FROM heartbeats WHERE customer_id = ANY(:customers)"
    return bool(world.scalar(count, customers=customers) == len(customers))


def drop_bombs(world: World) -> None:
    """One of each codec in each part of a record, and beats behind each."""
    feed = world.feed()
    for number, (codec, part) in enumerate((c, p) for c in CODECS for p in PARTS):
        size = SNAPPY_BYTES if codec == "raw snappy" else BOMB_BYTES
        partition, key, _ = world.oracle.record(
            b"", "too_large", partition=number % PARTITIONS
        )
        assert key is not None
        record: dict[str, Any] = {"key": key, "value": b"b"}
        big = key + b"a" * size
        if part == "headers":
            record["headers"] = [("h", big)]
        else:
            record[part] = big
        if part == "key":  # of which the beginning is kept
            world.oracle.refused[big[:4096]] = world.oracle.refused.pop(key)
        send_bomb(world, codec, partition, record)
        world.did(f"bomb of {size // MIB} MiB with compression {codec}")
        feed.send_beats(
            (f"among-{number}-{each}", BASE, 60) for each in range(4 * PARTITIONS)
        )


def send_bomb(world: World, codec: str, partition: int, record: dict[str, Any]) -> None:
    """Send one large record by itself."""
    if codec == "framed snappy":  # as Java's clients write it
        asyncio.run(send_framed(world, partition, record))
        return
    producer = Producer(
        {
            **world.topic.config,
            "compression.type": codec.removeprefix("raw "),
            "message.max.bytes": 10**9,
            "batch.size": 10**9,
        }
    )
    producer.produce(TOPIC, partition=partition, **record)
    assert producer.flush(120) == 0


async def send_framed(world: World, partition: int, record: dict[str, Any]) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=world.kafka.bootstrap_servers,
        compression_type="snappy",
        max_request_size=10**9,
        max_batch_size=10**9,
    )
    async with producer:
        await producer.send_and_wait(TOPIC, partition=partition, **record)


def send_a_million(world: World, partition: int) -> None:
    """Send a batch of a million beats."""
    rows = (
        ("million", BASE + timedelta(milliseconds=each), 60) for each in range(MEGABYTE)
    )
    producer = Producer(
        {
            **world.topic.config,
            "compression.type": "zstd",
            "linger.ms": 60_000,
            "batch.num.messages": MEGABYTE,
            "queue.buffering.max.messages": 2 * MEGABYTE,
            "queue.buffering.max.kbytes": MEGABYTE,
            "message.max.bytes": 10**9,
            "batch.size": 10**9,
        }
    )
    for _, key, value in world.oracle.beats(rows, partition=partition):
        producer.produce(TOPIC, value, key, partition=partition)
    assert producer.flush(120) == 0
    world.did("batch of a million records")


class Watched(Crowd):
    """What the workers take meanwhile, looked at all the time.

    Attributes:
        growth: The most bytes that one of them held beyond what it held before.
        slowest: The longest answer of /health/live, in seconds.
    """

    def __init__(self, world: World) -> None:
        super().__init__(self._look, 0.05)
        self._world = world
        self._before = max(resident(each.pid) for each in world.workers)
        self.growth = 0
        self.slowest = 0.0

    def _look(self) -> None:
        for worker in list(self._world.workers):
            if worker.is_running():
                held = resident(worker.pid)
                self.growth = max(self.growth, held - self._before)
        began = time.monotonic()
        for worker in self._world.workers:
            if worker.get("/health/live")[0] == 200:
                self.slowest = max(self.slowest, time.monotonic() - began)
            began = time.monotonic()


def resident(pid: int) -> int:
    """Bytes that a process holds; 0 where it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
