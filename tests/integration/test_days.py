"""A day's partition is there before its beats are, whoever else is at work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from heartbeat_app.config import Settings
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.storage.days import days
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.db import engine as storage_engine
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.catalog import existing_days
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.write.writer import Writer
from tests.storing import START, Kept, batch_of, beat, day_table, rows_of

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]

TODAY = START.date()


def on(day: date, customer: str = "c") -> Heartbeat:
    return beat(customer, at=datetime(day.year, day.month, day.day, 12, tzinfo=UTC))


def after(count: int) -> date:
    return TODAY + timedelta(days=count)


def known(engine: Engine) -> set[date]:
    with engine.connect() as connection:
        return existing_days(connection)


@pytest.fixture
def impatient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine that waits for no lock."""
    monkeypatch.setattr(storage_engine, "LOCK_TIMEOUT_MS", 500)
    engine = make_engine(settings, application_name="impatient")
    yield engine
    engine.dispose()


def test_there_is_no_day_before_the_first_beat(engine: Engine) -> None:
    assert known(engine) == set()


def test_days_are_made_once(engine: Engine) -> None:
    wanted = {after(n) for n in (0, 1, 40)}
    ensure_days(engine, wanted)
    ensure_days(engine, wanted)
    ensure_days(engine, [])
    assert known(engine) == wanted


def test_more_days_than_one_transaction_makes(engine: Engine) -> None:
    wanted = {after(-n) for n in range(days.DAYS_A_TRANSACTION + 2)}
    ensure_days(engine, wanted)
    assert known(engine) == wanted


