"""This project's worker, as a user starts it: `heartbeat_app worker`."""

from __future__ import annotations

import sys

from bench.contender import PROGRAMS, PythonContender, Task
from testkit.servers import OWNER, child_environ


class Ours(PythonContender):
    """All guards on; not one setting changed.

    Arguments:
        fewer_roll_ups: What bench/programs/fewer_roll_ups.py is told to leave.
    """

    def __init__(self, *, fewer_roll_ups: str | None = None) -> None:
        super().__init__(
            "ours",
            "heartbeat_app",
            "",
            "`heartbeat_app worker`, all guards on, no setting changed.",
        )
        self._app = ["-m", "heartbeat_app"]
        if fewer_roll_ups is not None:
            self._app = [str(PROGRAMS / "fewer_roll_ups.py"), fewer_roll_ups]

    def command(self) -> list[str]:
        return [sys.executable, *self._app, "worker", "-l", "info"]

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
