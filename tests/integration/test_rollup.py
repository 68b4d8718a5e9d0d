"""The roll-ups equal what the rows give, whatever order the beats came in."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.batches import Batch
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Rules
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.rollup import rollup, rollup_check
from heartbeat_app.storage.rollup.rollup import Job, read_backlog, read_marks
from heartbeat_app.storage.write.writer import Writer
from testkit.servers import engine_of, wait_until
from tests.booked import NOW, Shelf, record
from tests.rolled_up import differences, rows
from tests.storing import START, Kept, batch_of, beat, beats

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]


@pytest.fixture
def job_engine(settings: Settings) -> Iterator[Engine]:
    """As the worker's."""
    engine = make_engine(settings, application_name="job", pool_size=2)
    yield engine
    engine.dispose()


@pytest.fixture
def job(job_engine: Engine) -> Job:
    """The job of a worker."""
    return Job(job_engine)


def marked(engine: Engine) -> int:
    """How many minutes are marked."""
    with engine.connect() as connection:
        return read_backlog(connection).minutes


def at(minute: float, customer: str = "c", rate: int = 70) -> Heartbeat:
    return beat(customer, minute * 60, rate)


# What a batch marks


def test_a_batch_marks_the_minutes_that_it_touched(
    writer: Writer, engine: Engine
) -> None:
    writer.write(batch_of([*beats(1000), at(-600), at(-599.5), None]))
    with engine.connect() as connection:
        found = {(each.since, each.until) for each in read_marks(connection)}
        backlog = read_backlog(connection)
        now = connection.scalar(select(func.now()))
    early = START - timedelta(hours=10)
    assert found == {
        (START, START + timedelta(minutes=1)),
        (early, early + timedelta(minutes=1)),
    }
    assert backlog.minutes == 2
    assert backlog.oldest is not None
    assert now is not None
    assert timedelta() <= now - backlog.oldest < timedelta(seconds=30)


def test_what_is_not_new_marks_nothing(
    writer: Writer, job: Job, engine: Engine
) -> None:
    writer.write(batch_of(beats(3)))
    job.run_pass()
    writer.write(batch_of([*beats(3), beat(rate=99), None], asked=3))
    assert marked(engine) == 0


def test_a_staged_batch_marks_only_what_is_new(writer: Writer, engine: Engine) -> None:
    writer.write(batch_of([at(0), at(60)]))
    Job(engine).run_pass()
    writer.write(batch_of([at(0), at(120)], asked=2))
    assert marked(engine) == 1


def test_a_batch_that_fails_leaves_no_mark(
    writer: Writer, engine: Engine, kept: Kept
) -> None:
    kept.do("ALTER TABLE partition_ledger ADD CHECK (consumed = 0)")
    with pytest.raises(DBAPIError):
        writer.write(batch_of(beats(3)))
    assert marked(engine) == 0


# What the job makes of it


def test_a_minute_and_its_hour(
    writer: Writer, job: Job, engine: Engine, kept: Kept
) -> None:
    writer.write(
        batch_of([at(0.5, "a", 80), at(0.1, "a", 60), at(0.9, "a", 70), at(5, "b", 99)])
    )
    assert job.run_pass()
    five = START + timedelta(minutes=5)
    assert kept.all("SELECT * FROM heartbeats_minute ORDER BY customer_id") == [
        ("a", START, 3, 210, 60, 80, 60, 70),
        ("b", five, 1, 99, 99, 99, 99, 99),
    ]
    assert kept.all("SELECT * FROM heartbeats_hour ORDER BY customer_id") == [
        ("a", START, 3, 210, 60, 80, 60, 70, [7000]),
        ("b", START, 1, 99, 99, 99, 99, 99, [9900]),
    ]
    [(_, customers, count, total, low, high, histogram)] = kept.all(
        "SELECT * FROM heartbeats_hour_all"
    )
    assert (customers, count, total, low, high) == (2, 4, 309, 60, 99)
    assert {n + 1: found for n, found in enumerate(histogram) if found} == {
        60: 1, 70: 1, 80: 1, 99: 1
    }  # fmt: skip
    assert len(histogram) == 99
    assert differences(engine) == []
    assert marked(engine) == 0


