"""What it costs a batch to find the minutes that it touched, and to mark them.

.venv/bin/python -m bench.marks

First the Python alone, in ns a beat. Timestamps are decoded anew for each round, as
those of a batch are. Then the worker's writer on a PostgreSQL of its own: batches with
and without their mark in turn, so that both meet the same noise.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click
import msgspec

from bench.fill import make_batches, own_server
from heartbeat_app.storage.db.prepared import Bound
from heartbeat_app.storage.rollup import marks
from heartbeat_app.storage.rollup.marks import touched
from heartbeat_app.storage.write.writer import Writer

BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)
BATCH = 16_000
ROUNDS = 7


def after(seconds: list[float]) -> list[datetime]:
    """Timestamps so long after the begin."""
    return [BEGIN + timedelta(seconds=each) for each in seconds]


CASES = {
    "live: 250 beats of a second": after([n / 250 for n in range(250)]),
    "a backlog: 23 minutes in order": after([n * 1380 / BATCH for n in range(BATCH)]),
    "the same, out of order by 2 s": after(
        [n * 1380 / BATCH + 2 * random.random() for n in range(BATCH)]
    ),
    "four devices, 21 s apart": after(
        [n / 250 + 7 * random.randrange(4) for n in range(BATCH)]
    ),
    "a recording: a beat a second": after([float(n) for n in range(BATCH)]),
    "a beat every ten seconds": after([10.0 * n for n in range(BATCH)]),
    "an hour, shuffled": after([3600 * random.random() for _ in range(BATCH)]),
    "a year, shuffled": after([31e6 * random.random() for _ in range(BATCH)]),
    "seven years, in order": after([13_800.0 * n for n in range(BATCH)]),
}


# Beats a batch, and batches with and without their mark, each.
WRITTEN = ((250, 1_500), (16_000, 24))


def python() -> None:
    """Print the median of each case."""
    decode = msgspec.json.Decoder(list[datetime]).decode
    for name, timestamps in CASES.items():
        text = msgspec.json.encode(timestamps)
        taken = []
        for _ in range(ROUNDS):
            fresh = decode(text)
            began = time.perf_counter()
            spans = touched(fresh)
            taken.append((time.perf_counter() - began) / len(fresh) * 1e9)
        median = statistics.median(taken)
        click.echo(f"{name:35} {median:7.0f} ns a beat, {len(spans):4} marks")


def unmarked(timestamps: Sequence[datetime]) -> list[Bound]:
    """In the place of marks.marking."""
    return []


def written() -> None:
    """Print what batches take with and without their mark."""
    marking = marks.marking
    with own_server() as engine:
        writer = Writer(engine)
        for size, count in WRITTEN:
            taken: dict[bool, list[float]] = {True: [], False: []}
            batches = make_batches(engine, 1_000, 2 * count + 2, size)
            writer.write(next(batches))
            writer.write(next(batches))
            for number, batch in enumerate(batches):
                # With, without, without, with: none is always the first.
                marked = number % 4 in {0, 3}
                marks.marking = marking if marked else unmarked
                began = time.perf_counter()
                writer.write(batch)
                taken[marked].append(time.perf_counter() - began)
            marks.marking = marking
            quarters = {key: statistics.quantiles(t) for key, t in taken.items()}
            middle = quarters[True][1] / quarters[False][1] - 1
            quick = quarters[True][0] / quarters[False][0] - 1
            click.echo(
                f"{count} batches of {size:,}: {quarters[False][1] * 1e3:.2f} ms "
                f"without, {quarters[True][1] * 1e3:.2f} ms with the mark in the "
                f"middle ({middle:+.1%}); {quick:+.1%} at the quicker quarter"
            )


def main() -> None:
    """Both."""
    python()
    written()


if __name__ == "__main__":
    main()
