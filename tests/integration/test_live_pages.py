"""The live page's addresses: who gets an answer, and what is in it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, text

from heartbeat_app.domain.models import Heartbeat, encode
from testkit.servers import Topic, Worker

pytestmark = pytest.mark.integration

TOKEN = "the-token-of-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOUR = "/live/customer?id=c"
PERSONAL = ["/live/", "/live/events", HOUR]
FILES = [
    "/live/static/live.js",
    "/live/static/live.css",
    "/live/static/index.html",
    "/live/static/uplot-1.6.32/uPlot.iife.min.js",
    "/live/static/uplot-1.6.32/LICENSE",
]
EVIL = '<script>alert("1")</script> & ü'


@contextmanager
def get(
    worker: Worker, path: str, method: str = "GET", **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """The answer, which may go on for ever."""
    port = int(worker.environ["WEB_PORT"])
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as line:
        line.request(method, path, headers=headers)
        yield line.getresponse()


def status(worker: Worker, path: str, method: str = "GET", **headers: str) -> int:
    with get(worker, path, method, **headers) as answer:
        return answer.status


def message(answer: http.client.HTTPResponse, name: str) -> dict[str, Any]:
    """The next message with that name."""
    while answer.readline().strip() != b"event: " + name.encode():
        pass
    found: dict[str, Any] = json.loads(answer.readline().removeprefix(b"data: "))
    return found


@contextmanager
def locked(engine: Engine) -> Iterator[None]:
    """Nobody reads a beat meanwhile."""
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE heartbeats IN ACCESS EXCLUSIVE MODE"))
        yield


def started(make_worker: Callable[..., Worker], **more: str) -> Worker:
    worker = make_worker(**more).start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    return worker


def test_nothing_of_it_without_the_token(
    topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    worker = started(make_worker, WEB_TOKEN=TOKEN)
    for path in ("/live", *PERSONAL, *FILES):
        assert status(worker, path) == 401, path
        assert status(worker, path, Authorization="Bearer other") == 401, path
        wanted = 302 if path == "/live" else 200
        assert status(worker, path, **BEARER) == wanted, path
    assert status(worker, "/live/events", "HEAD") == 401
    with get(worker, "/live/", Accept="text/html") as sent_there:
        assert sent_there.getheader("Location") == "/login?next=/live/"
    with get(worker, "/live/", **BEARER) as page:
        policy = page.getheader("Content-Security-Policy") or ""
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in policy
        assert page.getheader("Cache-Control") == "no-store"


def test_who_watches_is_told_everything_and_then_what_is_new(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)

    def beat(*customers: str) -> None:
        now = datetime.now(UTC)
        topic.produce([encode(Heartbeat(each, now, 72)) for each in customers])

    beat("quiet", EVIL)
    worker = started(make_worker)
    worker.wait_for_log("Stored 2 heartbeats")
    with get(worker, "/live/events") as one, get(worker, "/live/events") as other:
        assert one.getheader("X-Accel-Buffering") == "no"  # a proxy passes it on
        told = message(one, "all")
        assert [(each[0], each[2]) for each in told["customers"]] == [
            (EVIL, 72),
            ("quiet", 72),
        ]
        assert told["figures"]["lag"] == 0
        assert told["figures"]["refused"] == 0
        also = message(other, "all")["customers"]
        assert [each[0] for each in also] == [EVIL, "quiet"]
        beat(EVIL, "new")
        came: list[Any] = []
        ids: list[str] = []
        while len(came) < 2:
            new = message(one, "new")
            ids += new["ids"]
            came += new["heard"]
        # Who was not heard is not told, and nobody is told by name twice.
        assert ids == ["new"]
        assert {row[0] for row in came} == {0, 2}
        # A reader that shares the worker's machine, by another site's name.
        for path in PERSONAL:
            assert status(worker, path, Host="site.example") == 403, path
        with get(worker, f"/live/customer?id={quote(EVIL)}") as hour:
            steps = json.load(hour)["steps"]
        assert sum(beats for *_, beats in steps) == 2
        for wrong in ("", "?id=", "?id=%00", "?id=Zo%EB", f"?id={'x' * 256}"):
            assert status(worker, f"/live/customer{wrong}") == 400
        # An open page does not hold up the stop, nor do looks that do not end.
        with locked(engine), ThreadPoolExecutor(20) as people:
            hours = [people.submit(status, worker, HOUR) for _ in range(20)]
            time.sleep(1)
            # The worker has threads and connections left for its own work.
            began = time.monotonic()
            assert worker.get("/stats/")[0] == 200
            assert time.monotonic() - began < 3
            assert not any(each.done() for each in hours)
            assert worker.stop() == 0
            assert time.monotonic() - began < 7
            for each in hours:  # those that were waited for are cut off
                assert each.exception() is not None or each.result() == 503