@pytest.mark.parametrize("dropped", [False, True])
def test_hours_from_before_get_the_rates_of_their_minutes(
    writer: Writer, job_engine: Engine, engine: Engine, kept: Kept, dropped: bool
) -> None:
    """Of several days, also dropped ones, by a worker that starts."""
    found = [at(n, "a", 60 + n % 90) for n in range(-1500, 60, 7)]
    writer.write(batch_of(found))
    assert Job(job_engine).run_pass()
    assert differences(engine) == []
    kept.do("UPDATE heartbeats_hour SET minute_rates = NULL")
    if dropped:
        kept.do(
            f"INSERT INTO dropped_days VALUES ('{START:%Y-%m-%d}', 0, now(), now())"
        )
    assert read_books(job_engine).balanced
    assert Job(job_engine).run_pass()
    assert differences(engine) == []


def test_late_and_repeated_beats_are_taken_in(
    writer: Writer, job: Job, engine: Engine
) -> None:
    writer.write(batch_of([at(1), at(61), at(2)]))
    job.run_pass()
    late = [at(1.5, rate=200), at(1), at(61.5, "d"), at(-1440 * 3), at(2.2, rate=1)]
    writer.write(batch_of(late, asked=3))
    assert differences(engine) != []
    job.run_pass()
    assert differences(engine) == []


def test_a_replayed_beat_is_taken_in(engine: Engine, job: Job) -> None:
    shelf = Shelf(engine)
    shelf.book(record(), record(timestamp="2026-01-01T13:00:00Z", rate=90))
    job.run_pass()
    later = NOW + timedelta(hours=2)
    rules = Rules.at(later, max_future_seconds=1, retention_days=None)
    assert replay(engine, rules, later).outcomes == {"stored": 1}
    assert differences(engine) != []
    job.run_pass()
    assert differences(engine) == []


def test_a_day_that_was_detached_is_taken_in_when_it_comes_back(
    writer: Writer, job: Job, engine: Engine, kept: Kept
) -> None:
    writer.write(batch_of([at(0), at(300)]))
    kept.do("ALTER TABLE heartbeats DETACH PARTITION heartbeats_2026_01_01")
    job.run_pass()  # takes the marks of what is not there
    assert rows(engine, "heartbeats_minute") == []
    ensure_days(engine, [START.date()])
    job.run_pass()
    assert len(rows(engine, "heartbeats_minute")) == 2
    assert differences(engine) == []


def test_the_minutes_of_a_day_that_is_not_there_stay(
    writer: Writer, job: Job, engine: Engine, kept: Kept
) -> None:
    writer.write(batch_of([at(0), at(60)]))
    job.run_pass()
    kept.do(
        "DROP TABLE heartbeats_2026_01_01",
        "INSERT INTO rollup_marks (since, until) VALUES ('2026-01-01Z', '2026-01-02Z')",
    )
    job.run_pass()
    assert len(rows(engine, "heartbeats_minute")) == 2
    assert len(rows(engine, "heartbeats_hour")) == 2
    assert marked(engine) == 0


def test_what_was_deleted_goes_from_the_roll_ups(
    writer: Writer, job: Job, engine: Engine, kept: Kept
) -> None:
    writer.write(batch_of([at(0, "a"), at(0, "b"), at(1, "b"), at(120, "b")]))
    job.run_pass()
    kept.do(
        "DELETE FROM heartbeats WHERE customer_id = 'b'",
        "INSERT INTO rollup_marks (since, until) VALUES ('2026-01-01Z', '2026-01-02Z')",
    )
    job.run_pass()
    assert len(rows(engine, "heartbeats_minute")) == 1
    assert differences(engine) == []


