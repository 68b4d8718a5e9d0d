"""Workers keep roll-ups and partitions as they should be, whatever is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from heartbeat_app.storage.db.catalog import existing_days
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.writer import Writer
from testkit.oracle import RETENTION_DAYS, Oracle, good
from testkit.servers import Topic, Worker, wait_until
from tests.rolled_up import differences, rows
from tests.storing import START, Kept, batch_of, beat, cut_short

pytestmark = pytest.mark.integration

# The promise: exact so long after the last touch.
EXACT_WITHIN_SECONDS = 60


def days(engine: Engine) -> set[date]:
    with engine.connect() as connection:
        return existing_days(connection)


def consumed(engine: Engine) -> int:
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT sum(consumed) FROM partition_ledger"))
        return int(found or 0)


def test_roll_ups_are_exact_a_minute_after_the_last_touch(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    """Two workers, killed while they store and while they roll up; late beats."""
    topic.make(partitions=4)
    oracle = Oracle(seed=6, partitions=4)
    workers = [make_worker(RETENTION_DAYS=RETENTION_DAYS).start() for _ in range(2)]
    choice = random.Random(6)
    for _ in range(5):
        sent = list(oracle.make(20_000, bad=0.01, repeated=0.05))
        choice.shuffle(sent)
        for partition in range(4):
            topic.produce(
                [value for p, _, value in sent if p == partition], partition=partition
            )
        wait_until(
            lambda: consumed(engine) >= oracle.records - choice.randint(1, 15_000),
            "some of it is read",
        )
        victim = choice.choice(workers)
        victim.kill()
        victim.start()
    wait_until(lambda: consumed(engine) == oracle.records, "all is read", seconds=120)
    touched = time.monotonic()
    wait_until(
        lambda: differences(engine) == [],
        "the roll-ups are exact",
        seconds=EXACT_WITHIN_SECONDS,
    )
    print(f"exact {time.monotonic() - touched:.0f} s after the last touch")
    # Nobody is there when the next beats come in, and then only one.
    for worker in workers:
        assert worker.stop() == 0
    late = [value for _, _, value in oracle.make(500)]
    topic.produce(late, partition=1)
    workers[0].start()
    wait_until(lambda: consumed(engine) == oracle.records, "the rest is read")
    wait_until(
        lambda: differences(engine) == [],
        "the roll-ups are exact again",
        seconds=EXACT_WITHIN_SECONDS,
    )
    assert len(rows(engine, "heartbeats")) == len(oracle.rows)
    assert workers[0].stop() == 0


def test_a_worker_that_starts_does_what_is_due(
    topic: Topic,
    engine: Engine,
    kept: Kept,
    make_worker: Callable[..., Worker],
    writer: Writer,
) -> None:
    """A day that was left half detached, one past the retention, and days ahead."""
    topic.make(partitions=1)
    old = START - timedelta(days=30)
    writer.write(batch_of([beat("c"), beat("old", at=old)]))
    Job(engine).run_pass()
    cut_short(engine, "heartbeats_2026_01_01")
    assert days(engine) == {old.date()}
    past_old = (datetime.now(UTC) - old).days - 3
    kept.do(f"INSERT INTO retention VALUES ('heartbeats', {past_old})")
    worker = make_worker(RETENTION_DAYS=str(past_old)).start()
    today = datetime.now(UTC).date()
    worker.wait_until(
        lambda: days(engine) >= {today, today + timedelta(days=1)}, "days ahead"
    )
    worker.wait_until(lambda: old.date() not in days(engine), "the old day goes")
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
    assert kept.all(pending) == [(0,)]
    # The half detached day comes back with its beat as soon as another one comes.
    topic.produce([good("late", START, 70)])
    worker.wait_until(lambda: START.date() in days(engine), "the day comes back")
    worker.wait_until(lambda: len(rows(engine, "heartbeats")) == 2, "both are there")
    assert worker.stop() == 0


def test_a_stop_breaks_off_what_is_rolled_up(
    topic: Topic,
    engine: Engine,
    kept: Kept,
    make_worker: Callable[..., Worker],
    writer: Writer,
) -> None:
    topic.make(partitions=1)
    writer.write(batch_of([beat("c")]))
    # It has to wait for as long as a statement may take.
    kept.do(
        "CREATE OR REPLACE FUNCTION roll_up_minutes(since TIMESTAMPTZ,"
        " until TIMESTAMPTZ) RETURNS VOID LANGUAGE sql AS 'SELECT pg_sleep(50)'"
    )
    worker = make_worker().start()
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
        " AND datname = current_database() AND query LIKE '%roll_up_minutes%'"
        " AND application_name = 'heartbeat_app maintenance'"
    )
    worker.wait_until(lambda: kept.all(query) == [(1,)], "it rolls up")
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    assert worker.stop() == 0
    wait_until(lambda: kept.all(query) == [(0,)], "the statement is broken off")
