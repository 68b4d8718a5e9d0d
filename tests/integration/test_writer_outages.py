"""An outage is not a bad record: nothing is written, nothing refused, nothing lost."""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.batches import Batch
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.storage.db import engine as storage_engine
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import database_url, make_engine
from heartbeat_app.storage.write import writer as storage_writer
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer, Written
from testkit.servers import Servers, wait_until
from tests.storing import (
    TOPIC,
    TOPIC_ID,
    Kept,
    batch_of,
    beat,
    beats,
    rows_of,
    store,
)

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]

# The last beat meets another session's row, where a test needs the writer to wait.
CONTESTED = beat("contested", 1.0)
FIRST = batch_of(beats(5))
NEXT = batch_of([*beats(10), None, CONTESTED], asked=5)


@pytest.fixture
def writer(make_writer: MakeWriter) -> Writer:
    """A writer that has stored its first batch."""
    writer = make_writer()
    writer.write(FIRST)
    return writer


@contextmanager
def contested(engine: Engine) -> Iterator[Any]:
    """Another session has inserted the contested beat and not committed yet."""
    with engine.connect() as other:
        insert_contested(other)
        yield other
        other.rollback()


def insert_contested(connection: Any, each: Heartbeat = CONTESTED) -> None:
    connection.execute(
        text(
            'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
            " VALUES (:customer, :at, 1)"
        ),
        {"customer": each.customer_id, "at": each.timestamp},
    )


def assert_outage(write: Callable[[], object], kept: Kept) -> BaseException:
    """The write raises what is tried again, and changed nothing."""
    before = kept.everything()
    error = assert_fails(write)
    assert kept.everything() == before
    return error


def assert_fails(call: Callable[[], object]) -> BaseException:
    """The error of the database that the call ends with."""
    with pytest.raises((DBAPIError, psycopg2.Error)) as caught:
        call()
    return caught.value


def assert_stored_once(writer: Writer, kept: Kept, batch: Batch = NEXT) -> None:
    """The same batch is stored now, and only once."""
    written = store(writer, batch, attempts=1)
    assert (written.stored, written.duplicate, written.dead) == (6, 5, 1)
    assert writer.write(batch) == Written()
    assert kept.beats() == rows_of([*beats(10), CONTESTED])
    assert kept.letters() == [(15, "not_json")]
    assert kept.book()[:6] == (17, 17, 17, 11, 5, 1)


@pytest.mark.parametrize(
    "table", ["heartbeats", "dead_letters", "ingest_minute", "partition_ledger"]
)
def test_a_missing_table_refuses_nothing(
    writer: Writer, kept: Kept, table: str
) -> None:
    before = kept.everything()
    kept.do(f"ALTER TABLE {table} RENAME TO elsewhere")
    with pytest.raises(DBAPIError) as caught:
        # A day that is not known yet, too.
        writer.write(batch_of([*beats(3), None, beat(second=86_400)], asked=5))
    assert errors.sqlstate(caught.value) == "42P01"
    kept.do(f"ALTER TABLE elsewhere RENAME TO {table}")
    assert kept.everything() == before
    assert_stored_once(writer, kept)


# Real outages


