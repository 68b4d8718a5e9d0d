"""Any bytes give a beat or a refusal with a stable code and words, never an error."""

from __future__ import annotations

import json
import re
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import (
    EARLIEST,
    LARGE_BYTES,
    Reason,
    Refusal,
    Rules,
    check,
)
from tests.fuzz.verdict import NOW, RETENTION, RULES, hold
from tests.record_strategies import ANY_VALUE, RIGHT

DOCS = Path(__file__).parents[2] / "docs" / "reference"

# What only the database can decide; tests/integration reach these.
DECIDED_ELSEWHERE = {
    Reason.TOO_MANY_DAYS,
    Reason.CONFLICT,
    Reason.REJECTED_BY_DATABASE,
    Reason.CUSTOMER_ERASED,
    Reason.TOO_LARGE,
    Reason.UNREADABLE_BATCH,
}


def record(
    customer_id: str = '"customer-0042"',
    timestamp: str = '"2026-01-01T00:00:00.123+00:00"',
    heart_rate: str = "72",
    more: str = "",
) -> bytes:
    """A record of these pieces of JSON."""
    return (
        f'{{"customer_id": {customer_id}, "timestamp": {timestamp}, '
        f'"heart_rate": {heart_rate}{more}}}'
    ).encode()


def beat(value: bytes | None, rules: Rules = RULES) -> Heartbeat:
    """The beat of a record that is accepted."""
    found = hold(value, rules)
    assert isinstance(found, Heartbeat), found
    return found