def test_the_edges_of_days_months_and_hours(
    writer: Writer, job: Job, engine: Engine
) -> None:
    edges = [datetime.fromisoformat(f"{day}T00:00:00+00:00") for day in (
        "2026-02-01", "2026-01-15", "2024-02-29", "2024-03-01", "2026-01-01",
    )]  # fmt: skip
    step = timedelta(microseconds=1)
    found = [beat("c", at=when) for edge in edges for when in (edge, edge - step)]
    writer.write(batch_of([*found, at(60), at(60 - 1e-6 / 60)]))
    job.run_pass()
    assert len(rows(engine, "heartbeats_minute")) == 12
    assert differences(engine) == []


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns"])
def test_the_databases_time_zone_does_not_matter(
    make_writer: MakeWriter, engine: Engine, kept: Kept, name: str, zone: str
) -> None:
    kept.do(f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'")
    engine.dispose()
    make_writer().write(batch_of([at(n * 7, "c", 60 + n % 200) for n in range(300)]))
    assert Job(engine).run_pass()
    assert differences(engine) == []
    with engine.connect() as connection:
        assert list(rollup_check.problems(connection, START.date())) == []


# Others at work


@pytest.mark.parametrize("moment", ["before_cursor_execute", "after_cursor_execute"])
def test_what_comes_at_any_moment_of_a_pass_is_not_forgotten(
    writer: Writer, job: Job, job_engine: Engine, engine: Engine, moment: str
) -> None:
    """A batch comes before, or after, one of the statements of a pass: each in turn."""
    asked = 0
    statements = 0

    def come() -> None:
        nonlocal asked
        some = [at(0.5 + asked / 1e6, rate=100), at(61 + asked / 1e6, rate=50)]
        writer.write(batch_of(some, asked=asked))
        asked += 2

    def listen(*call: Any) -> None:
        nonlocal statements
        if statements == turn:
            come()
        statements += 1

    event.listen(job_engine, moment, listen)
    for turn in range(100):
        come()
        statements = 0
        job.run_pass()
        with engine.connect() as connection:
            # What is not marked is right, also now.
            assert list(rollup_check.problems(connection, START.date())) == []
        if statements <= turn:
            break
        job.run_pass()
        assert differences(engine) == []
    assert turn > 10


def test_a_batch_that_commits_after_the_pass_is_taken_in_by_the_next(
    writer: Writer, job: Job, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    writer.write(batch_of([at(0)]))
    with engine.begin() as blocker:
        blocker.execute(
            # Stops the batch after its beats and its marks, before it commits.
            text("LOCK TABLE ingest_minute IN ACCESS EXCLUSIVE MODE")
        )
        late = aside.submit(writer.write, batch_of([at(0.3)], asked=1))
        Kept(engine).waits("writer")
        job.run_pass()
        assert marked(engine) == 0
    assert late.result(20).stored == 1
    job.run_pass()
    assert differences(engine) == []


def test_one_at_a_time_works(writer: Writer, job: Job, engine: Engine) -> None:
    writer.write(batch_of(beats(5)))
    with engine.begin() as other:
        assert other.scalar(text("SELECT take_lock('rollups')"))
        assert job.run_pass()
        assert marked(engine) == 1
        assert rows(engine, "heartbeats_minute") == []
    job.run_pass()
    assert differences(engine) == []


@pytest.mark.parametrize("call", ["roll_up_minutes(:t, :t)", "roll_up_hour(:t)"])
def test_nobody_writes_roll_ups_beside_another(engine: Engine, call: str) -> None:
    with engine.begin() as other, engine.connect() as connection:
        assert other.scalar(text("SELECT take_lock('rollups')"))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text(f"SELECT {call}"), {"t": START})
        assert errors.is_lock_timeout(caught.value)


def test_a_pass_that_is_stopped_goes_on_later(
    writer: Writer, job: Job, engine: Engine
) -> None:
    writer.write(batch_of([at(n * 45) for n in range(40)]))
    before = marked(engine)
    stops = iter([False, False, False, True])
    assert not job.run_pass(lambda: next(stops))
    # The latest hours first.
    latest = max(row[1] for row in rows(engine, "heartbeats_hour"))
    assert latest == START + timedelta(hours=29)
    assert 0 < marked(engine) < before
    assert job.run_pass()
    assert differences(engine) == []
    assert marked(engine) == 0


def make_fail(kept: Kept, *hours: str) -> None:
    """Let these hours of the day, UTC, be at fault."""
    kept.do(
        "CREATE FUNCTION fail() RETURNS TRIGGER LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'this hour is at fault'; END$$",
        "CREATE TRIGGER fail BEFORE INSERT ON heartbeats_hour FOR EACH ROW"
        " WHEN (extract(hour FROM NEW.hour AT TIME ZONE 'UTC')"
        f" IN ({', '.join(hours)})) EXECUTE FUNCTION fail()",
    )


def test_an_hour_at_fault_does_not_hold_up_the_others(
    writer: Writer, job: Job, engine: Engine, kept: Kept
) -> None:
    writer.write(batch_of([at(n * 60) for n in range(3)]))
    make_fail(kept, "14")
    with pytest.raises(DBAPIError, match="this hour is at fault"):
        job.run_pass()
    assert {row[1].hour for row in rows(engine, "heartbeats_hour")} == {12, 13}
    assert marked(engine) == 1
    kept.do("DROP TRIGGER fail ON heartbeats_hour")
    assert job.run_pass()
    assert differences(engine) == []


@pytest.mark.parametrize("at_fault", [(12, 13), (14, 15)])
def test_hours_that_take_a_whole_pass_leave_the_others_their_turn(
    writer: Writer,
    job: Job,
    engine: Engine,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    at_fault: tuple[int, int],
) -> None:
    """Also when they fail at the end of it, time and again."""
    monkeypatch.setattr(rollup, "PASS_SECONDS", 0.0)
    writer.write(batch_of([at(n * 60) for n in range(4)]))
    make_fail(kept, *map(str, at_fault))
    failures = 0
    for _ in range(6):
        try:
            job.run_pass()
        except DBAPIError:
            failures += 1
    done = {row[1].hour for row in rows(engine, "heartbeats_hour")}
    assert done == {12, 13, 14, 15}.difference(at_fault)
    assert failures >= 3, "they are tried again, and told, while others wait"


def test_a_long_pass_makes_way_for_the_present(
    writer: Writer, job: Job, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollup, "PASS_SECONDS", 0.0)
    writer.write(batch_of([at(n * 60) for n in range(3)]))
    assert not job.run_pass()
    monkeypatch.undo()
    assert job.run_pass()
    assert differences(engine) == []


@pytest.mark.parametrize("slow", [True, False])
def test_statements_get_shorter_and_longer(
    writer: Writer,
    job: Job,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    slow: bool,
) -> None:
    monkeypatch.setattr(rollup, "LONG_SECONDS", -1.0 if slow else 1e9)
    writer.write(batch_of([at(n / 2, rate=60 + n) for n in range(230)]))
    job.run_pass()
    assert differences(engine) == []
    assert (job._step == timedelta(minutes=1)) == slow


# All at once


@pytest.mark.parametrize("seed", range(4))
def test_any_order_two_workers_and_kills(
    make_writer: MakeWriter, settings: Settings, engine: Engine, seed: int
) -> None:
    choice = random.Random(seed)
    customers = [f"c{n}" for n in range(12)]
    span = choice.choice([20, 600, 60_000])  # minutes
    found = [
        at(
            choice.random() * span - span / 2,
            choice.choice(customers),
            choice.randint(1, 300),
        )
        for _ in range(3_000)
    ]
    if choice.random() < 0.5:
        found.sort(key=lambda each: each.timestamp)
    stop = threading.Event()
    # Before anybody is killed: they begin their books at once.
    writers = [make_writer(f"victim {partition}") for partition in range(2)]

    def write(partition: int) -> None:
        own = random.Random(f"{seed}/{partition}")
        writer = writers[partition]
        mine = found[partition::2]
        asked = 0
        while mine:
            size = own.choice([1, 30, 200])
            some, mine = mine[:size], mine[size:]
            some += own.sample(found[partition::2], 3)  # sent again, or too early
            batch = batch_of(some, asked=asked, partition=partition)
            rest: Batch | None = batch
            while rest is not None:
                with suppress(DBAPIError, psycopg2.Error):
                    rest = writer.write(rest).rest
            asked += len(some)

    def roll_up(number: int) -> None:
        victim = make_engine(settings, application_name=f"victim job {number}")
        job = Job(victim)
        while not stop.is_set():
            try:
                job.run_pass()
            except DBAPIError:
                continue
        victim.dispose()

    def kill() -> None:
        killer = engine_of(settings)
        own = random.Random(f"{seed}/killer")
        while not stop.wait(own.random() / 5):
            with killer.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database()"
                        " AND application_name LIKE 'victim%' AND random() < 0.3"
                    )
                )
        killer.dispose()

    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(roll_up, n) for n in range(2)] + [pool.submit(kill)]
        writing = [pool.submit(write, partition) for partition in range(2)]
        try:
            for each in writing:
                each.result(120)
        finally:
            stop.set()
        for each in others:
            each.result(30)
    job = Job(engine)
    wait_until(job.run_pass, "all is worked out")
    assert marked(engine) == 0
    assert differences(engine) == []
    assert len(rows(engine, "heartbeats")) == len(
        {(b.customer_id, b.timestamp) for b in found}
    )


