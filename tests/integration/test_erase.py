"""An erased customer is gone from everywhere, and does not come back."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.cli import report
from heartbeat_app.config import Settings
from heartbeat_app.domain.batches import Batch, Refused
from heartbeat_app.domain.validation import Rules
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.days.retention import Kept as Retained
from heartbeat_app.storage.days.retention import Retention
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.operator import erase as module
from heartbeat_app.storage.operator.erase import Erasure, erase
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer, Written
from testkit.servers import OWNER, Topic, Worker
from tests.rolled_up import differences
from tests.storing import (
    REFUSAL,
    START,
    TOPIC,
    TOPIC_ID,
    Kept,
    Received,
    batch_of,
    beat,
    cut_short,
    day_table,
)
from tests.typed import typed, typing

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
RULES = Rules.at(NOW, max_future_seconds=300, retention_days=None)
HIDDEN = json.dumps({"customer_id": "anna", "heart_rate": 0}).replace("a", "\\u0061", 1)


@pytest.fixture
def owner(settings: Settings) -> Iterator[Engine]:
    """Connects as the command does."""
    engine = make_engine(settings.owner, application_name="erase", pool_size=2)
    yield engine
    engine.dispose()


@pytest.fixture
def worker_engine(settings: Settings) -> Iterator[Engine]:
    """Connects as a worker does."""
    engine = make_engine(settings, application_name="worker", pool_size=2)
    yield engine
    engine.dispose()


def value(customer: str, rate: int, at: datetime = START) -> bytes:
    beat = {
        "customer_id": customer,
        "timestamp": at.isoformat(),
        "heart_rate": rate,
    }
    return json.dumps(beat).encode()


def with_letters(batch: Batch, *records: Received) -> Batch:
    """The batch with these refused records after it."""
    position = batch.position + len(records)
    return replace(
        batch,
        position=position,
        end_offset=position,
        refused=[Refused(each, REFUSAL) for each in records],
    )


def some_of(*customers: str, asked: int = 0, partition: int = 0) -> Batch:
    """Beats of three days, three a day and customer."""
    items = [
        beat(customer, at=START + day * DAY + timedelta(seconds=second + asked))
        for customer in customers
        for day in range(3)
        for second in range(3)
    ]
    return batch_of(items, asked=asked, partition=partition)


def names(kept: Kept, customer: str) -> list[str]:
    """Tables in which the name is, as a text or as bytes."""
    tables = kept.all(
        "SELECT relname FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::REGNAMESPACE"
    )
    return [
        table
        for (table,) in tables
        if kept.all(
            f"SELECT FROM {table} AS t WHERE t::TEXT LIKE '%' || :name || '%'"
            " OR t::TEXT LIKE '%' || encode(convert_to(:name, 'UTF8'), 'hex') || '%'",
            name=customer,
        )
    ]


def customers(kept: Kept) -> set[str]:
    return {customer for customer, _, _ in kept.beats()}


def test_nothing_of_the_customer_is_left_and_the_books_balance(
    writer: Writer, owner: Engine, worker_engine: Engine, kept: Kept
) -> None:
    writer.write(
        with_letters(
            some_of("anna", "bea"),
            Received(18, b"{", b"anna"),
            Received(19, HIDDEN.encode()),
            Received(20, b'{"customer_id": "anna", ', None, [("k", b"v")]),
            Received(21, b"{}", None, [("who", b"anna")]),
            Received(22, value("bea", 0), b"bea"),
            Received(23, value("anna", 70, START + 9 * DAY)),
            Received(24, value("bea", 70, START + 9 * DAY)),
        )
    )
    assert replay(worker_engine, RULES, NOW).outcomes["stored"] == 2
    assert names(kept, "anna")

    told: list[tuple[int, int]] = []
    erasure = erase(
        owner, "anna", lambda so_far: told.append((so_far.done, so_far.total))
    )
    assert (erasure.beats, erasure.rollups, erasure.letters) == (10, 0, 5)
    assert (erasure.elsewhere, told[-1]) == ([], (22, 22))
    assert names(kept, "anna") == []
    assert (customers(kept), len(kept.beats())) == ({"bea"}, 10)
    books = read_books(worker_engine, deep=True)
    assert (books.balanced, books.rows and books.rows.erased) == (True, 10)

    letters = kept.all(
        'SELECT "offset", key, value, headers, detail, reason, replay_outcome'
        ' FROM dead_letters ORDER BY "offset"'
    )
    outcomes = {18: "erased", 19: "erased", 20: "erased", 21: "erased", 23: "stored"}
    for offset, key, content, headers, detail, reason, outcome in letters:
        assert reason == REFUSAL.reason
        if offset in outcomes:
            assert (key, content, headers) == (None, None, [])
            assert (detail, outcome) == (module.DETAIL, outcomes[offset])
        else:
            assert b"bea" in bytes(content)
            assert detail == REFUSAL.detail
    # Nothing is left that could be replayed, and doing it again changes nothing.
    assert replay(worker_engine, RULES, NOW).pending == 1
    again = erase(owner, "anna")
    assert (again.id, again.beats, again.letters) == (erasure.id, 10, 5)
    assert kept.all("SELECT FROM erased_customers WHERE finished_at IS NOT NULL")


def test_a_customer_whose_name_is_part_of_anothers_is_another(
    writer: Writer, owner: Engine, kept: Kept
) -> None:
    writer.write(
        with_letters(
            some_of("anna", "anna2"),
            Received(18, b'{"customer_id": "anna2"'),
            Received(19, b'{"note": "tell anna"}'),
        )
    )
    erasure = erase(owner, "anna")
    [[letter]] = kept.all('SELECT id FROM dead_letters WHERE "offset" = 18')
    assert (erasure.letters, erasure.elsewhere) == (0, [letter, letter + 1])
    assert (customers(kept), len(kept.beats())) == ({"anna2"}, 9)


def test_what_comes_again_is_refused_without_its_bytes(
    make_writer: Callable[..., Writer], owner: Engine, kept: Kept
) -> None:
    """By a worker that runs already, and by one that reads all of Kafka again."""
    writer = make_writer()
    writer.write(some_of("anna", "bea"))
    erase(owner, "anna")
    written = writer.write(
        with_letters(
            some_of("anna", "bea", asked=18), Received(36, value("anna", 0), b"anna")
        )
    )
    assert (written.stored, written.dead) == (9, 10)
    assert dict(written.reasons) == {"customer_erased": 10}

    kept.do("TRUNCATE partition_ledger, dead_letters")
    refill = make_writer("another")
    for _ in range(2):
        refill.write(some_of("anna", "bea"))
    book = kept.book()
    assert (book.stored, book.duplicate, book.dead) == (0, 9, 9)
    assert customers(kept) == {"bea"}
    assert {reason for _, reason in kept.letters()} == {"customer_erased"}
    assert names(kept, "anna") == []


def test_a_restored_database_has_other_erasures_under_the_same_ids(
    writer: Writer, owner: Engine, kept: Kept
) -> None:
    erase(owner, "anna")
    writer.write(some_of("anna"))
    kept.do("TRUNCATE erased_customers RESTART IDENTITY")
    assert erase(owner, "bea").id == 1
    kept.all(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'writer' AND datname = current_database()"
    )
    with pytest.raises(DBAPIError):
        writer.write(some_of("bea", asked=9))
    writer.write(some_of("bea", asked=9))
    assert customers(kept) == set()


@pytest.mark.parametrize("together", [False, True])
def test_an_erasure_waits_for_what_is_being_stored(
    make_writer: Callable[..., Writer],
    owner: Engine,
    engine: Engine,
    kept: Kept,
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    together: bool,
) -> None:
    """And who begins meanwhile waits for the erasure: neither slips through."""
    monkeypatch.setattr(module, "NOTE_LOCK_TIMEOUT_MS", 20_000)
    first, second = make_writer("first"), make_writer("second")
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {2: 0})

    def write_second(customer: str, asked: int) -> list[Written]:
        """Of its partition, and if together of another customer's, too."""
        batches = [some_of(customer, partition=1, asked=asked)]
        if together:
            batches.append(some_of("carl", partition=2, asked=asked - 9))
        return second.write_together(batches)

    first.write(some_of("bea"))
    second.write(some_of("dora", partition=1))
    write_second("dora", asked=9)  # so that its statements are prepared
    with engine.connect() as blocking:
        # The last thing that a batch needs: its beats are in, and not committed.
        blocking.execute(text("LOCK TABLE ingest_minute"))
        storing = aside.submit(first.write, some_of("anna", asked=9))
        kept.waits("first")
        erasing = aside.submit(erase, owner, "anna")
        kept.waits("erase")
        later = aside.submit(write_second, "anna", asked=18)
        kept.waits("second")
        blocking.rollback()
    assert storing.result(20).stored == 9
    assert [each.dead for each in later.result(20)] == [9, 0][: 1 + together]
    assert erasing.result(20).beats == 9
    assert "anna" not in customers(kept)


