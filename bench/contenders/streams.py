"""Other stream engines for Python."""

from __future__ import annotations

from bench.contender import PythonContender

# The same index, as the constraint that Pathway looks for.
UNIQUE_CONSTRAINT = (
    "DROP INDEX idx_customer_id;"
    "ALTER TABLE heartbeats"
    ' ADD CONSTRAINT idx_customer_id UNIQUE (customer_id, "timestamp")'
)


def quix() -> PythonContender:
    """Quix Streams with its own sink."""
    return PythonContender(
        "quix",
        "Quix Streams",
        "quix_app.py",
        "its PostgreSQL sink with `on_conflict_do_nothing`, `commit_every` 10,000, "
        "`commit_interval` 1 s (live: 20 ms).",
        requirements="quix",
        most_records=300_000,
        environ={"BENCH_COMMIT_EVERY": "10000", "BENCH_COMMIT_SECONDS": "1.0"},
        live={"BENCH_COMMIT_SECONDS": "0.02"},
    )


def bytewax() -> PythonContender:
    """Bytewax, which has no PostgreSQL sink, with one written after its guide."""
    return PythonContender(
        "bytewax",
        "Bytewax",
        "bytewax_flow.py",
        "its Kafka source with `batch_size` 5,000, `collect` of 5,000 or 0.1 s (live: "
        "10 ms), and a sink written after its guide: `execute_values`, 1,000 rows a "
        "statement, `ON CONFLICT DO NOTHING`. It has no PostgreSQL sink of its own.",
        requirements="bytewax",
        most_records=300_000,
        environ={"BENCH_BATCH": "5000", "BENCH_LINGER_SECONDS": "0.1"},
        live={"BENCH_LINGER_SECONDS": "0.01"},
    )


def pathway() -> PythonContender:
    """Pathway, an engine in Rust, with its own connector."""
    return PythonContender(
        "pathway",
        "Pathway",
        "pathway_flow.py",
        "its Kafka and PostgreSQL connectors, `output_table_type` snapshot on the "
        "natural key (an upsert), `autocommit_duration_ms` 100 (live: 10), its state "
        "kept in files so that it resumes, `snapshot_interval_ms` 1,000. It wants a "
        "unique constraint where the table has a unique index.",
        requirements="pathway",
        environ={"BENCH_COMMIT_MS": "100"},
        live={"BENCH_COMMIT_MS": "10"},
        table_sql=UNIQUE_CONSTRAINT,
    )
