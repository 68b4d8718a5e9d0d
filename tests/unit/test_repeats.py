"""Which beats are suspected to be there already."""

from __future__ import annotations

from datetime import timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.storage.write.repeats import Repeats
from tests.storing import START, beat, beats


def test_nobody_is_suspected_until_something_is_sent_again() -> None:
    repeats = Repeats()
    assert repeats.suspects(beats(5)) == ()
    repeats.learn(beats(5), some=False, others=False)
    assert repeats.suspects(beats(5)) == ()
    assert repeats.are_expected is False


def test_then_what_came_in_the_batch_or_in_the_one_before() -> None:
    repeats = Repeats()
    repeats.learn(beats(10), some=True, others=True)
    again = [*beats(3, first=8), *beats(2, first=9), beat("other", 0.008)]
    assert repeats.suspects(again) == [0, 1, 3, 4]
    repeats.learn(again, some=True, others=False)
    assert repeats.suspects([*beats(1), *beats(1, first=9)]) == [1]
    repeats.learn(beats(1), some=False, others=False)
    assert repeats.suspects(again) == ()


def test_all_once_that_was_too_few() -> None:
    repeats = Repeats()
    repeats.learn(beats(10), some=True, others=True)
    repeats.suspects(beats(10, first=20))
    repeats.learn(beats(10, first=20), some=True, others=True)
    assert list(repeats.suspects(beats(3, first=50))) == [0, 1, 2]
    repeats.learn(beats(3, first=50), some=True, others=False)
    assert list(repeats.suspects(beats(3, first=60))) == [0, 1, 2]
    repeats.learn(beats(3, first=60), some=False, others=False)
    assert repeats.suspects(beats(3, first=70)) == ()


def test_the_same_instant_with_another_offset_is_the_same_key() -> None:
    repeats = Repeats()
    repeats.learn([beat()], some=True, others=True)
    same = beat(at=START.astimezone(timezone(timedelta(hours=5, minutes=30))), rate=99)
    assert repeats.suspects([same]) == [0]


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=4))
def test_whoever_comes_after_a_suspect_of_the_same_key_is_one(
    batches: list[list[int]],
) -> None:
    """Else the second would be stored before the first is looked up."""
    repeats = Repeats()
    repeats.learn([], some=True, others=True)
    for numbers in batches:
        found = [beat(second=number) for number in numbers]
        suspects = set(repeats.suspects(found))
        for index, number in enumerate(numbers):
            if number in numbers[:index]:
                assert index in suspects
        repeats.learn(found, some=True, others=False)
