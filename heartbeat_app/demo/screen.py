"""What a person sees: steps while things start, one live status while they run.

In a terminal the status is one picture that changes; elsewhere (a log, a pipe) it
is a line every two seconds. When the terminal goes away, everything here falls
silent: the servers must still be stopped in order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from heartbeat_app.demo.figures import Figures
from heartbeat_app.exceptions import CommandError, printable
from heartbeat_app.terminal.output import written

LINE_SECONDS = 2.0
"""Never silent for longer than 3 s."""

_RATE_SECONDS = 5.0


@dataclass(frozen=True)
class Part:
    """Something that runs: where, and what to do with it."""

    name: str
    where: str
    what: str


class Screen:
    """Everything the demo prints goes through here."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._step = self._console.status("")
        self._is_terminal = self._console.is_terminal
        self._is_gone = False
        self._hint = ""
        self._last_line = 0.0
        self._rates: list[tuple[float, int]] = []

    # Single lines

    def step(self, text: str) -> None:
        """Something is going on; in a terminal the last one is all one sees."""
        if not self._is_terminal:
            self.tell(text)
        elif self._live is None:
            self._safely(lambda: self._step.update(Text(printable(text))))
            self._safely(self._step.start)

    def tell(self, text: str) -> None:
        self._safely(lambda: self._console.print(Text(printable(text)), soft_wrap=True))

    def problem(self, text: str) -> None:
        """Something that a person has to know, loudly."""
        self._safely(lambda: self._step.stop())
        styled = Text(printable(text), style="bold red")
        self._safely(lambda: self._console.print(styled, soft_wrap=True))
        if self._is_gone:
            with suppress(OSError, ValueError):
                click.echo(printable(text), err=True)

    def end_steps(self) -> None:
        self._safely(self._step.stop)

    # The status

    @contextmanager
    def status(self, parts: list[Part], hint: str) -> Iterator[None]:
        """While it lasts, `show` may be called."""
        self.end_steps()
        self._hint = hint
        if not self._is_terminal:
            self.tell(hint)
            for part in parts:
                self.tell(f"{part.name}: {part.where}  {part.what}".rstrip())
            yield
            return
        self._live = Live(console=self._console, auto_refresh=False)
        self._safely(self._live.start)
        try:
            yield
        finally:
            live, self._live = self._live, None
            self._safely(live.stop)

    def show(self, parts: list[Part], figures: Figures | None) -> None:
        now = time.monotonic()
        rate = self._rate(now, figures)
        live = self._live
        if live is not None:
            picture = _picture(parts, figures, rate, self._hint)
            self._safely(lambda: live.update(picture, refresh=True))
        elif not self._is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.tell(f"{time.strftime('%H:%M:%S')}  {_line(figures, rate)}")

    def _rate(self, now: float, figures: Figures | None) -> float | None:
        """Stored beats a second over the last few seconds."""
        if figures is not None:
            self._rates.append((now, figures.stored))
        while self._rates and now - self._rates[0][0] > _RATE_SECONDS:
            del self._rates[0]
        if len(self._rates) < 2:
            return None
        (begin, first), (end, last) = self._rates[0], self._rates[-1]
        return (last - first) / (end - begin)

    def _safely(self, show: Callable[[], object]) -> None:
        try:
            with written():
                show()
        except (OSError, ValueError, CommandError):  # the terminal or the pipe is gone
            self._is_terminal = False
            self._is_gone = True


def _picture(
    parts: list[Part],
    figures: Figures | None,
    rate: float | None,
    hint: str,
) -> RenderableType:
    servers = Table.grid(padding=(0, 2))
    for part in parts:
        servers.add_row(Text(part.name, style="bold"), part.where)
        if part.what:
            servers.add_row("", Text(part.what, style="cyan"))
    numbers = Table.grid(padding=(0, 2))
    for name, value in _values(figures, rate):
        numbers.add_row(Text(name, style="bold"), Text(value, style="green"))
    return Panel(
        # The last line is what a person goes on with: the page's address.
        Group(numbers, "", Text(hint, style="dim"), "", servers),
        title="heartbeat_app demo",
        width=min(100, shutil.get_terminal_size().columns),
    )


def _line(figures: Figures | None, rate: float | None) -> str:
    return "  ".join(f"{name} {value}" for name, value in _values(figures, rate))


def _values(figures: Figures | None, rate: float | None) -> list[tuple[str, str]]:
    if figures is None:
        return [("stored", "unknown: PostgreSQL does not answer")]
    total, lag = figures.audit.books.total, figures.audit.lag
    speed = "" if rate is None else f" ({rate:,.0f}/s)"
    p50, p95 = figures.recent.delay_p50_seconds, figures.recent.delay_p95_seconds
    values = [("stored", f"{total.stored:,}{speed}"), ("refused", f"{total.dead:,}")]
    if total.duplicate:
        values.append(("duplicates", f"{total.duplicate:,}"))
    if total.missing:
        values.append(("missing", f"{total.missing:,}"))
    values += [
        ("lag", "unknown" if lag is None else f"{lag:,}"),
        ("delay from beat to row", f"p50 {_duration(p50)}, p95 {_duration(p95)}"),
    ]
    if figures.audit.problems:
        values.append(("books", "do not balance"))
    return values


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"
