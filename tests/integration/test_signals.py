"""A signal while a program starts stops us as at any other time, and leaves nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from heartbeat_app.demo.signals import StopSignals
from heartbeat_app.embedded.processes import STOP_SIGNALS, run_to_end, signals_held
from heartbeat_app.embedded.server import EmbeddedServer
from testkit.servers import free_port

pytestmark = pytest.mark.integration

# After "Starting …": before the fork, in it, while the program is replaced, behind it.
DELAYS = [0.0003 * number for number in range(20)]


class Sleeper(EmbeddedServer):
    """A server that does nothing."""

    name: ClassVar[str] = "the sleeper"
    port_setting: ClassVar[str] = "PORT"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def _prepare(self) -> None:
        pass

    def _command(self) -> Sequence[str]:
        return ["sleep", "60"]

    def _answers(self) -> bool:
        return True


def sleepers() -> list[psutil.Process]:
    """Those of our children that sleep."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "sleep" in child.cmdline()
    ]


def send_soon(number: signal.Signals, delay: float) -> None:
    threading.Timer(delay, os.kill, (os.getpid(), number)).start()


def run_until_stopped(server: Sleeper) -> None:
    with StopSignals() as signals:
        try:
            server.start()
            threading.Event().wait(10)
        finally:
            signals.ignore()
            server.kill()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_a_server_starts_is_not_lost(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    for delay in DELAYS:

        def progress(text: str, delay: float = delay) -> None:
            if text.startswith("Starting"):
                send_soon(number, delay)

        server = Sleeper(
            tmp_path, host="127.0.0.1", port=free_port(), progress=progress
        )
        with pytest.raises(KeyboardInterrupt):
            run_until_stopped(server)
        assert sleepers() == []
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_signal_while_a_tool_starts_ends_the_tool(tmp_path: Path) -> None:
    for delay in DELAYS:
        with pytest.raises(KeyboardInterrupt), StopSignals():
            run_to_end(
                ["sleep", "60"],
                cwd=tmp_path,
                what="Sleeping",
                progress=lambda text, delay=delay: send_soon(signal.SIGINT, delay),  # type: ignore[misc]
            )
        assert sleepers() == []


def test_a_signal_that_python_loses_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python loses what a handler raises inside of __del__, say."""

    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: lost.append(each.exc_type))
    with StopSignals():
        Swallows()
        assert lost == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_held_signals_come_afterwards() -> None:
    reached = False

    def hold() -> None:
        nonlocal reached
        with signals_held():
            signal.raise_signal(signal.SIGTERM)
            reached = True

    with StopSignals():
        with pytest.raises(KeyboardInterrupt):
            hold()
        assert reached


def test_after_ignore_no_signal_interrupts() -> None:
    with StopSignals() as signals:
        signals.ignore()
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
