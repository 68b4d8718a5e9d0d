"""When the watchdog calls the worker not ready, and when it ends it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import psycopg2
import pytest
from faust.types import TP
from sqlalchemy.exc import OperationalError

from heartbeat_app.kafka.client import LogRange, TopicLog
from heartbeat_app.lane import Lane
from heartbeat_app.lane.app import LANE_SETTINGS
from heartbeat_app.storage.db.engine import STATEMENT_TIMEOUT_MS
from heartbeat_app.worker import watchdog
from heartbeat_app.worker.watchdog import Watchdog

TOPIC = TP("beats", 0)
OTHER = TP("beats", 1)


class Worker:
    """As much of an app as the watchdog looks at, and a clock."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
        self.lane.start(TOPIC, "id", 100, end=100)
        self.lane.start(OTHER, "id", 100, end=100)
        self.writer = SimpleNamespace(signs_of_life=Counter())
        self.reads = None
        self.writes: dict[TP, Future[None]] = {}
        self.should_stop = False
        self.rebalancing = False
        self.rebalancing_count = 1
        self.consumer = SimpleNamespace(generation=1)
        self.admin: SimpleNamespace | None = None
        self.watchdog = Watchdog(self, clock=lambda: self.now)

    def look(self, lag: int | None, *, database: bool = True) -> tuple[str, str | None]:
        """Reasons against readiness, and the reason for an end."""
        reasons: list[str] = []
        self.before = lag, database
        lags = None if lag is None else {TOPIC: lag, OTHER: 0}
        stalled = self.watchdog._look_at_progress(reasons, lags, database)
        return ", ".join(reasons), stalled

    def wait(self, seconds: float) -> None:
        """Let time pass, looking every second and seeing the same as before."""
        for _ in range(int(seconds)):
            self.now += 1
            self.look(self.before[0], database=self.before[1])


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that answers; and no end to the process of the tests."""
    monkeypatch.setattr(watchdog, "probe", lambda reads: None)
    monkeypatch.setattr(Watchdog, "_watch_itself", lambda self: None)


def test_nothing_to_do_is_no_standstill(worker: Worker) -> None:
    worker.look(0)
    worker.wait(10_000)
    assert worker.look(0) == ("", None)


async def test_a_worker_that_stops_asks_nobody_any_more(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs by then was broken off; a new question would hang in its place."""
    asked: list[object] = []
    monkeypatch.setattr(watchdog, "probe", asked.append)
    worker.should_stop = True
    assert await worker.watchdog.look() is None
    assert (asked, worker.watchdog.health.reasons) == ([], ("the worker stops",))


async def test_what_fell_out_of_the_log_is_not_waited_for(worker: Worker) -> None:
    """It is booked with the first record behind it, which may never come."""
    logs = {
        "beats": TopicLog("beats", "id", {0: LogRange(150, 150), 1: LogRange(20, 130)})
    }
    worker.admin = SimpleNamespace(topic_logs=lambda topics: logs)
    worker.watchdog._watch_itself = lambda: None  # type: ignore[method-assign]
    lags = await worker.watchdog._look_at_kafka([])
    assert lags == {TOPIC: 0, OTHER: 30}


def test_lag_without_a_move_is_not_ready_and_then_the_end(worker: Worker) -> None:
    worker.look(5)
    worker.wait(watchdog.STALLED_SECONDS - 1)
    assert worker.look(5) == ("", None)
    worker.wait(1)
    reasons, stalled = worker.look(5)
    assert "nothing of a partition was stored for 20 s, 5 are waiting" in reasons
    assert stalled is None
    worker.wait(watchdog.STANDSTILL_SECONDS - watchdog.STALLED_SECONDS)
    assert "Nothing of a partition moved for 45 s" in (worker.look(5)[1] or "")


def test_a_move_starts_the_time_anew(worker: Worker) -> None:
    worker.look(5)
    worker.wait(watchdog.STANDSTILL_SECONDS - 1)
    worker.lane.release(TOPIC, 103)
    assert worker.look(2) == ("", None)
    worker.wait(watchdog.STALLED_SECONDS - 1)
    assert worker.look(2) == ("", None)


