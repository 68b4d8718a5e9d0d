"""Our reading of Grafana's macros is Grafana's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from testkit.grafana_macros import View, expand, interval

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
VIEW = View(NOON, NOON + timedelta(seconds=90.5), "15s", {"who": "O'Brien $who"})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("$__interval_ms ms", "15000 ms"),
        ("$__interval", "15s"),
        (
            "$__timeFilter(minute)",
            "minute BETWEEN '2025-01-01T12:00:00Z' AND '2025-01-01T12:01:30.5Z'",
        ),
        ("$__timeFrom()::timestamptz", "'2025-01-01T12:00:00Z'::timestamptz"),
        ("$__timeTo()", "'2025-01-01T12:01:30.5Z'"),
        ("$__unixEpochTo() - $__unixEpochFrom()", "1735732890 - 1735732800"),
        ("$__timeGroupAlias(t, 5m)", 'floor(extract(epoch from t)/300)*300 AS "time"'),
        ("'$who' '${who}'", "'O''Brien $who' 'O''Brien $who'"),
        (r"~ '\d$'", r"~ '\d$'"),
    ],
)
def test_it_is_filled_in(query: str, expected: str) -> None:
    assert expand(query, VIEW) == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("$__timeFilters(x)", "unknown macro '__timeFilters'"),
        ("$__timeFrom", "without its parentheses"),
        ("'$whom'", "unknown variable 'whom'"),
    ],
)
def test_what_is_not_known_is_an_error(query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expand(query, VIEW)


@pytest.mark.parametrize(
    ("span", "points", "expected"),
    [
        (timedelta(minutes=5), 300, "1s"),
        (timedelta(hours=6), 300, "1m"),
        (timedelta(hours=6), 1_500, "15s"),
        (timedelta(days=7), 300, "30m"),
        (timedelta(days=30), 300, "2h"),
        (timedelta(days=365), 300, "1d"),
        (timedelta(days=365 * 20), 10, "365d"),
    ],
)
def test_the_step_is_the_one_that_grafana_chooses(
    span: timedelta, points: int, expected: str
) -> None:
    assert interval(span, points) == expected


def test_no_step_is_smaller_than_the_panel_allows() -> None:
    view = View.of(NOON, NOON + timedelta(minutes=5), points=300, least="1m")
    assert view.interval == "1m"
