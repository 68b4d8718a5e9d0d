"""The read API of a worker, as its users ask it."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, text

from heartbeat_app.storage.rollup import marks
from testkit.servers import PROJECT, Topic, Worker, run

pytestmark = pytest.mark.integration

TOKEN = "the-token-of-this-test"
OPENAPI = PROJECT / "heartbeat_app" / "web" / "openapi.json"
PATHS = set(json.loads(OPENAPI.read_text())["paths"])
NOW = datetime.now(UTC).replace(microsecond=0)
IDS = [
    "a/b",
    "..",
    ".",
    "a%2Fb",
    "{x}",
    " ",
    "\\N",
    "ä💓",
    "<script>",
    "?x=1&y#z",
    "a\nb",
]


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """Its JSON."""
        return json.loads(self.body)

    @property
    def rows(self) -> list[list[str]]:
        """Its CSV."""
        assert self.headers["Content-Type"].startswith("text/csv")
        return list(csv.reader(io.StringIO(self.body.decode(), newline="")))


def ask(worker: Worker, path: str, method: str = "GET", **headers: str) -> Got:
    """Send a path as it is: http.client changes nothing in it."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(worker.environ["WEB_PORT"]), timeout=30
    )
    given = {"Authorization": f"Bearer {TOKEN}", **headers}
    connection.request(method, path, headers=given)
    answer = connection.getresponse()
    got = Got(answer.status, answer.headers, answer.read())
    connection.close()
    return got


def record_of(customer_id: str) -> bytes:
    beat = {
        "customer_id": customer_id,
        "timestamp": datetime.now(UTC).isoformat(),
        "heart_rate": 70,
    }
    return json.dumps(beat).encode()


def path_of(customer_id: str, query: str = "") -> str:
    # Dots, too: as they are they would mean a folder.
    encoded = quote(customer_id, safe="").replace(".", "%2E")
    return f"/api/customers/{encoded}/heart-rate{query}"


@pytest.fixture
def store(engine: Engine) -> Callable[..., None]:
    """Stores beats of a customer, a second apart, the last one at `end`."""

    def store(customer_id: str, count: int, end: datetime = NOW) -> None:
        with engine.begin() as connection:
            for day in {(end - timedelta(seconds=n)).date() for n in (0, count)}:
                connection.execute(text("SELECT make_day(:day)"), {"day": day})
            connection.execute(
                text(
                    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                    " SELECT :id, :end - n * INTERVAL '1 second', 60 + n % 40"
                    " FROM generate_series(0, :count - 1) AS n"
                ),
                {"id": customer_id, "end": end, "count": count},
            )
            marks.mark(connection, [end - timedelta(seconds=n) for n in range(count)])

    return store


@pytest.fixture
def worker(topic: Topic, make_worker: Callable[..., Worker]) -> Iterator[Worker]:
    """A worker with a token, answering."""
    topic.make(partitions=1)
    worker = make_worker(WEB_TOKEN=TOKEN).start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    yield worker
    assert TOKEN not in worker.log()
    assert "heartbeat_app/web/" not in worker.log(), worker.log()[-6000:]


def test_every_answer_in_both_formats(
    worker: Worker, store: Callable[..., None]
) -> None:
    for number, customer_id in enumerate(IDS):
        store(customer_id, number + 1)

    # All of them, page by page, along the Link header and along `next`.
    found: list[str] = []
    path: str | None = "/api/customers?limit=4"
    while path:
        got = ask(worker, path)
        page = got.json
        assert len(page["customers"]) <= 4
        found += page["customers"]
        assert ("Link" in got.headers) == (page["next"] is not None)
        path = got.headers["Link"].split(">")[0][1:] if page["next"] else None
    assert sorted(found) == sorted(IDS)
    assert len(ask(worker, "/api/customers").json["customers"]) == len(IDS)
    rows = ask(worker, "/api/customers?format=csv").rows
    assert rows == [["customer_id"], *([each] for each in found)]

    # Each by its path, whatever it is called.
    for number, customer_id in enumerate(IDS):
        got = ask(worker, path_of(customer_id))
        assert got.json["customer_id"] == customer_id
        assert got.json["step"] == "raw"
        assert len(got.json["points"]) == number + 1, customer_id
        assert got.json["points"][-1] == {
            "timestamp": NOW.isoformat().replace("+00:00", "Z"),
            "heart_rate": 60,
        }
    got = ask(worker, path_of(IDS[5], "?step=minute"), Accept="text/csv")
    assert got.rows[0] == ["begin", "count", "min", "max", "mean"]
    assert sum(int(row[1]) for row in got.rows[1:]) == 6
    assert ask(worker, path_of("nobody")).json["points"] == []

    latest = ask(worker, "/api/latest").json
    assert [each["customer_id"] for each in latest["beats"]] == found
    assert {each["heart_rate"] for each in latest["beats"]} == {60}
    assert latest["next"] is None
    page = ask(worker, "/api/latest?limit=2&format=csv").rows
    assert page[0] == ["customer_id", "timestamp", "heart_rate"]
    assert [row[0] for row in page[1:]] == found[:2]

    summary = ask(worker, "/api/summary").json
    assert summary["days"] in {3, 4}  # two are made ahead
    assert summary["last_minute"]["customers"] in {0, len(IDS)}
    header, values = ask(worker, "/api/summary?format=csv").rows
    assert dict(zip(header, values, strict=True))["days"] == str(summary["days"])

    assert ask(worker, "/api/openapi.json").body == OPENAPI.read_bytes()
    head = ask(worker, "/api/customers", method="HEAD")
    assert (head.status, head.body) == (200, b"")


