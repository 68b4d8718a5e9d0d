"""The lag in seconds: how long the oldest record has waited."""

from __future__ import annotations

from heartbeat_app.worker.waiting import MOST_LOOKS, Waiting


def test_nothing_waits_where_all_is_stored() -> None:
    waiting = Waiting()
    assert waiting.look(10, done=5, end=5) == 0
    assert waiting.look(500, done=5, end=5) == 0


def test_a_record_waits_from_when_it_was_first_seen() -> None:
    waiting = Waiting()
    waiting.look(0, done=5, end=5)
    assert waiting.look(100, done=5, end=6) == 0
    assert waiting.look(103, done=5, end=9) == 3
    # What came at 100 is stored; what came at 103 waits.
    assert waiting.look(104, done=6, end=9) == 1
    assert waiting.look(105, done=9, end=9) == 0


def test_a_topic_made_again_begins_anew() -> None:
    waiting = Waiting()
    waiting.look(0, done=50, end=100)
    assert waiting.look(60, done=0, end=3) == 0
    assert waiting.look(61, done=0, end=3) == 1


def test_a_long_standstill_costs_no_memory_and_little_exactness() -> None:
    waiting = Waiting()
    for second in range(100_000):
        waited = waiting.look(second, done=0, end=second + 1)
    assert len(waiting._looks) <= MOST_LOOKS
    assert waited == 99_999
    # Half of it is stored: the oldest came at 50,000.
    assert abs(waiting.look(100_000, done=50_000, end=100_001) - 50_000) < 1_000
