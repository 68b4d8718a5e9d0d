"""The demo's worker: `heartbeat_app worker` as a program of its own."""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from heartbeat_app.embedded.processes import Progress
from heartbeat_app.embedded.server import EmbeddedServer

QUICK_END_SECONDS = 20.0
"""A worker that ends sooner has not done any work worth the name."""

_LONGEST_PAUSE_SECONDS = 10.0


class Worker(EmbeddedServer):
    """Runs in the project's folder, with our environment, and is kept running."""

    name: ClassVar[str] = "the worker"
    port_setting: ClassVar[str] = "WEB_PORT"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(
        self,
        data_dir: Path,
        *,
        project: Path,
        host: str,
        port: int,
        environment: Mapping[str, str],
        progress: Progress | None = None,
    ) -> None:
        super().__init__(data_dir, host=host, port=port, progress=progress)
        self.restarts = 0
        self._quick_ends = 0
        self._project = project
        self._extra = dict(environment)
        self._launched = 0.0
        self._start_again: float | None = None

    @property
    def log_path(self) -> Path:
        return self.data_dir.with_suffix(".log")

    def launch(self) -> None:
        super().launch()
        self._launched = time.monotonic()

    def keep_running(self) -> str | None:
        """Call it often: starts the worker again when it has ended.

        Returns what to tell a person, when there is something to tell. Raises
        EmbeddedServerError when it ends again and again without having worked.
        """
        if self.is_running():
            return None
        now = time.monotonic()
        if self._start_again is None:
            if now - self._launched < QUICK_END_SECONDS:
                self._quick_ends += 1
            else:
                self._quick_ends = 1
            report = self.failure(
                f"ended by itself ({self._how_it_ended()})", way_on="It starts again."
            )
            if self._quick_ends == 5:
                raise self.failure(
                    f"ended by itself {self._quick_ends} times in a row, the last time "
                    f"{self._how_it_ended()}",
                    way_on="Mend what the log names and start again.",
                )
            pause = min(2.0 ** (self._quick_ends - 1), _LONGEST_PAUSE_SECONDS)
            self._start_again = now + pause
            return str(report)
        if now < self._start_again:
            return None
        self._start_again = None
        self.kill()  # forget the one that ended
        self.launch()
        self.restarts += 1
        return f"Started the worker again (process {self.pid})."

    def _how_it_ended(self) -> str:
        assert self._process is not None
        status = self._process.returncode
        if status is not None and status < 0:
            return f"signal {signal.Signals(-status).name}"
        return f"exit status {status}"

    def _prepare(self) -> None:
        """Its database and topic are made by the time it starts."""

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", "heartbeat_app", "worker", "-l", "info"]

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, **self._extra}

    def _death_signal(self) -> signal.Signals:
        # Its Kafka dies at the same moment, and it would wait for that to stop in
        # order. What it has in hand it finds in Kafka again.
        return signal.SIGKILL

    def _working_folder(self) -> Path:
        return self._project

    def _answers(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True
