"""Bounds what a connection to the worker's pages may cost: a place, time and bytes.

aiohttp bounds a request once it has arrived. A `Guard` stands in front of aiohttp on
each connection, since half a request, an idle connection and an answer that nobody
takes cost a file descriptor and memory, too, and may come by the thousand without a
token.

A new connection always gets a place, so a health check does. Where there are too many,
the address that has most of them loses the one that is idle for longest.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from enum import IntEnum
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from faust.web.drivers.aiohttp import Web as AiohttpWeb

from heartbeat_app.web.access import OPEN, Seldom

# 500 viewers of the live page, also through one proxy, and what else is asked.
MOST = 640
# So many that are idle keep their places before pages that are being made.
MOST_SPARED = 16
# Files that the worker needs for Kafka, PostgreSQL and itself, and those of connections
# that are accepted before others are closed.
OWN_FILES = 256
FEWEST = 8
BACKLOG = 1024
# From the connection, or the last answer, to the end of the next request's headers, and
# from there to the end of its body.
IDLE_SECONDS = 10.0
# An answer that is not taken by then is given up.
TAKE_SECONDS = 60.0
# Headers, with a body or further requests that come along, until a page begins.
MOST_BYTES = 32 * 1024
# A stop waits so long for pages that are being made, and again for them to be broken
# off; the whole worker has 8 s.
STOP_SECONDS = 2.0
# Of an answer so much waits in the kernel, which would take megabytes; double of it,
# as the kernel counts.
SEND_BYTES = 128 * 1024
# A page that takes a body takes so much of it: the login's form.
MOST_BODY = 4 * 1024


class Use(IntEnum):
    """What a connection is used for; the least is closed first."""

    NOTHING = 0
    PAGE = 1
    STREAM = 2


class Connections:
    """All connections to one server; for one event loop.

    Arguments:
        most: So many may be open.
        most_of_one: So many of them may come from one address.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._count = 0
        self._turn = asyncio.Lock()
        # By address, then by use, those that are in it for longest first.
        self._guards: dict[str, tuple[dict[Guard, None], ...]] = {}
        self._by_protocol: dict[asyncio.BaseProtocol, Guard] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, guard: Guard) -> None:
        """Give it a place, which may cost another one its own."""
        if self._of(guard.address) >= self._most_of_one:
            self._close_one_of(guard.address)
        elif self._count >= self._most:
            self._close_one_of(max(self._guards, key=self._of))
        if guard.address not in self._guards:
            self._guards[guard.address] = tuple({} for _ in Use)
        self._guards[guard.address][guard.used_for][guard] = None
        self._by_protocol[guard.protocol] = guard
        self._count += 1

    def remove(self, guard: Guard) -> None:
        """Take its place away; may be called again."""
        if self._by_protocol.pop(guard.protocol, None) is None:
            return
        self._count -= 1
        del self._guards[guard.address][guard.used_for][guard]
        if not self._of(guard.address):
            del self._guards[guard.address]

    def use(self, guard: Guard, use: Use) -> None:
        """Note what it is used for from now on."""
        if guard.protocol in self._by_protocol:
            by_use = self._guards[guard.address]
            del by_use[guard.used_for][guard]
            by_use[use][guard] = None
        guard.used_for = use

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Tell the connection when a page begins, and when it is made."""
        guard = self._by_protocol.get(request.protocol)
        if guard is None:
            return _unmade(request)
        # One whose body is not here yet is no further than one with half a head.
        guard.begin(Use.PAGE if request.content.is_eof() else Use.NOTHING)
        try:
            if request.path not in OPEN:
                # One page begins each time that the event loop comes round, so that
                # hundreds at once hold up neither a health check nor the beats.
                async with self._turn:
                    await asyncio.sleep(0)
                if request.protocol not in self._by_protocol:
                    return _unmade(request)
            return await handler(request)
        finally:
            guard.begin(Use.NOTHING)

    def spare(self, request: web.Request) -> None:
        """Close the request's connection last: its answer goes on and on."""
        if guard := self._by_protocol.get(request.protocol):
            guard.begin(Use.STREAM)

    def _of(self, address: str) -> int:
        return sum(map(len, self._guards.get(address, ())))

    def _close_one_of(self, address: str) -> None:
        by_use = self._guards[address]
        # The newest ones that nothing came from yet: a health check may be among them.
        spared = min(self._most_of_one // 32, MOST_SPARED)
        idle = by_use[Use.NOTHING] if len(by_use[Use.NOTHING]) > spared else {}
        for guards in (idle, *by_use[Use.PAGE :], by_use[Use.NOTHING]):
            if guards:
                next(iter(guards)).abort()
                return


def _unmade(request: web.Request) -> web.Response:
    """Make no page for a connection that was closed: what it asked for may be much."""
    request.protocol.force_close()
    return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


CONNECTIONS = web.AppKey("connections", Connections)


class Guard(asyncio.Protocol):
    """Stands between a connection and the protocol that serves it.

    Arguments:
        connections: Where it has its place.
        protocol: Serves the connection: aiohttp's.

    Attributes:
        address: The address that it comes from.
        used_for: What it is used for.
    """

    def __init__(self, connections: Connections, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        self.address = ""
        self.used_for = Use.NOTHING
        self._connections = connections
        self._bytes = 0
        self._is_deaf = False
        self._since = 0.0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place."""
        # uvloop's is one, but says so to nobody.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES
        )
        self._since = self._loop.time()
        self._timer = self._loop.call_later(IDLE_SECONDS, self._look)
        self.protocol.connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._timer.cancel()
        self._connections.remove(self)
        self.protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what there is room for, and hear no more after that.

        aiohttp answers what it has got by then, and closes the connection where the
        rest was a body; where not, it is idle from then on.
        """
        if self._is_deaf:
            return
        room = MOST_BYTES - self._bytes
        self._bytes += len(data)
        if len(data) > room:
            self._is_deaf = True
            self._transport.pause_reading()
            data = data[:room]
        self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self.protocol.resume_writing()

    def begin(self, use: Use) -> None:
        """Note what it is used for from now on, and begin to count anew."""
        self._connections.use(self, use)
        self._since = self._loop.time()
        self._bytes = 0

    def abort(self) -> None:
        """Close it at once, whatever is on its way."""
        self._connections.remove(self)
        self._transport.abort()

    def _look(self) -> None:
        limit = IDLE_SECONDS
        if self._transport.get_write_buffer_size():
            limit = TAKE_SECONDS
        left = IDLE_SECONDS
        if self.used_for is Use.NOTHING:
            left = self._since + limit - self._loop.time()
            if left <= 0.0:
                self.abort()
                return
        self._timer = self._loop.call_later(min(left, IDLE_SECONDS), self._look)


class Runner(web.AppRunner):
    """Runs the app with a guard on each connection."""

    def __init__(self, app: web.Application, connections: Connections) -> None:
        super().__init__(
            app,
            access_log=None,
            shutdown_timeout=STOP_SECONDS,
            # A small body that is a gigabyte when decompressed blocks the event loop
            # before any page is asked.
            auto_decompress=False,
            # What a page did not read of a body nobody reads.
            lingering_time=0.0,
            logger=_logger(),
        )
        self._connections = connections

    @property
    def server(self) -> Any:
        """What makes the protocol of each connection."""
        make: Callable[[], asyncio.Protocol] | None = super().server
        if make is None:
            return None
        return lambda: Guard(self._connections, make())


class Web(AiohttpWeb):
    """Faust's web server, with bounds on what its connections cost."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        most = most_connections()
        # A tenth of the places is left for others.
        connections = Connections(most, most - most // 10)
        self.web_app[CONNECTIONS] = connections
        self.web_app.middlewares.append(connections.middleware)
        self._runner = Runner(self.web_app, connections)

    def _new_transport_tcp(self) -> web.BaseSite:
        return web.TCPSite(
            self._runner,
            self.app.conf.web_bind,
            self.app.conf.web_port,
            ssl_context=self.app.conf.web_ssl_context,
            backlog=BACKLOG,
        )


def most_connections() -> int:
    """How many connections there may be: as many as the worker has files to spare."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST
    return max(FEWEST, min(MOST, files - OWN_FILES))


class _OneLine(logging.Filter):
    """Lets aiohttp say in one line that something was no request, without repeating it.

    It would log a traceback for each, which anybody can send by the thousand.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seldom = Seldom()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            more = self._seldom.words()
            if more is None:
                return False
            record.msg = f"{record.msg}: 400, %s%s"
            record.args = (*(record.args or ()), type(error).__name__, more)
            record.exc_info = None
        return True


def _logger() -> logging.Logger:
    logger = logging.getLogger("aiohttp.server")
    for each in list(logger.filters):
        if isinstance(each, _OneLine):
            logger.removeFilter(each)
    logger.addFilter(_OneLine())
    return logger
