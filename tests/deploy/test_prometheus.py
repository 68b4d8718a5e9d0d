"""What is asked of Prometheus, answered by a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from testkit import dashboards
from testkit.prometheus import Prometheus, Promtool, unpack
from testkit.servers import PROJECT, Topic, Worker
from tests.deploy.test_grafana import documented

pytestmark = pytest.mark.integration

TOKEN = "the-token-of-these-tests"
CONFIG = (PROJECT / "prometheus/prometheus.yml").read_text()

STORED = 'heartbeat_app_beats_stored_total{instance="a"}'
OTHER_STORED = 'heartbeat_app_beats_stored_total{instance="b"}'
LAG = 'heartbeat_app_lag_records{instance="a",topic="t",partition="0"}'
OTHER_LAG = 'heartbeat_app_lag_records{instance="b",topic="t",partition="1"}'
READY = 'heartbeat_app_ready{instance="a",job="heartbeat_app"}'
OTHER_READY = 'heartbeat_app_ready{instance="b",job="heartbeat_app"}'
UP = 'up{instance="a",job="heartbeat_app"}'
OTHER_UP = 'up{instance="b",job="heartbeat_app"}'
MISSING = 'heartbeat_app_records_missing_total{instance="a",topic="t",partition="0"}'
UNEXPLAINED = (
    'heartbeat_app_offsets_unexplained_total{instance="a",topic="t",partition="0"}'
)
LOST = "Records lost before they were read"
DISK = 'node_filesystem_avail_bytes{mountpoint="/var/lib/postgresql"}'
GIGABYTE = 1_000_000_000
A_DAY = 4 * 60 * 24  # of samples


def beats_every(scrapes: int) -> str:
    """For half an hour."""
    return " ".join(str(n // scrapes) for n in range(121))


# In promtool's notation: first + step x times, one every 15 s.
ANSWERS: list[tuple[str, dict[str, str], str, list[float]]] = [
    ("Nothing stored for 60 s", {STORED: "0+1000x40"}, "10m", [4_000]),
    ("Nothing stored for 60 s", {STORED: "0+1000x20 20000x20"}, "10m", [0]),
    # A worker that starts anew counts anew.
    ("Nothing stored for 60 s", {STORED: "0+9x37 0 1000 2000"}, "10m", [2_000]),
    (
        "Nothing stored for 60 s",
        {STORED: "5x40", OTHER_STORED: "0+10x40"},
        "10m",
        [40],
    ),
    ("Nothing stored for 60 s", {}, "10m", [0]),
    ("Lag not shrinking", {LAG: "0+1000x40"}, "10m", [40_000]),
    ("Lag not shrinking", {LAG: "0+600x40", OTHER_LAG: "0+400x40"}, "10m", [40_000]),
    # One that stays, or would take two hours to go.
    ("Lag not shrinking", {LAG: "50000x40"}, "10m", [50_000]),
    ("Lag not shrinking", {LAG: "50000-100x40"}, "10m", [46_000]),
    ("Lag not shrinking", {LAG: "90000-1000x40"}, "10m", [0]),
    ("Lag not shrinking", {LAG: "0+10x40"}, "10m", [0]),
    # A partition that goes from one worker to the other while its lag goes down.
    (
        "Lag not shrinking",
        {LAG: "40000-300x38 stale", OTHER_LAG: "_x39 28300-300x1"},
        "10m",
        [0],
    ),
    ("Lag not shrinking", {}, "10m", []),
    ("Lag", {LAG: "0+1x40", OTHER_LAG: "5x40", UP: "1x40"}, "10m", [45]),
    # One of two workers is frozen: it does not answer, or has not been asked since.
    ("Lag", {LAG: "0x40", UP: "1x39 0"}, "10m", []),
    ("Lag", {LAG: "0x40", OTHER_LAG: "0x38", UP: "1x40", OTHER_UP: "1x38"}, "10m", []),
    ("Worker not ready", {READY: "1x40", UP: "1x40"}, "10m", [1]),
    (
        "Worker not ready",
        {READY: "1x40", UP: "1x40", OTHER_READY: "0x40", OTHER_UP: "1x40"},
        "10m",
        [0],
    ),
    # It does not answer, or tells nothing.
    ("Worker not ready", {READY: "1x20 stale", UP: "1x20 0x20"}, "10m", [0]),
    (
        "Worker not ready",
        {READY: "1x40", UP: "1x40", OTHER_UP: "1x40"},
        "10m",
        [0],
    ),
    ("Worker not ready", {}, "10m", [0]),
    (LOST, {MISSING: "0x240", UNEXPLAINED: "0x240"}, "30m", [0]),
    (LOST, {}, "10m", [0]),
    # Counted before the first scrape, and while it ran.
    (LOST, {MISSING: "500x240", UNEXPLAINED: "0x240"}, "30m", [500]),
    (LOST, {MISSING: "0x60 7x180", UNEXPLAINED: "0x60 30x180"}, "30m", [37]),
    # An hour later it is over, and a worker that starts anew counts anew.
    (LOST, {MISSING: "500x480", UNEXPLAINED: "9x480"}, "2h", [0]),
    (LOST, {MISSING: "500x400 0x40 3x40", UNEXPLAINED: "0x480"}, "2h", [3]),
    # Ten gigabytes a day, and thirty are left.
    (
        "Disk for less than 7 days",
        {DISK: f"{40 * GIGABYTE}-{10 * GIGABYTE // A_DAY}x{A_DAY}"},
        "1d",
        [3],
    ),
    ("Disk for less than 7 days", {DISK: f"{GIGABYTE}x{A_DAY}"}, "1d", [3_650]),
    ("Disk for less than 7 days", {DISK: f"1+{GIGABYTE}x{A_DAY}"}, "1d", [3_650]),
    ("Disk for less than 7 days", {}, "1d", []),
    # An attempt that failed in the minute before; none, where a worker is there.
    (
        "Retries",
        {"heartbeat_app_writes_failed_total": "0+1x40", READY: "1x40"},
        "10m",
        [4],
    ),
    # Two transactions of a second and three of two, between scrapes.
    (
        "Transaction Time",
        {
            "heartbeat_app_transaction_seconds_sum": "0+8x40",
            "heartbeat_app_transaction_seconds_count": "0+5x40",
        },
        "10m",
        [1.6],
    ),
    ("Transaction Time", {}, "10m", []),
    ("Retries", {READY: "1x40"}, "10m", [0]),
    ("Retries", {}, "10m", []),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prometheus")
    if why := unpack(folder):
        pytest.skip(f"No Prometheus is asked: {why}")
    return folder


@pytest.mark.parametrize(("title", "series", "at", "expected"), ANSWERS)
def test_the_answer_is_what_it_is_called(
    programs: Path, title: str, series: dict[str, str], at: str, expected: list[float]
) -> None:
    (question,) = (asked for where, asked in dashboards.promql() if where == title)
    found = Promtool(programs).answer(question, series, at)
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("title", "series", "since", "until"),
    [
        # A beat every 90 s, and nothing at all: one alarm.
        ("Nothing stored for 60 s", {STORED: beats_every(6)}, 2, 30),
        ("Nothing stored for 60 s", {STORED: "5x120"}, 2, 30),
        ("Lag not shrinking", {LAG: "50000x120"}, 6, 30),
        # About as much comes in as is stored, in bursts.
        ("Lag not shrinking", {LAG: "50000 49990 50000 50020 " * 30}, 7, 30),
    ],
)
def test_an_alarm_does_not_come_and_go(
    programs: Path, title: str, series: dict[str, str], since: int, until: int
) -> None:
    (rule,) = (rule for rule in dashboards.rules() if rule["title"] == title)
    firing = Promtool(programs).firing(rule, series, range(since, until))
    assert firing == list(range(since, until))


def test_an_alarm_is_over_when_all_is_well(programs: Path) -> None:
    (rule,) = (r for r in dashboards.rules() if r["title"].startswith("Nothing"))
    silent_then_well = {STORED: "0x40 1+1x80"}
    firing = Promtool(programs).firing(rule, silent_then_well, range(2, 30))
    assert firing == list(range(2, 16))


def test_a_server_that_scrapes_a_worker_answers_everything(
    programs: Path,
    tmp_path: Path,
    topic: Topic,
    make_worker: Callable[..., Worker],
) -> None:
    topic.make(partitions=2)
    worker = make_worker(WEB_TOKEN=TOKEN, SYNTHETIC_CUSTOMERS="200").start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    # Some that are refused, so that their share is one.
    topic.produce([b"no beat"] * 20)
    address = f"127.0.0.1:{worker.environ['WEB_PORT']}"
    with Prometheus(
        programs,
        tmp_path,
        yaml.safe_load(CONFIG),
        targets={"heartbeat_app": address},
        token=TOKEN,
    ) as prometheus:
        assert prometheus.wait_for_answer("up == 1") == [1]
        for _, question in [*dashboards.promql(), *documented()]:
            if "node_filesystem" in question or "> 60" in question:
                prometheus.answer(question)  # there is nothing of the kind here
            else:
                assert prometheus.wait_for_answer(question)
        assert prometheus.answer("sum(heartbeat_app_ready)") == [1]
        # As many a second as the worker makes, 200, once it has made them for long.
        stored = "sum(rate(heartbeat_app_beats_stored_total[10s]))"
        (rate,) = prometheus.wait_for_answer(f"{stored} > 100")
        assert rate < 400
