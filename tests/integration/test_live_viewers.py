"""What many viewers of the live page cost: hardly more than one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import psutil
import pytest
from sqlalchemy import Engine

from bench.viewers import Cost, measure
from heartbeat_app.config import Settings
from heartbeat_app.domain.models import Heartbeat, encode
from heartbeat_app.live.feed import Feed
from testkit.servers import Crowd, Servers, Topic, Worker

pytestmark = pytest.mark.integration

T = TypeVar("T")
MANY = 100
SECONDS = 4.0
MOST_OF_A_CORE = 0.10


class Statements:
    """Those that PostgreSQL got for one database, as its log counts them."""

    def __init__(self, servers: Servers, database: str) -> None:
        self._log = servers.postgres.log_path
        self._of = f"@{database} LOG:  statement:"
        servers.administer(f"ALTER DATABASE \"{database}\" SET log_statement = 'all'")

    def count(self) -> int:
        return self._log.read_text(errors="replace").count(self._of)

    def a_second(self, work: Callable[[], T]) -> tuple[T, float]:
        """What the work returns, and how many there are a second meanwhile."""
        before, began = self.count(), time.monotonic()
        found = work()
        return found, (self.count() - before) / (time.monotonic() - began)


def test_a_hundred_viewers_cost_little_more_than_one(
    servers: Servers, topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    topic.make()
    customers = [f"customer-{number:04d}" for number in range(1, 1001)]

    def beat() -> None:
        now, rate = datetime.now(UTC), 60 + int(time.time()) % 50
        topic.produce([encode(Heartbeat(each, now, rate)) for each in customers])

    worker = make_worker()
    statements = Statements(servers, worker.environ["POSTGRESQL_DATABASE"])
    worker.start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    with Crowd(beat, 1.0):
        worker.wait_for_log("Stored ")
        url = f"http://127.0.0.1:{worker.environ['WEB_PORT']}/live/events"
        process = psutil.Process(worker.pid)

        def watch(viewers: int) -> Cost:
            return asyncio.run(measure(url, process, viewers, SECONDS))

        none, own = statements.a_second(partial(watch, 0))
        one, asked = statements.a_second(partial(watch, 1))
        many, asked_by_many = statements.a_second(partial(watch, MANY))
    assert one.messages > 0
    assert many.messages > 0
    # A look is some statements, and there are about as many looks.
    assert own < asked
    assert asked_by_many < 2 * asked
    assert many.core - none.core < MOST_OF_A_CORE


async def test_what_is_told_is_made_once_for_all(
    engine: Engine, settings: Settings
) -> None:
    watchdog = SimpleNamespace(logs=None)
    feed = Feed(SimpleNamespace(settings=settings, watchdog=watchdog))
    viewers = [feed.join() for _ in range(3)]
    for name in (b"all", b"new"):
        await feed._look()
        first, *others = (viewer.messages.get_nowait() for viewer in viewers if viewer)
        assert first is not None
        assert first.startswith(b"event: " + name)
        assert len(others) == 2
        assert all(other is first for other in others)
    feed.end_all()
