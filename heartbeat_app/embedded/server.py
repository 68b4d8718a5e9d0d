"""What Kafka and PostgreSQL have in common as programs: start, watch, end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from heartbeat_app.embedded.folder import (
    CLOSED_UMASK,
    FolderLock,
    make_own_folder,
    open_closed,
)
from heartbeat_app.embedded.ports import require_free_port
from heartbeat_app.embedded.processes import (
    Progress,
    SystemUser,
    die_with_parent,
    end_tree,
    kill_tree,
    read_own_process,
    run_to_end,
    send_signal,
    signals_held,
    tree_of,
    write_own_process,
)
from heartbeat_app.exceptions import EmbeddedServerError

# Whoever makes a server of this kind needs all three.
__all__ = ["EmbeddedServer", "Progress", "run_to_end"]

READY_LIMIT_SECONDS = 90.0
"""A cold disk and a crash recovery take tens of seconds; more is a fault."""

STOP_LIMIT_SECONDS = 8.0
"""Both servers stop in about a second; Ctrl-C of the demo has 10 s in all."""

LOG_KEEP_BYTES = 16 * 1024 * 1024
"""A log that grew beyond this is set aside at the next start."""

DISK_FULL_BYTES = 50 * 1000 * 1000
"""With less, a server that ends has most likely ended for want of room."""

_POLL_SECONDS = 0.05
# As Kafka and PostgreSQL write of what ends them, and Java of its causes.
_ERROR = re.compile(r"\b(ERROR|FATAL|PANIC)\b|^Caused by: ")


class EmbeddedServer(ABC):
    """A server on this machine, with its data in a folder of its own.

    `start` returns when the server answers. It runs in a session of its own, so a
    Ctrl-C in the terminal does not reach it. Start it from the main thread: then
    the kernel ends it when this process dies, however it dies; a server that was
    left behind all the same is found and ended at the next start.
    """

    name: ClassVar[str]
    port_setting: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self, data_dir: Path, *, host: str, port: int, progress: Progress | None
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.host = host
        self.port = port
        self._progress: Progress = progress or (lambda text: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: FolderLock | None = None
        self._log_start = 0

    # What a server has to tell

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data and the configuration; must be idempotent."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The program that becomes the server."""

    @abstractmethod
    def _answers(self) -> bool:
        """Does the server that we started do its work now?"""

    def _environment(self) -> Mapping[str, str]:
        return {}

    def _run_as(self) -> SystemUser | None:
        return None

    def _death_signal(self) -> signal.Signals:
        """What the kernel sends when the program that started it dies."""
        return self.stop_signal

    def _working_folder(self) -> Path:
        return self.home

    @property
    def home(self) -> Path:
        """Where data, configuration and log really are."""
        return self.data_dir

    # What everyone may do

    @property
    def log_path(self) -> Path:
        return self.home / "server.log"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.is_running() else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers; a running server is left alone."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start without waiting, for those who have something to do meanwhile."""
        if self.is_running():
            return
        self.claim()
        try:
            self._prepare()
            self._progress(f"Starting {self.name}")
            self._spawn()
        except BaseException:
            self.kill()
            raise

    def claim(self) -> None:
        """Make sure that folder and port are ours, and end what a killed run left.

        `launch` does it too; beforehand it tells a person about a taken port without
        a wait. Give it back with `stop` or `kill`.
        """
        try:
            self._open_data_dir()
            self._end_leftover()
            require_free_port(
                self.host, self.port, server=self.name, setting=self.port_setting
            )
        except BaseException:
            self.kill()
            raise

    def wait_until_ready(self) -> None:
        """Raises EmbeddedServerError, and ends the server, when it does not answer."""
        try:
            for waited in self._ticks(READY_LIMIT_SECONDS):
                if not self.is_running():
                    assert self._process is not None
                    raise self.failure(
                        f"ended while starting (exit status {self._process.returncode})"
                    )
                if self._answers():
                    return
                if waited:
                    self._progress(f"Waiting for {self.name} to answer ({waited} s)")
            raise self.failure(f"did not answer within {READY_LIMIT_SECONDS:.0f} s")
        except BaseException:
            self.kill()
            raise

    def stop(self, *, limit_seconds: float = STOP_LIMIT_SECONDS) -> None:
        """Ask it to end in order; after the limit end it without asking."""
        process = self._process
        if process is not None and process.poll() is None:
            for each in tree_of(process.pid):  # a frozen program takes no signals
                send_signal(each, signal.SIGCONT)
            process.send_signal(self.stop_signal)
            for waited in self._ticks(limit_seconds):
                if process.poll() is not None:
                    break
                if waited:
                    self._progress(f"Waiting for {self.name} to stop ({waited} s)")
            else:
                self._progress(f"{self.name} does not stop, ending it")
        self.kill()

    def kill(self) -> None:
        """End the whole server at once (kill -9), as a power cut would."""
        if self._process is not None:
            if self._process.poll() is None:
                kill_tree(self._process.pid)
            self._process.wait()
            self._process = None
            self._pid_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def pause(self) -> None:
        """Freeze the server, as a machine that hangs would."""
        self._signal_tree(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_tree(signal.SIGCONT)

    def remove_data(self) -> None:
        """Forget everything that the stopped server kept."""
        if self.is_running():
            raise EmbeddedServerError(f"{self.name} still runs, stop it first.")
        if self.data_dir.exists():
            self._open_data_dir()
            try:
                self._end_leftover()
                self._remove_home()
            finally:
                self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def _remove_home(self) -> None:
        shutil.rmtree(self.home)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # How it is done

    @property
    def _pid_file(self) -> Path:
        return self.data_dir / "server.pid"

    def _open_data_dir(self) -> None:
        make_own_folder(self.data_dir)
        if self._lock is None:
            lock = FolderLock(self.data_dir)
            lock.acquire()
            self._lock = lock

    def _end_leftover(self) -> None:
        """End what a killed run of ours left behind.

        The folder's lock is ours by now, so whatever still runs on this data has
        lost its parent.
        """
        pid = read_own_process(self._pid_file)
        if pid is not None:
            self._progress(
                f"Ending {self.name} (process {pid}), which a killed run left behind"
            )
            end_tree(pid, self.stop_signal, STOP_LIMIT_SECONDS)
        self._pid_file.unlink(missing_ok=True)

    def _spawn(self) -> None:
        set_aside_when_big(self.log_path)
        user = self._run_as()
        identity: dict[str, Any] = (
            {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
        )
        # It may name customers: a statement that failed, a record that was rejected.
        log_fd = open_closed(self.log_path, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(log_fd, "ab") as log, signals_held():
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._working_folder(),
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LC_ALL": "C.UTF-8",
                    **self._environment(),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=CLOSED_UMASK,
                preexec_fn=die_with_parent(self._death_signal()),
                **identity,
            )
            write_own_process(self._pid_file, self._process.pid)

    def _signal_tree(self, number: signal.Signals) -> None:
        if self._process is None or not self.is_running():
            raise EmbeddedServerError(f"{self.name} does not run.")
        for process in tree_of(self._process.pid):
            send_signal(process, number)

    def _ticks(self, limit: float) -> Iterator[int]:
        """Yields often; the whole seconds waited once each, 0 in between."""
        begin = time.monotonic()
        told = 0
        while (waited := time.monotonic() - begin) < limit:
            yield int(waited) if int(waited) > told else 0
            told = int(waited)
            time.sleep(_POLL_SECONDS)

    def failure(self, what: str, *, way_on: str = "") -> EmbeddedServerError:
        """What happened, where it is written down, what to do."""
        name = self.name[0].upper() + self.name[1:]
        lines = [f"{name} {what}.", f"Its log is {self.log_path}"]
        if tail := self._log_tail():
            lines[-1] += ", which ends with:"
            lines += [f"    {line}" for line in tail]
        free = shutil.disk_usage(self.home).free
        if free < DISK_FULL_BYTES:
            way_on = (
                f"The disk of {self.home} is full ({free / 1e6:.0f} MB free). Make "
                "room and start again: what was kept is still there."
            )
        lines.append(
            way_on
            or "Mend what the log names and start again: what was kept is still there."
        )
        return EmbeddedServerError("\n".join(lines))

    def _log_tail(self, lines: int = 12) -> list[str]:
        """The last lines that this start wrote, and before them the last of errors."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start)
                text = log.read()[-16_384:].decode(errors="replace")
        except OSError:
            return []
        written = [line for line in text.splitlines() if line.strip()]
        # Kafka goes on about its end for longer than about its reason.
        errors = [line for line in written[:-lines] if _ERROR.search(line)]
        return [*errors[-3:], *written[-lines:]]


def set_aside_when_big(log: Path) -> None:
    """Begin a new log, and keep one old one."""
    if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
        log.replace(log.with_suffix(".log.1"))
