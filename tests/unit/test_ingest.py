"""The delays of a batch: sum, longest, histogram."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.storage.db.tables import DELAY_BOUNDS_SECONDS
from heartbeat_app.storage.rollup.ingest import Delays

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BUCKETS = len(DELAY_BOUNDS_SECONDS) + 1


def delays(seconds: Sequence[float]) -> Delays:
    """The delays of beats that are so many seconds old."""
    return Delays.of([NOW - timedelta(seconds=each) for each in seconds], NOW)


def bucket(found: Delays) -> int:
    """The only bucket that holds something."""
    [(index, _)] = [(i, count) for i, count in enumerate(found.histogram) if count]
    return index


def test_no_beats_have_no_delay() -> None:
    assert delays([]) == Delays(0.0, 0.0, [0] * BUCKETS)


@pytest.mark.parametrize("index", range(len(DELAY_BOUNDS_SECONDS)))
def test_a_bound_belongs_to_the_bucket_below_it(index: int) -> None:
    bound = DELAY_BOUNDS_SECONDS[index]
    assert bucket(delays([bound])) == index
    assert bucket(delays([bound + 0.0005])) == index + 1


def test_what_is_slower_than_all_bounds_has_a_bucket_of_its_own() -> None:
    assert bucket(delays([1e8])) == BUCKETS - 1


def test_a_beat_from_the_future_has_no_delay() -> None:
    found = delays([-250.0, 0.0])
    assert (found.total, found.longest, bucket(found)) == (0.0, 0.0, 0)


def test_one_from_the_future_does_not_shorten_the_others() -> None:
    found = delays([-250.0, 2.0, 3.0])
    assert (found.total, found.longest) == (5.0, 3.0)


@given(st.lists(st.floats(-400, 4e7), max_size=20))
def test_the_histogram_counts_every_beat_once(seconds: list[float]) -> None:
    found = delays(seconds)
    # Timestamps have whole microseconds.
    rounded = [max(0.0, timedelta(seconds=each).total_seconds()) for each in seconds]
    expected = [0] * BUCKETS
    for each in rounded:
        expected[sum(bound < each for bound in DELAY_BOUNDS_SECONDS)] += 1
    assert found.histogram == expected
    assert found.total == pytest.approx(sum(rounded))
    assert found.longest == max(rounded, default=0.0)
    assert found.shortest == min(rounded, default=None)