def refusal(value: bytes | None, rules: Rules = RULES) -> Refusal:
    """The refusal of a record that is not."""
    found = hold(value, rules)
    assert isinstance(found, Refusal), found
    return found


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# What is refused, why, and a piece of what a person reads.
REFUSED: list[tuple[Reason, bytes | None, str]] = [
    (Reason.EMPTY, None, "tombstone"),
    (Reason.EMPTY, b"", "0 bytes"),
    (Reason.NOT_JSON, b"\x00", "not JSON"),
    (Reason.NOT_JSON, b" ", "not JSON"),
    (Reason.NOT_JSON, b"beat", "not JSON"),
    (Reason.NOT_JSON, b"{", "not JSON"),
    (Reason.NOT_JSON, record()[:-1], "not JSON"),
    (Reason.NOT_JSON, record() + b"x", "Extra data"),
    (Reason.NOT_JSON, record() + record(), "Extra data"),
    (Reason.NOT_JSON, record(more=","), "not JSON"),
    (Reason.NOT_JSON, b"customer-0042,2026-01-01T00:00:00Z,72", "not JSON"),
    (Reason.NOT_JSON, record().replace(b'"', b"'"), "not JSON"),
    (Reason.NOT_JSON, b"\xef\xbb\xbf" + record(), "BOM"),
    (Reason.NOT_JSON, record().decode().encode("utf-16"), "not UTF-8: byte 0"),
    (Reason.NOT_JSON, b"\xff", "not UTF-8: byte 0 of 1 is 0xff"),
    (Reason.NOT_JSON, b'{"customer_id": "\xed\xa0\x80"}', "not UTF-8: byte 17"),
    (Reason.NOT_JSON, record().decode().encode("utf-16-le"), "not JSON"),
    (Reason.NOT_JSON, record().decode().encode("utf-16-be"), "not JSON"),
    (Reason.NOT_JSON, record().decode().encode("utf-32"), "not UTF-8"),
    (Reason.NOT_JSON, record('"é"').decode().encode("latin-1"), "is 0xe9"),
    (Reason.NOT_JSON, record('"\xe9"').decode().encode("cp1252"), "is 0xe9"),
    # The decoder does not look into fields that it ignores.
    (Reason.NOT_JSON, record(more=', "x": "X"').replace(b"X", b"\xff"), "0xff"),
    (Reason.NOT_JSON, record(more=', "X": 1').replace(b"X", b"\xed\xa0\x80"), "0xed"),
    (Reason.NOT_JSON, record('"a\tb"'), "control character"),
    (Reason.NOT_JSON, record(heart_rate="072"), "not JSON"),
    (Reason.NOT_JSON, record(more=', "x": NaN'), "NaN is no number"),
    (Reason.NOT_JSON, record(heart_rate="NaN"), "NaN is no number"),
    (Reason.NOT_JSON, record(heart_rate="-Infinity"), "-Infinity is no number"),
    (Reason.NOT_JSON, record(more=', "x": "\\ud800"'), "lone surrogate"),
    (Reason.NOT_JSON, record(more=', "\\udfff": 1'), "lone surrogate"),
    (Reason.NESTED_TOO_DEEPLY, nested(100_000).encode(), "deeply"),
    (Reason.NESTED_TOO_DEEPLY, b"[" * 100_000, "deeply"),
    (Reason.NESTED_TOO_DEEPLY, b'{"a":' * 100_000, "deeply"),
    (Reason.NESTED_TOO_DEEPLY, record(more=', "x": ' + nested(100_000)), "deeply"),
    (Reason.NOT_AN_OBJECT, b"[]", "a list"),
    (Reason.NOT_AN_OBJECT, b"[" + record() + b"]", "a list"),
    (Reason.NOT_AN_OBJECT, b"72", "a number"),
    (Reason.NOT_AN_OBJECT, b"7.2", "a number"),
    (Reason.NOT_AN_OBJECT, b'"beat"', "a text"),
    (Reason.NOT_AN_OBJECT, b"null", "null"),
    (Reason.NOT_AN_OBJECT, b"true", "true or false"),
    (Reason.MISSING_FIELD, b"{}", "customer_id"),
    (Reason.MISSING_FIELD, b'{"customer_id": "a", "heart_rate": 72}', "timestamp"),
    (
        Reason.MISSING_FIELD,
        b'{"customer_id": "a", "timestamp": "2026-01-01T00:00:00Z"}',
        "heart_rate",
    ),
    (
        Reason.MISSING_FIELD,
        b'{"Customer_ID": "a", "timestamp": "2026-01-01T00:00:00Z", "heart_rate": 1}',
        "customer_id",
    ),
    (Reason.WRONG_TYPE, record(customer_id="42"), "customer_id is a number"),
    (Reason.WRONG_TYPE, record(customer_id="null"), "customer_id is null"),
    (Reason.WRONG_TYPE, record(customer_id='["a"]'), "customer_id is a list"),
    (Reason.WRONG_TYPE, record(customer_id="{}"), "customer_id is an object"),
    (Reason.WRONG_TYPE, record(timestamp="1767225600"), "timestamp is a number"),
    (Reason.WRONG_TYPE, record(timestamp="1767225600.5"), "timestamp is a number"),
    (Reason.WRONG_TYPE, record(timestamp="null"), "timestamp is null"),
    (Reason.WRONG_TYPE, record(heart_rate='"72"'), "heart_rate is a text"),
    (Reason.WRONG_TYPE, record(heart_rate="null"), "heart_rate is null"),
    (Reason.WRONG_TYPE, record(heart_rate="true"), "heart_rate is true or false"),
    (Reason.WRONG_TYPE, record(heart_rate="[72]"), "heart_rate is a list"),
    (Reason.HEART_RATE_NOT_WHOLE, record(heart_rate="72.5"), "72.5"),
    (Reason.HEART_RATE_NOT_WHOLE, record(heart_rate="72.0"), "72.0"),
    (Reason.HEART_RATE_NOT_WHOLE, record(heart_rate="7.2e1"), "7.2e1"),
    (Reason.HEART_RATE_NOT_WHOLE, record(heart_rate="1e400"), "1e400"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate="0"), "1 to 300"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate="-0"), "1 to 300"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate="-72"), "is -72"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate="301"), "is 301"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate=str(2**31)), "2147483648"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate=str(2**64)), "19 digits"),
    (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate="9" * 4000), "19 digits"),
    # Of a repeated field each has to be valid.
    (Reason.HEART_RATE_OUT_OF_RANGE, record(more=', "heart_rate": 0'), "is 0"),
    (
        Reason.HEART_RATE_OUT_OF_RANGE,
        record(heart_rate="0", more=', "heart_rate": 72'),
        "is 0",
    ),
    (Reason.WRONG_TYPE, record("1", more=', "customer_id": "a"'), "customer_id is"),
    (Reason.CUSTOMER_ID_LENGTH, record(customer_id='""'), "0 characters"),
    (Reason.CUSTOMER_ID_LENGTH, record(f'"{"a" * 256}"'), "256 characters"),
    (Reason.CUSTOMER_ID_LENGTH, record(f'"{"a" * 70_000}"'), "70,000 characters"),
    (Reason.CUSTOMER_ID_CHARACTERS, record('"a\\u0000b"'), "U+0000"),
    (Reason.CUSTOMER_ID_CHARACTERS, record('"\\u0000"'), "U+0000"),
    (Reason.CUSTOMER_ID_CHARACTERS, record('"\\ud800"'), "lone surrogate"),
    (Reason.CUSTOMER_ID_CHARACTERS, record('"a\\udc00\\ud800"'), "lone surrogate"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='""'), "''"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"now"'), "'now'"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01T00:00Z"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-02-30T00:00:00Z"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01T24:00:00Z"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2016-12-31T23:59:60Z"'), "leap"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01T00:00:00,5Z"'), "3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01T00:00:00+24:00"'), "3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"\\u0000\\ud800"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp=f'"{"2" * 70_000}"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"0000-01-01T00:00:00Z"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"1767225600"'), "RFC 3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01T00:00:00+05:60"'), "3339"),
    (Reason.TIMESTAMP_INVALID, record(timestamp='"2026-01-01T00:00:00+05"'), "3339"),
    (
        Reason.TIMESTAMP_INVALID,  # rounded, it is an instant of the year 10000
        record(timestamp='"9999-12-31T23:59:59.9999995Z"'),
        "RFC 3339",
    ),
    (Reason.TIMESTAMP_NO_OFFSET, record(timestamp='"2026-01-01T00:00:00"'), "offset"),
    (
        Reason.TIMESTAMP_NO_OFFSET,
        record(timestamp='"2026-01-01 00:00:00.5"'),
        "offset",
    ),
    (Reason.TIMESTAMP_TOO_OLD, record(timestamp='"1999-12-31T23:59:59.999Z"'), "2000"),
    (Reason.TIMESTAMP_TOO_OLD, record(timestamp='"2000-01-01T00:59:59+01:00"'), "2000"),
    (Reason.TIMESTAMP_TOO_OLD, record(timestamp='"0001-01-01T00:00:00+23:59"'), "2000"),
    (Reason.TIMESTAMP_IN_FUTURE, record(timestamp='"2026-01-01T12:05:01Z"'), "future"),
    (
        Reason.TIMESTAMP_IN_FUTURE,
        record(timestamp='"9999-12-31T23:59:59-23:59"'),
        "future",
    ),
]


