"""What a connection may cost: a real server on 127.0.0.1, and raw sockets."""

from __future__ import annotations

import asyncio
import resource
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from heartbeat_app.web import connections
from heartbeat_app.web.access import Access, Seldom
from heartbeat_app.web.connections import (
    CONNECTIONS,
    MOST_BODY,
    MOST_BYTES,
    Connections,
    Runner,
)

TOKEN = "a-token-of-some-length"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
FORM = "application/x-www-form-urlencoded"
Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Served:
    """A server, and what its pages got."""

    port: int
    connections: Connections
    bodies: list[bytes]
    waiting: asyncio.Event
    lines: list[Line]
    counted: int = 0

    async def open(self, sent: bytes = b"", address: str = "127.0.0.1") -> Line:
        """A connection from an address of this machine, with what it sends first."""
        line = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(address, 0)
        )
        self.lines.append(line)
        line[1].write(sent)
        await line[1].drain()
        return line

    async def ask(self, sent: bytes = LIVE, address: str = "127.0.0.1") -> bytes:
        """The whole answer, after which the server closes."""
        reader, _ = await self.open(sent, address)
        async with asyncio.timeout(5):
            return await reader.read()

    async def is_alive(self) -> bool:
        """Whether a health check is answered within a second."""
        async with asyncio.timeout(1):
            return b"alive" in await self.ask(CLOSING)


CLOSING = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []
    all_served: list[Served] = []

    async def make(
        most: int = 100, most_of_one: int = 100, token: str | None = None
    ) -> Served:
        app = web.Application(client_max_size=MOST_BODY)
        places = app[CONNECTIONS] = Connections(most, most_of_one)
        app.middlewares.append(places.middleware)
        Access(token, "127.0.0.1").protect(app)
        served = Served(0, places, [], asyncio.Event(), [])
        all_served.append(served)

        async def live(request: web.Request) -> web.Response:
            return web.Response(text="alive")

        async def big(request: web.Request) -> web.Response:
            return web.Response(body=bytes(10_000_000))

        async def reading(request: web.Request) -> web.Response:
            served.bodies.append(await request.read())
            return web.Response(text="read")

        async def stream(request: web.Request) -> web.StreamResponse:
            places.spare(request)
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"begun")
            await served.waiting.wait()
            return response

        async def counted(request: web.Request) -> web.Response:
            served.counted += 1
            return web.Response()

        async def slow(request: web.Request) -> web.Response:
            await served.waiting.wait()
            return web.Response(text="at last")

        app.router.add_get("/health/live", live)
        app.router.add_post("/health/live", live)
        app.router.add_get("/big", big)
        app.router.add_get("/counted", counted)
        app.router.add_post("/reading", reading)
        app.router.add_get("/stream", stream)
        app.router.add_get("/slow", slow)
        runner = Runner(app, places)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=connections.BACKLOG).start()
        served.port = runner.addresses[0][1]
        return served

    yield make
    for served in all_served:
        served.waiting.set()
        for _, writer in served.lines:
            writer.transport.abort()
    for runner in runners:
        await runner.cleanup()


def post(path: str, body: bytes, **headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_no_body_is_decompressed(serve: Serve) -> None:
    served = await serve()
    small = zlib.compress(b"token")
    await served.ask(post("/reading", small, Content_Encoding="deflate"))
    assert served.bodies == [small]


@pytest.mark.parametrize("path", ["/reading", "/login"])
async def test_a_page_that_takes_a_body_takes_a_small_one(
    serve: Serve, path: str
) -> None:
    served = await serve()
    if path == "/login":
        served = await serve(token=TOKEN)
    for size, status in ((MOST_BODY, b"200"), (MOST_BODY + 1, b"413")):
        body = b"token=" + b"x" * (size - 6)
        told = await served.ask(post(path, body, Content_Type=FORM))
        wanted = b"403" if path == "/login" and status == b"200" else status
        assert told.split()[1] == wanted


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 1000000000\r\n\r\n" + bytes(1000),
        # Chunks, whose extensions nobody reads either.
        b"Transfer-Encoding: chunked\r\n\r\n1;x=" + b"y" * 1000,
    ],
)
async def test_a_body_that_no_page_takes_is_not_waited_for(
    serve: Serve, body: bytes
) -> None:
    """The answer comes at once, and the connection ends."""
    served = await serve()
    assert b"alive" in await served.ask(
        b"POST /health/live HTTP/1.1\r\nHost: localhost\r\n" + body
    )


