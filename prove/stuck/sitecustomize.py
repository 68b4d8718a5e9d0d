"""Makes a part of a worker stand still; found through PYTHONPATH at its start.

Once, as soon as the file PROVE_STUCK is there, whose text names the part.
"""

import asyncio
import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_file = Path(os.environ["PROVE_STUCK"])
_FOR_EVER = 3_600.0


def _agent_dies(app: Any) -> None:
    """As an agent's task that ends without a word."""
    for agent in app.agents.values():
        # Else it starts the agent again, which may go on as if nothing had been.
        agent.supervisor.service_operational = lambda service: True
        for actor in agent._actors:
            app.loop.call_soon_threadsafe(actor.actor_task.cancel)


def _agent_waits(app: Any) -> None:
    """What the agent awaits never comes."""

    async def never(*arguments: Any) -> None:
        await asyncio.sleep(_FOR_EVER)

    module: Any = sys.modules["heartbeat_app.worker.agents"]
    module.asyncio = SimpleNamespace(**{**vars(asyncio), "shield": never})


def _flow_ends(app: Any) -> None:
    """As a recovery that a time-out ended: assigned, and nothing is fetched."""
    app.loop.call_soon_threadsafe(app.flow_control.suspend)
    app.loop.call_soon_threadsafe(app.consumer.stop_flow)


def _consumer_blocks(app: Any) -> None:
    """The consumer's thread does not come back; the group takes it for dead."""
    app.consumer._thread.thread_loop.call_soon_threadsafe(time.sleep, _FOR_EVER)


def _fetching_ends(app: Any) -> None:
    """As aiokafka's task that fetches, when it is cancelled."""
    thread = app.consumer._thread
    thread.thread_loop.call_soon_threadsafe(
        thread._consumer._fetcher._fetch_task.cancel
    )


def _writers_block(app: Any) -> None:
    for _ in range(app.writing._max_workers):
        app.writing.submit(time.sleep, _FOR_EVER)


def _transaction_hangs(app: Any) -> None:
    """A thread that writes hangs inside its transaction, the ledger's row locked."""
    module: Any = sys.modules["heartbeat_app.storage.write.writer"]
    module.insert_dead_letters = lambda *arguments: time.sleep(_FOR_EVER)


def _helpers_block(app: Any) -> None:
    """All threads of asyncio.to_thread."""

    def block() -> None:
        for _ in range(64):
            app.loop.run_in_executor(None, time.sleep, _FOR_EVER)

    app.loop.call_soon_threadsafe(block)


def _loop_blocks(app: Any) -> None:
    app.loop.call_soon_threadsafe(time.sleep, _FOR_EVER)


def _python_blocks(app: Any) -> None:
    # Unlike time.sleep it keeps the lock that every thread of Python needs.
    ctypes.PyDLL(None).sleep(int(_FOR_EVER))


_PARTS = {
    "agent": _agent_dies,
    "agent's await": _agent_waits,
    "flow": _flow_ends,
    "consumer": _consumer_blocks,
    "fetching": _fetching_ends,
    "writers": _writers_block,
    "transaction": _transaction_hangs,
    "helpers": _helpers_block,
    "loop": _loop_blocks,
    "Python": _python_blocks,
}


def _wait() -> None:
    while not _file.exists():
        time.sleep(0.1)
    part = _file.read_text()
    _file.unlink()
    from heartbeat_app.worker.application import app

    _PARTS[part](app)


threading.Thread(target=_wait, daemon=True).start()