@pytest.mark.parametrize(("reason", "value", "words"), REFUSED)
def test_refuses_with_reason_and_words(
    reason: Reason, value: bytes | None, words: str
) -> None:
    found = refusal(value)
    assert (found.reason, words in found.detail) == (reason, True), found


@pytest.mark.parametrize("depth", range(100, 1_300, 100))
def test_refuses_whatever_it_takes_to_say_why(depth: int) -> None:
    """To explain a record goes deeper into it than the decoder went."""
    deep = '{"a": ' * depth + "1" + "}" * depth
    more = f', "x": "\\ud800", "y": {deep}'
    found = refusal(record(more=more))
    assert found.reason in {Reason.NOT_JSON, Reason.NESTED_TOO_DEEPLY}


def test_refuses_what_lies_before_the_retention() -> None:
    rules = Rules.at(NOW, max_future_seconds=300, retention_days=30)
    too_old = record(timestamp='"2025-12-02T11:59:59.999999Z"')
    found = refusal(too_old, rules)
    assert found.reason is Reason.TIMESTAMP_PAST_RETENTION
    assert "2025-12-02 12:00:00+0000" in found.detail
    assert beat(record(timestamp='"2025-12-02T12:00:00Z"'), rules)
    assert beat(too_old)  # none is set: kept for ever


