"""How a command notices Ctrl-C and `kill`: between two steps, not inside of one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """SIGINT and SIGTERM as a flag, so that no count is torn apart half-way.

    Only where `may_interrupt` is set, around a read that may wait for ever, the signal
    raises KeyboardInterrupt. So does every further one.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.may_interrupt = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them inside of the block."""
        before = {
            number: signal.signal(number, self._on_signal) for number in self._NUMBERS
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
