"""This project's worker, as a user starts it: `heartbeat_app worker`."""

from __future__ import annotations

import sys

from bench.contender import PythonContender, Task
from tests.servers import OWNER, child_environ


class Ours(PythonContender):
    """All guards on; not one setting changed."""

    def __init__(self) -> None:
        super().__init__(
            "ours",
            "heartbeat_app",
            "",
            "`heartbeat_app worker`, all guards on, no setting changed.",
        )

    def command(self) -> list[str]:
        return [sys.executable, "-m", "heartbeat_app", "worker", "-l", "info"]

    def environ(self, task: Task) -> dict[str, str]:
        return child_environ(
            {
                **task.stage.servers.environ(
                    task.database, task.group, HEARTBEATS_TOPIC=task.topic
                ),
                # A worker has no business with the owner's login.
                **dict.fromkeys(OWNER, ""),
            }
        )
