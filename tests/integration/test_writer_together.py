"""Small batches of several partitions share a transaction, or none of it is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.batches import Batch
from heartbeat_app.exceptions import ApartError, LedgerWentBackError
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.write import writer as storage_writer
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.trouble import Trouble
from heartbeat_app.storage.write.writer import Writer, Written
from tests.storing import START, TOPIC, TOPIC_ID, Kept, batch_of, beat, beats, rows_of

pytestmark = pytest.mark.integration


@pytest.fixture
def writer(make_writer: Callable[..., Writer], engine: Engine) -> Writer:
    """One that has written on that day before, to three partitions."""
    writer = make_writer()
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0, 1: 0, 2: 0})
    ensure_days(engine, [START.date()])
    writer._known_days.add(START.date())
    return writer


def three(first: int = 0) -> list[Batch]:
    """Of three partitions, two beats and one that is refused in each."""
    return [
        batch_of(
            [*beats(2, first=first, customer=f"c{partition}"), None],
            asked=first // 2 * 3,
            partition=partition,
        )
        for partition in range(3)
    ]


def whats(written: Iterable[Written]) -> list[tuple[int, int, int]]:
    return [(each.stored, each.duplicate, each.dead) for each in written]


def test_batches_of_several_partitions_share_a_transaction(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    assert whats(writer.write_together(three())) == [(2, 0, 1)] * 3
    assert whats(writer.write_together(three(first=2))) == [(2, 0, 1)] * 3
    for partition in range(3):
        assert kept.book(partition).next_offset == 6
        assert kept.book(partition).stored == 4
    with engine.connect() as connection:
        transactions = connection.scalar(
            text("SELECT count(DISTINCT xmin::TEXT) FROM heartbeats")
        )
        arrived = connection.execute(
            text(
                "SELECT sum(batches), sum(consumed), sum(stored), sum(dead)"
                " FROM ingest_minute WHERE partition = 1"
            )
        ).one()
    assert transactions == 2
    assert tuple(arrived) == (2, 6, 4, 2)


def messages(writer: Writer) -> list[str]:
    """Grows by what is sent from now on, but for COPY."""
    seen: list[str] = []
    listen = lambda _, cursor, statement, *more: seen.append(statement)  # noqa: E731
    event.listen(writer._engine, "before_cursor_execute", listen)
    return seen


class Notices:
    """What the server says; no list, which SQLAlchemy would empty."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def append(self, notice: str) -> None:
        self.said.append(notice)


@pytest.fixture
def told(settings: Settings) -> Iterator[tuple[Engine, Notices]]:
    """An engine whose session has the server tell it each statement that it gets."""
    engine = make_engine(settings.owner, application_name="told")
    notices = Notices()

    @event.listens_for(engine, "connect")
    def listen(raw: Any, _: object) -> None:
        with raw.cursor() as cursor:
            cursor.execute("SET client_min_messages = log; SET log_statement = 'all'")
        raw.commit()
        raw.notices = notices

    yield engine, notices
    engine.dispose()


def test_a_small_transaction_waits_for_four_answers(
    told: tuple[Engine, Notices], kept: Kept
) -> None:
    """Longer than for PostgreSQL's work; COPY takes two of them."""
    engine, notices = told
    writer = Writer(engine)
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0, 1: 0})

    def two(first: int) -> list[Batch]:
        return [
            batch_of(
                beats(2, first=first, customer=f"c{partition}"),
                asked=first,
                partition=partition,
            )
            for partition in range(2)
        ]

    writer.write(two(0)[0])
    writer.write_together(two(0))
    writer.write_together(two(2))
    notices.said.clear()
    writer.write_together(two(4))
    begin, copy, rest = [
        each.partition("statement: ")[2].partition("\nDETAIL")[0].strip()
        for each in notices.said
        if "statement: " in each
    ]
    assert begin.startswith("BEGIN")
    assert copy.startswith("COPY")
    assert rest.endswith("; COMMIT")
    assert len(kept.beats()) == 12


def test_a_statement_is_planned_once_a_session(writer: Writer) -> None:
    seen = messages(writer)
    for first in (0, 2, 4):
        writer.write_together(three(first))
    prepared = [each for each in seen if each.startswith("PREPARE")]
    assert len(prepared) == len(set(prepared)) > 3
    assert sum("EXECUTE ledger_book" in each for each in seen) == 3


def test_what_was_stored_before_stays_as_it_is(writer: Writer, kept: Kept) -> None:
    one, two, three_ = three()
    writer.write(two)
    before = kept.book(1)
    written = writer.write_together([one, two, three_])
    assert whats(written) == [(2, 0, 1), (0, 0, 0), (2, 0, 1)]
    assert kept.book(1) == before
    assert whats(writer.write_together([one, two, three_])) == [(0, 0, 0)] * 3