def test_every_reason_is_reached() -> None:
    reached = {reason for reason, _, _ in REFUSED} | {Reason.TIMESTAMP_PAST_RETENTION}
    assert reached | DECIDED_ELSEWHERE == set(Reason)


@pytest.mark.parametrize(
    "customer_id",
    [
        "a",
        "a" * 255,
        "é" * 255,
        "\U0001f493" * 255,
        " leading and trailing ",
        "tab\there",
        "line\nbreak\r\n",
        "back\\slash",
        "\\N",
        "NULL",
        'quo"te',
        "\x01\x7f",
        "\u202e\ufeff\uffff",
        "'; DROP TABLE heartbeats; --",
    ],
)
def test_keeps_customer_ids_byte_for_byte(customer_id: str) -> None:
    assert beat(record(json.dumps(customer_id))).customer_id == customer_id
    raw = json.dumps(customer_id, ensure_ascii=False)
    assert beat(record(raw)).customer_id == customer_id


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01t00:00:00z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01 00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T00:00:00-00:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T05:30:00+05:30", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T05:30:00+0530", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T14:00:00+14:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2025-12-31T10:00:00-14:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T14:01:00+14:01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2025-12-31T08:01:00-15:59", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T12:28:59+23:59", datetime(2025, 12, 31, 12, 29, 59, 0, UTC)),
        ("2026-01-01T16:00:00+16:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T00:00:00.5Z", datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)),
        (
            "2024-02-29T23:59:59.999999Z",
            datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC),
        ),
        ("2000-01-01T00:00:00Z", EARLIEST),
        ("1999-12-31T23:00:00-01:00", EARLIEST),
        ("2026-01-01T12:05:00Z", NOW + timedelta(seconds=300)),
    ],
)
def test_keeps_instants_exactly(written: str, instant: datetime) -> None:
    assert beat(record(timestamp=f'"{written}"')).timestamp == instant


@pytest.mark.parametrize(
    ("fraction", "microsecond"),
    [
        ("1234564", 123_456),
        ("1234565", 123_457),
        ("123456499999999999", 123_456),
        ("0000005", 1),
        ("00000049", 0),
    ],
)
def test_rounds_what_is_finer_than_a_microsecond(
    fraction: str, microsecond: int
) -> None:
    found = beat(record(timestamp=f'"2026-01-01T00:00:00.{fraction}Z"'))
    assert found.timestamp.microsecond == microsecond


def test_rounds_up_into_the_next_day() -> None:
    found = beat(record(timestamp='"2025-12-31T23:59:59.9999999Z"'))
    assert found.timestamp == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("heart_rate", [1, 2, 72, 299, 300])
def test_takes_heart_rates_from_1_to_300(heart_rate: int) -> None:
    assert beat(record(heart_rate=str(heart_rate))).heart_rate == heart_rate


@pytest.mark.parametrize(
    "value",
    [
        record(more=', "device": {"id": [1, null, "x"]}, "x": 1e999'),
        record(more=f', "x": {"9" * 5_000}, "": -0.0e-0, "é": "\\ud83d\\ude00"'),
        record(more=f', "x": "{"é" * 500_000}"'),
        record('"first"', more=', "customer_id": "customer-0042"'),
        b" \t\r\n" + record() + b"\n",
        b'{"heart_rate":72,"timestamp":"2026-01-01T00:00:00.123Z",'
        b'"customer_id":"customer-0042"}',
        b'{"\\u0063ustomer_id":"customer-0042","heart_rate":72,'
        b'"timestamp":"2026-01-01T00:00:00.123Z"}',
    ],
)
def test_takes_any_form_of_the_same_record(value: bytes) -> None:
    assert beat(value) == beat(record())


