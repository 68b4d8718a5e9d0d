"""When each beat is sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from aiokafka.partitioner import DefaultPartitioner

from heartbeat_app.cli.recordings import BadLine
from heartbeat_app.cli.sending import PRODUCER_CONFIG, paced
from heartbeat_app.domain.models import Heartbeat

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BAD = BadLine("walk.csv", 3, 3, "bad")


def beat(name: str, seconds: float) -> Heartbeat:
    return Heartbeat(name, BEGIN + timedelta(seconds=seconds), 72)


def test_without_a_speed_everything_is_due_at_once_file_after_file() -> None:
    first: list[Heartbeat | BadLine] = [beat("a", 0), BAD, beat("a", 60)]
    second = [beat("b", 0)]
    assert list(paced([first, second], None)) == [
        (0.0, item) for item in [*first, *second]
    ]


@pytest.mark.parametrize("speed", [0.5, 1, 10, 3600])
def test_gaps_are_those_of_the_timestamps(speed: float) -> None:
    beats = [beat("a", 0), beat("a", 0.75), beat("a", 400)]
    due = [seconds * speed for seconds, _ in paced([beats], speed)]
    assert due == pytest.approx([0, 0.75, 400])


def test_recordings_of_other_years_begin_together() -> None:
    walk = [beat("walk", 0), beat("walk", 2)]
    ride = [beat("ride", -1e8), beat("ride", -1e8 + 1), beat("ride", -1e8 + 3)]
    due = [
        (seconds, item.customer_id)
        for seconds, item in paced([walk, ride], 1)
        if isinstance(item, Heartbeat)
    ]
    assert due == [(0, "walk"), (0, "ride"), (1, "ride"), (2, "walk"), (3, "ride")]


def test_a_bad_line_is_due_with_the_beat_before_it() -> None:
    items: list[Heartbeat | BadLine] = [beat("a", 0), beat("a", 5), BAD, beat("a", 6)]
    assert [seconds for seconds, _ in paced([items], 1)] == [0, 5, 5, 6]


def test_what_is_out_of_order_is_sent_and_not_lost() -> None:
    items = [beat("a", 0), beat("a", 5), beat("a", 1), beat("a", -9)]
    assert len(list(paced([items], 1))) == 4


def test_acknowledged_means_kept_by_all_replicas_once() -> None:
    assert PRODUCER_CONFIG["acks"] == "all"
    assert PRODUCER_CONFIG["enable.idempotence"] is True


def test_keys_land_where_fausts_producer_puts_them() -> None:
    """The same hash; tests/acceptance/test_send.py sees where they really land."""
    assert PRODUCER_CONFIG["partitioner"] == "murmur2_random"
    assert DefaultPartitioner()(b"rec-nni-short", [0, 1, 2, 3], [0, 1, 2, 3]) == 0