def test_an_erasure_does_not_hold_up_others_for_long(
    make_writer: Callable[..., Writer],
    owner: Engine,
    engine: Engine,
    kept: Kept,
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a batch takes long, it lets the others go first and tries again."""
    monkeypatch.setattr(module, "NOTE_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.2)
    with engine.connect() as slow:
        slow.execute(text("SELECT FROM erased_customers"))
        erasing = aside.submit(erase, owner, "anna")
        kept.waits("erase")
        # Waits for 100 ms at most: its own limit of 5 s ends in an error.
        assert make_writer().write(some_of("bea")).stored == 9
        assert not erasing.done()
        slow.rollback()
    assert erasing.result(20).beats == 0


def test_a_replay_that_began_before_stores_nothing_of_the_customer(
    writer: Writer, owner: Engine, worker_engine: Engine, kept: Kept
) -> None:
    letter = Received(9, value("anna", 70, START + 9 * DAY))
    writer.write(with_letters(some_of("bea"), letter))
    module._note(owner, "anna")  # as far as an erasure that was broken off
    for dry_run in (True, False):
        outcomes = replay(worker_engine, RULES, NOW, dry_run=dry_run).outcomes
        assert outcomes == {"refused: customer_erased": 1}
    assert customers(kept) == {"bea"}


@pytest.mark.parametrize("days", [0, 2])
def test_broken_off_it_is_run_again(
    writer: Writer, owner: Engine, worker_engine: Engine, kept: Kept, days: int
) -> None:
    writer.write(with_letters(some_of("anna", "bea"), Received(18, b"{", b"anna")))

    def break_off(so_far: Erasure) -> None:
        if so_far.done == days:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase(owner, "anna", break_off)
    assert len(kept.beats()) == 9 + 9 - 3 * days
    assert read_books(worker_engine, deep=True).balanced
    noted = kept.all("SELECT beats, finished_at FROM erased_customers")
    assert noted == [(3 * days, None)]
    assert writer.write(some_of("anna", asked=19)).stored == 0
    assert (erase(owner, "anna").beats, customers(kept)) == (9, {"bea"})
    assert read_books(worker_engine, deep=True).balanced


# Days that are not there, and roll-ups


def test_roll_ups_go_too_and_those_of_all_customers_follow(
    writer: Writer, owner: Engine, worker_engine: Engine, engine: Engine, kept: Kept
) -> None:
    job = Job(worker_engine)
    writer.write(some_of("anna", "bea"))
    job.run_pass()
    assert "heartbeats_minute_2026_01" in names(kept, "anna")
    erasure = erase(owner, "anna")
    # A minute and an hour of each day.
    assert (erasure.beats, erasure.rollups) == (9, 6)
    assert names(kept, "anna") == []
    midnight = START.replace(hour=0)
    assert kept.all("SELECT since, until FROM rollup_marks ORDER BY since") == [
        (midnight + day * DAY, midnight + (day + 1) * DAY) for day in range(3)
    ]
    assert differences(engine) == ["heartbeats_minute_all", "heartbeats_hour_all"]
    assert read_books(worker_engine, deep=True).problems == []
    job.run_pass()
    assert differences(engine) == []
    assert read_books(worker_engine, deep=True).problems == []


def test_roll_ups_of_dropped_days_go_too(
    writer: Writer, owner: Engine, worker_engine: Engine, kept: Kept
) -> None:
    writer.write(some_of("anna", "bea"))
    Job(worker_engine).run_pass()
    retention(worker_engine, kept).run_round()
    assert kept.beats() == []
    erasure = erase(owner, "anna")
    assert (erasure.beats, erasure.rollups) == (0, 6)
    # In the sums of all customers the share stays, and that is said.
    assert erasure.shares == 3
    assert "the customer's share of 3 dropped days" in report.erased(erasure)
    assert names(kept, "anna") == []
    books = read_books(worker_engine, deep=True)
    assert (books.problems, books.rows and books.rows.dropped) == ([], 18)


def test_a_day_that_is_about_to_be_dropped_is_not_forgotten(
    writer: Writer, owner: Engine, worker_engine: Engine, engine: Engine, kept: Kept
) -> None:
    writer.write(some_of("anna", "bea"))
    Job(worker_engine).run_pass()
    rounds = retention(worker_engine, kept)
    kept.do(f"SELECT detach_day('{START.date()}', 6)")
    assert erase(owner, "anna").beats == 9
    assert names(kept, "anna") == []
    rounds.run_round()  # finds fewer beats than were noted: the day goes back
    assert (customers(kept), len(kept.beats())) == ({"bea"}, 9)
    Job(worker_engine).run_pass()
    assert differences(engine) == []
    assert read_books(worker_engine, deep=True).problems == []
    rounds.run_round()
    assert kept.beats() == []
    books = read_books(worker_engine, deep=True)
    assert (books.problems, books.rows and books.rows.dropped) == ([], 9)


def test_a_day_that_is_being_dropped_is_counted_once(
    writer: Writer,
    owner: Engine,
    worker_engine: Engine,
    engine: Engine,
    kept: Kept,
    aside: ThreadPoolExecutor,
) -> None:
    """The retention counts the day, then drops it: nothing is erased in between."""
    writer.write(some_of("anna", "bea"))
    Job(worker_engine).run_pass()
    rounds = retention(worker_engine, kept)
    kept.do(f"SELECT detach_day('{START.date()}', 6)")
    with engine.connect() as blocking:
        # What it asks for when it has counted the beats.
        blocking.execute(text("LOCK TABLE heartbeats_minute"))
        dropping = aside.submit(rounds._drop, START.date())
        kept.waits("worker")
        erasing = aside.submit(erase, owner, "anna")
        kept.waits("erase")
        blocking.rollback()
    dropping.result(20)
    assert erasing.result(20).beats == 6
    assert names(kept, "anna") == []
    Job(worker_engine).run_pass()
    assert read_books(worker_engine, deep=True).problems == []


def test_the_deep_books_do_not_hold_up_an_erasure(
    writer: Writer,
    owner: Engine,
    worker_engine: Engine,
    engine: Engine,
    kept: Kept,
    aside: ThreadPoolExecutor,
) -> None:
    """They may take hours, and the writers wait behind an erasure that waits."""
    writer.write(some_of("anna", "bea"))
    Job(worker_engine).run_pass()
    with engine.connect() as blocking:
        blocking.execute(text("LOCK TABLE heartbeats_minute"))
        counting = aside.submit(read_books, worker_engine, deep=True)
        kept.waits("worker")
        assert module._note(owner, "anna")
        blocking.rollback()
    assert counting.result(20).problems == []


def retention(engine: Engine, kept: Kept) -> Retention:
    """As a worker's, long after these beats, which are to be kept for a day."""
    kept.do("INSERT INTO retention VALUES ('heartbeats', 1)")
    later = START + 100 * DAY
    return Retention(engine, Retained(1, None, None, None), clock=lambda: later)


def test_a_detached_day_comes_back_without_the_customer(
    writer: Writer, owner: Engine, worker_engine: Engine, engine: Engine, kept: Kept
) -> None:
    job, day = Job(worker_engine), START.date()
    writer.write(some_of("anna", "bea"))
    # A minute in which nobody else has a beat.
    writer.write(batch_of([beat("anna", at=START + timedelta(hours=1))], asked=18))
    job.run_pass()
    kept.do(f"ALTER TABLE heartbeats DETACH PARTITION {day_table(day)}")
    assert erase(owner, "anna").beats == 10
    assert names(kept, "anna") == []
    job.run_pass()
    ensure_days(worker_engine, [day])
    assert (customers(kept), len(kept.beats())) == ({"bea"}, 9)
    job.run_pass()
    assert differences(engine) == []
    assert read_books(worker_engine, deep=True).problems == []


def test_a_detached_day_of_the_customer_alone_comes_back_empty(
    writer: Writer, owner: Engine, worker_engine: Engine, engine: Engine, kept: Kept
) -> None:
    job, day = Job(worker_engine), START.date()
    writer.write(some_of("anna"))
    job.run_pass()
    kept.do(f"ALTER TABLE heartbeats DETACH PARTITION {day_table(day)}")
    assert erase(owner, "anna").beats == 9
    while not job.run_pass():
        pass
    ensure_days(worker_engine, [day])
    while not job.run_pass():
        pass
    assert differences(engine) == []
    assert read_books(worker_engine, deep=True).problems == []


def test_a_half_detached_day_comes_back_without_the_customer(
    writer: Writer, owner: Engine, worker_engine: Engine, engine: Engine, kept: Kept
) -> None:
    writer.write(some_of("anna", "bea"))
    cut_short(engine, day_table(START.date()))
    assert erase(owner, "anna").beats == 9
    kept.do("SELECT finish_detaching()")
    ensure_days(worker_engine, [START.date()])
    assert (customers(kept), len(kept.beats())) == ({"bea"}, 9)


@pytest.mark.parametrize(
    ("leaving", "beats"),
    [
        ("ALTER TABLE heartbeats DETACH PARTITION {day}", 9),
        ("DROP TABLE {day}", 6),
    ],
)
def test_a_day_may_leave_meanwhile(
    writer: Writer, owner: Engine, kept: Kept, leaving: str, beats: int
) -> None:
    writer.write(some_of("anna", "bea"))
    last = day_table((START + 2 * DAY).date())

    def leave(so_far: Erasure) -> None:
        if so_far.done == 1:
            kept.do(leaving.format(day=last))

    erasure = erase(owner, "anna", leave)
    assert (erasure.beats, erasure.done) == (beats, 6)
    assert names(kept, "anna") == []


def test_a_worker_may_look_but_neither_erase_nor_forget(worker_engine: Engine) -> None:
    with pytest.raises(DBAPIError) as caught:
        erase(worker_engine, "anna")
    assert errors.sqlstate(caught.value) == "42501"


# The command, and a worker beside it


def test_the_command_says_what_it_did_and_what_is_left(
    environ: dict[str, str], topic: Topic, writer: Writer, kept: Kept
) -> None:
    writer.write(with_letters(some_of("anna", "bea"), Received(18, b"{", b"anna")))
    done = typed(environ, "erase", "anna", stdin=b"n\n")
    assert (done.status, done.out.strip()) == (1, "")
    assert "Delete all that is kept of anna, for good? [y/N]" in done.err
    assert customers(kept) == {"anna", "bea"}

    done = typed({**environ, **dict.fromkeys(OWNER, "")}, "erase", "anna", "--yes")
    assert done.status == 1
    assert "does not let worker do that" in done.err
    assert "Set POSTGRESQL_OWNER_USERNAME" in done.err

    topic.make(partitions=1, **{"retention.ms": str(7 * 86_400_000)})
    topic.produce([value("anna", 70)])
    done = typed(environ, "erase", "anna", stdin=b"y\n")
    assert done.status == 0, done.err
    assert done.out.lstrip() == (  # click ends its question there
        "Erased 9 beats, 0 roll-ups and the contents of 1 dead letter; noted as number "
        "1 in erased_customers, without the name.\n"
        f"Kafka keeps the records of topic {topic.name} (1 now, the customer's among "
        "them) until they are 7 days old (retention.ms). Workers refuse the "
        "customer's, also when all are read again.\n"
        f"{report.ERASE_ELSEWHERE}\n"
    )
    nowhere = {**environ, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    done = typed(nowhere, "erase", "bea", "--yes")
    assert done.status == 0
    assert "Kafka at 127.0.0.1:1 does not answer" in done.out
    assert "is refused when it is read" in done.out
    assert customers(kept) == set()


def test_stopped_before_it_began_it_does_not_say_that_anything_is_gone(
    environ: dict[str, str], engine: Engine, writer: Writer, kept: Kept
) -> None:
    """A dump holds up the erasure: the customer cannot be noted."""
    writer.write(some_of("anna"))
    with engine.connect() as dump:
        dump.execute(text("SELECT FROM erased_customers"))
        with typing(environ, "erase", "anna", "--yes") as process:
            kept.waits("heartbeat_app erase")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Stopped before it began: nothing was removed" in err
    assert b"is gone" not in err
    assert not kept.all("SELECT FROM erased_customers")
    assert len(kept.beats()) == 9


@pytest.mark.parametrize(
    ("command", "id", "words"),
    [
        (("erase", "--yes"), "M\udcfcller", "a character that no id can have"),
        (("export", "-", "--customer"), "M\udcfcller", "a character that no id can"),
        (("erase", "--yes"), "x" * 256, "has 256 characters; allowed is 1 to 255"),
        (("export", "-", "--customer"), "", "has 0 characters"),
    ],
)
def test_an_id_that_no_customer_can_have_is_refused(
    environ: dict[str, str], kept: Kept, command: tuple[str, ...], id: str, words: str
) -> None:
    """Such as one that was typed in another encoding than UTF-8."""
    done = typed(environ, *command, id)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert not kept.all("SELECT FROM erased_customers")


def test_a_worker_that_reads_all_again_does_not_bring_the_customer_back(
    environ: dict[str, str],
    topic: Topic,
    kept: Kept,
    make_worker: Callable[..., Worker],
) -> None:
    topic.make(partitions=2)
    records: list[bytes | None] = [value(each, 70) for each in ("anna", "bea")]
    topic.produce([*records, b"{"], key=lambda value: b"anna", partition=0)
    worker = make_worker().start()
    worker.wait_until(lambda: len(kept.letters()) == 1, "all is stored")
    assert customers(kept) == {"anna", "bea"}
    assert typed(environ, "erase", "anna", "--yes").status == 0
    # While it runs on.
    topic.produce([value("anna", 71, START + DAY)], partition=1)
    worker.wait_until(lambda: len(kept.letters()) == 2, "it is refused")
    assert names(kept, "anna") == []
    # And as after a restore of a backup from before the first record.
    assert worker.stop() == 0
    kept.do("TRUNCATE partition_ledger, dead_letters, heartbeats")
    again = make_worker().start()
    again.wait_until(lambda: len(kept.letters()) == 3, "all is read again")
    assert (customers(kept), names(kept, "anna")) == ({"bea"}, [])
    assert [reason for _, reason in kept.letters()] == ["customer_erased"] * 3
    counted = "heartbeat_app_records_dead_total", "0", "customer_erased", topic.name
    again.wait_until(lambda: again.metrics().get(counted) == 2, "it is counted")
