"""How the demo is told to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from heartbeat_app.embedded.processes import STOP_SIGNALS


class StopSignals:
    """Ctrl-C, `kill` and a closed terminal end the demo in order: once.

    Each raises KeyboardInterrupt in the main thread, until `ignore` is called: what
    comes while things are being stopped is ignored, it takes a few seconds at most.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._ignored = False

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Call when the stop has begun, or before what must not be interrupted."""
        self._ignored = True  # before the first of them: another may come in between
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        # Not ignored from here on: Python loses an exception that a handler raises at
        # some moments, such as inside of __del__, and then the next signal must do.
        if not self._ignored:
            raise KeyboardInterrupt
