"""The measurements, by the names that the command line knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.measures import (
    backlog,
    delay,
    duplicates,
    full_table,
    memory,
    roll_ups,
    workers,
)
from bench.measures.setting import Setting

Figures = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One measurement.

    Attributes:
        records: How many, unless told otherwise.
        measure: Runs it; what it gives is written to bench/results.json.
        markdown: Its section of the document.
        pictures: Its pictures, by file name.
    """

    records: int
    measure: Callable[[Setting], Figures]
    markdown: Callable[[Figures], Sequence[str]]
    pictures: Callable[[Figures], Mapping[str, str]]


def no_pictures(figures: Figures) -> Mapping[str, str]:
    """A table says it all."""
    return {}


MEASURES: Mapping[str, Measure] = {
    "backlog": Measure(1_000_000, backlog.measure, backlog.markdown, backlog.pictures),
    "duplicates": Measure(
        1_000_000, duplicates.measure, duplicates.markdown, no_pictures
    ),
    "delay": Measure(30_000, delay.measure, delay.markdown, delay.pictures),
    "memory": Measure(10_000_000, memory.measure, memory.markdown, memory.pictures),
    "full-table": Measure(
        1_000_000, full_table.measure, full_table.markdown, no_pictures
    ),
    "roll-ups": Measure(5_000_000, roll_ups.measure, roll_ups.markdown, no_pictures),
    "workers": Measure(1_000_000, workers.measure, workers.markdown, no_pictures),
}