def test_a_partition_that_stands_still_is_seen_beside_one_that_moves(
    worker: Worker,
) -> None:
    worker.look(5)
    for step in range(8):
        worker.wait(10)
        worker.lane.release(OTHER, 200 + step)
        worker.writer.signs_of_life[OTHER] += 1
        reasons, stalled = worker.look(5)
    assert "nothing of a partition was stored for 80 s" in reasons
    assert "Nothing of a partition moved for 80 s" in (stalled or "")


def test_a_batch_that_waits_for_its_turn_is_alive_while_others_are_written(
    worker: Worker,
) -> None:
    """A slow database may take longer for those in front than a standstill may."""
    write: Future[None] = Future()
    worker.writes[TOPIC] = write
    worker.look(5)
    for _ in range(8):
        worker.wait(30)
        worker.writer.signs_of_life[OTHER] += 1
        assert worker.look(5)[1] is None
    write.set_running_or_notify_cancel()
    worker.look(5)
    for _ in range(4):
        worker.writer.signs_of_life[OTHER] += 1
        worker.wait(watchdog.STANDSTILL_SECONDS / 4 + 1)
    assert worker.look(5)[1] is not None


def test_no_turn_for_anybody_is_a_standstill(worker: Worker) -> None:
    worker.writes[TOPIC] = Future()
    worker.look(5)
    worker.wait(watchdog.STANDSTILL_SECONDS)
    assert worker.look(5)[1] is not None


def test_retries_keep_it_alive_but_not_ready(worker: Worker) -> None:
    """A batch that the database refuses again and again needs a person, no restart."""
    worker.look(5)
    for _ in range(50):
        worker.wait(10)
        worker.writer.signs_of_life[TOPIC] += 1
        reasons, stalled = worker.look(5)
        assert stalled is None
    assert "was stored" in reasons


def test_a_log_that_lost_its_end_waits_for_a_person(worker: Worker) -> None:
    """A worker that is started anew would read on in what is there by now."""
    worker.lane.partitions[TOPIC].truncated = True
    worker.look(5)
    worker.wait(10_000)
    assert worker.look(5)[1] is None


def test_a_database_that_is_away_is_no_reason_to_end(worker: Worker) -> None:
    worker.look(5)
    worker.wait(10_000)
    assert worker.look(5, database=False)[1] is None


def test_before_its_first_rebalance_it_is_not_ready(worker: Worker) -> None:
    worker.rebalancing_count = 0
    assert "has not joined its group yet" in worker.look(0)[0]


@pytest.mark.parametrize("count", [0, 1])
def test_a_worker_that_gets_no_partitions_is_ended(worker: Worker, count: int) -> None:
    """Whether or not it ever had some: a group without readers has no lag to see."""
    worker.lane.forget([TOPIC, OTHER])
    worker.rebalancing, worker.rebalancing_count = bool(count), count
    worker.look(0)
    worker.wait(watchdog.STANDSTILL_SECONDS - 1)
    reasons, stalled = worker.look(0)
    assert "being assigned" in reasons or "not joined" in reasons
    assert stalled is None
    worker.wait(1)
    assert "got no partitions for 45 s" in (worker.look(0)[1] or "")


def test_a_rebalance_may_take_its_time(worker: Worker) -> None:
    """The slowest member is waited for, until it is dead or late."""
    session = LANE_SETTINGS["broker_session_timeout"]
    rebalance = LANE_SETTINGS["broker_rebalance_timeout"]
    assert session + rebalance < watchdog.STANDSTILL_SECONDS
    worker.rebalancing = True
    for _ in range(5):
        worker.look(5)
        worker.wait(watchdog.STANDSTILL_SECONDS - 1)
        assert worker.look(5)[1] is None
        worker.consumer.generation += 1


@pytest.mark.parametrize(("lag", "database"), [(None, True), (0, False)])
def test_a_rebalance_without_kafka_or_the_database_is_no_reason_to_end(
    worker: Worker, lag: int | None, database: bool
) -> None:
    worker.lane.forget([TOPIC, OTHER])
    worker.rebalancing = True
    worker.look(lag, database=database)
    worker.wait(10_000)
    assert worker.look(lag, database=database)[1] is None


def test_a_process_that_was_frozen_has_not_stood_still(worker: Worker) -> None:
    worker.look(5)
    worker.now += 10 * watchdog.STANDSTILL_SECONDS
    assert worker.look(5)[1] is None
    worker.wait(watchdog.STANDSTILL_SECONDS)
    assert worker.look(5)[1] is not None