def test_a_day_takes_what_the_table_promises(engine: Engine, kept: Kept) -> None:
    ensure_days(engine, [TODAY])
    [(bounds,)] = kept.all(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = :name",
        name=day_table(TODAY),
    )
    assert bounds == (
        "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-01-02 00:00:00+00')"
    )
    insert = "INSERT INTO heartbeats VALUES (DEFAULT, 'c', '2026-01-01Z', {})"
    for wrong in (0, 301):
        with pytest.raises(IntegrityError) as caught:
            kept.do(insert.format(wrong))
        assert errors.constraint(caught.value) == "heart_rate_range"
    kept.do(insert.format(70))
    with pytest.raises(IntegrityError) as caught:
        kept.do(insert.format(71))
    assert errors.is_duplicate(caught.value)
    with pytest.raises(IntegrityError) as caught:
        kept.do("INSERT INTO heartbeats VALUES (DEFAULT, 'c', '2026-01-02Z', 70)")
    assert errors.is_missing_day(caught.value)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_a_day_is_one_of_utc_whatever_the_databases_time_zone(
    engine: Engine, kept: Kept, name: str, zone: str
) -> None:
    kept.do(f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'")
    engine.dispose()
    assert kept.all("SHOW timezone") == [(zone,)]
    ensure_days(engine, [TODAY])
    insert = "INSERT INTO heartbeats VALUES (DEFAULT, 'c', '{}', 70)"
    for inside in ("2026-01-01T00:00:00Z", "2026-01-01T23:59:59.999999Z"):
        kept.do(insert.format(inside))
    for outside in ("2025-12-31T23:59:59.999999Z", "2026-01-02T00:00:00Z"):
        with pytest.raises(IntegrityError) as caught:
            kept.do(insert.format(outside))
        assert errors.is_missing_day(caught.value)


def test_two_that_make_the_same_days_at_once_both_end(
    settings: Settings, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    engines = [make_engine(settings, application_name=f"maker {n}") for n in range(3)]
    together = threading.Barrier(3)
    wanted = [
        {after(n) for n in range(40)},
        {after(n) for n in range(20, 60)},
        {after(n) for n in range(60)},
    ]

    def make(number: int) -> None:
        together.wait(10)
        ensure_days(engines[number], wanted[number])

    for each in [aside.submit(make, number) for number in range(3)]:
        each.result(30)
    assert known(engine) == {after(n) for n in range(60)}
    for each_engine in engines:
        each_engine.dispose()


def test_two_writers_that_need_the_same_new_days_both_store(
    make_writer: MakeWriter, kept: Kept, aside: ThreadPoolExecutor
) -> None:
    together = threading.Barrier(2)
    found = [[on(after(n), customer) for n in range(30)] for customer in "ab"]

    def write(writer: Writer, partition: int) -> int:
        together.wait(10)
        return writer.write(batch_of(found[partition], partition=partition)).stored

    writers = [make_writer(f"writer {n}") for n in range(2)]
    both = [aside.submit(write, writer, n) for n, writer in enumerate(writers)]
    assert [each.result(30) for each in both] == [30, 30]
    assert kept.beats() == rows_of(found[0] + found[1])


def test_open_readers_and_writers_do_not_hold_up_a_new_day(
    engine: Engine, impatient: Engine
) -> None:
    ensure_days(engine, [TODAY])
    with engine.connect() as reader, engine.connect() as writer:
        reader.execute(text("SELECT count(*) FROM heartbeats")).all()
        writer.execute(
            text("INSERT INTO heartbeats VALUES (DEFAULT, 'c', :at, 70)"), {"at": START}
        )
        ensure_days(impatient, [after(1)])  # both transactions are open


def test_a_new_day_holds_up_neither_readers_nor_writers(
    engine: Engine, impatient: Engine
) -> None:
    ensure_days(engine, [TODAY])
    with engine.begin() as maker:
        maker.execute(select(func.make_day(after(1))))
        with impatient.begin() as other:
            other.execute(text("SELECT count(*) FROM heartbeats")).all()
            other.execute(
                text(
                    "INSERT INTO heartbeats (customer_id, timestamp, heart_rate)"
                    " VALUES ('c', :at, 70)"
                ),
                {"at": START},
            )


def test_a_day_that_was_dropped_is_made_again(
    make_writer: MakeWriter, kept: Kept, engine: Engine
) -> None:
    writer = make_writer()
    writer.write(batch_of([on(TODAY), on(after(1))]))
    kept.do(f"DROP TABLE {day_table(TODAY)}")
    batch = batch_of([on(TODAY, "late"), on(after(1), "late")], asked=2)
    with pytest.raises((DBAPIError, psycopg2.Error)) as caught:
        writer.write(batch)
    assert errors.is_missing_day(caught.value)
    assert kept.book().next_offset == 2
    assert writer.write(batch).stored == 2
    assert known(engine) == {TODAY, after(1)}
    assert kept.letters() == []


def test_a_day_that_was_dropped_is_made_again_for_staged_beats(
    make_writer: MakeWriter, kept: Kept
) -> None:
    writer = make_writer()
    writer.write(batch_of([on(TODAY), on(after(1))]))
    kept.do(f"DROP TABLE {day_table(TODAY)}")
    batch = batch_of([on(after(1)), on(TODAY)], asked=2)  # a duplicate first
    with pytest.raises((DBAPIError, psycopg2.Error)) as caught:
        writer.write(batch)
    assert errors.is_missing_day(caught.value)
    written = writer.write(batch)
    assert (written.stored, written.duplicate) == (1, 1)


def test_a_day_that_was_detached_comes_back_with_its_rows(
    make_writer: MakeWriter, kept: Kept
) -> None:
    writer = make_writer()
    writer.write(batch_of([on(TODAY)]))
    kept.do(f"ALTER TABLE heartbeats DETACH PARTITION {day_table(TODAY)}")
    batch = batch_of([on(TODAY), on(TODAY, "late")], asked=1)
    with pytest.raises((DBAPIError, psycopg2.Error)):
        writer.write(batch)
    written = writer.write(batch)
    assert (written.stored, written.duplicate) == (1, 1)


def test_a_day_that_another_worker_made_is_found(
    make_writer: MakeWriter, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_writer("one"), make_writer("other")
    one.write(batch_of([on(TODAY)]))
    other.write(batch_of([on(after(9))], partition=1))
    monkeypatch.setattr(days, "MAX_DAYS", 2)
    assert one.write(batch_of([on(after(9), "one")], asked=1)).stored == 1
    assert kept.letters() == []


# So many days and no more


def test_of_too_many_new_days_in_a_batch_the_latest_are_made(
    make_writer: MakeWriter, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "MAX_NEW_DAYS_A_BATCH", 3)
    writer = make_writer(clock=lambda: START)
    found = [on(after(-n)) for n in range(10, 20)]
    written = writer.write(batch_of([*found, on(TODAY), None]))
    assert (written.stored, written.duplicate, written.dead) == (4, 0, 8)
    assert kept.beats() == rows_of([*found[:3], on(TODAY)])
    assert kept.letters() == [
        *((offset, "too_many_days") for offset in range(3, 10)),
        (11, "not_json"),
    ]
    # A later batch makes some more, and beats of days that are there need no room.
    again = batch_of([*found], asked=12)
    written = writer.write(again)
    assert (written.stored, written.duplicate, written.dead) == (3, 3, 4)


def test_of_too_many_days_in_all_only_those_near_today_are_made(
    make_writer: MakeWriter, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "MAX_DAYS", 2)
    writer = make_writer(clock=lambda: START)
    writer.write(batch_of([on(after(-50)), on(after(-60)), on(after(-70))]))
    assert kept.letters() == [(2, "too_many_days")]
    near = [on(after(n)) for n in range(-2, 3)]
    written = writer.write(batch_of([*near, on(after(-3)), on(after(3))], asked=3))
    assert (written.stored, written.dead) == (5, 2)
    assert kept.letters()[1:] == [(8, "too_many_days"), (9, "too_many_days")]


def test_a_batch_whose_days_are_all_refused_moves_on(
    make_writer: MakeWriter, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "MAX_DAYS", 0)
    writer = make_writer(clock=lambda: START)
    assert writer.write(batch_of([on(after(-50)), on(after(-60))])).dead == 2
    assert kept.book().next_offset == 2


def test_a_table_that_is_no_day_is_not_taken_for_one(
    engine: Engine, kept: Kept
) -> None:
    kept.do(
        "CREATE TABLE heartbeats_2026_01_05 (LIKE heartbeats)",
        "CREATE TABLE heartbeats_archive PARTITION OF heartbeats"
        " FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z')",
    )
    assert known(engine) == set()
