"""The spans that a batch marks: all that it touched, and few."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.storage.rollup.marks import (
    CLOSE,
    MINUTE,
    RUN,
    STEPS,
    Span,
    day_span,
    merged,
    touched,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AFTERNOON = datetime(
    2026, 1, 1, 17, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))
)


def after(*seconds: float) -> list[datetime]:
    return [NOON + timedelta(seconds=each) for each in seconds]


def minutes(first: int, until: int) -> Span:
    return NOON + first * MINUTE, NOON + until * MINUTE


def holds(spans: Sequence[Span], timestamp: datetime) -> bool:
    return any(since <= timestamp < until for since, until in spans)


def test_nothing_touches_nothing() -> None:
    assert touched([]) == []


def test_a_beat_touches_its_minute() -> None:
    assert touched(after(0)) == [minutes(0, 1)]
    assert touched(after(59.999999)) == [minutes(0, 1)]
    assert touched(after(60)) == [minutes(1, 2)]


def test_close_ones_are_one_span() -> None:
    assert touched(after(10, 70, 5, 190)) == [minutes(0, 4)]


def test_late_ones_do_not_touch_what_lies_between() -> None:
    assert touched(after(0, 1, -3600, 2)) == [minutes(-60, -59), minutes(0, 1)]


def test_minutes_are_those_of_utc() -> None:
    assert touched([AFTERNOON + timedelta(seconds=61)]) == [minutes(1, 2)]
    assert touched([AFTERNOON, NOON - timedelta(hours=3)]) == [
        minutes(-180, -179),
        minutes(0, 1),
    ]
    [(since, _)] = touched([AFTERNOON])
    assert since.tzinfo is UTC


def test_a_recording_is_one_span() -> None:
    assert touched(after(*range(40 * RUN))) == [minutes(0, -(-40 * RUN // 60))]


def test_years_in_a_batch_leave_few_marks() -> None:
    days = 900
    found = touched(after(*(n * 86_400 / 16 for n in range(days * 16))))
    assert len(found) <= 2 * (STEPS + RUN) + days
    assert all(until - since <= timedelta(days=days + 2) for since, until in found)


def test_a_day() -> None:
    since, until = day_span(NOON.date())
    assert (since, until) == (NOON - timedelta(hours=12), NOON + timedelta(hours=12))


@given(
    st.lists(
        st.datetimes(
            datetime(2000, 1, 1),
            datetime(2030, 1, 1),
            timezones=st.sampled_from([UTC, AFTERNOON.tzinfo]),
        ),
        max_size=3 * RUN,
    )
)
def test_whatever_the_order_all_is_held(timestamps: list[datetime]) -> None:
    spans = touched(timestamps)
    assert all(holds(spans, each) for each in timestamps)
    assert spans == merged(spans)
    for since, until in spans:
        assert since.second == since.microsecond == until.second == 0


@given(st.lists(st.integers(-20_000, 20_000), max_size=RUN), st.randoms())
def test_little_else_is_held(seconds: list[int], choice: object) -> None:
    """Up to STEPS minutes a batch, no more than what lies between close ones."""
    timestamps = after(*seconds[:STEPS])
    spans = touched(timestamps)
    held = sum((until - since) // MINUTE for since, until in spans)
    assert held <= max(CLOSE // MINUTE + 2, len({each // 60 for each in seconds}))


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 1), (1, 2)], [(0, 2)]),
        ([(3, 4), (0, 2)], [(0, 2), (3, 4)]),
        ([(0, 9), (1, 2), (8, 10)], [(0, 10)]),
        ([(0, 1), (0, 1)], [(0, 1)]),
    ],
)
def test_spans_are_merged(
    spans: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    assert merged([minutes(*each) for each in spans]) == [
        minutes(*each) for each in expected
    ]
