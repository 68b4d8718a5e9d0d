"""Ordinary topics, agents and routes beside the lane: what stock Faust does, or better.

`python -m prove.beside` holds both against each other for longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prove.beside import PARTITIONS, Round, interrupt, judge
from testkit.servers import Servers, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def make_round(
    servers: Servers, name: str, tmp_path: Path
) -> Iterator[Callable[..., Round]]:
    """Makes the app of `prove.beside`; ends its workers after the test."""
    made: list[Round] = []

    def make(**options: Any) -> Round:
        made.append(
            Round(servers.kafka, tmp_path / "beside", name, lane=True, **options)
        )
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_ordinary_topics_are_co_partitioned_and_routed(
    make_round: Callable[..., Round],
) -> None:
    """Kafka's round robin puts a key's partitions of two topics on two workers."""
    play = make_round(seconds=0.0)
    first, second = play.worker("a"), play.worker("b")
    play.start(first)
    play.start(second)
    play.send(120)
    wait_until(lambda: len(play.rows("singles")) >= 120, "all of one are processed")
    wait_until(lambda: len(play.rows("pairs")) >= 120, "all of the other, too")
    by_key = {row[1]: row[0] for row in play.rows("singles")}
    assert {row[1]: row[0] for row in play.rows("pairs")} == by_key
    assert set(by_key.values()) == {"a", "b"}
    for worker in (first, second):
        for key in ("0", "1", "2", "3"):
            answer = worker.get(f"/owner/?key={key}")
            assert answer == (200, {"worker": by_key[key]})
        status, routes = worker.get("/router/topics")
        assert status == 200
        listed = [
            partitions[play.singles]
            for partitions in routes.values()
            if play.singles in partitions
        ]
        assert sorted(map(len, listed)) == [PARTITIONS // 2] * 2
        assert len(worker.get("/router/")[1]) == 2


def test_a_rebalance_before_the_last_one_is_over_loses_nothing(
    make_round: Callable[..., Round],
) -> None:
    """Faust started the flow in the midst of the next one, and dropped what it gave."""
    play = make_round(seconds=0.01, conf={"broker_rebalance_timeout": 10.0})
    first, second = play.worker("a"), play.worker("b")
    away = play.folder / "ids-away"
    play.start(first)
    play.send(800)
    wait_until(lambda: len(play.rows("singles")) > 50, "some are processed")
    away.touch()
    play.launch(second)
    asks = "Seek stream partitions to committed offsets"
    wait_until(lambda: first.log().count(asks) == 2, "it looks where to go on")
    wait_until(lambda: second.log().count(asks) == 1, "it looks where to go on")
    # It does not join again, and the other one waits for it.
    second.pause()
    third = play.worker("c")
    play.launch(third)
    revoking = "Revoking previously assigned"
    wait_until(lambda: first.log().count(revoking) == 3, "another rebalance begins")
    away.unlink()
    wait_until(lambda: first.log().count("Worker ready") > 1, "it is assigned anew")
    second.resume()
    play.settle()
    got = judge(play)
    assert got.lost == 0
    # Each worker may have had one in hand for longer than a rebalance waits.
    assert got.repeated <= 3
    assert got.lane_wrong == 0


def test_a_graceful_stop_loses_and_repeats_nothing(
    make_round: Callable[..., Round],
) -> None:
    """Faust takes what an agent has in hand when it is cancelled for processed."""
    play = make_round(seconds=0.08)
    first, second = play.worker("a"), play.worker("b")
    play.start(first)
    play.start(second)
    play.send(100)
    wait_until(lambda: len(play.rows("singles")) > 10, "some are processed")
    interrupt(second)
    play.settle()
    interrupt(first)
    times = Counter(row[1] for row in play.rows("singles"))
    assert times == Counter(str(number) for number in range(100))
    assert judge(play).lane_wrong == 0


def test_a_table_follows_its_partitions(make_round: Callable[..., Round]) -> None:
    """By its changelog, to the worker that takes over; each record counted once."""
    play = make_round(seconds=0.01, table=True)
    first, second = play.worker("a"), play.worker("b")
    play.start(first)
    play.start(second)
    play.send(240)
    wait_until(lambda: len(play.rows("singles")) > 120, "some are processed")
    interrupt(second)
    play.settle()
    wait_until(
        lambda: (
            first.get("/counts/") == (200, {str(number): 1 for number in range(240)})
        ),
        "the table is whole",
    )
    assert judge(play).lost == 0