async def test_a_form_has_to_come_in_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    served = await serve(token=TOKEN)
    form = post("/login", b"token=x", Content_Type=FORM).replace(b"th: 7", b"th: 70")
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            assert await served.ask(form) == b""
    assert not caplog.records


async def test_half_a_form_makes_room(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve(most=10, token=TOKEN)
    form = post("/login", b"token=x", Content_Type=FORM).replace(b"th: 7", b"th: 70")
    for _ in range(20):
        await served.open(form)
        assert await served.is_alive()
    assert len(served.connections) <= 10
    assert not caplog.records


# Places


async def test_half_requests_by_the_thousand_hold_up_nobody(serve: Serve) -> None:
    served = await serve()
    lines = [await served.open(b"GET / HTTP/1.1\r\nX-Half: ") for _ in range(400)]
    assert len(served.connections) <= 100
    assert await served.is_alive()
    # Those that came first have made room.
    assert await lines[0][0].read() == b""


async def test_an_address_has_its_own_limit(serve: Serve) -> None:
    served = await serve(most=20, most_of_one=10)
    for _ in range(30):
        await served.open(address="127.0.0.2")
    assert len(served.connections) == 10
    others = [await served.open(address=f"127.0.1.{n}") for n in range(1, 11)]
    assert len(served.connections) == 20
    # Above the limit for all the greedy one makes room, not who is idle for longest.
    others += [await served.open(address="127.0.2.1") for _ in range(5)]
    assert len(served.connections) == 20
    for _, writer in others:
        writer.write(CLOSING)
    for reader, _ in others:
        assert b"alive" in await reader.read()


async def test_who_is_idle_makes_room_before_a_page_and_a_page_before_a_stream(
    serve: Serve,
) -> None:
    served = await serve(most=3)
    stream, _ = await served.open(CLOSING.replace(b"/health/live", b"/stream"))
    assert b"begun" in await stream.readuntil(b"begun")
    page, _ = await served.open(CLOSING.replace(b"/health/live", b"/slow"))
    idle, _ = await served.open()
    assert await served.is_alive()
    assert await idle.read() == b""
    second, _ = await served.open(CLOSING.replace(b"/health/live", b"/stream"))
    assert b"begun" in await second.readuntil(b"begun")
    # There is nothing idle any more, so the page has to go.
    assert await served.is_alive()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await page.readexactly(1)
    served.waiting.set()
    assert await stream.read() is not None


async def test_for_a_connection_that_was_closed_no_page_is_made(serve: Serve) -> None:
    """Thousands of requests may come before it is closed; each page takes a while."""
    served = await serve(most=4, most_of_one=4)
    asked = b"GET /counted HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served.connections._turn:  # a page that is being made
        for _ in range(4):
            await served.open(asked)
        await until(lambda: len(served.connections) == 4)
        for guard in list(served.connections._by_protocol.values()):
            guard.abort()
    assert await served.is_alive()
    assert served.counted == 0
    request = make_mocked_request("GET", "/counted")

    async def page(request: web.Request) -> web.Response:
        raise AssertionError("it was made")

    answer = await served.connections.middleware(request, page)
    assert answer.status == 503


async def test_a_health_check_has_a_place_beside_pages(serve: Serve) -> None:
    """Where all others are in use, it would be the only one that is idle."""
    served = await serve(most=64, most_of_one=64)
    asked = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(64):
        await served.open(asked)
    reader, writer = await served.open()
    for _ in range(2):
        await served.open()
    writer.write(CLOSING)
    async with asyncio.timeout(5):
        assert b"alive" in await reader.read()
    served.waiting.set()


async def test_a_connection_is_kept_for_further_requests(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.open()
    for _ in range(500):
        writer.write(LIVE)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(5)
    assert len(served.connections) == 1


# Time


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nX-Half: ", LIVE, LIVE + b"GET / HTTP/1.1\r\n"],
)
async def test_headers_have_to_come_in_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Byte by byte does not help."""
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    served = await serve()
    reader, writer = await served.open(sent)

    async def trickle() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            await reader.read()
    trickling.cancel()
    await until(lambda: not len(served.connections))


async def test_a_page_may_take_its_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    served = await serve()
    for path in (b"/slow", b"/stream"):
        served.waiting.clear()
        asking = asyncio.create_task(served.ask(CLOSING.replace(b"/health/live", path)))
        done, _ = await asyncio.wait([asking], timeout=0.5)
        assert not done
        served.waiting.set()
        assert b"200 OK" in await asking


async def test_an_answer_has_to_be_taken_in_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 0.5)
    served = await serve()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(lazy, ("127.0.0.1", served.port))
        await loop.sock_sendall(lazy, LIVE.replace(b"/health/live", b"/big"))
        await until(lambda: len(served.connections))
        await until(lambda: not len(served.connections))


# Bytes


async def test_headers_have_to_be_small(serve: Serve) -> None:
    served = await serve()
    for head in (
        b"GET /" + b"x" * 10_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200,
    ):
        told = await served.ask(head + b" HTTP/1.1\r\n\r\n")
        assert told.split()[1] == b"400"


async def test_what_waits_for_its_turn_is_small(serve: Serve) -> None:
    """Requests behind one that takes long are held in memory, headers and all."""
    served = await serve()
    one = LIVE.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 4_000 + b"\r\n\r\n")
    reader, writer = await served.open(LIVE.replace(b"/health/live", b"/slow"))
    writer.write(one * 1_000)
    assert await served.is_alive()
    served.waiting.set()
    got = 0
    with suppress(asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        async with asyncio.timeout(1):
            while await reader.readuntil(b"alive"):
                got += 1
    assert 0 < got <= MOST_BYTES // len(one) + 1


# Who is no browser


@pytest.mark.parametrize(
    "host",
    [
        "a:b:c", "a:99999", "a:-1", "[::1", "[zz]", "::1", "[::1]:x", "a b", "a/b",
        "user@localhost", "a?b", "a#b", "é", "xn--zzzz--", "a\tb", "a\r\nHost: b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_malformed_host_is_a_400_in_one_line(
    serve: Serve, caplog: pytest.LogCaptureFixture, host: str, token: str | None
) -> None:
    served = await serve(token=token)
    told = await served.ask(CLOSING.replace(b"localhost", host.encode()))
    assert told.split()[1] == b"400"
    (line,) = [each for each in caplog.records if each.levelname != "DEBUG"]
    assert "\n" not in caplog.handler.format(line)
    assert "127.0.0.1" in line.getMessage()
    assert host not in line.getMessage()


@pytest.mark.parametrize("host", ["localhost", "[::1]:6066", "a-b.example:80", "a_b"])
async def test_other_hosts_are_answered(serve: Serve, host: str) -> None:
    served = await serve()
    assert b"alive" in await served.ask(CLOSING.replace(b"localhost", host.encode()))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff\n" * 300,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nName with blank: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET http://a:b:c/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_request_is_one_line_at_most(
    serve: Serve, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    served = await serve()
    async with asyncio.timeout(5):
        reader, writer = await served.open(sent)
        writer.write_eof()
        await reader.read()
    assert await served.is_alive()
    lines = [each for each in caplog.records if each.levelname != "DEBUG"]
    assert len(lines) <= 1
    assert not any("\n" in caplog.handler.format(each) for each in lines)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        CLOSING.replace(b"localhost", b"a:b:c"),
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: 7\r\n\r\ntoken=x",
    ],
)
async def test_a_flood_is_a_line_a_second_that_counts(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
) -> None:
    monkeypatch.setattr(Seldom, "SECONDS", 60.0)
    served = await serve(token=TOKEN)
    for last in (False, True):
        if last:
            monkeypatch.setattr(Seldom, "SECONDS", 0.0)
        for _ in range(1 if last else 20):
            await served.ask(sent)
    first, second = [each for each in caplog.records if each.levelname != "DEBUG"]
    assert "more like it" not in first.getMessage()
    assert second.getMessage().endswith(" (19 more like it before)")


@pytest.mark.parametrize(
    "headers",
    [
        b"Expect: 100-continue",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM",
    ],
)
async def test_other_requests_are_answered_and_over(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, headers: bytes
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    served = await serve()
    async with asyncio.timeout(5):
        told = await served.ask(LIVE.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % headers))
        assert b"alive" in told
        assert b"alive" in await served.ask(b"GET /health/live HTTP/1.0\r\n\r\n")
    await until(lambda: not len(served.connections))


def test_few_files_leave_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((64, 8), (1024, 640), (300, 44), (-1, 640)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, n=files: (n, n))
        assert connections.most_connections() == most