# Checked and read


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            # Two beats in other buckets, count and sum as they were.
            "UPDATE heartbeats_minute_all SET histogram[60] = 1, histogram[80] = 1,"
            " histogram[70] = histogram[70] - 2 WHERE minute = '2026-01-01 10:00Z'",
            "heartbeats_minute_all has 1 rows of 2026-01-01 that are not what"
            " heartbeats gives, the first of 10:00 UTC.",
        ),
        (
            "UPDATE heartbeats_hour_all SET histogram[70] = histogram[70] + 1",
            "heartbeats_hour_all has 1 rows of 2026-01-01 that are not what"
            " heartbeats_minute_all gives, the first of 10:00 UTC.",
        ),
        (
            "UPDATE heartbeats_hour_all SET customers = customers + 1",
            "heartbeats_hour_all has 1 rows of 2026-01-01 that are not what"
            " heartbeats_minute_all gives, the first of 10:00 UTC.",
        ),
    ],
)
def test_the_books_check_the_histograms(
    engine: Engine, job: Job, kept: Kept, change: str, problem: str
) -> None:
    shelf = Shelf(engine)
    shelf.book(*[record(str(n), rate=(70, 70, 70, 60, 80)[n]) for n in range(5)])
    job.run_pass()
    assert read_books(engine, deep=True).balanced
    kept.do(change)
    assert problem in read_books(engine, deep=True).problems


