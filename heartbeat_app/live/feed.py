"""Looks at the database once a second while somebody watches, once for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
from mode import Service
from mode.utils.locks import Event
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.kafka.client import TopicLog
from heartbeat_app.live.board import Board
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.read.live import LiveReader, Look
from heartbeat_app.storage.read.questions import Questions

LOOK_SECONDS = 1.0
# Whoever comes is told at once, but many who come together cost one look.
SHORTEST_WAIT_SECONDS = 0.1
# After a look of everything. A page that hears nothing for 3 s says so.
LONGEST_WAIT_SECONDS = 1.5
# Invented beats come in bursts, one a second: a short window would show them.
RATE_SECONDS = 10.0
# A viewer that takes no messages for so long comes back later and is told all.
MOST_BEHIND = 10
MAX_VIEWERS = 500
# The first look at very many customers takes long.
STATEMENT_SECONDS = 10.0

_encode = msgspec.json.Encoder().encode


class Viewer:
    """One open page.

    Attributes:
        messages: Server-sent events, ready to be written; None: the end.
        knows_all: Whether it was told all customers, and needs only what is new.
    """

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.knows_all = False

    def end(self) -> None:
        """Say nothing any more."""
        while not self.messages.empty():
            self.messages.get_nowait()
        self.messages.put_nowait(None)


class Feed(Service):
    """What the open pages are told.

    Arguments:
        app: Its `watchdog.logs` say how much is to be read.

    Attributes:
        uses: Its connection, for the watchdog to break off.
    """

    def __init__(self, app: Any, **kwargs: Any) -> None:
        # Not among what single people ask: nobody's look waits for those.
        self._looks = Questions(
            app.settings, "live", threads=1, statement_seconds=STATEMENT_SECONDS
        )
        self.uses = self._looks.uses
        self._reader = LiveReader(self._looks.engine)
        self._board = Board()
        self._app = app
        self._viewers: set[Viewer] = set()
        self._ended = False
        self._joined = Event()
        self._stored: deque[tuple[float, int]] = deque()
        super().__init__(**kwargs)

    @property
    def is_full(self) -> bool:
        """Whether nobody more may watch."""
        return self._ended or len(self._viewers) >= MAX_VIEWERS

    def join(self) -> Viewer | None:
        """Begin to tell somebody; None where too many watch already."""
        if self.is_full:
            return None
        viewer = Viewer()
        self._viewers.add(viewer)
        self._joined.set()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Stop telling somebody."""
        self._viewers.discard(viewer)

    def end_all(self) -> None:
        """Send everybody away, for good; may be called again.

        The web server waits for whoever is not answered.
        """
        self._ended = True
        for viewer in self._viewers:
            viewer.end()
        self._viewers.clear()
        self._looks.end()

    async def on_stop(self) -> None:
        """Call when the worker stops; without a web server nobody else ends it."""
        self.end_all()

    @Service.task
    async def _look_while_watched(self) -> None:
        while not self.should_stop:
            self._joined.clear()
            if not self._viewers:
                await self.wait(self._joined)
                continue
            began = self.loop.time()
            is_anew = False
            try:
                is_anew = await self._look()
            except Exception as error:  # a task that raises ends the worker
                self.log.exception("The live page could not be told: %r", error)
            # At most half of the time, however many come and however long it takes.
            took = self.loop.time() - began
            pause = max(SHORTEST_WAIT_SECONDS, took)
            if is_anew:
                # The next ones read only what is new, so they make up for it. Where
                # they are slow, too, the database needs its half more than the page
                # needs to be told in time, and the page is right to say that it is not.
                pause = min(pause, LONGEST_WAIT_SECONDS)
            await self.sleep(pause)
            await self.wait(self._joined, timeout=max(0.0, LOOK_SECONDS - took - pause))

    async def _look(self) -> bool:
        """Look once and tell everybody; whether it was a look of everything."""
        here = set(self._viewers)  # more may come meanwhile; they are told next time
        wants_all = any(not viewer.knows_all for viewer in here)
        try:
            look, new, everything = await self._looks.ask(self._read, wants_all)
        except SQLAlchemyError as error:
            self._stored.clear()
            trouble = f"The database does not answer: {errors.words(error)}"
            self._tell(here, _event("trouble", {"trouble": trouble}))
            return False
        for viewer in here & self._viewers:
            if look.is_anew or not viewer.knows_all:
                viewer.knows_all = True
                self._tell({viewer}, everything)
            else:
                self._tell({viewer}, new)
        return look.is_anew

    def _read(self, wants_all: bool) -> tuple[Look, bytes, bytes]:
        """In a thread: look, and make the messages."""
        look = self._reader.read()
        if look.is_anew:
            self._board.clear()
        figures = {"figures": self._figures(look)}
        new = {**self._board.add(look.heard, look.now), **figures}
        everything = b""
        if wants_all or look.is_anew:
            everything = _event("all", {**self._board.all(look.now), **figures})
        return look, _event("new", new), everything

    def _tell(self, viewers: set[Viewer], message: bytes) -> None:
        for viewer in viewers & self._viewers:
            if viewer.messages.qsize() >= MOST_BEHIND:
                self._viewers.discard(viewer)
                viewer.end()
            else:
                viewer.messages.put_nowait(message)

    def _figures(self, look: Look) -> dict[str, object]:
        """What stands at the top of the page; None where nobody knows."""
        return {
            "stored_per_second": self._rate(look),
            "delay_p50_seconds": look.recent.delay_p50_seconds,
            "delay_p95_seconds": look.recent.delay_p95_seconds,
            "lag": lag(look.next_offsets, self._app.watchdog.logs),
            "refused": look.dead,
        }

    def _rate(self, look: Look) -> float | None:
        """Stored beats a second over the last few looks."""
        looks = self._stored
        looks.append((look.now, look.stored))
        while look.now - looks[0][0] > RATE_SECONDS:
            looks.popleft()
        (begin, first), (end, last) = looks[0], looks[-1]
        if end - begin < LOOK_SECONDS / 2:
            return look.recent.stored_per_second
        return max(0.0, (last - first) / (end - begin))


def lag(
    next_offsets: Mapping[tuple[str, int], int], logs: Mapping[str, TopicLog] | None
) -> int | None:
    """Records that are in Kafka and not in the database, of all partitions.

    Arguments:
        logs: TopicLog by topic; None: Kafka could not be asked.
    """
    if logs is None:
        return None
    return sum(
        here.unread(next_offsets.get((log.topic_id, number), 0))
        for log in logs.values()
        for number, here in log.partitions.items()
    )


def _event(name: str, content: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(content))
