"""A contender's program as the operating system sees it: start, measure, end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 15.0
LOG_TAIL = 3000


@dataclass(frozen=True)
class Usage:
    """What a program took so far, its children included.

    Attributes:
        cpu_seconds: In user and system mode.
        peak_mb: The most memory that was resident at once, of each process.
        resident_mb: What is resident now.
    """

    cpu_seconds: float
    peak_mb: float
    resident_mb: float


class Program:
    """A program that runs until it is stopped, its output in a file."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def log(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-LOG_TAIL:]

    def usage(self) -> Usage:
        """What it took so far.

        Raises:
            psutil.NoSuchProcess: It ended.
        """
        top = psutil.Process(self._process.pid)
        cpu = peak = resident = 0.0
        for process in [top, *top.children(recursive=True)]:
            times = process.cpu_times()
            cpu += times.user + times.system
            peak += _peak_kb(process.pid) / 1024
            resident += process.memory_info().rss / 1024**2
        return Usage(cpu, peak, resident)

    def stop(self) -> None:
        """SIGTERM, and after some seconds SIGKILL to all of it."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        # Its own session: whoever is left of it.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def forget_log(self) -> None:
        """Remove its log: all went well."""
        self._log.unlink(missing_ok=True)


def _peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    _, found, rest = status.partition("VmHWM:")
    if not found:  # it ended, and waits for its parent to look
        raise psutil.NoSuchProcess(pid)
    return int(rest.split()[0])
