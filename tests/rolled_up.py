"""What the roll-ups have to be, worked out from the rows in Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, text

Beat = tuple[datetime, int]


def minute_of(when: datetime) -> datetime:
    return when.astimezone(UTC).replace(second=0, microsecond=0)


def hour_of(when: datetime) -> datetime:
    return minute_of(when).replace(minute=0)


def rows(engine: Engine, table: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [
            tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))
        ]


def summed(beats: Sequence[Beat]) -> tuple[int, ...]:
    """count, sum, min, max, first, last."""
    ordered = [rate for _, rate in sorted(beats)]
    return (
        len(ordered), sum(ordered), min(ordered), max(ordered), ordered[0], ordered[-1]
    )  # fmt: skip


def minute_rates(beats: Sequence[Beat]) -> tuple[int, ...]:
    """The averages of the minutes, in hundredths, rounded down, ascending."""
    minutes: dict[datetime, list[int]] = defaultdict(list)
    for when, rate in beats:
        minutes[minute_of(when)].append(rate)
    return tuple(sorted(sum(m) * 100 // len(m) for m in minutes.values()))


def differences(engine: Engine) -> list[str]:
    """Which tables of roll-ups are not exactly what the rows give."""
    beats = rows(engine, "heartbeats")
    wrong = []
    for name, floor in (("minute", minute_of), ("hour", hour_of)):
        each: dict[tuple[str, datetime], list[Beat]] = defaultdict(list)
        of_all: dict[datetime, list[tuple[str, int]]] = defaultdict(list)
        for _, customer, when, rate in beats:
            each[customer, floor(when)].append((when, rate))
            of_all[floor(when)].append((customer, rate))
        hourly = name == "hour"
        expected = {
            (*key, *summed(found), *([minute_rates(found)] if hourly else []))
            for key, found in each.items()
        }
        there = {
            tuple(tuple(v) if isinstance(v, list) else v for v in row)
            for row in rows(engine, f"heartbeats_{name}")
        }
        if there != expected:
            wrong.append(f"heartbeats_{name}")
        total = set()
        for when, found in of_all.items():
            rates = [rate for _, rate in found]
            histogram = [0] * max(rates)
            for rate in rates:
                histogram[rate - 1] += 1
            total.add(
                (
                    when,
                    len({customer for customer, _ in found}),
                    len(rates),
                    sum(rates),
                    min(rates),
                    max(rates),
                    tuple(histogram),
                )
            )
        there = {
            (*row[:-1], tuple(row[-1]))
            for row in rows(engine, f"heartbeats_{name}_all")
        }
        if there != total:
            wrong.append(f"heartbeats_{name}_all")
    return wrong
