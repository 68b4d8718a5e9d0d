"""What is older than it is to be kept is dropped, checked, and in nobody's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Rules
from heartbeat_app.storage.days import retention as module
from heartbeat_app.storage.days.retention import Kept, Retention
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.catalog import existing_days, existing_months
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.read.books import Rows, read_books
from heartbeat_app.storage.rollup.marks import day_span, mark_spans
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.writer import Writer, Written
from testkit.servers import engine_of
from tests.booked import NOW, Shelf, record
from tests.rolled_up import rows
from tests.storing import START, batch_of, beat, cut_short
from tests.storing import Kept as Tables

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]
MakeRetention = Callable[..., Retention]

TODAY = START.date()
FOR_EVER = Kept(None, None, None, None)


def on(day: date, customer: str = "c", second: int = 0, rate: int = 70) -> Heartbeat:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return beat(customer, rate=rate, at=noon + timedelta(seconds=second))


def ago(count: int) -> date:
    return TODAY - timedelta(days=count)


@pytest.fixture
def make_retention(settings: Settings, engine: Engine) -> Iterator[MakeRetention]:
    """Makes retentions as a worker does, whose today is `TODAY` unless said.

    The database keeps what the last one was made with.
    """
    engines: list[Engine] = []

    def make(kept: Kept, now: datetime = START, **options: Any) -> Retention:
        with engine.begin() as connection:
            kept.write(connection)
        own = make_engine(settings, application_name="retention", pool_size=2)
        engines.append(own)
        return Retention(own, kept, clock=lambda: now, **options)

    yield make
    for engine in engines:
        engine.dispose()


def beats_for(days: int | None) -> Kept:
    return Kept(days, None, None, None)


def there(engine: Engine) -> set[date]:
    with engine.connect() as connection:
        return existing_days(connection)


def tables(kept: Tables) -> set[str]:
    found = kept.all(
        "SELECT relname FROM pg_class WHERE relname ~ '^heartbeats_(minute_|hour_)?2'"
        " AND relkind = 'r'"
    )
    return {row[0] for row in found}


def dropped(kept: Tables) -> list[tuple[date, int, bool]]:
    found = kept.all(
        "SELECT day, rows, dropped_at IS NOT NULL FROM dropped_days ORDER BY day"
    )
    return [(row[0], row[1], row[2]) for row in found]


# When


@pytest.mark.parametrize("days", [1, 30])
def test_a_day_is_dropped_a_day_after_its_last_beat_is_refused(days: int) -> None:
    due = beats_for(days).drop_day_on(TODAY)
    assert due is not None
    midnight = datetime(due.year, due.month, due.day, tzinfo=UTC)
    last = START.replace(hour=23, minute=59, second=59)
    day_before = midnight - timedelta(days=1)
    rules = Rules.at(day_before, max_future_seconds=300, retention_days=days)
    assert last < rules.earliest
    assert last + timedelta(seconds=1) >= rules.earliest


def test_for_ever_is_never() -> None:
    assert FOR_EVER.drop_day_on(TODAY) is None
    assert FOR_EVER.drop_minutes_on(TODAY) is None


@pytest.mark.parametrize(
    ("month", "due"),
    [
        (date(2026, 1, 1), date(2026, 2, 12)),
        (date(2026, 2, 1), date(2026, 3, 12)),
        (date(2025, 12, 1), date(2026, 1, 12)),
    ],
)
def test_a_month_is_dropped_when_its_last_day_is_old_enough(
    month: date, due: date
) -> None:
    kept = Kept(1, 10, 10, None)
    assert kept.drop_minutes_on(month) == kept.drop_hours_on(month) == due


# Days


def test_nothing_is_dropped_that_is_to_be_kept(
    writer: Writer, engine: Engine, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(ago(4000)), on(ago(11)), on(TODAY)]))
    Job(engine).run_pass()
    make_retention(FOR_EVER).run_round()
    make_retention(beats_for(4000)).run_round()
    assert {ago(4000), ago(11), TODAY} <= there(engine)


def test_an_old_day_goes_and_its_roll_ups_stay(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(
        batch_of([on(ago(12)), on(ago(12), "d"), on(ago(11)), on(TODAY), None])
    )
    Job(engine).run_pass()
    make_retention(beats_for(10)).run_round()
    assert ago(12) not in there(engine)
    assert {ago(11), TODAY} <= there(engine)
    assert "heartbeats_2025_12_20" not in tables(kept)
    assert dropped(kept) == [(ago(12), 2, True)]
    assert len(rows(engine, "heartbeats_minute")) == 4
    assert len(rows(engine, "heartbeats_hour_all")) == 3
    books = read_books(engine, deep=True)
    assert books.rows == Rows(counted=2, replayed=0, dropped=2)
    assert books.balanced


def test_the_books_miss_what_went_without_the_retention(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(ago(12)), on(ago(12), "d"), on(TODAY)]))
    Job(engine).run_pass()
    make_retention(beats_for(10)).run_round()
    kept.do("UPDATE dropped_days SET rows = 1")
    count, rolled_up = read_books(engine, deep=True).problems
    assert "- dropped by retention 1 = 2; off by -1." in count
    assert rolled_up == (
        "heartbeats_hour_all has 2 beats of 2025-12-20, which had 1 when it was "
        "dropped; off by +1."
    )


def test_a_day_is_not_dropped_before_it_is_rolled_up(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    retention = make_retention(beats_for(10))
    retention.run_round()
    assert ago(12) in there(engine)
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text("SELECT detach_day('2025-12-20', 1)"))
    assert "is not rolled up yet" in str(caught.value)
    Job(engine).run_pass()
    retention.run_round()
    assert dropped(kept) == [(ago(12), 1, True)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE heartbeats_minute SET sum = sum + 1",
        "DELETE FROM heartbeats_minute WHERE customer_id = 'c'",
        "UPDATE heartbeats_hour SET first = 1",
        "UPDATE heartbeats_minute_all SET histogram[70] = 9",
    ],
)
def test_a_day_whose_roll_ups_are_wrong_is_rolled_up_again_first(
    writer: Writer,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    statement: str,
) -> None:
    writer.write(batch_of([on(ago(12)), on(ago(12), "d")]))
    Job(engine).run_pass()
    kept.do(statement)
    retention = make_retention(beats_for(10))
    retention.run_round()
    assert dropped(kept) == []
    Job(engine).run_pass()
    retention.run_round()
    assert dropped(kept) == [(ago(12), 2, True)]
    assert read_books(engine, deep=True).balanced


def test_a_beat_between_check_and_detaching_brings_the_day_back(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    """Its mark was already worked out, so that only counting again tells."""
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    retention = make_retention(beats_for(10))
    came: list[Written] = []

    def come(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "detach_day" in statement and not came:
            came.append(writer.write(batch_of([on(ago(12), "late")], asked=2)))
            Job(engine).run_pass()

    event.listen(retention._engine, "before_cursor_execute", come)
    retention.run_round()
    assert came[0].stored == 1
    assert ago(12) in there(engine)
    assert dropped(kept) == []
    assert read_books(engine, deep=True).balanced
    Job(engine).run_pass()
    retention.run_round()
    assert dropped(kept) == [(ago(12), 2, True)]


def test_cut_short_after_detaching_the_next_round_drops(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    retention = make_retention(beats_for(10))
    pids: list[int] = []

    def kill(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "drop_day" in statement and not pids:
            pids.append(connection.connection.dbapi_connection.info.backend_pid)
            kept.do(f"SELECT pg_terminate_backend({pids[0]})")

    event.listen(retention._engine, "before_cursor_execute", kill)
    with pytest.raises(DBAPIError):
        retention.run_round()
    assert dropped(kept) == [(ago(12), 1, False)]
    assert "heartbeats_2025_12_20" in tables(kept)
    assert read_books(engine, deep=True).balanced
    make_retention(beats_for(None)).run_round()  # whatever the settings say now
    assert dropped(kept) == [(ago(12), 1, True)]
    assert "heartbeats_2025_12_20" not in tables(kept)
    assert read_books(engine, deep=True).balanced


def test_beats_of_a_dropped_day_are_refused_whatever_the_settings_say(
    make_writer: MakeWriter,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
) -> None:
    knows, new = make_writer("knows"), make_writer("new")
    knows.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    make_retention(beats_for(10)).run_round()
    batch = batch_of([on(ago(12), "late"), on(TODAY, "late")], asked=2)
    with pytest.raises((DBAPIError, psycopg2.Error)):
        knows.write(batch)  # it thinks that the day is there; the agent tries again
    for number, writer in enumerate((knows, new)):
        again = batch_of(
            [on(ago(12), f"late {number}"), on(TODAY, f"late {number}")],
            asked=2 + 2 * number,
        )
        written = writer.write(again)
        assert (written.stored, written.dead) == (1, 1)
    assert kept.letters() == [
        (2, "timestamp_past_retention"),
        (4, "timestamp_past_retention"),
    ]
    assert ago(12) not in there(engine)
    # Nor does a replay bring it back.
    rules = Rules.at(START, max_future_seconds=1, retention_days=None)
    kept.do(
        'UPDATE dead_letters SET value = convert_to(\'{"customer_id": "late",'
        ' "timestamp": "2025-12-20T12:00:00Z", "heart_rate": 70}\', \'UTF8\')'
    )
    for dry_run in (True, False):
        outcomes = replay(engine, rules, START, dry_run=dry_run).outcomes
        assert outcomes == {"refused: timestamp_past_retention": 2}
    Job(engine).run_pass()
    assert read_books(engine, deep=True).balanced


TO_BE_KEPT = "is to be kept"


@pytest.mark.parametrize("days", [1, 30, None])
def test_the_database_itself_refuses_to_drop_what_is_to_be_kept(
    engine: Engine, kept: Tables, days: int | None
) -> None:
    """Whatever the worker's clock and settings say."""
    with engine.begin() as connection:
        Kept(days, days, days, days).write(connection)
    today = datetime.now(UTC).date()
    old = today - timedelta(days=4000)
    oldest_kept = old if days is None else today - timedelta(days=days + 1)
    youngest_dropped = old if days is None else oldest_kept - timedelta(days=1)
    Shelf(engine).book(None)
    kept.do(
        'INSERT INTO dead_letters (topic, topic_id, partition, "offset", headers,'
        " reason, detail, first_seen)"
        " SELECT 't', 'other', 0, days, '[]', 'empty', '',"
        " now() - make_interval(days => days, mins => 1)"
        " FROM unnest(ARRAY[0, 1, 29, 30, 4000]) AS days"
    )
    with engine.connect() as connection:
        for day in (oldest_kept, today, today + timedelta(days=5)):
            with pytest.raises(DBAPIError, match=TO_BE_KEPT), connection.begin():
                connection.execute(select(func.detach_day(day, 0)))
        with connection.begin(), pytest.raises(DBAPIError) as caught:
            connection.execute(select(func.detach_day(youngest_dropped, 0)))
        # There is none.
        assert (errors.sqlstate(caught.value) == "42P01") == (days is not None)
        for parent in ("heartbeats_minute", "heartbeats_hour"):
            for month in (today, today - timedelta(days=days or 4000)):
                with pytest.raises(DBAPIError, match=TO_BE_KEPT), connection.begin():
                    connection.execute(select(func.drop_rollup_month(parent, month)))
        with connection.begin():
            future = datetime.now(UTC) + timedelta(days=9)
            connection.execute(select(func.drop_dead_letters(future, 100)))
    left = {"1": 1, "30": 3, "None": 5}[str(days)]
    assert kept.all("SELECT count(*) FROM dead_letters WHERE topic_id = 'other'") == [
        (left,)
    ]


