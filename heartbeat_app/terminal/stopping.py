"""How a command notices that it is to stop: between two steps, not inside of one.

By Ctrl-C, `kill`, or a terminal or a connection that is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """Signals as a flag, so that no count is torn apart half-way.

    Only where `may_interrupt` is set, around a read that may wait for ever, the signal
    raises KeyboardInterrupt. So does every further one.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.may_interrupt = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them inside of the block."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in self._NUMBERS
            # Under nohup a command goes on without its terminal.
            if number != signal.SIGHUP
            or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self.may_interrupt:
            raise KeyboardInterrupt