def test_the_books_check_the_roll_ups(engine: Engine, job: Job, kept: Kept) -> None:
    shelf = Shelf(engine)
    shelf.book(record(), record("bert"), record(timestamp="2025-12-01T10:00:30Z"))
    assert read_books(engine, deep=True).balanced  # what is marked may differ
    job.run_pass()
    assert read_books(engine, deep=True).balanced
    kept.do("UPDATE heartbeats_minute SET last = last + 1 WHERE customer_id = 'bert'")
    assert read_books(engine).balanced
    minute, hour = read_books(engine, deep=True).problems
    assert minute == (
        "heartbeats_minute has 1 rows of 2026-01-01 that are not what heartbeats "
        "gives, the first of 10:00 UTC."
    )
    assert hour.startswith("heartbeats_hour has 1 rows of 2026-01-01")
    kept.do(
        "INSERT INTO rollup_marks (since, until) VALUES ('2026-01-01Z', '2026-01-02Z')"
    )
    job.run_pass()
    assert read_books(engine, deep=True).balanced


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "DELETE FROM heartbeats_minute WHERE customer_id = 'anna'",
            "heartbeats_minute has 1",
        ),
        (
            "UPDATE heartbeats_minute SET minute = minute + interval '1 min'",
            "has 4 rows",
        ),
        ("UPDATE heartbeats_hour SET sum = 1", "heartbeats_hour has 2 rows"),
        (
            "UPDATE heartbeats_hour SET minute_rates = '{1}'",
            "heartbeats_hour has 2 rows",
        ),
        (
            "UPDATE heartbeats_minute_all SET histogram[72] = 0",
            "heartbeats_minute_all has 1",
        ),
        (
            "UPDATE heartbeats_minute_all SET customers = 3",
            "heartbeats_minute_all has 1",
        ),
    ],
)
@pytest.mark.parametrize("at_once", [0, 1_000])
def test_what_is_off_in_the_roll_ups_is_named(
    engine: Engine,
    job: Job,
    kept: Kept,
    statement: str,
    words: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollup_check, "COMPARED_AT_ONCE", at_once)
    Shelf(engine).book(record(), record("bert"))
    job.run_pass()
    kept.do(statement)
    problems = read_books(engine, deep=True).problems
    assert any(words in each for each in problems), problems


@pytest.mark.parametrize("seed", range(5))
def test_a_percentile_is_exact(writer: Writer, job: Job, kept: Kept, seed: int) -> None:
    choice = random.Random(seed)
    rates = [choice.randint(1, 300) for _ in range(choice.randint(1, 200))]
    writer.write(batch_of([at(n / 3, "c", rate) for n, rate in enumerate(rates)]))
    job.run_pass()
    for q in (0.0, 0.01, 0.5, 0.95, 0.99, 1.0, choice.random()):
        [(found, expected)] = kept.all(
            "SELECT rate_quantile(histogram_sum(histogram), :q),"
            " (SELECT percentile_disc(:q) WITHIN GROUP (ORDER BY heart_rate)"
            "  FROM heartbeats) FROM heartbeats_minute_all",
            q=q,
        )
        assert found == expected
    assert kept.all("SELECT rate_quantile('{}', 0.5), rate_quantile(NULL, 0.5)") == [
        (None, None)
    ]
