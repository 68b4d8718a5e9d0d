"""What may be committed of an ordinary topic."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from heartbeat_app.lane.given import Given


def given(offsets: Iterable[int]) -> Given:
    """What was handed out."""
    made = Given()
    for offset in offsets:
        made.add(offset)
    return made


@pytest.mark.parametrize(
    ("offsets", "acked", "commits"),
    [
        (range(3), set(), None),
        (range(3), {0, 1}, 2),
        (range(3), {0, 1, 2}, 3),
        # Faust commits 61, over offset 10, in a partition of which 9 was the last.
        (range(10, 61), set(range(11, 61)), None),
        # And here, where nothing is committed yet.
        (range(5), {3, 4}, None),
        # Offsets 2, 6 and 7 hold no record for a reader.
        ([0, 1, 3, 4, 5, 8], {0, 1, 3}, 4),
        ([0, 1, 3, 4, 5, 8], {0, 1, 3, 4, 5, 8}, 9),
        ([0, 1, 3, 4, 5, 8], {0, 1, 4, 5, 8}, 2),
        # Done of before a rebalance, and handed out again only later.
        (range(5, 8), {5, 9}, 6),
    ],
)
def test_only_what_all_before_is_done_of_is_committed(
    offsets: Iterable[int], acked: set[int], commits: int | None
) -> None:
    assert given(offsets).done(acked) == commits


def test_what_is_committed_is_forgotten() -> None:
    made = given([0, 1, 3, 4, 5, 8])
    made.committed(4)
    assert made.done({5, 8}) is None
    assert made.done({4, 5}) == 6
    made.add(9)
    assert made.done({4, 5, 8, 9}) == 10
    made.committed(10)
    assert made.done({4, 5, 8, 9}) is None
