"""A slow database, clocks that are off, days that begin."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, TopicPartition

import prove.clock
from prove.feed import BAD, REPEATED
from prove.proxy import Proxy
from prove.scenario import scenario
from prove.scenarios.postgres import require_logged, require_no_restart
from prove.world import TOPIC, World
from testkit.oracle import BASE, Record, Row
from testkit.servers import Crowd, Worker

# What a beat is on the way to PostgreSQL, at least; 57 were measured.
BYTES_A_BEAT = 50
MEMORY_LIMIT_MB = 350
# All that a browser, an orchestrator or Prometheus opens again and again.
PATHS = ("/health/live", "/health/ready", "/stats/", "/metrics", "/live/")


@scenario(
    "a database ten times slower than the topic, for 5 minutes, with a backlog of "
    "2,000,000 records",
    alone=True,
)
def slow_database(world: World) -> None:
    write_slowly(world, records=2_000_000, seconds=300.0)


@scenario(
    "a database ten times slower than the topic, with a backlog of 200,000 records",
    alone=True,
)
def slow_database_for_a_while(world: World) -> None:
    write_slowly(world, records=200_000, seconds=20.0)


@scenario("a database so slow that a batch takes longer than a statement may")
def very_slow_database(world: World) -> None:
    feed = world.feed()
    # Four partitions' batches wait for two writers, longer than a standstill may take.
    feed.send_beats(
        (f"customer-{each % 997}", BASE + timedelta(milliseconds=each), 60)
        for each in range(60_000)
    )
    world.settled_within = 400.0
    with Proxy(world.postgres.port, bytes_a_second=20_000) as proxy:
        world.at_end(proxy.close)
        world.start_worker(POSTGRESQL_PORT=str(proxy.port))
        world.did("the way to PostgreSQL limited to 20 kB/s")
        world.wait_until(lambda: world.lag() == 0, "all is stored", seconds=400)
        require_logged(world, "too much at once")
        require_no_restart(world)
        for worker in world.workers:
            world.stop_worker(worker)
        world.workers.clear()


def write_slowly(world: World, *, records: int, seconds: float) -> None:
    """Store a backlog over so slow a way that it takes about that long."""
    feed = world.feed()
    feed.send_recordings()
    feed.send(records)
    topic = read_through(world)
    limit = BYTES_A_BEAT * min(records / seconds, topic / 10)
    with Proxy(world.postgres.port, bytes_a_second=limit) as proxy:
        worker = world.start_worker(POSTGRESQL_PORT=str(proxy.port))
        world.wait_until(world.consumed, "the stream has begun")
        world.did(f"the way to PostgreSQL limited to {limit / 1000:.0f} kB/s")
        members, began = world.members(), time.monotonic()
        first = world.consumed()
        with Pages(worker) as pages:
            while world.lag() != 0:
                assert time.monotonic() - began < 4 * seconds, "it hardly moves"
                world.require(
                    world.members() == members, "the group's members have changed"
                )
                pages.memory.append(resident_megabytes(worker))
                time.sleep(0.5)
        took = time.monotonic() - began
        world.stop_worker(worker)
    pages.judge(world)
    stored = (world.consumed() - first) / took
    world.note("the topic gives", f"{topic:,.0f} records/s")
    world.note("stored", f"{stored:,.0f} records/s")
    world.note("the backlog took", f"{took:.0f} s")
    world.require(took >= seconds, f"it was slow for {took:.0f} s only")
    world.require(10 * stored <= topic, "the topic is not ten times quicker")
    log = worker.log()
    assigned = log.count(": going on at ")
    world.require(assigned == world.oracle.partitions, "partitions were assigned anew")


def read_through(world: World) -> float:
    """Read all that is in the topic, and store nothing; records a second."""
    reader = Consumer({**world.topic.config, "group.id": "none"})
    try:
        begins = world.begins()
        reader.assign([TopicPartition(TOPIC, each, begins[each]) for each in begins])
        # With the first ones it has found its way.
        world.wait_until(lambda: reader.consume(1, timeout=1.0), "a record comes")
        left = records = world.oracle.records - 1
        began = time.monotonic()
        while left > 0:
            assert time.monotonic() - began < 120, f"{left} records do not come"
            left -= len(reader.consume(10_000, timeout=1.0))
        return records / (time.monotonic() - began)
    finally:
        reader.close()


class Pages(Crowd):
    """Asks a worker's pages again and again; what they and its memory were."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(self._ask, 0.2)
        self._worker = worker
        self.slowest: dict[str, float] = {}
        self.asked = 0
        self.memory: list[float] = []

    def _ask(self) -> None:
        for path in PATHS:
            began = time.monotonic()
            status, _ = self._worker.answer(path, seconds=5)
            answered = status in (200, 503)  # not ready, not an error
            took = time.monotonic() - began if answered else float("inf")
            self.slowest[path] = max(self.slowest.get(path, 0.0), took)
            self.asked += 1

    def judge(self, world: World) -> None:
        """Every page within a second; memory level, and below its bound."""
        # A thread that fails says so, and nothing more is asked.
        enough = len(PATHS) * len(self.memory) // 10
        world.require(self.asked >= enough, f"only {self.asked} pages were asked for")
        world.require(self.slowest.keys() == set(PATHS), "a page was not asked for")
        for path, seconds in self.slowest.items():
            world.note(f"slowest {path}", f"{seconds * 1000:.0f} ms")
            world.require(seconds < 1.0, f"{path} took {seconds:.1f} s")
        world.did("asked for a page", self.asked)
        half = len(self.memory) // 2
        before, after = max(self.memory[:half]), max(self.memory[half:])
        world.note("memory, first half", f"{before:.0f} MB at most")
        world.note("memory, second half", f"{after:.0f} MB at most")
        world.require(after < 1.15 * before, "memory grows")
        world.require(after < MEMORY_LIMIT_MB, f"memory is beyond {MEMORY_LIMIT_MB} MB")


