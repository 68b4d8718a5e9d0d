"""What the live page is told: everything once, then only what is new."""

from __future__ import annotations

from typing import Any

import pytest

from heartbeat_app.kafka.client import LogRange, TopicLog
from heartbeat_app.live.board import Board
from heartbeat_app.live.feed import lag
from heartbeat_app.storage.read.live import SLOT_SECONDS, SLOTS, Heard

NOW = 1_700_000_003.5
SLOT = int(NOW // SLOT_SECONDS)


def heard(
    customer: str = "c",
    at: float = NOW,
    rate: int = 70,
    *,
    low: int | None = None,
    high: int | None = None,
    slot: int | None = -1,
) -> Heard:
    """Beats of one slot, that of `at` unless told otherwise."""
    return Heard(
        customer,
        int(min(at, NOW) // SLOT_SECONDS) if slot == -1 else slot,
        at,
        rate,
        rate if low is None else low,
        rate if high is None else high,
    )


def slots(board: Board, now: float = NOW) -> list[tuple[int, int]]:
    """Low and high by slot, as the page of the only customer is told."""
    [[_, _, _, flat]] = board.all(now)["customers"]
    return list(zip(flat[::2], flat[1::2], strict=True))


@pytest.fixture
def board() -> Board:
    return Board()


def test_only_what_is_new_is_told(board: Board) -> None:
    first = board.add([heard("a", NOW - 1, 61), heard("b", NOW - 2, 62)], NOW)
    assert first["ids"] == ["a", "b"]
    assert first["heard"] == [[0, 1000, 61], [1, 2000, 62]]
    again = board.add([heard("a", NOW - 1, 61), heard("b", NOW, 63)], NOW)
    assert again["ids"] == []
    assert again["heard"] == [[1, 0, 63]]


def test_everything_is_told_to_who_knows_nothing(board: Board) -> None:
    board.add([heard("a", NOW - 1, 61, low=50, high=90)], NOW)
    told: dict[str, Any] = board.all(NOW + 5)
    assert told["now"] == int((NOW + 5) * 1000)
    [[customer_id, age, rate, _]] = told["customers"]
    assert (customer_id, age, rate) == ("a", 6000, 61)
    assert slots(board)[-1] == (50, 90)
    assert set(slots(board)[:-1]) == {(0, 0)}


def test_an_older_beat_is_not_the_last_one(board: Board) -> None:
    board.add([heard(at=NOW, rate=70)], NOW)
    late = heard(at=NOW - SLOT_SECONDS, rate=150)
    assert board.add([late], NOW)["heard"] == [[0, SLOT_SECONDS * 1000, 150]]
    assert board.all(NOW)["customers"][0][1:3] == [0, 70]
    assert slots(board)[-2:] == [(150, 150), (70, 70)]
    assert board.add([late], NOW)["heard"] == []


def test_a_rate_that_is_not_told_is_not_shown(board: Board) -> None:
    """The first look tells the slots without their last rates."""
    board.add([heard(at=NOW, rate=70), heard(at=NOW, rate=0, low=60, high=80)], NOW)
    assert board.all(NOW)["customers"][0][1:3] == [0, 70]
    assert slots(board)[-1] == (60, 80)


def test_slots_pass(board: Board) -> None:
    for back in range(SLOTS):
        board.add([heard(at=NOW - back * SLOT_SECONDS, rate=60 + back)], NOW)
    assert slots(board) == [(60 + back,) * 2 for back in reversed(range(SLOTS))]
    later = NOW + 3 * SLOT_SECONDS
    assert slots(board, later)[-3:] == [(0, 0)] * 3
    board.add([heard(at=later, rate=99, slot=SLOT + 3)], later)
    assert slots(board, later)[-4:] == [(60, 60), (0, 0), (0, 0), (99, 99)]
    much_later = NOW + 1000 * SLOT_SECONDS
    board.add([heard(at=much_later, rate=98, slot=SLOT + 1000)], much_later)
    assert slots(board, much_later) == [(0, 0)] * (SLOTS - 1) + [(98, 98)]


def test_what_is_too_old_for_the_slots_may_be_the_last_beat(board: Board) -> None:
    board.add([heard(at=NOW - 3600, rate=70, slot=None)], NOW)
    assert board.all(NOW)["customers"][0][1:3] == [3_600_000, 70]
    assert set(slots(board)) == {(0, 0)}


def test_a_clock_that_is_ahead_does_not_stay_fresh(board: Board) -> None:
    ahead = heard(at=NOW + 200)
    assert board.add([ahead], NOW)["heard"] == [[0, 0, 70]]
    assert board.add([ahead], NOW + 60)["heard"] == []
    assert board.all(NOW + 60)["customers"][0][1] == 60_000


def test_a_clock_that_is_set_right_is_heard_at_once(board: Board) -> None:
    """Not only when the time comes of which the beat was that lay ahead."""
    ahead = heard(at=NOW + 200, rate=90)
    board.add([ahead], NOW)
    right = heard(at=NOW + 5, rate=70)
    assert board.add([right], NOW + 6)["heard"] == [[0, 1000, 70]]
    assert board.add([ahead, right], NOW + 7)["heard"] == []
    assert board.all(NOW + 8)["customers"][0][1:3] == [3000, 70]


def test_a_cleared_board_counts_anew(board: Board) -> None:
    board.add([heard("a"), heard("b")], NOW)
    board.clear()
    assert board.add([heard("b")], NOW)["ids"] == ["b"]
    assert len(board.all(NOW)["customers"]) == 1


def test_the_lag_is_that_of_all_partitions() -> None:
    partitions = {0: LogRange(5, 100), 1: LogRange(40, 50), 2: LogRange(0, 7)}
    logs = {"beats": TopicLog("beats", "id", partitions)}
    # Partition 1 has lost its begin, 2 was never read; another id does not count.
    assert lag({("id", 0): 90, ("id", 1): 3, ("old", 2): 7}, logs) == 10 + 10 + 7
    assert lag({}, None) is None
