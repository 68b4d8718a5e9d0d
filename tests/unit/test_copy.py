"""The text for COPY says what the beats are; PostgreSQL's own reading: integration."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heartbeat_app.models import Heartbeat
from heartbeat_app.storage.copy import beats_text, escape, numbered_beats_text
from tests.storing import beat

# As PostgreSQL's documentation of COPY's text format has them.
_UNESCAPED = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def columns(text: str) -> list[list[str]]:
    """What COPY makes of a text: lines, columns, then the escapes."""
    assert text == "" or text.endswith("\n")
    return [
        [re.sub(r"\\.", lambda found: _UNESCAPED[found[0]], column) for column in line]
        for line in (line.split("\t") for line in text.split("\n")[:-1])
    ]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@example("\\N")
@example("\\.")
@example("\\")
@example("\t\n\r\\t")
@example("NULL")
def test_an_escaped_text_reads_back_unchanged(text: str) -> None:
    escaped = escape(text)
    assert "\t" not in escaped
    assert "\n" not in escaped
    assert columns(escaped + "\n") == [[text]]
    assert escaped != r"\N"  # COPY's NULL
    assert escaped != r"\."  # the end of its data


@given(
    st.lists(
        st.builds(
            beat,
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
            rate=st.integers(1, 300),
            at=st.datetimes(
                min_value=datetime(2000, 1, 2),
                max_value=datetime(2100, 1, 1),
                timezones=st.builds(
                    lambda minutes: timezone(timedelta(minutes=minutes)),
                    st.integers(-1439, 1439),
                ),
            ),
        ),
        max_size=5,
    )
)
def test_every_beat_is_a_line(beats: list[Heartbeat]) -> None:
    lines = columns(beats_text(beats))
    numbered = columns(numbered_beats_text(beats))
    assert numbered == [[str(index), *line] for index, line in enumerate(lines)]
    for line, each in zip(lines, beats, strict=True):
        assert line[0] == each.customer_id
        assert datetime.fromisoformat(line[1]) == each.timestamp
        assert line[2] == str(each.heart_rate)


@pytest.mark.parametrize(
    "zone",
    [
        timezone(timedelta(hours=23, minutes=59)),
        timezone(-timedelta(hours=23, minutes=59)),
        ZoneInfo("Europe/Berlin"),
    ],
)
def test_an_offset_that_postgresql_does_not_take_is_written_as_utc(
    zone: timezone | ZoneInfo,
) -> None:
    at = datetime(2026, 1, 1, 0, 30, 0, 123456, tzinfo=zone)
    [[_, timestamp, _]] = columns(beats_text([beat(at=at)]))
    assert timestamp.endswith("Z")
    assert datetime.fromisoformat(timestamp) == at


def test_one_other_offset_among_utc_is_seen() -> None:
    beats = [
        beat(at=datetime(2026, 1, 1, tzinfo=UTC)),
        beat(at=datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=20)))),
    ]
    assert [line[1] for line in columns(beats_text(beats))] == [
        "2026-01-01T00:00:00Z",
        "2025-12-31T04:00:00Z",
    ]


def test_no_beats_are_no_lines() -> None:
    assert beats_text([]) == numbered_beats_text([]) == ""
