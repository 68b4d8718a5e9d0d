"""Dead letters that hold an excerpt of a record, or stand for a whole batch."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, func, select

from heartbeat_app.cli import report
from heartbeat_app.domain.batches import Batch, Refused, Unreadable
from heartbeat_app.domain.excerpts import excerpt
from heartbeat_app.domain.validation import Reason, Refusal, Rules
from heartbeat_app.storage.operator.erase import erase
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.write.dead_letters import get_letter, list_letters
from heartbeat_app.storage.write.writer import Writer
from tests.storing import Kept, Received, batch_of, beat, beats

pytestmark = pytest.mark.integration

NOW = datetime(2026, 1, 1, 13, tzinfo=UTC)
PAD = "." * 10_000


def large(offset: int, customer: str) -> Refused:
    """A valid beat that is too large, whose customer stands behind what is kept."""
    value = json.dumps(
        {
            "pad": PAD,
            "customer_id": customer,
            "timestamp": "2026-01-01T12:00:00Z",
            "heart_rate": 70,
        }
    )
    return Refused(
        excerpt(Received(offset, value.encode())),
        Refusal(Reason.TOO_LARGE, "The record is too large."),
    )


def batch() -> Batch:
    """Five beats, two large records, and a thousand offsets that cannot be read."""
    return replace(
        batch_of(beats(5), position=1_007),
        refused=[large(5, "anna"), large(6, "bea")],
        unreadable=[Unreadable(7, 1_006, "It does not decompress.")],
    )


def test_one_letter_stands_for_a_batch(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    written = writer.write(batch())
    assert (written.consumed, written.dead, written.unreadable) == (7, 2, 1_000)
    assert kept.letters() == [
        (5, "too_large"),
        (6, "too_large"),
        (7, "unreadable_batch"),
    ]
    books = read_books(engine, deep=True)
    assert (books.problems, books.total.unreadable) == ([], 1_000)
    assert (books.total.dead, books.total.gap, books.total.missing) == (2, 0, 0)
    # A part of it that was stored before is not stored again, nor counted.
    again = replace(batch(), position=1_010, unreadable=[Unreadable(7, 1_009, "")])
    assert writer.write(again).unreadable == 3
    assert kept.letters()[3:] == [(1_007, "unreadable_batch")]
    assert read_books(engine).problems == []
    kept.do("DELETE FROM dead_letters WHERE last_offset = 1009")
    [problem] = read_books(engine).problems
    assert "unreadable 1,003, but" in problem
    assert "about 1,000 offsets; off by -3." in problem


def test_a_batch_in_parts_keeps_it_once(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    whole = batch()
    for records in (3, 2, 1, 1):
        part = whole.first(records)
        writer.write(part)
        assert read_books(engine).problems == []
        if part is not whole:
            whole = whole.since(part.position)
    assert len(kept.letters()) == 3
    assert kept.book().next_offset == 1_007


def test_what_was_kept_is_shown(writer: Writer, engine: Engine) -> None:
    writer.write(batch())
    unread, _, first = list_letters(engine, limit=3)
    table = report.letters_table([unread, first], {"too_large": 2})
    assert "beats[0]@7-1006" in table
    assert "beats[0]@5 " in table
    found = get_letter(engine, first.id)
    assert found is not None
    letter, contents = found
    whole = large(5, "anna").record
    assert contents.value == whole.value
    text = report.letter_text(letter, contents)
    assert f"{letter.record_size:,} bytes" in text
    assert 'customers   ["anna"]' in text
    assert str(letter.record_sha256) in text
    assert json.loads(report.letter_json(letter, contents))["customer_ids"] == ["anna"]
    found = get_letter(engine, unread.id)
    assert found is not None
    assert "1,000 offsets that could not be read" in report.letter_text(*found)


def test_a_replay_leaves_them_and_says_so(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    writer.write(batch())
    rules = Rules.at(NOW, max_future_seconds=300, retention_days=None)
    found = replay(engine, rules, NOW)
    assert (found.pending, found.incomplete) == (0, 3)
    assert report.replayed(found, dry_run=False) == (
        "There is nothing to replay. 3 more dead letters cannot be replayed: their "
        "records are not kept whole."
    )
    assert len(kept.letters()) == 3
    assert kept.all("SELECT FROM dead_letters WHERE replay_outcome IS NULL") == [()] * 3


def test_who_is_named_behind_the_excerpt_is_erased(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    writer.write(batch())
    assert (erase(engine, "anna").letters, erase(engine, "anna").letters) == (1, 1)
    assert kept.all(
        "SELECT key, value, headers, customer_ids, record_sha256, replay_outcome"
        ' FROM dead_letters WHERE "offset" = 5'
    ) == [(None, None, [], None, None, "erased")]
    assert kept.all(
        "SELECT customer_ids, record_sha256 IS NULL FROM dead_letters"
        ' WHERE "offset" = 6'
    ) == [(["bea"], False)]
    # And does not come again.
    writer.write(
        replace(batch_of([beat("x", 9)], asked=1_007), refused=[large(1_008, "anna")],
        position=1_009)
    )  # fmt: skip
    assert kept.letters()[-1] == (1_008, "customer_erased")
    assert kept.all(
        'SELECT value, customer_ids FROM dead_letters WHERE "offset" = 1008'
    ) == [(None, None)]
    assert read_books(engine, deep=True).problems == []


def test_the_retention_counts_what_it_drops(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    writer.write(batch())
    kept.do(
        "UPDATE dead_letters SET first_seen = '2020-01-01Z' WHERE \"offset\" > 5",
        "INSERT INTO retention VALUES ('dead_letters', 1)",
    )
    with engine.begin() as connection:
        dropped = connection.scalar(select(func.drop_dead_letters(func.now(), 10)))
    assert dropped == 2
    [[letters, offsets]] = kept.all(
        "SELECT letters, unreadable FROM dropped_dead_letters"
    )
    assert (letters, offsets) == (1, 1_000)
    assert read_books(engine).problems == []
