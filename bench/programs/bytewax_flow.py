"""Bytewax, batches collected per partition, into a sink with multi-row INSERTs.

Bytewax has no PostgreSQL sink of its own: this one follows its guide to custom sinks.
"""

import os
import sys
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import orjson
import psycopg2
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main
from psycopg2.extras import execute_values

INSERT = (
    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate) VALUES %s'
    ' ON CONFLICT (customer_id, "timestamp") DO NOTHING'
)


class TablePartition(StatelessSinkPartition[tuple[str, list[tuple[Any, ...]]]]):
    """One connection a worker."""

    def __init__(self) -> None:
        self._connection = psycopg2.connect("")

    def write_batch(self, items: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
        rows = [row for _, batch in items for row in batch]
        with self._connection.cursor() as cursor:
            execute_values(cursor, INSERT, rows, page_size=1000)
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


class TableSink(DynamicSink[tuple[str, list[tuple[Any, ...]]]]):
    """The table `heartbeats`."""

    def build(
        self, step_id: str, worker_index: int, worker_count: int
    ) -> TablePartition:
        return TablePartition()


def row(message: Any) -> tuple[str, tuple[Any, ...]]:
    """The row of a record, keyed by its partition."""
    beat = orjson.loads(message.value)
    columns = beat["customer_id"], beat["timestamp"], beat["heart_rate"]
    return str(message.partition), columns


def make_flow() -> Dataflow:
    """Source, rows, batches, sink."""
    flow = Dataflow("heartbeats")
    source: KafkaSource[Any, Any] = KafkaSource(
        os.environ["BENCH_BOOTSTRAP_SERVERS"].split(","),
        [os.environ["BENCH_TOPIC"]],
        tail=True,
        batch_size=int(os.environ["BENCH_BATCH"]),
    )
    messages = op.input("kafka", flow, source)
    rows = op.map("row", messages, row)
    batches = op.collect(
        "batch",
        rows,
        timeout=timedelta(seconds=float(os.environ["BENCH_LINGER_SECONDS"])),
        max_size=int(os.environ["BENCH_BATCH"]),
    )
    op.output("table", batches, TableSink())
    return flow


if __name__ == "__main__":
    sys.exit(cli_main(make_flow(), epoch_interval=timedelta(seconds=1)))
