"""Whether memory stays level over a long backlog."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from bench.beats import make_beats
from bench.contender import Contender
from bench.measures.backlog import as_figures, run_once
from bench.measures.setting import Setting
from bench.pictures import line
from bench.run import expect

OURS = "ours"
PICTURE = "bench-memory.svg"
SAMPLE_SECONDS = 0.5


def measure(setting: Setting) -> dict[str, Any]:
    """One run of ours, its resident memory looked at twice a second."""
    ours = setting.contenders[OURS][0]
    count = setting.records
    expected = expect(setting.stage, make_beats(count))
    setting.stage.topic(count, ours.format)
    setting.progress.tell(f"Memory of {ours.title} over {count:,} records")
    with Sampler(ours) as sampler:
        outcome = run_once(setting, ours, count, expected)
    return {**as_figures(outcome), "resident_mb": sampler.resident_mb}


class Sampler:
    """Notes what is resident while the contender runs."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.resident_mb: list[float] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            try:
                usage = self._contender.usage()
            except (AssertionError, psutil.NoSuchProcess, FileNotFoundError):
                continue  # not started yet, or stopped
            self.resident_mb.append(round(usage.resident_mb, 1))


def thirds(samples: Sequence[float]) -> tuple[float, float]:
    """The highest in the first and in the last third of the run, both warm.

    The first tenth is left out: it begins with an empty process.
    """
    warm = samples[len(samples) // 10 :]
    third = max(1, len(warm) // 3)
    return max(warm[:third]), max(warm[-third:])


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """What was the most, and how it went on."""
    first, last = thirds(figures["resident_mb"])
    return [
        "## Memory",
        "",
        f"{figures['records']:,} records in one run: at most {figures['peak_mb']:,} MB "
        f"resident. The highest of the first third of the run was {first:,.0f} MB, of "
        f"the last third {last:,.0f} MB ({last / first - 1:+.0%}).",
        "",
        f"![Resident memory](images/{PICTURE})",
        "",
    ]


def pictures(figures: dict[str, Any]) -> Mapping[str, str]:
    """Memory over time."""
    points = [
        (number * SAMPLE_SECONDS, value)
        for number, value in enumerate(figures["resident_mb"], 1)
    ]
    title = f"Resident memory over {figures['records']:,} records"
    return {PICTURE: line(title, points, "s", "MB")}