def test_the_bounds_move_with_the_moment_that_is_passed_in() -> None:
    value = record(timestamp='"2026-01-01T12:10:00Z"')
    later = Rules.at(
        NOW + timedelta(minutes=5), max_future_seconds=300, retention_days=None
    )
    assert refusal(value).reason is Reason.TIMESTAMP_IN_FUTURE
    assert beat(value, later)


def test_retention_never_reaches_before_2000() -> None:
    rules = Rules.at(NOW, max_future_seconds=300, retention_days=36_500)
    assert rules.earliest == EARLIEST
    assert refusal(record(timestamp='"1999-12-31T00:00:00Z"'), rules).reason is (
        Reason.TIMESTAMP_TOO_OLD
    )


@settings(max_examples=500)
@given(ANY_VALUE, st.sampled_from([RULES, RETENTION]))
@example(record(customer_id='"' + "\\ud800" * 300 + '"'), RULES)
@example(record(timestamp='"' + "\\u0000" * 300 + '"'), RULES)
def test_any_bytes_give_what_the_documents_say(
    value: bytes | None, rules: Rules
) -> None:
    """A beat or a refusal, never an error, and with neighbours as it is alone."""
    hold(value, rules)


@settings(max_examples=200)
@given(ANY_VALUE, st.booleans())
@example(record(heart_rate="301", more=', "note": "\\ud800"'), False)
@example(b'{"customer_id": "\\ud800", "heart_rate": 72}', True)
@example(b'["\\ud800"]', False)
@example(record(heart_rate="301", more=', "heart_rate": 72'), False)
@example(record(more=', "timestamp": 1, "timestamp": "2026-01-01T00:00:00Z"'), True)
def test_a_large_record_gets_no_other_reasons(value: bytes | None, first: bool) -> None:
    """Blanks, which say nothing, make it one."""
    blanks = b" " * LARGE_BYTES
    hold(blanks + (value or b"") if first else (value or b"") + blanks)


@given(RIGHT)
def test_every_valid_beat_comes_through(value: bytes) -> None:
    assert isinstance(hold(value), Heartbeat)


def test_every_reason_is_documented_and_no_other() -> None:
    text = (DOCS / "dead-letters.md").read_text()
    text = text.partition("## Reasons")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([a-z_0-9]+)` \|", text, re.MULTILINE)
    assert documented == [reason.value for reason in Reason]


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        (Reason.NOT_AN_OBJECT, b"[" + b"[]," * 300_000 + b"1]"),
        (Reason.NOT_JSON, b"[" + b"{}," * 300_000 + b"]"),
        (Reason.NOT_JSON, b"x" * 900_000),
        (Reason.NOT_JSON, b"\xff" * 900_000),
        (Reason.NESTED_TOO_DEEPLY, b"[" * 900_000),
        (Reason.MISSING_FIELD, b"{" + b'"a":{},' * 130_000 + b'"b":1}'),
        (Reason.WRONG_TYPE, record(customer_id="[" + "[]," * 300_000 + "1]")),
        (Reason.WRONG_TYPE, record(more=', "note": [' + "[]," * 300_000 + "1]",
                                   timestamp="1")),
        (Reason.CUSTOMER_ID_LENGTH, record(customer_id='"' + "a" * 900_000 + '"')),
        (Reason.TIMESTAMP_INVALID, record(timestamp='"' + "a" * 900_000 + '"')),
        (Reason.HEART_RATE_OUT_OF_RANGE, record(heart_rate="1" * 900_000)),
        (Reason.NOT_JSON, record(heart_rate="301", more=', "note": ["\\ud800", '
                                 + "[]," * 300_000 + "1]")),
        (Reason.HEART_RATE_NOT_WHOLE, record(heart_rate="1." + "1" * 900_000)),
    ],
)  # fmt: skip
def test_to_explain_a_large_record_takes_little(reason: Reason, value: bytes) -> None:
    tracemalloc.start()
    try:
        found = check(value, RULES)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, Refusal)
    assert found.reason is reason
    assert most < 6 * len(value)
    assert len(found.detail) < 300
