"""All contenders, by the names that the command line knows."""

from __future__ import annotations

from bench.contender import Contender, PythonContender
from bench.contenders.debezium import debezium_best, debezium_default
from bench.contenders.ours import Ours
from bench.contenders.raw_copy import BATCH_SIZES, RawCopy

# The two that many measurements compare.
LIMIT = "copy"
OURS = "ours"

UNIQUE_CONSTRAINT = (
    "DROP INDEX idx_customer_id;"
    "ALTER TABLE heartbeats"
    ' ADD CONSTRAINT idx_customer_id UNIQUE (customer_id, "timestamp")'
)


def all_contenders() -> dict[str, list[Contender]]:
    """By name; raw COPY is one for each batch size."""
    singles: list[Contender] = [
        Ours(),
        PythonContender(
            "hand-written",
            "hand-written loop",
            "confluent_loop.py",
            "confluent-kafka, msgspec and COPY in one loop: up to 20,000 records a "
            "batch, 200,000 fetched ahead, offsets committed after the database.",
        ),
        debezium_best(),
        debezium_default(),
        PythonContender(
            "quix",
            "Quix Streams",
            "quix_app.py",
            "its PostgreSQL sink with `on_conflict_do_nothing`, `commit_every` 10,000, "
            "`commit_interval` 1 s (live: 20 ms).",
            requirements="quix",
            most_records=300_000,
            environ={"BENCH_COMMIT_EVERY": "10000", "BENCH_COMMIT_SECONDS": "1.0"},
            live={"BENCH_COMMIT_SECONDS": "0.02"},
        ),
        PythonContender(
            "bytewax",
            "Bytewax",
            "bytewax_flow.py",
            "its Kafka source with `batch_size` 5,000, `collect` of 5,000 or 0.1 s (live: "
            "10 ms), and a sink written after its guide: `execute_values`, 1,000 rows a statement, "
            "`ON CONFLICT DO NOTHING`. It has no PostgreSQL sink of its own.",
            requirements="bytewax",
            most_records=300_000,
            environ={"BENCH_BATCH": "5000", "BENCH_LINGER_SECONDS": "0.1"},
            live={"BENCH_LINGER_SECONDS": "0.01"},
        ),
        PythonContender(
            "pathway",
            "Pathway",
            "pathway_flow.py",
            "its Kafka and PostgreSQL connectors, `output_table_type` snapshot on the "
            "natural key (an upsert), `autocommit_duration_ms` 100 (live: 10), "
            "its state kept in files, so that it resumes. It wants a unique "
            "constraint where the table has a unique index.",
            requirements="pathway",
            most_records=300_000,
            environ={"BENCH_COMMIT_MS": "100"},
            live={"BENCH_COMMIT_MS": "10"},
            table_sql=UNIQUE_CONSTRAINT,
        ),
        FaustWorker(
            "faust-take",
            "stock Faust, `take()`",
            "faust_take.py",
            "`take(5000, within=0.1)` (live: 10 ms) and one INSERT … SELECT FROM unnest "
            "a batch through asyncpg, `ON CONFLICT DO NOTHING`; "
            "`stream_buffer_maxsize` 16,384, `broker_max_poll_records` 5,000, "
            "`consumer_max_fetch_size` 4 MiB.",
            requirements="faust",
            most_records=200_000,
            environ={"BENCH_BATCH": "5000", "BENCH_LINGER_SECONDS": "0.1"},
            live={"BENCH_LINGER_SECONDS": "0.01"},
        ),
        FaustWorker(
            "faust-each",
            "stock Faust, a record at a time",
            "faust_each.py",
            "an agent as in its tutorial, one INSERT a record through asyncpg.",
            requirements="faust",
            most_records=20_000,
        ),
        PythonContender(
            "seed",
            "kafka-python, a record at a time",
            "kafka_python_loop.py",
            "kafka-python and psycopg2, INSERT and COMMIT for each record: the design "
            "that this project replaces.",
            requirements="kafka-python",
            most_records=20_000,
        ),
    ]
    copies: list[Contender] = [RawCopy(size) for size in BATCH_SIZES]
    return {LIMIT: copies, **{each.name: [each] for each in singles}}


class FaustWorker(PythonContender):
    """A Faust app, started by its own worker command."""

    def command(self) -> list[str]:
        return [*super().command(), "worker", "-l", "info", "--without-web"]
