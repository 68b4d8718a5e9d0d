"""Dead letters are shown as received, and replayed: stored once, and booked once."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from heartbeat_app.config import Settings
from heartbeat_app.domain.validation import Reason, Rules
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog
from heartbeat_app.storage.operator import replay as module
from heartbeat_app.storage.operator.replay import Replayed, replay
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.write.dead_letters import (
    count_by_reason,
    get_letter,
    list_letters,
)
from testkit.servers import engine_of
from tests.booked import NOW, Shelf, execute, record

pytestmark = pytest.mark.integration

# What came too early, and the moment at which its time has come.
EARLY = "2026-01-01T13:00:00Z"
LATER = NOW + timedelta(hours=2)


def rules(now: datetime = LATER, *, max_future_seconds: float = 300) -> Rules:
    return Rules.at(now, max_future_seconds=max_future_seconds, retention_days=None)


def replay_later(engine: Engine, **options: Any) -> dict[str, int]:
    """Replay when its time has come; how many letters had each outcome."""
    return dict(replay(engine, rules(), LATER, **options).outcomes)


def early(second: int, name: str = "anna", rate: int = 72) -> bytes:
    return record(name, f"2026-01-01T13:00:{second:02}Z", rate)


def rows(engine: Engine) -> list[tuple[str, datetime, int]]:
    with engine.connect() as connection:
        found = connection.execute(
            text(
                'SELECT customer_id, "timestamp", heart_rate FROM heartbeats'
                " ORDER BY customer_id, timestamp"
            )
        )
        return [(row[0], row[1], row[2]) for row in found]


def letters(engine: Engine) -> list[tuple[str, str | None]]:
    """Reason and outcome of every letter, in the order in which they came."""
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT reason, replay_outcome FROM dead_letters ORDER BY id")
        )
        return [(row[0], row[1]) for row in found]


@pytest.fixture
def shelf(engine: Engine) -> Shelf:
    """Empty books."""
    return Shelf(engine)


def at_13(second: int) -> datetime:
    return datetime(2026, 1, 1, 13, 0, second, tzinfo=UTC)


# Looking at them


def test_lists_the_latest_first(engine: Engine, shelf: Shelf) -> None:
    assert list_letters(engine, limit=10) == []
    assert count_by_reason(engine) == {}
    shelf.book(None, b"{", record(), b"[]", b"x")
    found = list_letters(engine, limit=3)
    assert [(each.offset, each.reason) for each in found] == [
        (4, "not_json"),
        (3, "not_an_object"),
        (1, "not_json"),
    ]
    assert count_by_reason(engine) == {"not_json": 2, "empty": 1, "not_an_object": 1}
    only = list_letters(engine, reason=Reason.EMPTY, limit=3)
    assert [(each.offset, each.size) for each in only] == [(0, None)]


@pytest.mark.parametrize("value", [None, b"{", b"\x00\xff\x1b[31m", b"x" * 1_000_000])
def test_keeps_what_was_received(
    engine: Engine, shelf: Shelf, value: bytes | None
) -> None:
    shelf.book(value, key=b"\xffkey\x00")
    (listed,) = list_letters(engine, limit=1)
    found = get_letter(engine, listed.id)
    assert found is not None
    letter, contents = found
    assert letter == listed
    assert letter.size == (None if value is None else len(value))
    assert (contents.key, contents.value) == (b"\xffkey\x00", value)
    assert contents.headers == [["source", {"base64": "/2RldmljZQ=="}]]


def test_there_is_no_letter_of_another_id(engine: Engine) -> None:
    assert get_letter(engine, 1) is None
    assert get_letter(engine, 2**63 - 1) is None


# Replaying them


def test_stores_what_is_valid_now(engine: Engine, shelf: Shelf) -> None:
    shelf.book(early(1), b"{", early(2), None)
    before = datetime.now(UTC)
    assert replay_later(engine) == {
        "stored": 2,
        "refused: not_json": 1,
        "refused: empty": 1,
    }
    assert rows(engine) == [("anna", at_13(1), 72), ("anna", at_13(2), 72)]
    assert letters(engine) == [
        ("timestamp_in_future", "stored"),
        ("not_json", "refused: not_json"),
        ("timestamp_in_future", "stored"),
        ("empty", "refused: empty"),
    ]
    for each in list_letters(engine, limit=9):
        assert each.replayed_at is not None
        assert each.replayed_at >= before - timedelta(seconds=5)
        assert each.detail
    assert read_books(engine, deep=True).balanced


def test_is_still_refused_before_its_time(engine: Engine, shelf: Shelf) -> None:
    shelf.book(early(1))
    outcomes = replay(engine, rules(NOW), NOW).outcomes
    assert outcomes == {"refused: timestamp_in_future": 1}
    assert rows(engine) == []
    assert replay_later(engine) == {"stored": 1}


def test_a_letter_is_replayed_until_it_is_in_the_table(
    engine: Engine, shelf: Shelf
) -> None:
    shelf.book(early(1), early(1), b"{")
    assert replay_later(engine) == {
        "stored": 1,
        "duplicate": 1,
        "refused: not_json": 1,
    }
    assert replay_later(engine) == {"refused: not_json": 1}
    assert len(rows(engine)) == 1


def test_tells_duplicates_and_conflicts_from_new_ones(
    engine: Engine, shelf: Shelf
) -> None:
    shelf.book(early(1), early(2), early(3), early(4), early(4, rate=99))
    # They were sent again later and stored, one of them with another rate.
    later = Shelf(engine, partition=1, rules=rules())
    later.book(early(1), early(2, rate=99))
    assert replay_later(engine) == {"stored": 2, "duplicate": 1, "conflict": 2}
    assert [outcome for _, outcome in letters(engine)] == [
        "duplicate",
        "conflict",
        "stored",
        "stored",
        "conflict",
    ]
    assert rows(engine) == [
        ("anna", at_13(1), 72),
        ("anna", at_13(2), 99),
        ("anna", at_13(3), 72),
        ("anna", at_13(4), 72),
    ]
    assert read_books(engine, deep=True).balanced


def test_a_conflict_is_stored_when_the_first_is_gone(
    engine: Engine, shelf: Shelf
) -> None:
    shelf.book(record(rate=72), record(rate=99))
    assert letters(engine) == [("conflict", None)]
    assert replay_later(engine) == {"conflict": 1}
    execute(engine, "DELETE FROM heartbeats")
    assert replay_later(engine) == {"stored": 1}
    assert [row[2] for row in rows(engine)] == [99]


def test_only_letters_of_the_reason_are_replayed(engine: Engine, shelf: Shelf) -> None:
    shelf.book(early(1), b"{", None)
    outcomes = replay_later(engine, reason=Reason.TIMESTAMP_IN_FUTURE)
    assert outcomes == {"stored": 1}
    assert letters(engine)[1:] == [("not_json", None), ("empty", None)]


def test_the_reason_is_the_first_one_for_good(engine: Engine, shelf: Shelf) -> None:
    shelf.book(early(1))
    tightened = Rules.at(
        LATER + timedelta(days=9), max_future_seconds=1, retention_days=1
    )
    outcomes = replay(engine, tightened, LATER).outcomes
    assert outcomes == {"refused: timestamp_past_retention": 1}
    assert letters(engine) == [
        ("timestamp_in_future", "refused: timestamp_past_retention")
    ]
    assert replay_later(engine, reason=Reason.TIMESTAMP_IN_FUTURE) == {"stored": 1}


def test_makes_the_days_first(engine: Engine, shelf: Shelf) -> None:
    shelf.book(*(record(timestamp=f"2026-01-0{day}T00:00:00Z") for day in range(2, 9)))
    now = datetime(2026, 1, 9, tzinfo=UTC)
    assert replay(engine, rules(now), now).outcomes == {"stored": 7}
    assert len(rows(engine)) == 7


def test_days_that_are_too_many_stay_refused(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "MAX_DAYS", 0)
    values = [record(timestamp=f"2025-06-0{day}T00:00:00Z") for day in (1, 2)]
    shelf.book(*values, early(1))
    expected = {"stored": 1, "refused: too_many_days": 2}
    assert replay_later(engine, dry_run=True) == expected
    assert replay_later(engine) == expected
    monkeypatch.undo()
    assert replay_later(engine) == {"stored": 2}


def test_works_in_batches_of_bounded_size(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_LETTERS", 4)
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    big = b'{"x": "' + b"x" * 2000 + b'", ' + early(50)[1:]
    shelf.book(*(early(second) for second in range(10)), big, big, b"{")
    told: list[tuple[int, int]] = []
    outcomes = replay_later(
        engine, progress=lambda so_far: told.append((so_far.done, so_far.pending))
    )
    assert outcomes == {"stored": 11, "duplicate": 1, "refused: not_json": 1}
    assert told == [(n, 13) for n in (0, 4, 8, 10, 11, 12, 13)]


def test_a_value_larger_than_a_batch_is_a_batch(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 10)
    shelf.book(early(1), early(2))
    assert replay_later(engine) == {"stored": 2}


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_a_dry_run_changes_nothing_and_foretells(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(module, "BATCH_LETTERS", batch)
    shelf.book(record(), record(rate=99))
    shelf.book(early(1), early(1), early(1, rate=99), early(2), b"{", None)
    before = (rows(engine), letters(engine))
    with engine.connect() as connection:
        days_before = catalog.existing_days(connection)
    foretold = replay_later(engine, dry_run=True)
    assert (rows(engine), letters(engine)) == before
    with engine.connect() as connection:
        assert catalog.existing_days(connection) == days_before
    assert replay_later(engine) == foretold


def test_two_at_once_never_store_or_count_twice(
    engine: Engine, settings: Settings, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_LETTERS", 7)
    values = [early(n % 60, name=f"c{n // 60}") for n in range(400)]
    shelf.book(*values, *values[:50], *(b"{" for _ in range(20)))
    results: list[Replayed] = []

    def work() -> None:
        own = engine_of(settings)
        results.append(replay(own, rules(), LATER))
        own.dispose()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total: Counter[str] = sum((each.outcomes for each in results), Counter())
    assert len(results) == 4
    assert total["stored"] == len(rows(engine)) == 400
    assert total["duplicate"] == 50
    # One that is refused may be looked at by each of them.
    assert total["refused: not_json"] >= 20
    outcomes = Counter(outcome for _, outcome in letters(engine))
    assert outcomes == {"stored": 400, "duplicate": 50, "refused: not_json": 20}
    assert read_books(engine, deep=True).balanced


def test_letters_that_another_replay_has_in_hand_are_left_to_it(
    engine: Engine, settings: Settings, shelf: Shelf
) -> None:
    shelf.book(early(1), early(2))
    other = engine_of(settings)
    execute(engine, f'ALTER DATABASE "{engine.url.database}" SET lock_timeout = 500')
    engine.dispose()  # new connections do not wait for ever
    with other.begin() as connection:
        connection.execute(
            text('SELECT 1 FROM dead_letters WHERE "offset" = 0 FOR UPDATE')
        )
        result = replay(engine, rules(), LATER)
    other.dispose()
    assert result.outcomes == {"stored": 1}
    assert (result.done, result.elsewhere) == (2, 1)
    assert replay_later(engine) == {"stored": 1}


def test_what_another_replay_finished_meanwhile_is_not_counted_again(
    engine: Engine, settings: Settings, shelf: Shelf
) -> None:
    """It finishes after this one has read the letters, before it locks them."""
    shelf.book(early(1), early(2))
    other = engine_of(settings)
    done: list[dict[str, int]] = []

    def listen(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "FOR UPDATE SKIP LOCKED" in statement and not done:
            done.append({})
            done[0] = replay_later(other)

    event.listen(engine, "before_cursor_execute", listen)
    result = replay(engine, rules(), LATER)
    event.remove(engine, "before_cursor_execute", listen)
    other.dispose()
    assert done == [{"stored": 2}]
    assert (dict(result.outcomes), result.elsewhere) == ({}, 2)
    assert len(rows(engine)) == 2


def test_a_worker_that_stores_the_same_beats_is_no_error(
    engine: Engine, settings: Settings, shelf: Shelf
) -> None:
    """The worker has one of the two beats in an open transaction, and commits late."""
    shelf.book(early(1), early(2, rate=99))
    later = Shelf(engine, partition=1, rules=rules())
    later.book(record("bert", timestamp=EARLY))  # makes the day
    worker = engine_of(settings)
    with worker.connect() as connection:
        transaction = connection.begin()
        connection.execute(
            text(
                'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate) VALUES'
                " ('anna', '2026-01-01T13:00:01Z', 72),"
                " ('anna', '2026-01-01T13:00:02Z', 72)"
            )
        )
        timer = threading.Timer(0.5, transaction.commit)
        timer.start()
        outcomes = replay_later(engine)
        timer.join()
    worker.dispose()
    assert outcomes == {"duplicate": 1, "conflict": 1}


def test_a_deadlock_is_tried_again(
    engine: Engine, shelf: Shelf, deadlock: None
) -> None:
    shelf.book(early(1))
    assert replay_later(engine) == {"stored": 1}
    assert read_books(engine, deep=True).balanced


@pytest.fixture
def deadlock(engine: Engine) -> None:
    """The first insertion of a beat ends as if it had lost a deadlock."""
    execute(
        engine,
        """
        CREATE SEQUENCE deadlocks;
        CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('deadlocks') = 1 THEN
                RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01';
            END IF;
            RETURN new;
        END $$;
        CREATE TRIGGER lose BEFORE INSERT ON heartbeats
        FOR EACH ROW EXECUTE FUNCTION lose()
        """,
    )


def test_a_day_that_is_dropped_meanwhile_is_made_again(
    engine: Engine, settings: Settings, shelf: Shelf
) -> None:
    shelf.book(early(1))
    other = create_engine(engine.url)
    dropped: list[bool] = []

    def listen(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "FOR UPDATE SKIP LOCKED" in statement and not dropped:
            dropped.append(True)
            execute(other, "DROP TABLE heartbeats_2026_01_01")

    event.listen(engine, "before_cursor_execute", listen)
    outcomes = replay_later(engine)
    event.remove(engine, "before_cursor_execute", listen)
    other.dispose()
    assert dropped
    assert outcomes == {"stored": 1}


def test_a_row_that_the_database_rejects_stays_refused_alone(
    engine: Engine, shelf: Shelf
) -> None:
    shelf.book(early(1), early(2), early(3))
    execute(
        engine,
        """
        CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF extract(second FROM new."timestamp") = 2 THEN
                RAISE EXCEPTION 'not this one' USING ERRCODE = '22000';
            END IF;
            RETURN new;
        END $$;
        CREATE TRIGGER reject BEFORE INSERT ON heartbeats
        FOR EACH ROW EXECUTE FUNCTION reject()
        """,
    )
    assert replay_later(engine) == {
        "stored": 2,
        "refused: rejected_by_database": 1,
    }
    assert [row[1] for row in rows(engine)] == [at_13(1), at_13(3)]


def test_one_that_was_broken_off_keeps_its_finished_batches(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_LETTERS", 2)
    shelf.book(*(early(second) for second in range(5)))

    def break_off(so_far: Replayed) -> None:
        if so_far.done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(engine, rules(), LATER, progress=break_off)
    assert len(rows(engine)) == 2
    assert read_books(engine, deep=True).balanced
    assert replay_later(engine) == {"stored": 3}


def test_letters_that_come_meanwhile_are_for_the_next_replay(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that refuses everything must not keep a replay going for ever."""
    monkeypatch.setattr(module, "BATCH_LETTERS", 2)
    shelf.book(*(early(second) for second in range(5)))

    def receive(so_far: Replayed) -> None:
        assert so_far.done < 20, "it goes on for ever"
        shelf.book(b"{")

    result = replay(engine, rules(), LATER, progress=receive)
    assert result.outcomes == {"stored": 5}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
