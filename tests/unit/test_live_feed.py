"""How often the live page's feed looks at the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from heartbeat_app.config import load_settings
from heartbeat_app.live import feed as module
from heartbeat_app.live.feed import Feed

SETTINGS = {
    "POSTGRESQL_USERNAME": "nobody",
    "POSTGRESQL_PASSWORD": "none",
    "POSTGRESQL_DATABASE": "none",
}
TOOK = 1.0


class Looks:
    """Instead of those in the database: each takes as long."""

    def __init__(self, *results: bool | Exception) -> None:
        self._results = list(results)
        self.pauses: list[float] = []
        self.ended: float | None = None
        self.are_over = asyncio.Event()

    async def ask(self, read: Any, wants_all: bool) -> Any:
        now = asyncio.get_running_loop().time()
        if self.ended is not None:
            self.pauses.append(now - self.ended)
        if not self._results:
            self.are_over.set()
            await asyncio.Event().wait()
        await asyncio.sleep(TOOK)
        self.ended = asyncio.get_running_loop().time()
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(is_anew=result), b"new", b"all"

    def end(self) -> None:
        pass


@pytest.fixture
async def feed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    monkeypatch.setattr(module, "LONGEST_WAIT_SECONDS", 0.2)
    settings = load_settings(SETTINGS, Path("/nonexistent"))
    feed = Feed(SimpleNamespace(settings=settings, watchdog=SimpleNamespace()))
    feed._looks.end()
    yield feed
    await feed.stop()


async def test_a_look_of_everything_is_soon_followed_by_the_next(feed: Feed) -> None:
    # Those after it read only what is new. A database on which they are slow, too, or
    # that does not answer, is left alone for half of the time.
    slow = OperationalError("SELECT", {}, Exception("canceling statement"))
    looks = Looks(True, False, slow)
    feed._looks = looks  # type: ignore[assignment]
    assert feed.join() is not None
    await feed.start()
    await asyncio.wait_for(looks.are_over.wait(), 30)
    after_all, after_new, after_trouble = looks.pauses
    assert after_all < TOOK / 2
    assert after_new > TOOK * 0.9
    assert after_trouble > TOOK * 0.9


def test_the_next_event_comes_before_the_page_says_that_it_hears_nothing() -> None:
    script = Path(module.__file__).parents[1] / "web/static/live/stream.js"
    [line] = [
        line for line in script.read_text().splitlines() if "UNHEARD_MS =" in line
    ]
    unheard = int(line.split("=")[1].split(";")[0].replace("_", "")) / 1000
    # As much again for the look itself.
    assert unheard >= 2 * module.LONGEST_WAIT_SECONDS
