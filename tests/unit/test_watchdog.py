"""When the watchdog calls the worker not ready, and when it ends it."""

from __future__ import annotations

import os
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from faust.types import TP

from heartbeat_app import watchdog
from heartbeat_app.lane import Lane
from heartbeat_app.storage.engine import STATEMENT_TIMEOUT_MS
from heartbeat_app.watchdog import Watchdog

TOPIC = TP("beats", 0)
OTHER = TP("beats", 1)


class Worker:
    """As much of an app as the watchdog looks at, and a clock."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
        self.lane.start(TOPIC, "id", 100, end=100)
        self.lane.start(OTHER, "id", 100, end=100)
        self.writer = SimpleNamespace(attempts=Counter())
        self.rebalancing = False
        self.rebalancing_count = 1
        self.watchdog = Watchdog(self, clock=lambda: self.now)

    def look(self, lag: int | None, *, database: bool = True) -> tuple[str, str | None]:
        """Reasons against readiness, and the reason for an end."""
        reasons: list[str] = []
        lags = None if lag is None else {TOPIC: lag, OTHER: 0}
        stalled = self.watchdog._look_at_progress(reasons, lags, database)
        return ", ".join(reasons), stalled


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_nothing_to_do_is_no_standstill(worker: Worker) -> None:
    worker.look(0)
    worker.now += 10_000
    assert worker.look(0) == ("", None)


def test_lag_without_a_move_is_not_ready_and_then_the_end(worker: Worker) -> None:
    worker.look(5)
    worker.now += watchdog.STALLED_SECONDS - 1
    assert worker.look(5) == ("", None)
    worker.now += 1
    reasons, stalled = worker.look(5)
    assert "nothing of a partition was stored for 20 s, 5 are waiting" in reasons
    assert stalled is None
    worker.now += watchdog.STANDSTILL_SECONDS - watchdog.STALLED_SECONDS
    assert "Nothing of a partition moved for 45 s" in (worker.look(5)[1] or "")


def test_a_move_starts_the_time_anew(worker: Worker) -> None:
    worker.look(5)
    worker.now += watchdog.STANDSTILL_SECONDS - 1
    worker.lane.release(TOPIC, 103)
    assert worker.look(2) == ("", None)
    worker.now += watchdog.STALLED_SECONDS - 1
    assert worker.look(2) == ("", None)


def test_a_partition_that_stands_still_is_seen_beside_one_that_moves(
    worker: Worker,
) -> None:
    worker.look(5)
    for step in range(8):
        worker.now += 10
        worker.lane.release(OTHER, 200 + step)
        worker.writer.attempts[OTHER] += 1
        reasons, stalled = worker.look(5)
    assert "nothing of a partition was stored for 80 s" in reasons
    assert "Nothing of a partition moved for 80 s" in (stalled or "")


def test_retries_keep_it_alive_but_not_ready(worker: Worker) -> None:
    """A batch that the database refuses again and again needs a person, no restart."""
    worker.look(5)
    for _ in range(50):
        worker.now += 10
        worker.writer.attempts[TOPIC] += 1
        reasons, stalled = worker.look(5)
        assert stalled is None
    assert "was stored" in reasons


def test_a_database_that_is_away_is_no_reason_to_end(worker: Worker) -> None:
    worker.look(5)
    worker.now += 10_000
    assert worker.look(5, database=False)[1] is None


def test_before_its_first_rebalance_it_is_not_ready(worker: Worker) -> None:
    worker.rebalancing_count = 0
    assert "has not joined its group yet" in worker.look(0)[0]


def test_a_rebalance_may_take_longer(worker: Worker) -> None:
    worker.rebalancing = True
    worker.look(5)
    worker.now += watchdog.REBALANCE_SECONDS - 1
    reasons, stalled = worker.look(5)
    assert "being assigned" in reasons
    assert stalled is None
    worker.now += 1
    assert worker.look(5)[1] is not None


def test_a_write_is_broken_off_before_it_is_a_standstill() -> None:
    # And only when the server's own limit did not end it.
    assert STATEMENT_TIMEOUT_MS / 1000 < watchdog.WRITE_SECONDS
    assert watchdog.WRITE_SECONDS + watchdog.LOOK_SECONDS < watchdog.STANDSTILL_SECONDS


def test_a_blocked_loop_ends_the_process(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the loop can: what it would run does not run."""
    ends: list[int] = []
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "STANDSTILL_SECONDS", 0.1)
    monkeypatch.setattr(os, "_exit", ends.append)
    worker.watchdog._watch_loop()
    assert ends == [1]


def test_a_loop_that_goes_on_is_left_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "STANDSTILL_SECONDS", 0.05)
    ends: list[int] = []
    looks = iter(range(50))

    def sleep(seconds: float) -> None:
        worker.watchdog._beats += 1
        if next(looks) == 49:
            worker.watchdog._stopped.set()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(os, "_exit", ends.append)
    worker.watchdog._watch_loop()
    assert not ends