def test_of_several_the_part_that_is_new_is_stored(writer: Writer, kept: Kept) -> None:
    writer.write(batch_of(beats(2, customer="c1"), partition=1))
    longer = batch_of(beats(5, customer="c1"), partition=1)
    assert whats(writer.write_together([three()[0], longer])) == [(2, 0, 1), (3, 0, 0)]
    assert kept.book(1).next_offset == 5


def test_what_is_not_all_new_goes_apart(writer: Writer, kept: Kept) -> None:
    writer.write(batch_of([beat("there")]))
    before = kept.everything()
    batches = [
        batch_of([beat("there"), beat("new")], asked=1),
        batch_of([beat("a")], partition=1),
    ]
    with pytest.raises(ApartError, match="not new"):
        writer.write_together(batches)
    assert kept.everything() == before
    assert whats(map(writer.write, batches)) == [(1, 1, 0), (1, 0, 0)]


def test_duplicates_and_conflicts_are_those_of_their_partition(
    writer: Writer, kept: Kept
) -> None:
    """Once a batch had some, those that follow are looked up together."""
    writer.write(batch_of([beat("there")]))
    writer.write(batch_of([beat("there")], asked=1))
    written = writer.write_together(
        [
            batch_of([beat("there"), beat("new")], asked=2),
            batch_of([beat("there", rate=99), beat("b")], partition=1),
            batch_of([beat("b"), beat("c")], partition=2),
        ]
    )
    assert whats(written) == [(1, 1, 0), (1, 0, 1), (1, 1, 0)]
    assert kept.beats() == rows_of([beat("there"), beat("new"), beat("b"), beat("c")])


def test_a_row_that_is_held_is_not_waited_for(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    """Whoever holds it must not hold up the other partitions."""
    before = kept.everything()
    with engine.begin() as other:
        other.execute(text("SELECT 1 FROM partition_ledger WHERE partition = 1"
                           " FOR UPDATE"))  # fmt: skip
        with pytest.raises(ApartError, match=r"\[1\]"):
            writer.write_together(three())
        assert kept.everything() == before
        assert writer.write(three()[0]).stored == 2


def test_a_ledger_that_went_back_stops_all_of_them(writer: Writer, kept: Kept) -> None:
    before = kept.everything()
    one, two, _ = three()
    with pytest.raises(LedgerWentBackError):
        writer.write_together([one, two, batch_of([beat()], asked=4, partition=2)])
    assert kept.everything() == before


def test_who_holds_several_rows_is_ended_once_for_all_of_them(
    writer: Writer, make_writer: Callable[..., Writer]
) -> None:
    """A worker that froze in a shared transaction; not a time-out for each row."""
    with make_writer("frozen")._engine.connect() as frozen:
        frozen.execute(text("SELECT 1 FROM partition_ledger FOR UPDATE"))
        with pytest.raises(ApartError):
            writer.write_together(three())
        one, two, _ = three()
        with pytest.raises(DBAPIError, match="lock timeout"):
            writer.write(one)
        began = time.monotonic()
        assert writer.write(two).stored == 2
        assert time.monotonic() - began < 4
        frozen.invalidate()
    assert writer.write(one).stored == 2
    assert whats(writer.write_together(three())) == [(0, 0, 0), (0, 0, 0), (2, 0, 1)]


def test_what_needs_more_than_a_transaction_goes_apart(
    writer: Writer, kept: Kept
) -> None:
    before = kept.everything()
    one, two, _ = three()
    with pytest.raises(ApartError, match="new days"):
        writer.write_together(
            [one, batch_of([beat(second=86_400)], partition=1)],
        )
    with pytest.raises(ApartError, match="made again"):
        writer.write_together(
            [one, batch_of([beat()], partition=1, topic_id="another")]
        )
    writer._troubles[TOPIC_ID, 1] = Trouble(two.asked, records=1)
    with pytest.raises(ApartError, match="was slow"):
        writer.write_together([one, two])
    assert kept.everything() == before
    assert writer.write(two).rest is not None


def test_what_is_slow_together_goes_apart(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_writer, "SLOW_SECONDS", 0.0)

    def fail(*arguments: object) -> None:
        raise RuntimeError("statement timeout")

    with monkeypatch.context() as broken:
        broken.setattr(writer, "_try", fail)
        with pytest.raises(RuntimeError):
            writer.write_together(three())
    with pytest.raises(ApartError, match="was slow"):
        writer.write_together(three())
    monkeypatch.undo()
    for batch in three():
        assert writer.write(batch).rest is None
    assert whats(writer.write_together(three(first=2))) == [(2, 0, 1)] * 3
