"""Programs as the operating system sees them: start, recognise, signal, end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from heartbeat_app.embedded.folder import CLOSED_UMASK, open_closed
from heartbeat_app.exceptions import EmbeddedServerError

if TYPE_CHECKING:
    import psutil

Progress = Callable[[str], None]
"""Told what is going on, in words for a person, at least every second."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_POLL_SECONDS = 0.01
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class SystemUser:
    """The account a server runs as, where it must not run as ours."""

    name: str
    uid: int
    gid: int


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For Popen's `preexec_fn`: the kernel sends `number` when the parent dies.

    Only Linux has it, and it counts the thread that started the program, not the
    process: only the main thread lasts as long as the process does. Elsewhere the
    clean-up at the next start has to do.
    """
    if (
        sys.platform != "linux"
        or threading.current_thread() is not threading.main_thread()
    ):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_kernel


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back the signals that stop us, until the block has ended; none is lost.

    For the start of a program. At a fork Python runs hooks, and `preexec_fn`, in which
    an exception that a handler raises is lost. And an exception after it would leave
    the new program behind, unknown to us. In other threads than the main one, which
    get no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}
    for each in STOP_SIGNALS:
        handler = signal.getsignal(each)
        if callable(handler):  # else it is ignored, or ends us without a word
            before[each] = handler
    came: list[int] = []
    holds = True

    def hold(number: int, frame: FrameType | None) -> None:
        if holds:
            came.append(number)
        else:  # what follows below was interrupted by another signal
            before[number](number, frame)

    try:
        for number in before:
            signal.signal(number, hold)
        yield
    finally:
        holds = False
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def run_to_end(
    command: Sequence[str],
    *,
    cwd: Path,
    what: str,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
    user: SystemUser | None = None,
) -> None:
    """Run a tool of the server; raises EmbeddedServerError with what it printed."""
    identity: dict[str, Any] = (
        {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    )
    progress(what)
    begin = time.monotonic()
    process = None
    try:
        with signals_held():
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LC_ALL": "C.UTF-8",
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=CLOSED_UMASK,
                **identity,
            )
        while True:
            try:
                output, _ = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                progress(f"{what} ({time.monotonic() - begin:.0f} s)")
    except BaseException:
        if process is not None:
            kill_tree(process.pid)
            process.communicate()
        raise
    if process.returncode:
        text = output.decode(errors="replace").strip()
        raise EmbeddedServerError(
            f"{what}: {Path(command[0]).name} failed with exit status "
            f"{process.returncode}:\n{_indented(text)}"
        )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-12:])


# A process number alone is no name: after a restart of the machine or in a container
# another program soon has it. With the time of its birth it is. And with the folder,
# since a copy of a folder tells of a process that belongs to the original.


def write_own_process(path: Path, pid: int) -> None:
    import psutil

    try:
        born = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # it failed at once; waiting for it will tell why
        return
    with os.fdopen(open_closed(path, os.O_WRONLY | os.O_TRUNC), "w") as file:
        file.write(f"{pid}\n{born}\n{path.parent}\n")


def read_own_process(path: Path) -> int | None:
    """The process that the file names, if it is still that process and ours."""
    import psutil

    try:
        pid_text, born_text, folder = path.read_text().split("\n", 2)
        pid, born, origin = int(pid_text), float(born_text), Path(folder.rstrip("\n"))
        process = psutil.Process(pid)
        # The kernel's clock of births moves a little when the time is set.
        same = abs(process.create_time() - born) < 2
        running = process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    was_copied = origin != path.parent and origin.exists()
    return pid if same and running and not was_copied else None


def tree_of(pid: int) -> list[psutil.Process]:
    """The process and all below it, the top first."""
    import psutil

    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(pid: int) -> None:
    """Kill and wait: the next start would trip over a child that still runs."""
    processes = tree_of(pid)
    for process in processes:
        send_signal(process, signal.SIGKILL)
    _wait_for_end(processes, limit=5)


def end_tree(pid: int, number: signal.Signals, limit: float) -> None:
    processes = tree_of(pid)
    for process in processes:
        send_signal(process, signal.SIGCONT)
    for process in processes[:1]:
        send_signal(process, number)
    _wait_for_end(processes, limit)
    kill_tree(pid)


def send_signal(process: psutil.Process, number: signal.Signals) -> None:
    """To a process that may end at any moment by itself."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def end_strays(name: str, folder: Path) -> None:
    """End programs of that name whose working folder is `folder`.

    For children that outlived a server which was killed without them.
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == name and process.cwd() == str(folder):
                kill_tree(process.pid)


def _wait_for_end(processes: list[psutil.Process], limit: float) -> None:
    """A process that only waits to be reaped (by us or by init) has ended."""
    import psutil

    def lives(process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + limit
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