@pytest.mark.parametrize(
    ("took", "goes_on", "waits"),
    [
        # Away: asked again at once, and nobody is ended for standing still.
        (0.1, [False, False], [0.0, 1.0]),
        # Too much to read: said, but no reason to ask again and again.
        (15.0, [True, True], [0.0, 150.0]),
    ],
)
def test_books_that_cannot_be_read_are_said_and_asked_for_again(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    well: None,
    took: float,
    goes_on: list[bool],
    waits: list[float],
) -> None:
    def fail(reads: object) -> None:
        worker.now += took
        raise OperationalError("", {}, psycopg2.OperationalError("no such table"))

    monkeypatch.setattr(watchdog, "read_books", fail)
    for each, wait in zip(goes_on, waits, strict=True):
        reasons: list[str] = []
        assert asyncio.run(worker.watchdog._look_at_database(reasons)) == each
        assert reasons == ["the books could not be read: no such table"]
        assert worker.watchdog._books_due - worker.now == pytest.approx(wait)
        worker.now = worker.watchdog._books_due


def test_books_that_take_long_are_read_less_often(
    worker: Worker, well: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(reads: object) -> SimpleNamespace:
        worker.now += takes.pop()
        return SimpleNamespace(problems=["a"])

    takes = [5.0, 0.1]
    monkeypatch.setattr(watchdog, "read_books", read)
    for wait in (watchdog.BOOKS_SECONDS, 50.0):
        reasons: list[str] = []
        assert asyncio.run(worker.watchdog._look_at_database(reasons))
        assert reasons == ["the books are off: a"]
        assert worker.watchdog._books_due - worker.now == pytest.approx(wait)
        worker.now = worker.watchdog._books_due


def test_a_look_that_hangs_is_not_ready(worker: Worker) -> None:
    """Else its health would stay what it was."""
    worker.watchdog.health = watchdog.Health((), 0)
    worker.now += watchdog.STALLED_SECONDS - 1
    worker.watchdog.age_health()
    assert worker.watchdog.health.ready
    worker.now += 1
    worker.watchdog.age_health()
    assert worker.watchdog.health.reasons == ("the last look was 20 s ago",)


def test_a_write_is_broken_off_before_it_is_a_standstill() -> None:
    # And only when the server's own limit did not end it.
    assert STATEMENT_TIMEOUT_MS / 1000 < watchdog.WRITE_SECONDS
    assert watchdog.WRITE_SECONDS + watchdog.LOOK_SECONDS < watchdog.STANDSTILL_SECONDS


BLOCKED = """
import asyncio, ctypes, time
from types import SimpleNamespace
from heartbeat_app.worker import watchdog

def block_helpers():
    for _ in range(64):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)

watchdog.STANDSTILL_SECONDS, watchdog.LOOK_SECONDS = 2.0, 0.1
watchdog.probe = lambda reads: None
watchdog.read_books = lambda reads: SimpleNamespace(problems=[])
app = SimpleNamespace(
    should_stop=False,
    reads=None,
    reads_in_use=SimpleNamespace(break_off=lambda after_seconds: 0),
    questions=SimpleNamespace(uses=SimpleNamespace(break_off=lambda after_seconds: 0)),
    feed=SimpleNamespace(uses=SimpleNamespace(break_off=lambda after_seconds: 0)),
    writer=SimpleNamespace(uses=SimpleNamespace(break_off=lambda after_seconds: 0)),
    lane=SimpleNamespace(partitions={}, topics=set()),
    admin=SimpleNamespace(topic_logs=lambda topics: {}),
    rebalancing=False,
    rebalancing_count=1,
    consumer=SimpleNamespace(generation=1),
)

async def main():
    await watchdog.Watchdog(app).start()
    await asyncio.sleep(3.0)
    print("still there", flush=True)
    %s
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "fault", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)", "block_helpers()"]
)
def test_a_look_that_does_not_go_on_ends_the_process(fault: str) -> None:
    """Neither the event loop nor any thread of Python's can see to that."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED % fault],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "still there\n"), done.stderr
    assert "most recent call first" in done.stderr
