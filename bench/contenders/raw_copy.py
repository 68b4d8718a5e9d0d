"""The limit: raw COPY of the same rows, the best of several batch sizes."""

from __future__ import annotations

from bench.contender import PythonContender

BATCH_SIZES = (5_000, 20_000, 50_000, 200_000)


class RawCopy(PythonContender):
    """COPY with one batch size."""

    is_limit = True
    can_stream = False

    def __init__(self, size: int) -> None:
        super().__init__(
            f"copy-{size}",
            f"raw COPY, {size:,} a batch",
            "copy_rows.py",
            "psycopg2's `copy_expert`, the text already in memory, one connection, a "
            f"commit every {size:,} rows.",
            environ={"BENCH_BATCH": str(size), "PYTHONPATH": "."},
        )