def test_what_is_wrong_is_said(worker: Worker, store: Callable[..., None]) -> None:
    store("fast", 5_001)
    hours = "?from=" + quote((NOW - timedelta(hours=2)).isoformat())
    for path, parameter, words in (
        ("/api/customers?limit=0", "limit", "allowed is 1 to 1000"),
        ("/api/latest?sinc=now", "sinc", "known are after, format, limit, since"),
        (path_of("fast", "?from=now"), "from", "no instant such as"),
        (path_of("x" * 256), "customer_id", "256 characters"),
        (path_of("a\0b"), "customer_id", "a character that no id can have"),
        ("/api/customers/Zo%EB/heart-rate", "customer_id", "not UTF-8"),
        ("/api/customers?after=Zo%EB", "after", "not UTF-8"),
        (path_of("fast", f"{hours}&step=raw"), "step", "more than 5,000 beats"),
    ):
        got = ask(worker, path)
        assert got.status == 400, path
        assert got.headers["Content-Type"] == "application/problem+json"
        assert got.json["parameter"] == parameter
        assert words in got.json["detail"]
    assert ask(worker, path_of("fast", hours)).json["step"] == "minute"
    for path in PATHS:
        for wrong in ("none", "Bearer the-token-of-another-test"):
            got = ask(worker, path.format(customer_id="fast"), Authorization=wrong)
            assert got.status == 401, path
            assert b"fast" not in got.body
    for method, path, status in (
        ("DELETE", "/api/customers", 405),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/", 404),
        ("POST", path_of("fast"), 405),
    ):
        got = ask(worker, path, method)
        assert (got.status, got.json["status"]) == (status, status), path
        assert got.headers["Content-Type"] == "application/problem+json"
        assert (got.headers["Allow"] == "GET,HEAD") is (status == 405)
    assert ask(worker, "/nothing").headers["Content-Type"].startswith("text/plain")


def test_without_a_token_only_this_machine_is_answered(
    topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    worker = make_worker(WEB_BIND="0.0.0.0").start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    for path in sorted(PATHS - {"/api/openapi.json"}):
        got = ask(worker, path.format(customer_id="a"))
        assert got.status == 403, path
    assert ask(worker, "/api/openapi.json").status == 200


def test_an_outage_and_a_crowd_are_told_and_over_soon(
    worker: Worker, engine: Engine, store: Callable[..., None]
) -> None:
    """And meanwhile the worker stays ready, since the API has threads of its own."""
    store("a", 10)
    with engine.connect() as blocking:
        blocking.execute(text("LOCK TABLE heartbeats IN ACCESS EXCLUSIVE MODE"))
        with ThreadPoolExecutor(40) as pool:
            got = list(pool.map(lambda _: ask(worker, path_of("a")), range(40)))
            assert worker.get("/health/live", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert {each.status for each in got} == {503}
        told = {each.json["detail"].split(";")[0] for each in got}
        assert told >= {"Too many questions at once"}
        assert {each.headers["Retry-After"] for each in got} == {"2"}
        blocking.rollback()
    assert ask(worker, path_of("a")).status == 200


def test_the_last_instant_and_every_offset_are_understood(worker: Worker) -> None:
    last = "?from=9999-12-31T00:00:00Z&to=9999-12-31T23:59:59Z"
    for query in (last, *(f"{last}&step={step}" for step in ("minute", "hour", "day"))):
        got = ask(worker, path_of("a", query))
        assert (got.status, got.json["points"]) == (200, []), got.body
    for offset in ("+0100", "%2B0100", "+01:00", "%2B01:00"):
        query = f"?from=2026-01-01T01:00:00{offset}&to=2026-01-01T00:30:00Z"
        assert ask(worker, path_of("a", query)).json["from"] == "2026-01-01T00:00:00Z"


def test_connections_that_were_cut_are_no_outage(
    worker: Worker, engine: Engine, store: Callable[..., None]
) -> None:
    """As by a restart of PostgreSQL, or by whatever forgets idle connections."""
    store("a", 10)
    paths = (path_of("a"), "/api/customers", "/live/customer?id=a")
    for path in (*paths, "/stats/"):
        with ThreadPoolExecutor(4) as pool:  # so that each connection is there
            assert {each.status for each in pool.map(ask, [worker] * 8, [path] * 8)}
        with engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid != pg_backend_pid()"
                    " AND application_name LIKE 'heartbeat_app %'"
                )
            )
        assert ask(worker, path).status == 200, path


