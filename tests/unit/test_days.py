"""Which days beats belong to, and which of the new ones may be made."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from heartbeat_app.storage.days import days
from heartbeat_app.storage.days.days import affordable, days_of
from tests.storing import beat

TODAY = date(2026, 1, 10)


def some_days(count: int, *, before: date = TODAY - timedelta(days=10)) -> set[date]:
    return {before - timedelta(days=n) for n in range(1, count + 1)}


@pytest.mark.parametrize(
    ("timestamp", "day"),
    [
        ("2026-01-01T00:00:00+00:00", date(2026, 1, 1)),
        ("2025-12-31T23:59:59.999999+00:00", date(2025, 12, 31)),
        ("2026-01-01T00:30:00+01:00", date(2025, 12, 31)),
        ("2025-12-31T23:30:00-01:00", date(2026, 1, 1)),
        ("2026-01-02T23:58:00+23:59", date(2026, 1, 1)),
        ("2025-12-31T00:01:00-23:59", date(2026, 1, 1)),
    ],
)
def test_a_beat_belongs_to_its_day_in_utc(timestamp: str, day: date) -> None:
    only = beat(at=datetime.fromisoformat(timestamp))
    assert days_of([only]) == {day}
    other = beat(at=datetime(2026, 3, 1, tzinfo=UTC))
    assert days_of([other, only, other]) == {day, date(2026, 3, 1)}


def test_days_between_the_first_and_the_last_are_not_made_up() -> None:
    found = [beat(at=datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 20, 5, 1)]
    assert days_of(found) == {date(2026, 1, 1), date(2026, 1, 5), date(2026, 1, 20)}


def test_offsets_do_not_hide_a_second_day() -> None:
    # The same date in words, and the earlier of them is the later one in time.
    plus, minus = timezone(timedelta(hours=12)), timezone(-timedelta(hours=12))
    found = [
        beat(at=datetime(2026, 1, 1, 6, tzinfo=plus)),
        beat(at=datetime(2026, 1, 1, 18, tzinfo=minus)),
    ]
    assert days_of(found) == {date(2025, 12, 31), date(2026, 1, 2)}


def test_no_beats_need_no_days() -> None:
    assert days_of([]) == set()


def test_a_new_day_is_made() -> None:
    assert affordable(some_days(3), existing=0, today=TODAY) == some_days(3)


def test_a_batch_makes_the_latest_days_up_to_its_limit() -> None:
    new = some_days(days.MAX_NEW_DAYS_A_BATCH + 5)
    made = affordable(new, existing=0, today=TODAY)
    assert made == some_days(days.MAX_NEW_DAYS_A_BATCH)


def test_all_days_together_have_a_limit() -> None:
    made = affordable(some_days(5), existing=days.MAX_DAYS - 2, today=TODAY)
    assert made == some_days(2)
    assert affordable(some_days(5), existing=days.MAX_DAYS, today=TODAY) == set()
    assert affordable(some_days(5), existing=days.MAX_DAYS + 9, today=TODAY) == set()


def test_days_around_today_are_always_made() -> None:
    near = {TODAY + timedelta(days=n) for n in range(-2, 3)}
    next_ones = {TODAY - timedelta(days=3), TODAY + timedelta(days=3)}
    made = affordable(near | next_ones, existing=days.MAX_DAYS + 9, today=TODAY)
    assert made == near


def test_days_around_today_do_not_use_up_the_limit_of_a_batch() -> None:
    new = some_days(days.MAX_NEW_DAYS_A_BATCH) | {TODAY}
    assert affordable(new, existing=0, today=TODAY) == new
