"""The limit: raw COPY of the same rows, the best of several batch sizes.

In PostgreSQL's own format, text; in the other one beside it.
"""

from __future__ import annotations

from bench.contender import PythonContender

BATCH_SIZES = (5_000, 20_000, 50_000, 200_000)
BINARY_SIZE = 50_000


class RawCopy(PythonContender):
    """COPY with one batch size."""

    is_limit = True
    is_consumer = False
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


class BinaryCopy(PythonContender):
    """COPY in PostgreSQL's binary format, which the worker has, too."""

    is_consumer = False
    can_stream = False

    def __init__(self) -> None:
        super().__init__(
            "copy-binary",
            f"raw COPY in binary, {BINARY_SIZE:,} a batch",
            "copy_rows.py",
            "as raw COPY, but in PostgreSQL's binary format, which it reads faster.",
            environ={
                "BENCH_BATCH": str(BINARY_SIZE),
                "BENCH_BINARY": "1",
                "PYTHONPATH": ".",
            },
        )