def resident_megabytes(worker: Worker) -> float:
    """What a worker holds in memory now."""
    return float(psutil.Process(worker.pid).memory_info().rss) / 2**20


# Clocks and days


class Clock:
    """The workers' clock, which can be moved."""

    def __init__(self, world: World) -> None:
        self._file = world.folder / "clock"
        self.moved = timedelta()
        self.move(timedelta())
        before = os.environ.get("PYTHONPATH")
        path = [str(Path(prove.clock.__file__).parent), *([before] if before else [])]
        self.environ = {
            "PROVE_CLOCK": str(self._file),
            "PYTHONPATH": os.pathsep.join(path),
        }

    def now(self) -> datetime:
        """What the workers believe."""
        return datetime.now(UTC) + self.moved

    def move(self, by: timedelta) -> None:
        """Set it so far off the true time, at once."""
        self.moved = by
        new = self._file.with_suffix(".new")
        new.write_text(str(by.total_seconds()))
        new.replace(self._file)  # a worker may be reading it


def with_beats_of_now(world: World, clock: Clock | None = None) -> Iterator[Record]:
    """What the oracle makes, and every fourth record a beat of this moment."""

    def now() -> Iterator[Row]:
        number = 0
        while True:
            number += 1
            when = clock.now() if clock else datetime.now(UTC)
            yield f"live-{number % 97}", when, number % 300 + 1

    yield from world.oracle.recordings()
    made = world.oracle.make(10**9, bad=BAD, repeated=REPEATED)
    live = world.oracle.beats(now())
    for record in made:
        yield record
        if world.oracle.records % 4 == 0:
            yield next(live)


@scenario("a worker's clock an hour ahead, an hour behind, and set while it runs")
def clock_moved(world: World) -> None:
    clock = Clock(world)
    clock.move(timedelta(hours=1))
    # So that no beat is refused by a clock that is behind.
    more = {"MAX_FUTURE_SECONDS": "7200"}
    world.start_worker(**clock.environ, **more)
    world.start_worker(**more)
    feed = world.feed(rate=2_000)
    feed.start(with_beats_of_now(world))
    world.wait_until(world.consumed, "the stream has begun")
    for hours in (-1, 1, 0, -1):
        world.pause(2.0, 4.0)
        clock.move(timedelta(hours=hours))
        world.did("a worker's clock set by an hour or two")
        world.wait_for_more("it goes on")
    world.pause(1.0, 2.0)
    feed.stop()
    require_no_restart(world)
    for word, condition in (("ahead", "> now()"), ("behind", "< now()")):
        seen = world.scalar(
            "SELECT count(*) FROM ingest_minute WHERE minute + interval"
            f" '{'-' if word == 'ahead' else ''}30 minutes' {condition}"
        )
        world.require(seen, f"the clock was never {word}")


