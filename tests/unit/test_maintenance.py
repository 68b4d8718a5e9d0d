"""When a pass of the roll-ups is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.worker.maintenance import PASS_AT_SECONDS, until_next_pass


@pytest.mark.parametrize(
    ("second", "seconds"),
    [(0.0, 3.0), (2.5, 0.5), (3.0, 20.0), (22.0, 1.0), (43.0, 20.0), (59.5, 3.5)],
)
def test_passes_begin_at_the_same_seconds(second: float, seconds: float) -> None:
    assert until_next_pass(1_764_000_000.0 + second) == seconds


@given(st.floats(1.7e9, 1.9e9))
def test_no_more_than_twenty_seconds_lie_between(now: float) -> None:
    wait = until_next_pass(now)
    assert 0 < wait <= 20
    assert any(abs((now + wait) % 60 - each) < 1e-3 for each in PASS_AT_SECONDS)
