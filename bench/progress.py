"""How far the benchmark is: bars on a terminal, lines elsewhere. On standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars

LINE_SECONDS = 10.0

Advance = Callable[[int], None]


class Progress:
    """Tells what is going on; use it as a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def tell(self, words: str) -> None:
        """Print a line, above the bars."""
        self.console.print(words, soft_wrap=True)

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Advance]:
        """Show one piece of work; call what is given with how much was done."""
        task = self._bars.add_task(what, total=total)
        done = 0
        next_line = time.monotonic() + LINE_SECONDS

        def advance(count: int) -> None:
            nonlocal done, next_line
            done += count
            self._bars.update(task, completed=done)
            if not self.console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + LINE_SECONDS
                self.tell(f"{what}: {done:,} of {total:,}")

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
