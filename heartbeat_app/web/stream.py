"""Server-sent events to one viewer, who may take them or not."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from heartbeat_app.web.connections import CONNECTIONS

# A viewer that takes nothing for so long is gone. A stop, which waits for it, has 8 s.
WRITE_SECONDS = 5.0
# One that vanished takes what the kernel has room for, minutes of messages, and keeps
# its place meanwhile: the kernel gives it up when nothing arrives for so long.
ARRIVE_SECONDS = 30
RETRY_MILLISECONDS = 1000

HEADERS = {
    "Content-Type": "text/event-stream",
    # nginx would hold the messages back until it has a few kilobytes of them.
    "X-Accel-Buffering": "no",
}


async def send(
    request: web.Request, messages: asyncio.Queue[bytes | None]
) -> web.StreamResponse:
    """Answer with the messages until there comes None, or the viewer has gone."""
    response = web.StreamResponse(headers=HEADERS)
    transport = request.transport
    if transport is None:
        return response
    transport.get_extra_info("socket").setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ARRIVE_SECONDS * 1000
    )
    if connections := request.app.get(CONNECTIONS):
        connections.spare(request)
    try:
        await response.prepare(request)
        await response.write(b"retry: %d\n\n" % RETRY_MILLISECONDS)
        while True:
            message = await messages.get()
            async with asyncio.timeout(WRITE_SECONDS):
                if message is None:
                    # aiohttp would do it, and wait for as long as it takes.
                    await response.write_eof()
                    break
                await response.write(message)
    except TimeoutError:
        # To close it would wait until the viewer has taken the rest.
        transport.abort()
    except ConnectionError:
        pass  # the viewer has gone
    return response