def test_where_the_database_keeps_longer_than_the_settings_say_it_counts(
    writer: Writer,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    retention = make_retention(beats_for(10))
    with engine.begin() as connection:
        beats_for(20).write(connection)
    for _ in range(2):
        retention.run_round()
    assert dropped(kept) == []
    # Once, not every minute.
    [warning] = [each for each in caplog.records if each.levelname == "WARNING"]
    assert warning.getMessage().startswith(
        "RETENTION_DAYS is 10, but the database keeps heartbeats for 20 days"
    )


def test_the_roll_ups_of_a_dropped_day_stay_whatever_a_worker_calls(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    """Even where the day is made again, and all of it marked, without its beats."""
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    make_retention(beats_for(10)).run_round()
    before = [rows(engine, name) for name in ("heartbeats_minute", "heartbeats_hour")]
    with writer._engine.begin() as connection:
        connection.execute(select(func.make_day(ago(12))))
        mark_spans(connection, [day_span(ago(12))])
    assert Job(writer._engine).run_pass()
    assert rows(engine, "heartbeats_minute") == before[0]
    kept.do("DELETE FROM heartbeats_minute")
    with writer._engine.begin() as connection:
        connection.execute(text("SELECT roll_up_hour('2025-12-20 12:00Z')"))
    assert rows(engine, "heartbeats_hour") == before[1]


def test_only_a_detached_day_can_be_dropped(writer: Writer, engine: Engine) -> None:
    writer.write(batch_of([on(ago(12))]))
    Job(engine).run_pass()
    with (
        engine.connect() as connection,
        pytest.raises(DBAPIError, match="not detached"),
    ):
        connection.execute(text("SELECT drop_day('2025-12-20')"))


def test_two_workers_do_not_check_the_same_day(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    with engine.connect() as other:
        assert other.scalar(text("SELECT take_lock('retention')"))
        make_retention(beats_for(10)).run_round()
        assert dropped(kept) == []
    engine.dispose()
    make_retention(beats_for(10)).run_round()
    assert dropped(kept) == [(ago(12), 1, True)]


# In nobody's way


class Stopwatch:
    """Does something again and again in a thread; the longest that it took."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest_seconds = 0.0
        self.times = 0
        self.failed: list[BaseException] = []

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.perf_counter()
                self._work()
                seconds = time.perf_counter() - began
                self.longest_seconds = max(self.longest_seconds, seconds)
                self.times += 1
        except BaseException as error:  # noqa: BLE001 (shown by the test)
            self.failed.append(error)

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def read_elsewhere(engine: Engine) -> None:
    """Waits for no lock, so that its longest time is how busy the machine was.

    On one that does more than it can, every query stands still for 100 ms now and then.
    """
    with engine.connect() as connection:
        connection.execute(text("SELECT max(next_offset) FROM partition_ledger"))


def test_dropping_holds_up_neither_readers_nor_the_writer(
    writer: Writer,
    settings: Settings,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
) -> None:
    old = [ago(n) for n in range(12, 32)]
    writer.write(batch_of([on(day, f"c{n}") for day in old for n in range(50)]))
    Job(engine).run_pass()
    asked = 1000

    def write() -> None:
        nonlocal asked
        writer.write(batch_of([on(TODAY, "w", asked)], asked=asked))
        asked += 1

    reads = engine_of(settings)

    def read() -> None:
        with reads.connect() as connection:
            connection.execute(text("SELECT count(*), max(timestamp) FROM heartbeats"))

    write()
    with (
        Stopwatch(read) as reader,
        Stopwatch(write) as writing,
        Stopwatch(lambda: read_elsewhere(reads)) as elsewhere,
    ):
        time.sleep(1)
        undisturbed = reader.longest_seconds, writing.longest_seconds
        make_retention(beats_for(10)).run_round()
    reads.dispose()
    assert not reader.failed + writing.failed + elsewhere.failed
    assert [row[:2] for row in dropped(kept)] == [(day, 50) for day in sorted(old)]
    print(
        f"longest, alone and during the drops: reader {undisturbed[0] * 1e3:.0f} and "
        f"{reader.longest_seconds * 1e3:.0f} ms ({reader.times} times), writer "
        f"{undisturbed[1] * 1e3:.0f} and {writing.longest_seconds * 1e3:.0f} ms "
        f"({writing.times} times), elsewhere {elsewhere.longest_seconds * 1e3:.0f} ms"
    )
    busy = elsewhere.longest_seconds
    assert reader.longest_seconds < undisturbed[0] + busy + 0.1
    assert writing.longest_seconds < undisturbed[1] + busy + 0.1


def test_a_long_reader_is_not_waited_for(
    writer: Writer,
    settings: Settings,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who comes after it waits as long as one try at most; the day goes later."""
    monkeypatch.setattr(module, "TRIES", 5)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.2)
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    reads = engine_of(settings)

    def read() -> None:
        with reads.connect() as connection:
            connection.execute(text("SELECT max(heart_rate) FROM heartbeats"))

    retention = make_retention(beats_for(10))
    with engine.begin() as long_reader:
        long_reader.execute(text("SELECT count(*) FROM heartbeats"))
        with (
            Stopwatch(read) as reader,
            Stopwatch(lambda: read_elsewhere(reads)) as elsewhere,
        ):
            time.sleep(1)
            undisturbed = reader.longest_seconds
            retention.run_round()
        assert not reader.failed + elsewhere.failed
        assert dropped(kept) == []
        print(
            f"longest, alone and during {module.TRIES} tries: {undisturbed * 1e3:.0f} "
            f"and {reader.longest_seconds * 1e3:.0f} ms ({reader.times} times), "
            f"elsewhere {elsewhere.longest_seconds * 1e3:.0f} ms"
        )
        assert reader.longest_seconds < undisturbed + elsewhere.longest_seconds + 0.1
    retention.run_round()
    assert dropped(kept) == [(ago(12), 1, True)]
    reads.dispose()


def test_no_day_is_detached_while_the_books_are_counted(
    writer: Writer,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRIES", 1)
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    retention = make_retention(beats_for(10))
    moments: list[str] = []

    def meanwhile(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        moments.append(statement)
        retention.run_round()

    event.listen(engine, "after_cursor_execute", meanwhile)
    books = read_books(engine, deep=True)
    event.remove(engine, "after_cursor_execute", meanwhile)
    assert len(moments) > 5
    assert books.problems == []
    assert books.rows is not None
    assert (books.rows.counted, books.rows.dropped) == (2, 0)
    retention.run_round()
    assert dropped(kept) == [(ago(12), 1, True)]


# Half detached


def test_a_half_detached_day_is_finished_and_comes_back(
    make_writer: MakeWriter,
    settings: Settings,
    engine: Engine,
    make_retention: MakeRetention,
) -> None:
    make_writer().write(batch_of([on(TODAY), on(ago(1))]))
    cut_short(engine, "heartbeats_2026_01_01")
    assert there(engine) == {ago(1)}
    writer = make_writer("new")
    batch = batch_of([on(TODAY, "late")], asked=2)
    with pytest.raises((DBAPIError, psycopg2.Error)):
        writer.write(batch)  # neither there nor gone
    make_retention(FOR_EVER)._finish_detaching()
    assert writer.write(batch).stored == 1
    Job(engine).run_pass()
    assert read_books(engine, deep=True).rows == Rows(3, 0)


def test_a_round_begins_with_it(
    make_writer: MakeWriter,
    settings: Settings,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
) -> None:
    make_writer().write(batch_of([on(TODAY), on(ago(1))]))
    cut_short(engine, "heartbeats_2026_01_01")
    make_retention(FOR_EVER).run_round()
    assert kept.all("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(0,)]
    # Today is made ahead of time, and so came back with its beat.
    assert read_books(engine, deep=True).balanced


# Ahead of time


def test_partitions_are_made_ahead(
    engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    make_retention(FOR_EVER, now=datetime(2026, 1, 30, 23, tzinfo=UTC)).run_round()
    assert there(engine) == {date(2026, 1, 30), date(2026, 1, 31), date(2026, 2, 1)}
    with engine.connect() as connection:
        for parent in ("heartbeats_minute", "heartbeats_hour"):
            assert existing_months(connection, parent) == {
                date(2026, 1, 1),
                date(2026, 2, 1),
            }


def test_what_fails_does_not_keep_the_rest_from_being_done(
    writer: Writer,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer.write(batch_of([on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    kept.do("ALTER FUNCTION finish_detaching() RENAME TO elsewhere")
    make_retention(beats_for(10)).run_round()
    assert dropped(kept) == [(ago(12), 1, True)]
    [warning] = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "Finish what a DETACH CONCURRENTLY left" in warning.getMessage()
    assert "finish_detaching() does not exist" in warning.getMessage()


def test_a_day_that_cannot_be_dropped_does_not_keep_the_others(
    writer: Writer,
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer.write(batch_of([on(ago(13)), on(ago(12)), on(TODAY)]))
    Job(engine).run_pass()
    kept.do("CREATE VIEW mine AS SELECT * FROM heartbeats_2025_12_19")
    for _ in range(2):  # detached, and then begun
        make_retention(beats_for(10)).run_round()
        assert dropped(kept) == [(ago(13), 1, False), (ago(12), 1, True)]
    assert "cannot drop table public.heartbeats_2025_12_19 because" in caplog.text
    kept.do("DROP VIEW mine")
    make_retention(beats_for(10)).run_round()
    assert dropped(kept) == [(ago(13), 1, True), (ago(12), 1, True)]


# Roll-ups


def test_months_of_roll_ups_go_the_finer_first(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(
        batch_of([on(date(2025, 9, 30)), on(date(2025, 10, 1)), on(TODAY), on(ago(1))])
    )
    Job(engine).run_pass()
    retention = make_retention(Kept(20, 91, 92, None))
    # September: 2025-10-01 + 92 = 2026-01-01 is a day past 91 days and not past 92.
    retention.run_round()
    found = tables(kept)
    assert "heartbeats_minute_2025_09" not in found
    assert {"heartbeats_minute_2025_10", "heartbeats_hour_2025_09"} <= found
    assert len(rows(engine, "heartbeats_minute_all")) == 3
    assert len(rows(engine, "heartbeats_hour_all")) == 4
    assert read_books(engine, deep=True).balanced
    make_retention(Kept(20, 91, 92, None), START + timedelta(days=1)).run_round()
    assert "heartbeats_hour_2025_09" not in tables(kept)
    assert len(rows(engine, "heartbeats_hour_all")) == 3
    assert read_books(engine, deep=True).balanced


def test_minutes_are_not_dropped_before_their_beats(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(date(2025, 9, 30)), on(TODAY)]))
    Job(engine).run_pass()
    make_retention(Kept(None, 1, 1, None)).run_round()
    assert {"heartbeats_minute_2025_09", "heartbeats_hour_2025_09"} <= tables(kept)
    with engine.connect() as connection, pytest.raises(DBAPIError, match="still there"):
        connection.execute(
            text("SELECT drop_rollup_month('heartbeats_minute', '2025-09-01')")
        )


@pytest.mark.parametrize("parent", ["heartbeats", "dead_letters", "pg_class"])
def test_no_other_table_loses_a_month(engine: Engine, parent: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO retention VALUES (:parent, 1) ON CONFLICT DO NOTHING"),
            {"parent": parent},
        )
    with engine.connect() as connection, pytest.raises(DBAPIError, match=TO_BE_KEPT):
        connection.execute(
            text("SELECT drop_rollup_month(:parent, '2025-09-01')"), {"parent": parent}
        )


# Dead letters


def test_old_dead_letters_go_and_the_books_know(
    engine: Engine,
    kept: Tables,
    make_retention: MakeRetention,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LETTERS", 2)
    shelf = Shelf(engine)
    early = [record(f"c{n}", "2026-01-01T13:00:00Z") for n in range(3)]
    shelf.book(record(), *early, None, b"{")
    later = NOW + timedelta(hours=2)
    rules = Rules.at(later, max_future_seconds=1, retention_days=None)
    assert replay(engine, rules, later).outcomes["stored"] == 3
    shelf.book(None)
    kept.do("UPDATE dead_letters SET first_seen = '2025-12-01Z' WHERE \"offset\" < 6")
    Job(engine).run_pass()
    make_retention(Kept(None, None, None, 32), START).run_round()
    assert len(kept.letters()) == 6  # not yet
    make_retention(Kept(None, None, None, 31), START).run_round()
    assert kept.letters() == [(6, "empty")]
    assert kept.all("SELECT * FROM dropped_dead_letters") == [("topic-id", 0, 5, 3, 0)]
    books = read_books(engine, deep=True)
    assert books.balanced
    assert books.partitions[0].dropped_dead_letters == 5
    kept.do("DELETE FROM dead_letters")
    [problem] = read_books(engine, deep=True).problems
    assert "counted dead letters are 0 + dropped by retention 5; off by -1." in problem


def test_dead_letters_are_kept_longer_than_beats_by_default(settings: Settings) -> None:
    assert Kept.of(settings).dead_letters is None


def test_a_stop_ends_a_round(
    writer: Writer, engine: Engine, kept: Tables, make_retention: MakeRetention
) -> None:
    writer.write(batch_of([on(ago(n)) for n in range(12, 15)]))
    Job(engine).run_pass()
    stop = threading.Event()
    retention = make_retention(beats_for(10), stop=stop)

    def end(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "drop_day" in statement:
            stop.set()

    event.listen(retention._engine, "after_cursor_execute", end)
    retention.run_round()
    assert len(dropped(kept)) == 1