def test_a_session_that_is_ended_in_mid_batch_leaves_nothing(
    writer: Writer, kept: Kept, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    with contested(engine):
        writing = aside.submit(writer.write, NEXT)
        pid = kept.waits("writer")
        kept.do(f"SELECT pg_terminate_backend({pid})")
        error = assert_outage(lambda: writing.result(10), kept)
    # The reason, not what a rollback on the closed connection says.
    assert "server closed the connection" in errors.words(error)
    assert_stored_once(writer, kept)


def test_sessions_that_are_ended_between_batches_cost_one_attempt(
    writer: Writer, kept: Kept
) -> None:
    kept.do(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'writer' AND datname = current_database()"
    )
    assert_outage(lambda: writer.write(NEXT), kept)
    assert_stored_once(writer, kept)


@pytest.mark.parametrize("new_day", [False, True])
def test_a_read_only_database_refuses_nothing_and_is_noticed_when_it_is_over(
    writer: Writer, kept: Kept, name: str, new_day: bool
) -> None:
    kept.do(
        f'ALTER DATABASE "{name}" SET default_transaction_read_only = on',
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'writer' AND datname = current_database()",
    )
    batch = NEXT
    if new_day:
        batch = batch_of([*NEXT.beats, beat(second=86_400)], asked=5)
    before = writer.signs_of_life.total()
    assert_outage(lambda: writer.write(batch), kept)  # the ended session
    error = assert_outage(lambda: writer.write(batch), kept)
    assert errors.is_read_only(error)
    assert writer.signs_of_life.total() >= before + 2
    kept.do(f'ALTER DATABASE "{name}" SET default_transaction_read_only = off')
    # Sessions of the read-only time stay read-only.
    assert_stored_once(writer, kept)


def test_a_lock_that_is_held_too_long_refuses_nothing(
    make_writer: MakeWriter,
    kept: Kept,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_engine, "LOCK_TIMEOUT_MS", 200)
    writer = make_writer()
    writer.write(FIRST)
    with contested(engine):
        error = assert_outage(lambda: writer.write(NEXT), kept)
    assert errors.sqlstate(error) == "55P03"
    assert_stored_once(writer, kept)


def test_a_statement_that_takes_too_long_refuses_nothing(
    make_writer: MakeWriter,
    kept: Kept,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_engine, "STATEMENT_TIMEOUT_MS", 1_000)
    writer = make_writer()
    writer.write(FIRST)
    with contested(engine):
        error = assert_outage(lambda: writer.write(NEXT), kept)
    assert errors.sqlstate(error) == "57014"
    assert_stored_once(writer, kept)


def write_all(writer: Writer, batch: Batch) -> list[Written]:
    """Write a batch in as many parts as it takes."""
    written = []
    rest: Batch | None = batch
    while rest is not None:
        written.append(writer.write(rest))
        rest = written[-1].rest
    return written


def test_what_takes_too_long_at_once_goes_in_by_parts(
    make_writer: MakeWriter,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be tried again for ever."""
    monkeypatch.setattr(storage_engine, "STATEMENT_TIMEOUT_MS", 1_000)
    monkeypatch.setattr(storage_writer, "SLOW_SECONDS", 0.8)
    writer = make_writer()
    writer.write(FIRST)
    kept.do(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_sleep(0.01); RETURN NEW; END $$",
        "CREATE TRIGGER dawdle BEFORE INSERT ON heartbeats FOR EACH ROW"
        " EXECUTE FUNCTION dawdle()",
    )
    # 301 new ones take 3 s.
    items = [*beats(300), None, *beats(5, first=300), None, CONTESTED]
    batch = batch_of(items, asked=5)
    for _ in range(5):
        # As the agent does: all of it again after a failure.
        with suppress(DBAPIError, psycopg2.Error):
            write_all(writer, batch)
            break
    else:
        raise AssertionError("It was tried five times, and is not stored yet.")
    assert writer.write(batch) == Written()
    assert kept.beats() == rows_of([*beats(305), CONTESTED])
    assert kept.letters() == [(305, "not_json"), (311, "not_json")]
    assert kept.book()[:6] == (313, 313, 313, 306, 5, 2)
    kept.do("DROP TRIGGER dawdle ON heartbeats")
    parts = write_all(writer, batch_of(beats(2_000, first=400), asked=313))
    assert sum(part.stored for part in parts) == 2_000
    assert len(parts) > 1
    # As soon as it is quick again, all goes in at once.
    assert writer.write(batch_of(beats(2_000, first=2_400), asked=2_313)).rest is None


def test_a_deadlock_refuses_nothing(
    make_writer: MakeWriter,
    kept: Kept,
    engine: Engine,
    name: str,
    aside: ThreadPoolExecutor,
) -> None:
    # Looked for after so long by the writer only: it is the one that loses.
    kept.do(f"ALTER DATABASE \"{name}\" SET deadlock_timeout = '1500ms'")
    writer = make_writer()
    writer.write(FIRST)
    first, last = beats(10)[5], CONTESTED
    with engine.connect() as other:
        other.execute(text("SET deadlock_timeout = '60s'"))
        insert_contested(other, last)
        writing = aside.submit(writer.write, NEXT)
        kept.waits("writer")
        insert_contested(other, first)  # waits for the writer, which waits for us
        error = assert_outage(lambda: writing.result(10), kept)
        other.rollback()
    assert errors.sqlstate(error) == "40P01"
    assert_stored_once(writer, kept)


def test_two_writers_with_the_same_beats_in_other_orders_store_each_once(
    make_writer: MakeWriter, kept: Kept, aside: ThreadPoolExecutor
) -> None:
    found = beats(400)

    def write(writer: Writer, partition: int) -> None:
        for n in range(0, 400, 100):
            part = found[n : n + 100]
            if partition:
                part = part[::-1]
            batch = batch_of(part, asked=n, partition=partition)
            while True:
                try:
                    writer.write(batch)
                    break
                except (DBAPIError, psycopg2.Error) as error:
                    assert errors.sqlstate(error) == "40P01"  # noqa: PT017

    writers = [make_writer(f"writer {n}") for n in range(2)]
    both = [aside.submit(write, writer, n) for n, writer in enumerate(writers)]
    for each in both:
        each.result(30)
    assert kept.beats() == rows_of(found)
    books = [kept.book(0), kept.book(1)]
    assert [each.consumed for each in books] == [400, 400]
    assert sum(each.stored for each in books) == 400
    assert sum(each.duplicate for each in books) == 400


# A worker that froze


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits, the same order of events."""
    monkeypatch.setattr(storage_engine, "LOCK_TIMEOUT_MS", 800)
    monkeypatch.setattr(storage_writer, "END_BLOCKERS_AFTER_SECONDS", 0.1)


def hold_ledger(connection: Any) -> int:
    """Lock the partition's row as a writer does; the session's pid."""
    connection.execute(
        text("SELECT 1 FROM partition_ledger WHERE topic_id = :id FOR UPDATE"),
        {"id": TOPIC_ID},
    )
    return int(connection.scalar(text("SELECT pg_backend_pid()")))


def is_alive(kept: Kept, pid: int) -> bool:
    return bool(kept.all("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pid))


def test_a_session_that_holds_the_ledger_and_idles_is_ended_within_seconds(
    writer: Writer,
    kept: Kept,
    colleague: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with colleague.connect() as frozen:
        pid = hold_ledger(frozen)
        began = time.monotonic()
        error = assert_outage(lambda: writer.write(NEXT), kept)
        assert errors.is_lock_timeout(error)
        assert_stored_once(writer, kept)
        assert time.monotonic() - began < 10
        assert not is_alive(kept, pid)
        frozen.invalidate()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"Ended session {pid}" in record.getMessage()


def test_a_session_that_holds_the_ledger_inside_copy_is_ended(
    make_writer: MakeWriter,
    kept: Kept,
    colleague: Engine,
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick(monkeypatch)
    writer = make_writer()
    writer.write(FIRST)
    thawed = threading.Event()

    class Frozen:
        def read(self, size: int) -> str:
            thawed.wait(30)
            return ""

    with colleague.connect() as frozen:
        pid = hold_ledger(frozen)
        cursor: Any = frozen.connection.cursor()
        copying = aside.submit(
            cursor.copy_expert,
            "COPY heartbeats (customer_id, timestamp, heart_rate) FROM STDIN",
            Frozen(),
        )
        wait_until(
            lambda: kept.all(
                "SELECT 1 FROM pg_stat_activity WHERE pid = :pid"
                " AND state = 'active' AND wait_event = 'ClientRead'",
                pid=pid,
            ),
            "the other session is inside COPY",
        )
        assert_outage(lambda: writer.write(NEXT), kept)
        assert_stored_once(writer, kept)
        thawed.set()
        with pytest.raises(psycopg2.Error):
            copying.result(10)
        frozen.invalidate()


def test_a_session_that_blocks_nobody_is_left_alone(
    make_writer: MakeWriter,
    kept: Kept,
    colleague: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick(monkeypatch)
    writer = make_writer()
    writer.write(FIRST)
    with colleague.connect() as frozen, colleague.connect() as bystander:
        hold_ledger(frozen)
        insert_contested(bystander, beat("somebody else's"))
        with pytest.raises(DBAPIError):
            writer.write(NEXT)
        writer.write(batch_of(beats(3), asked=5))
        assert bystander.scalar(text("SELECT count(*) FROM heartbeats")) == 6
        frozen.invalidate()


@pytest.fixture
def colleague(settings: Settings) -> Iterator[Engine]:
    """An engine of another worker, without its limits."""
    engine = create_engine(database_url(settings), pool_size=2)
    yield engine
    engine.dispose()


@pytest.fixture
def other_role(servers: Servers, settings: Settings, kept: Kept) -> Iterator[Engine]:
    """An engine of another role, which may lock the ledger."""
    role = f"other_{os.getpid()}"
    kept.do(
        f"CREATE ROLE {role} LOGIN PASSWORD 'other'",
        f"GRANT ALL ON partition_ledger TO {role}",
    )
    url = database_url(settings).set(username=role, password="other")
    engine = create_engine(url)
    yield engine
    engine.dispose()
    kept.do(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_session_of_another_role_is_left_alone(
    settings: Settings,
    kept: Kept,
    other_role: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick(monkeypatch)
    # Of a superuser, who may end it.
    engine = make_engine(settings.owner, application_name="writer", pool_size=2)
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0})
    writer = Writer(engine)
    writer.write(FIRST)
    with other_role.connect() as administrator:
        hold_ledger(administrator)
        for _ in range(3):
            error = assert_outage(lambda: writer.write(NEXT), kept)
            assert errors.is_lock_timeout(error)
        administrator.execute(text("SELECT 1"))
    assert_stored_once(writer, kept)
    engine.dispose()


def test_the_session_is_not_ended_at_the_first_attempt(
    make_writer: MakeWriter,
    kept: Kept,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A healthy worker may need some seconds for the batch that it has in hand.
    quick(monkeypatch)
    writer = make_writer()
    writer.write(FIRST)
    with engine.connect() as slow:
        hold_ledger(slow)
        assert_outage(lambda: writer.write(NEXT), kept)
        slow.execute(text("SELECT 1"))
        slow.rollback()
    assert_stored_once(writer, kept)


def test_a_server_ends_a_transaction_that_idles(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_engine, "IDLE_IN_TRANSACTION_TIMEOUT_MS", 100)
    engine = make_engine(settings, application_name="idle")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

        def is_ended() -> bool:
            line = connection.connection.dbapi_connection
            return bool(line is not None and line.fileno() >= 0 and readable(line))

        wait_until(is_ended, "the session is ended", seconds=10)
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1"))
    engine.dispose()


def readable(line: Any) -> bool:
    """Whether the server said something unasked."""
    return bool(select.select([line], [], [], 0)[0])


def freeze_before(settings: Settings, step: str, batch: Batch, pipe: Pipe) -> None:
    """In a process of its own: a writer that stops itself before that step."""
    owner: Any = Writer if hasattr(Writer, step) else storage_writer
    right = getattr(owner, step)

    def stop_first(*arguments: Any, **options: Any) -> Any:
        pipe.send("frozen")
        os.kill(os.getpid(), signal.SIGSTOP)
        return right(*arguments, **options)

    setattr(owner, step, stop_first)
    engine = make_engine(settings, application_name="frozen", pool_size=2)
    writer = Writer(engine)
    outcomes: list[object] = []
    while not outcomes or outcomes[-1] == "raised":
        try:
            outcomes.append(writer.write(batch))
        except (DBAPIError, psycopg2.Error):
            outcomes.append("raised")
        setattr(owner, step, right)
    pipe.send(outcomes)


@pytest.mark.parametrize("step", ["insert_beats", "insert_dead_letters"])
def test_a_writer_that_froze_inside_its_transaction_is_fenced_when_it_wakes(
    make_writer: MakeWriter,
    kept: Kept,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    quick(monkeypatch)
    writer = make_writer()
    writer.write(FIRST)
    with frozen_writer(settings, step) as (pid, pipe):
        assert_outage(lambda: writer.write(NEXT), kept)
        assert_stored_once(writer, kept)
        os.kill(pid, signal.SIGCONT)
        assert pipe.poll(30)
        # Its session was ended, so it tried again.
        assert pipe.recv() == ["raised", Written()]
    assert kept.beats() == rows_of([*beats(10), CONTESTED])
    assert kept.book()[:6] == (17, 17, 17, 11, 5, 1)


def test_a_writer_that_froze_before_its_transaction_is_fenced_when_it_wakes(
    writer: Writer, kept: Kept, settings: Settings
) -> None:
    with frozen_writer(settings, "_begin") as (pid, pipe):
        assert_stored_once(writer, kept)
        writer.write(batch_of(beats(3, first=20), asked=17))
        before = kept.everything()
        os.kill(pid, signal.SIGCONT)
        assert pipe.poll(30)
        assert pipe.recv() == [Written()]
    assert kept.everything() == before


@contextmanager
def frozen_writer(settings: Settings, step: str) -> Iterator[tuple[int, Any]]:
    """A process whose writer stopped itself with the next batch in hand."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=freeze_before, args=(settings, step, NEXT, theirs))
    process.start()
    pid = process.pid
    assert pid is not None
    try:
        assert ours.poll(30)
        assert ours.recv() == "frozen"
        wait_until(lambda: state_of(pid) == "T", "the process is stopped")
        yield pid, ours
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
        theirs.close()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Breaking off


def assert_broken_off(writing: Future[Written], writer: Writer) -> None:
    began = time.monotonic()
    writer.uses.break_off()
    with pytest.raises((DBAPIError, psycopg2.Error)):
        writing.result(10)
    assert time.monotonic() - began < 2


def test_a_write_that_waits_can_be_broken_off(
    writer: Writer, kept: Kept, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    before = kept.everything()
    for _ in range(2):
        with contested(engine):
            writing = aside.submit(writer.write, NEXT)
            kept.waits("writer")
            assert_broken_off(writing, writer)
        wait_until(lambda: not sessions(kept), "the broken session is gone")
        assert kept.everything() == before
    assert_stored_once(writer, kept)


def test_a_write_that_waits_for_a_day_can_be_broken_off(
    writer: Writer, kept: Kept, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    with engine.begin() as other:
        other.execute(text("SELECT make_day('2026-12-24')"))  # not committed yet
        batch = batch_of([beat(second=86_400)], asked=5)
        writing = aside.submit(writer.write, batch)
        kept.waits("writer")
        assert_broken_off(writing, writer)
    assert_stored_once(writer, kept)


def test_a_write_to_a_server_that_hangs_can_be_broken_off(
    writer: Writer, kept: Kept, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    with contested(engine):
        writing = aside.submit(writer.write, NEXT)
        pid = kept.waits("writer")
        # Neither does it answer now, nor does any of its own timeouts come.
        os.kill(pid, signal.SIGSTOP)
        try:
            assert_broken_off(writing, writer)
        finally:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not sessions(kept), "the broken session is gone")
    assert_stored_once(writer, kept)


def test_only_what_waits_for_long_is_broken_off(
    writer: Writer, kept: Kept, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    with contested(engine):
        writing = aside.submit(writer.write, NEXT)
        kept.waits("writer")
        assert writer.uses.break_off(after_seconds=60) == 0
        assert not writing.done()
        wait_until(
            lambda: writer.uses.break_off(after_seconds=0.5) == 1, "it is long enough"
        )
        with pytest.raises((DBAPIError, psycopg2.Error)):
            writing.result(10)
    assert_stored_once(writer, kept)
    assert writer.uses.break_off() == 0


def sessions(kept: Kept) -> object:
    """Sessions of the writer that do something."""
    return kept.all(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'writer'"
        " AND datname = current_database() AND state <> 'idle'"
    )


def test_there_may_be_nothing_to_break_off(writer: Writer, kept: Kept) -> None:
    writer.uses.break_off()
    assert_stored_once(writer, kept)
    writer.uses.break_off()


# What errors say


def test_errors_hold_no_password_and_no_customer(
    settings: Settings, kept: Kept, make_writer: MakeWriter
) -> None:
    writer = make_writer()
    writer.write(batch_of([beat()]))  # so that all is prepared
    kept.do("ALTER TABLE ingest_minute RENAME TO elsewhere")
    error = assert_fails(
        lambda: writer.write(batch_of([beat("secret customer"), None], asked=1))
    )
    assert settings.postgresql_password not in str(error)
    assert "secret customer" not in str(error)
    assert "as received" not in str(error)
    assert "hidden" in str(error)  # SQLAlchemy's word for parameters that it hides


def test_words_for_a_log_are_one_line_without_the_row(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    with engine.connect() as connection:
        insert_contested(connection, beat("secret customer"))
        error = assert_fails(
            lambda: insert_contested(connection, beat("secret customer"))
        )
        connection.rollback()
    assert "secret" in str(error)  # PostgreSQL says which row it was
    words = errors.words(error)
    assert words.startswith("duplicate key value violates unique constraint")
    assert "secret" not in words
    assert "\n" not in words