OLD = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
OLD_DAY = path_of("a", "?from=2026-01-01T00:00:00Z&to=2026-01-01T13:00:00Z&step=raw")


@contextmanager
def old_day_locked(engine: Engine) -> Iterator[None]:
    """Whoever asks about that day waits; what comes in now goes elsewhere."""
    with engine.connect() as blocking:
        blocking.execute(text("SET LOCAL lock_timeout = '10s'"))
        blocking.execute(text("LOCK TABLE heartbeats_2026_01_01"))
        yield


def stored(engine: Engine, count: int) -> bool:
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT sum(stored) FROM partition_ledger"))
    return bool(found == count)


def test_questions_that_take_long_hold_up_nobody_but_themselves(
    worker: Worker, engine: Engine, topic: Topic, store: Callable[..., None]
) -> None:
    store("a", 10, OLD)
    with old_day_locked(engine), ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(ask, worker, OLD_DAY) for _ in range(100)]
        for number in range(1, 6):
            topic.produce([record_of(f"c{number}")], partition=0)
            worker.wait_until(
                partial(stored, engine, number), "it is stored meanwhile", seconds=3
            )
            assert worker.get("/health/ready", seconds=1)[0] == 200
        got = [each.result(20) for each in asked]
    assert {each.status for each in got} == {503}
    told = [each.json["detail"] for each in got]
    assert "It would take longer than 5 s; ask for a shorter time, or again later." in (
        told
    )
    assert len(ask(worker, OLD_DAY).json["points"]) == 10


def test_a_database_that_hangs_does_not_keep_the_questions_threads(
    worker: Worker, engine: Engine, store: Callable[..., None]
) -> None:
    """No limit of the server's own ends them: the watchdog does, and so does a stop."""
    store("a", 10, OLD)
    waiting = text(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'heartbeat_app api'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )

    def pids() -> list[int]:
        with engine.connect() as connection:
            found = list(connection.scalars(waiting))
        return found if len(found) == 2 else []

    def freeze(pool: ThreadPoolExecutor) -> list[Future[Got]]:
        with old_day_locked(engine):
            asked = [pool.submit(ask, worker, OLD_DAY) for _ in range(2)]
            for pid in worker.wait_until(pids, "both threads wait", seconds=4):
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
        return asked

    def thaw() -> None:
        while frozen:
            os.kill(frozen.pop(), signal.SIGCONT)

    frozen: list[int] = []
    try:
        with ThreadPoolExecutor(2) as pool:
            for each in freeze(pool):
                got = each.result(30)
                assert (got.status, got.headers["Retry-After"]) == (503, "2")
            assert ask(worker, OLD_DAY).status == 200
            assert worker.get("/health/ready")[0] == 200
            thaw()  # else they would keep the lock from us
            asked = freeze(pool)
            assert worker.stop(seconds=12) == 0
            for each in asked:
                assert each.exception(5) or each.result().status == 503
    finally:
        thaw()


def test_schemathesis_finds_nothing(
    worker: Worker, environ: dict[str, str], store: Callable[..., None], tmp_path: Path
) -> None:
    """Hundreds of requests made from openapi.json, right and wrong ones.

    All its checks but one: it cannot know that `from` lies before `to`, and so which
    right values do not go together.
    """
    for customer_id in ("a", "b", "0"):
        store(customer_id, 100)
    printed = run(
        {**environ, "PYTHONWARNINGS": "ignore"},
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        str(OPENAPI),
        f"--url=http://127.0.0.1:{worker.environ['WEB_PORT']}",
        f"--header=Authorization: Bearer {TOKEN}",
        "--checks=all",
        "--exclude-checks=positive_data_acceptance",
        "--max-examples=40",
        "--generation-deterministic",
        "--no-color",
        seconds=300,
    )
    assert "No issues found" in printed
