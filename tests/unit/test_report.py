"""What commands print cannot harm a terminal, and says what happened."""

from __future__ import annotations

import json
import signal
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.cli import report
from heartbeat_app.cli.recordings import BadLine
from heartbeat_app.cli.sending import Tally
from heartbeat_app.exceptions import CommandError, ConfigurationError, printable
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.operator.replay import Replayed
from heartbeat_app.storage.write.dead_letters import Contents, Letter
from heartbeat_app.terminal.progress import ProgressDisplay

LETTER = Letter(
    id=17,
    topic="heartbeats",
    topic_id="abc",
    partition=2,
    offset=1234,
    reason="not_json",
    detail="The value is not JSON.",
    first_seen=datetime(2026, 1, 1, tzinfo=UTC),
    replayed_at=None,
    replay_outcome=None,
    size=3,
    record_size=None,
    record_sha256=None,
    customer_ids=None,
    last_offset=None,
)


@given(st.binary(), st.text(), st.text())
def test_no_letter_reaches_the_terminal_as_control_characters(
    value: bytes, detail: str, header: str
) -> None:
    letter = Letter(**{**fields(LETTER), "detail": detail})
    text = report.letter_text(letter, Contents(value, value, [["name", header]]))
    assert all(line.isprintable() for line in text.split("\n"))
    table = report.letters_table([letter], {"not_json": 1})
    assert len(table.split("\n")) == 3
    assert all(line.isprintable() for line in table.split("\n"))


def fields(letter: Letter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in Letter.__dataclass_fields__}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "value       none"),
        (b"", "value       0 bytes"),
        (b'{"a": "\x1b[2J"}', '{"a": "\\x1b[2J"}'),
        (b"back\\slash\n", "back\\\\slash\\n"),
        ("\u202eevil".encode(), "\\u202eevil"),
        ("käse".encode(), "käse"),
        (b"\xff\x00A", "3 bytes, not UTF-8\n00000000  ff 00 41"),
        (b"a" * 5000, "5,000 bytes, the first 4,096 (all: --json)"),
        ("é".encode() * 3000, "6,000 bytes, the first 4,096"),
    ],
)
def test_shows_what_was_received(value: bytes | None, words: str) -> None:
    assert words in report.letter_text(LETTER, Contents(None, value, []))


@given(st.one_of(st.none(), st.binary()))
def test_json_gives_all_bytes_back(value: bytes | None) -> None:
    import base64

    found = json.loads(report.letter_json(LETTER, Contents(value, None, None)))["key"]
    if isinstance(found, dict):
        assert base64.b64decode(found["base64"]) == value
    else:
        assert (None if found is None else found.encode()) == value


def test_says_what_kafka_acknowledged() -> None:
    assert report.sent(Tally(sent=9003, acknowledged=9003), "beats") == (
        "Kafka acknowledged 9,003 beats in beats."
    )
    words = report.sent(Tally(sent=1, acknowledged=1, bad_lines=2), "beats")
    assert words == "Kafka acknowledged 1 beat in beats. Passed over 2 bad lines."


def test_says_what_became_of_the_rest_when_stopped() -> None:
    tally = Tally(sent=10, acknowledged=4, withdrawn=5, stopped_by=signal.SIGINT)
    words = report.sent(tally, "beats")
    assert words.startswith("Stopped. Kafka acknowledged 4 beats in beats.")
    assert "5 beats did not leave any more" in words
    assert "1 beat may have arrived or not" in words


def test_a_failure_names_the_errors_and_how_many() -> None:
    tally = Tally(sent=10, acknowledged=5, failed=Counter({"Too big": 4, "Gone": 1}))
    words = report.sending_problem(tally)
    assert words is not None
    assert "5 beats of 10 were not acknowledged: Too big (4); Gone (1)." in words
    assert report.sending_problem(Tally(sent=10, acknowledged=10)) is None
    tally = Tally(sent=2, acknowledged=1, failed=Counter({"Gone": 1}))
    words = report.sending_problem(tally)
    assert words is not None
    assert words.startswith("1 beat of 2 was not acknowledged: Gone (1).")
    tally = Tally(sent=1, acknowledged=1, stopped_at=BadLine("a.csv", 3, 3, "Bad."))
    words = report.sending_problem(tally)
    assert words is not None
    assert "1 beat before it was acknowledged." in words
    assert report.sending(tally) == "1 beat acknowledged"


def test_a_bad_line_is_named_with_what_was_acknowledged_before() -> None:
    tally = Tally(
        sent=4, acknowledged=4, stopped_at=BadLine("walk.csv", 6, 6, "heart_rate is 0")
    )
    words = report.sending_problem(tally)
    assert words is not None
    assert words.startswith("walk.csv, line 6: heart_rate is 0\n")
    assert "4 beats before it were acknowledged" in words


def test_says_what_a_replay_did() -> None:
    result = Replayed(pending=4, outcomes=Counter({"stored": 3, "refused: empty": 1}))
    assert report.replayed(result, dry_run=False) == (
        "Replayed 4 dead letters: 3 stored, 1 refused: empty."
    )
    assert report.replayed(result, dry_run=True).endswith("Nothing was changed.")
    assert report.replayed(Replayed(), dry_run=False) == "There is nothing to replay."


ESCAPE = "beats\x1b[2J\x1b]0;x\x07\x9b1A\u202e\rb"


@given(st.text())
def test_what_is_printed_moves_no_terminal(text: str) -> None:
    shown = printable(text)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("\n") == text.count("\n")
    assert printable(shown) == shown
    if text.replace("\n", "").isprintable():
        assert shown == text


def test_an_error_moves_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (CommandError(ESCAPE), ConfigurationError(ESCAPE)):
        error.show()
    assert errors.words(ValueError(ESCAPE)).isprintable()
    display = ProgressDisplay("Sending")
    display.tell(ESCAPE)
    printed = capsys.readouterr().err
    assert all(line.isprintable() for line in printed.split("\n"))
    assert printed.count(r"beats\x1b[2J") == 3
