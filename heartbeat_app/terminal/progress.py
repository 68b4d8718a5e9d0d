"""How far a command is: a bar on a terminal, a line now and then elsewhere.

All of it goes to standard error; standard output is for results.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console

from heartbeat_app.exceptions import printable

LINE_SECONDS = 2.0


class ProgressDisplay:
    """Shows one piece of work; use it as a context manager.

    Arguments:
        what: Name of the work.
        quiet: Show nothing but what `tell` is given.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._bar: rich.progress.Progress | None = None
        self._next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[words]}", markup=False),
                rich.progress.TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._what, total=None, words="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, total: float | None, words: str) -> None:
        """Show how much is done, in any unit, and what that means in words."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, total=total, words=printable(words)
            )
        elif not self._quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            share = f" ({done / total:.0%})" if total else ""
            self.tell(f"{self._what}: {words}{share}")

    def tell(self, words: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(printable(words), soft_wrap=True)
