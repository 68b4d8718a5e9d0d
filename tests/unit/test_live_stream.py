"""The stream of the live page: a real server, and viewers that take it or do not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from heartbeat_app.web import stream

MEGABYTE = b"data: %b\n\n" % (b"x" * 1_000_000)


class Told:
    """What the only viewer is told, and whether its answer has ended."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.has_ended = asyncio.Event()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Stream the messages."""
        try:
            return await stream.send(request, self.messages)
        finally:
            self.has_ended.set()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def server(told: Told) -> AsyncIterator[TestServer]:
    app = web.Application()
    app.router.add_get("/", told.page)
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


@pytest.fixture
async def idle(server: TestServer) -> AsyncIterator[socket.socket]:
    """A viewer that takes nothing."""
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        viewer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(viewer, ("127.0.0.1", server.port))
        await loop.sock_sendall(viewer, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        yield viewer


def connections(server: TestServer) -> int:
    assert server.runner is not None
    assert server.runner.server is not None
    return len(server.runner.server.connections)


async def until(is_so: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.02)


async def test_messages_come_until_the_end(server: TestServer, told: Told) -> None:
    for message in (b"data: 1\n\n", b"data: 2\n\n", None):
        told.messages.put_nowait(message)
    async with ClientSession() as session, session.get(server.make_url("/")) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.text() == "retry: 1000\n\ndata: 1\n\ndata: 2\n\n"


@pytest.mark.usefixtures("idle")
async def test_a_viewer_that_takes_nothing_is_cut_off(
    server: TestServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WRITE_SECONDS", 0.2)
    for _ in range(20):
        told.messages.put_nowait(MEGABYTE)
    await asyncio.wait_for(told.has_ended.wait(), 10)
    await until(lambda: connections(server) == 0, 2)


@pytest.mark.usefixtures("idle")
async def test_the_end_does_not_wait_for_a_viewer_that_takes_nothing(
    server: TestServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WRITE_SECONDS", 0.2)
    # aiohttp waits for the buffer at every 64 kB only: what is smaller goes in.
    monkeypatch.setattr(web.StreamResponse, "write", _without_waiting)
    for _ in range(20):
        told.messages.put_nowait(MEGABYTE)
    told.messages.put_nowait(None)
    await asyncio.wait_for(told.has_ended.wait(), 10)
    await until(lambda: connections(server) == 0, 2)


async def _without_waiting(response: web.StreamResponse, data: bytes) -> None:
    writer: Any = response._payload_writer
    await writer.write(data, drain=False)


@pytest.mark.usefixtures("idle")
async def test_the_kernel_gives_up_a_viewer_at_which_nothing_arrives(
    server: TestServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ARRIVE_SECONDS", 1)
    monkeypatch.setattr(stream, "WRITE_SECONDS", 600.0)
    began = time.monotonic()
    while not told.has_ended.is_set():
        assert time.monotonic() - began < 20
        told.messages.put_nowait(b"data: %b\n\n" % (b"x" * 10_000))
        await asyncio.sleep(0.05)
    await until(lambda: connections(server) == 0, 2)


def test_a_stop_is_longer_than_a_viewer_may_take() -> None:
    assert stream.WRITE_SECONDS < 8
