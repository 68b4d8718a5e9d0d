"""Makes a part of a worker stand still; found through PYTHONPATH at its start.

Once, as soon as the file PROVE_STUCK is there, whose text names the part.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

_file = Path(os.environ["PROVE_STUCK"])
_FOR_EVER = 3_600.0


def _agent_dies(app: Any) -> None:
    """As an agent's task that ends without a word."""
    for agent in app.agents.values():
        for actor in agent._actors:
            app.loop.call_soon_threadsafe(actor.actor_task.cancel)


def _flow_ends(app: Any) -> None:
    """As a recovery that a time-out ended: assigned, and nothing is fetched."""
    app.loop.call_soon_threadsafe(app.flow_control.suspend)
    app.loop.call_soon_threadsafe(app.consumer.stop_flow)


def _consumer_blocks(app: Any) -> None:
    """The consumer's thread does not come back; the group takes it for dead."""
    app.consumer._thread.thread_loop.call_soon_threadsafe(time.sleep, _FOR_EVER)


def _writers_block(app: Any) -> None:
    for _ in range(app.writing._max_workers):
        app.writing.submit(time.sleep, _FOR_EVER)


def _loop_blocks(app: Any) -> None:
    app.loop.call_soon_threadsafe(time.sleep, _FOR_EVER)


_PARTS = {
    "agent": _agent_dies,
    "flow": _flow_ends,
    "consumer": _consumer_blocks,
    "writers": _writers_block,
    "loop": _loop_blocks,
}


def _wait() -> None:
    while not _file.exists():
        time.sleep(0.1)
    part = _file.read_text()
    _file.unlink()
    from heartbeat_app.application import app

    _PARTS[part](app)


threading.Thread(target=_wait, daemon=True).start()