@scenario("a day begins while two workers write beats of that moment", quick=True)
def midnight(world: World) -> None:
    clock = Clock(world)
    now = datetime.now(UTC)
    tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(1)
    # However long it takes until the stream has begun: not before.
    clock.move(tomorrow - now - timedelta(hours=1))
    for _ in range(2):
        world.start_worker(**clock.environ)
    feed = world.feed(rate=2_000)
    feed.start(with_beats_of_now(world, clock))
    world.wait_until(world.consumed, "the stream has begun")
    clock.move(tomorrow - datetime.now(UTC) - timedelta(seconds=8))
    world.wait_until(lambda: clock.now() > tomorrow, "midnight")
    world.did("a day began")
    world.pause(8.0, 8.0)
    feed.stop()
    world.wait_until_read()
    for day in (tomorrow - timedelta(1), tomorrow):
        stored = world.scalar(f"SELECT count(*) FROM heartbeats_{day:%Y_%m_%d}")
        world.note(f"beats {'after' if day == tomorrow else 'before'}", f"{stored:,}")
        world.require(stored > 100, f"hardly a beat of {day:%Y-%m-%d}")
    require_no_restart(world)


@scenario("1,500 days that are new, made by two workers at once")
def many_new_days(world: World) -> None:
    world.workers_roll_up = False  # thousands of hours
    for _ in range(2):
        world.start_worker()
    feed = world.feed()
    feed.send_recordings()
    # A batch makes 400 at most.
    for first in range(1, 1_500, 300):
        feed.send_beats(
            (f"customer-{each}", BASE - timedelta(days=day, seconds=each), 60)
            for day in range(first, first + 300)
            for each in range(40)
        )
        feed.send(10_000)
        world.did("new days", 300)
        world.wait_until(lambda: world.lag() == 0, "the days are stored")
    days: Any = world.scalar(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'heartbeats'::regclass"
    )
    world.note("days in all", f"{days:,}")
    world.require(days > 1_500, f"only {days} days were made")
    require_no_restart(world)


# As docs/explanation/storage.md says.
MAX_DAYS = 2_500


@scenario("more days than there may be: the rest is refused, beats of today are not")
def too_many_days(world: World) -> None:
    world.workers_roll_up = False
    world.start_worker()
    feed = world.feed()
    feed.send_recordings()
    feed.send(10_000)
    last, refused = BASE.date(), 0
    while refused < 300:
        world.wait_until_read()
        there = days_there(world)
        asked = [last - timedelta(days=each) for each in range(1, 301)]
        room = MAX_DAYS - len(there)
        # The latest first, as they are asked for.
        new = [day for day in asked if day not in there]
        records: list[Record] = []
        for day in asked:
            row = "customer", datetime(day.year, day.month, day.day, tzinfo=UTC), 60
            reason = "too_many_days" if day in new[room:] else ""
            records += world.oracle.beats([row], partition=0, refused=reason)
            refused += bool(reason)
        feed.send_records(records)
        world.did("new days asked for", len(new))
        last = asked[-1]
    feed.send_beats([("customer", datetime.now(UTC), 60)])
    world.wait_until_read()
    made = len(days_there(world))
    world.note("days in all", f"{made:,}")
    world.require(made <= MAX_DAYS, f"{made:,} days were made")
    require_no_restart(world)


def days_there(world: World) -> set[date]:
    """The days that have a table."""
    names = world.scalar(
        "SELECT array_agg(right(inhrelid::regclass::text, 10)) FROM pg_inherits"
        " WHERE inhparent = 'heartbeats'::regclass"
    )
    return {date.fromisoformat(name.replace("_", "-")) for name in names or ()}
