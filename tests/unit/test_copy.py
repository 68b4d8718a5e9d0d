"""The rows for COPY say what the beats are; PostgreSQL's own reading: integration."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.storage.db.copy import beats_rows, numbered_beats_rows
from tests.copied import fields, instant, integer
from tests.storing import beat


@given(
    st.lists(
        st.builds(
            beat,
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
            rate=st.integers(1, 300),
            at=st.datetimes(
                min_value=datetime(2000, 1, 2),
                max_value=datetime(9999, 12, 30),
                timezones=st.builds(
                    lambda minutes: timezone(timedelta(minutes=minutes)),
                    st.integers(-1439, 1439),
                ),
            ),
        ),
        max_size=5,
    )
)
@example([beat("\\N"), beat("\t\n"), beat("é💓" * 100), beat("\\."), beat("\\N")])
def test_every_beat_is_a_row(beats: list[Heartbeat]) -> None:
    rows = fields(beats_rows(beats))
    numbered = fields(numbered_beats_rows(beats))
    assert [integer(row[0]) for row in numbered] == list(range(len(beats)))
    assert [row[1:] for row in numbered] == rows
    for (customer_id, timestamp, rate), each in zip(rows, beats, strict=True):
        assert customer_id.decode() == each.customer_id
        assert instant(timestamp) == each.timestamp
        assert integer(rate) == each.heart_rate


@pytest.mark.parametrize(
    "zone",
    [
        UTC,
        timezone(timedelta(hours=23, minutes=59)),
        timezone(-timedelta(hours=23, minutes=59)),
        ZoneInfo("Europe/Berlin"),
    ],
)
def test_the_offset_is_taken_into_account(zone: timezone | ZoneInfo) -> None:
    at = datetime(2026, 1, 1, 0, 30, 0, 123456, tzinfo=zone)
    [[_, timestamp, _]] = fields(beats_rows([beat(at=at)]))
    assert instant(timestamp) == at


def test_no_beats_are_no_rows() -> None:
    assert fields(beats_rows([])) == fields(numbered_beats_rows([])) == []
