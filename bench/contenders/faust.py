"""Stock Faust, without the batch lane: in batches, and a record at a time."""

from __future__ import annotations

from bench.contender import PythonContender


class FaustWorker(PythonContender):
    """A Faust app, started by its own worker command."""

    def command(self) -> list[str]:
        return [*super().command(), "worker", "-l", "info", "--without-web"]


def faust_take() -> FaustWorker:
    """With `take()`, as its documentation has it for batches."""
    return FaustWorker(
        "faust-take",
        "stock Faust, `take()`",
        "faust_take.py",
        "`take(5000, within=0.1)` (live: 10 ms) and one INSERT … SELECT FROM unnest a "
        "batch through asyncpg, `ON CONFLICT DO NOTHING`; `stream_buffer_maxsize` "
        "16,384, `broker_max_poll_records` 5,000, `consumer_max_fetch_size` 4 MiB.",
        requirements="faust",
        most_records=200_000,
        environ={"BENCH_BATCH": "5000", "BENCH_LINGER_SECONDS": "0.1"},
        live={"BENCH_LINGER_SECONDS": "0.01"},
    )


def faust_each() -> FaustWorker:
    """As its tutorial has it."""
    return FaustWorker(
        "faust-each",
        "stock Faust, a record at a time",
        "faust_each.py",
        "an agent as in its tutorial, one INSERT a record through asyncpg, "
        "with `ON CONFLICT DO NOTHING`.",
        requirements="faust",
        most_records=20_000,
    )
