"""The books balance while workers write, and what is off is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.read import books as module
from heartbeat_app.storage.read.books import Rows, read_books
from heartbeat_app.storage.write.writer import Written
from testkit.servers import PROJECT, engine_of, run
from tests.booked import NOW, RULES, Shelf, execute, record

pytestmark = pytest.mark.integration


def seconds(count: int, *, start: int = 0) -> list[bytes]:
    return [
        record(timestamp=f"2026-01-01T10:00:{n:02}Z")
        for n in range(start, start + count)
    ]


@pytest.fixture
def worker_engine(settings: Settings) -> Iterator[Engine]:
    """Connections beside those that the books are read on."""
    engine = engine_of(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def shelf(worker_engine: Engine) -> Shelf:
    """Books with something of everything: 5 stored, 2 duplicate, 3 dead, a gap."""
    shelf = Shelf(worker_engine)
    shelf.book(*seconds(5))
    shelf.book(
        *seconds(2),
        None,
        b"{",
        record(timestamp="2026-01-01T10:00:00Z", rate=99),
        gap=1,
    )
    return shelf


def test_empty_books_balance(engine: Engine) -> None:
    books = read_books(engine, deep=True)
    assert books.balanced
    assert not books.partitions
    assert books.rows == Rows(0, 0)


def test_books_tell_what_was_consumed(engine: Engine, shelf: Shelf) -> None:
    Shelf(engine, partition=1).book(record("bert"))
    books = read_books(engine, deep=True)
    first, second = books.partitions
    assert (first.topic, first.topic_id, first.partition) == ("beats", "topic-id", 0)
    assert (first.consumed, first.stored, first.duplicate, first.dead) == (10, 5, 2, 3)
    assert (first.first_offset, first.next_offset, first.gap) == (0, 11, 1)
    assert (second.partition, second.consumed) == (1, 1)
    assert books.total.consumed == 11
    assert books.rows == Rows(6, 0)
    assert books.problems == []


def test_a_topics_name_moves_no_terminal(
    engine: Engine, environ: dict[str, str]
) -> None:
    """Kafka takes no such name; whoever may write into the ledger does."""
    Shelf(engine, topic="evil\x1b[2J\x9b1A\r\u202e").book(*seconds(1))
    away = {**environ, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    printed = run(away, "heartbeat_app", "books", status=1)
    assert all(line.isprintable() for line in printed.split("\n"))
    assert r"evil\x1b[2J\x9b1A\r\u202e" in printed


# One thing wrong at a time, and the words that name it.
WRONG = [
    (
        "UPDATE partition_ledger SET stored = stored - 1",
        "consumed 10 is not stored 4 + duplicate 2 + dead 3 = 9; off by +1",
    ),
    (
        "UPDATE partition_ledger SET next_offset = next_offset + 3",
        "= 11; off by +3",
    ),
    (
        "DELETE FROM dead_letters WHERE reason = 'empty'",
        "dead 3, but counted dead letters are 2; off by -1",
    ),
    (
        'INSERT INTO dead_letters (topic, topic_id, partition, "offset", headers,'
        " reason, detail, first_seen)"
        " VALUES ('beats', 'topic-id', 0, 99, '[]', 'empty', '', now())",
        "dead 3, but counted dead letters are 4; off by +1",
    ),
]


@pytest.mark.parametrize(("statement", "words"), WRONG)
@pytest.mark.parametrize("deep", [False, True])
def test_what_is_off_is_named(
    engine: Engine, shelf: Shelf, statement: str, words: str, deep: bool
) -> None:
    for constraint in ("ledger_balances", "ledger_accounts_for_every_offset"):
        execute(engine, f"ALTER TABLE partition_ledger DROP CONSTRAINT {constraint}")
    execute(engine, statement)
    books = read_books(engine, deep=deep)
    problem = books.problems[0]
    assert problem.startswith("beats[0] (topic id topic-id): ")
    assert words in problem
    assert not books.balanced


def test_dead_letters_of_unknown_partitions_are_named(
    engine: Engine, shelf: Shelf
) -> None:
    execute(engine, "UPDATE dead_letters SET partition = 7 WHERE reason = 'empty'")
    problems = read_books(engine).problems
    assert "Dead letters: 1 of topic id topic-id, partition 7" in problems[1]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "DELETE FROM heartbeats WHERE \"timestamp\" = '2026-01-01T10:00:03Z'",
            "heartbeats has 4 rows, but stored 5 + stored by replay 0 = 5; off by -1.",
        ),
        (
            'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
            " VALUES ('x', '2026-01-01T11:00:00Z', 1)",
            "off by +1.",
        ),
    ],
)
def test_rows_are_counted_only_when_asked(
    engine: Engine, shelf: Shelf, statement: str, words: str
) -> None:
    execute(engine, statement)
    assert read_books(engine).balanced
    problem, *_ = read_books(engine, deep=True).problems
    assert words in problem


def test_what_a_replay_stored_is_expected_among_the_rows(
    engine: Engine, shelf: Shelf
) -> None:
    shelf.book(record("late", timestamp="2026-01-01T13:00:00Z"))
    later = NOW.replace(hour=13)
    replay(engine, RULES.at(later, max_future_seconds=1, retention_days=None), later)
    books = read_books(engine, deep=True)
    assert books.rows == Rows(counted=6, replayed=1)
    assert books.balanced


def test_many_days_are_counted_in_parts(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DAYS_A_COUNT", 2)
    for day in range(1, 6):
        shelf.book(record(timestamp=f"2025-12-0{day}T00:00:00Z"))
    books = read_books(engine, deep=True)
    assert books.rows == Rows(10, 0)
    assert books.balanced


@pytest.mark.parametrize("deep", [False, True])
def test_a_worker_may_write_meanwhile(engine: Engine, shelf: Shelf, deep: bool) -> None:
    """After each statement of the reading a batch comes: a beat and a dead letter."""
    seen = shelf.next_offset
    batches: list[Written] = []

    def listen(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        nonlocal seen
        batches.append(shelf.book(*seconds(1, start=20 + len(batches)), None))
        if statement.startswith("LOCK"):  # before the snapshot is taken
            seen = shelf.next_offset

    event.listen(engine, "after_cursor_execute", listen)
    books = read_books(engine, deep=deep)
    event.remove(engine, "after_cursor_execute", listen)

    assert len(batches) >= 2
    assert books.problems == []
    assert books.partitions[0].next_offset == seen
    assert read_books(engine, deep=True).balanced


def test_the_books_are_only_read(engine: Engine, shelf: Shelf) -> None:
    with (
        module.snapshot_of(engine) as connection,
        pytest.raises(DBAPIError, match="read-only"),
    ):
        connection.exec_driver_sql("DELETE FROM dead_letters")


def test_old_books_are_put_aside_as_the_document_says(
    engine: Engine, worker_engine: Engine
) -> None:
    two, three = (
        Shelf(worker_engine, topic="heartbeats", partition=number) for number in (2, 3)
    )
    for shelf in (two, three):
        shelf.book(record(), None, b"{")
    execute(engine, "DELETE FROM dead_letters WHERE reason = 'empty'")
    execute(
        engine,
        "INSERT INTO dropped_dead_letters (topic_id, partition, letters)"
        " VALUES ('topic-id', 2, 1), ('topic-id', 3, 1)",
    )
    words = (PROJECT / "docs" / "how-to" / "troubleshooting.md").read_text()
    [statements] = re.findall(r"BEGIN;\n(.*?)COMMIT;", words, re.DOTALL)
    execute(engine, statements)
    books = read_books(engine, deep=True)
    assert books.balanced
    assert {(each.topic_id, each.partition) for each in books.partitions} == {
        ("topic-id-lost", 2),
        ("topic-id", 3),
    }
    assert [each.dropped_dead_letters for each in books.partitions] == [1, 1]
