"""Fills a table with a month of beats, rolls it up, and measures disk and time.

    .venv/bin/python -m bench.fill --rows 3000000

Starts a PostgreSQL of its own, with its defaults. Each customer has a beat every
`--every` seconds for `--days` days, and there are as many customers as the rows take,
the last one whole: a tenth of the rate that the demo sends is 259,200,000 rows. They
are inserted from generate_series, an hour at a time, in the order of time; rates swing
between 50 and 150. Then the roll-ups' job rolls up all of it. At last the worker's own
writer stores some batches on another day, to measure their WAL. `ingest_minute` gets a
year of minutes, as four partitions would leave it, which are added up by hour; so many
dead letters as one for a hundred beats lie over that year, and the books balance.
`--keep` leaves the data, for `python -m bench.dashboards --folder`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, text

from heartbeat_app.config import load_settings
from heartbeat_app.domain.batches import Batch
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.rollup import ingest, rollup
from heartbeat_app.storage.rollup.marks import day_span, mark_spans
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from testkit.servers import alembic, free_port

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 16_000
BATCHES = 12
NOBODY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}

INSERT = text(
    """
INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)
SELECT 'customer-' || lpad((n % :customers)::TEXT, 4, '0'),
       CAST(:since AS TIMESTAMPTZ) + n * CAST(:step AS INTERVAL),
       (100 + 40 * sin(n % :customers + date_part('epoch', CAST(:since AS TIMESTAMPTZ))
                       / 3600) + n % 11 * 7919 % 11)::INTEGER
FROM generate_series(0, :rows - 1) AS n
"""
)

# Days that end with the beats, at 250 a second and partition.
INGEST = text(
    """
INSERT INTO ingest_minute (topic_id, partition, minute, batches, consumed, stored,
    duplicate, dead, delay_sum_seconds, delay_max_seconds, delay_histogram,
    write_seconds)
SELECT 'fill', partition, minute, 60, 15000, 14980, 15, 5, 900, 0.9,
       ARRAY[0,0,0,100,900,9000,4000,800,150,30]::BIGINT[]
           || array_fill(0::BIGINT, ARRAY[40]), 1.5
FROM generate_series(CAST(:until AS TIMESTAMPTZ) - CAST(:before AS INTERVAL),
                     CAST(:until AS TIMESTAMPTZ) - INTERVAL '1 minute', '1 minute')
    AS minute
CROSS JOIN generate_series(0, 3) AS partition
"""
)

# As wide as the seed's records; evenly over those days.
LETTERS = text(
    """
INSERT INTO dead_letters (topic, topic_id, partition, "offset", key, value, headers,
    reason, detail, first_seen)
SELECT 'fill', 'fill', n % 4, n / 4, convert_to('customer-' || n % 1000, 'UTF8'),
       convert_to('{"customer_id": "customer-' || n % 1000 || '", "timestamp": '
                  '"2026-01-01T00:00:00Z", "heart_rate": ' || n || '}', 'UTF8'), '[]',
       (CAST(:reasons AS TEXT[]))[1 + n % cardinality(CAST(:reasons AS TEXT[]))],
       'heart_rate: is ' || n || '; allowed is 1 to 300',
       CAST(:until AS TIMESTAMPTZ) - (:letters - n) * CAST(:before AS INTERVAL)
                                     / :letters
FROM generate_series(0, :letters - 1) AS n
"""
)
REASONS = ["heart_rate_out_of_range", "not_json", "missing_field", "conflict"]

# The beats by partition as evenly as the letters.
LEDGER = text(
    """
INSERT INTO partition_ledger (topic, topic_id, partition, first_offset, next_offset,
    end_offset, consumed, stored, dead, updated_at)
SELECT 'fill', 'fill', partition, 0, stored + dead, stored + dead, stored + dead,
       stored, dead, now()
FROM (SELECT partition, (:rows + 3 - partition) / 4 AS stored,
             (:letters + 3 - partition) / 4 AS dead
      FROM generate_series(0, 3) AS partition) AS counts
"""
)

SIZES = text(
    """
SELECT pg_table_size(child.oid) AS heap, index.relname LIKE '%pkey' AS primary_key,
       pg_get_indexdef(index.oid) AS definition, pg_relation_size(index.oid) AS size
FROM pg_inherits
JOIN pg_class AS child ON child.oid = inhrelid
JOIN pg_index ON indrelid = child.oid
JOIN pg_class AS index ON index.oid = indexrelid
WHERE inhparent = CAST(:parent AS REGCLASS)
"""
)


@dataclass
class Measured:
    """Bytes a row."""

    rows: int
    heap: int
    indexes: dict[str, int]

    def lines(self) -> Iterator[str]:
        yield f"rows                      {self.rows:>14,}"
        parts = {"heap": self.heap, **self.indexes}
        for name, size in {**parts, "in all": sum(parts.values())}.items():
            yield f"{name:25} {size:>14,} bytes, {size / self.rows:6.1f} a row"


def measure(engine: Engine, parent: str) -> Measured:
    """Size of a partitioned table, by index columns."""
    with engine.connect() as connection:
        counted = text(f"SELECT count(*) FROM {parent}")  # noqa: S608 (ours)
        rows = connection.scalar(counted)
        found = connection.execute(SIZES, {"parent": parent}).all()
    indexes: dict[str, int] = {}
    heaps = {}
    for number, row in enumerate(found):
        columns = row.definition[row.definition.rindex("(") :]
        indexes[columns] = indexes.get(columns, 0) + row.size
        heaps[number] = row.heap
    count = max(1, len(indexes))
    return Measured(int(rows or 0), sum(heaps.values()) // count, indexes)


def fill(engine: Engine, rows: int, customers: int, days: int) -> None:
    """The month, hour by hour."""
    hours = days * 24
    each = rows // hours
    step = timedelta(hours=1) // each  # rounded up, the last beats would be the next's
    ensure_days(engine, [(BEGIN + timedelta(days=n)).date() for n in range(days)])
    for hour in range(hours):
        with engine.begin() as connection:
            values = {
                "since": BEGIN + timedelta(hours=hour), "customers": customers,
                "step": step, "rows": each,
            }  # fmt: skip
            connection.execute(INSERT, values)
    with engine.begin() as connection:
        spans = [day_span((BEGIN + timedelta(days=n)).date()) for n in range(days)]
        mark_spans(connection, spans)


@contextmanager
def own_server(*, keep: bool = False, folder: Path | None = None) -> Iterator[Engine]:
    """A PostgreSQL of its own with the tables made, as the worker connects to it.

    Arguments:
        keep: Leave its data.
        folder: Take the data that were left there, and leave them.
    """
    keep = keep or folder is not None
    folder = folder or Path(tempfile.mkdtemp(prefix="heartbeat-fill-"))
    server = PostgresServer(
        folder, port=free_port(), username="owner", password="fill", database="fill"
    )
    environ = {
        **NOBODY,
        "POSTGRESQL_HOST": "127.0.0.1",
        "POSTGRESQL_PORT": str(server.port),
        "POSTGRESQL_USERNAME": "owner",
        "POSTGRESQL_PASSWORD": "fill",
        "POSTGRESQL_DATABASE": "fill",
    }
    server.launch()
    server.wait_until_ready()
    settings = load_settings(environ, Path("/nonexistent"))
    engine = make_engine(settings, application_name="fill", pool_size=2)
    try:
        alembic(environ, "upgrade", "head")
        yield engine
    finally:
        engine.dispose()
        server.stop()
        if keep:
            click.echo(f"The data stay in {folder} (role owner, password fill).")
        else:
            server.remove_data()
            shutil.rmtree(folder, ignore_errors=True)


def wal_bytes(engine: Engine) -> int:
    """How much WAL the server has written."""
    with engine.connect() as connection:
        lsn = text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
        return int(connection.scalar(lsn) or 0)


def make_batches(
    engine: Engine, customers: int, count: int, size: int = BATCH
) -> Iterator[Batch]:
    """A worker's batches on a day of its own, a beat a second from each customer."""
    PostgresLedger(engine).open("bench", f"bench-{size}", {0: 0})
    begin = BEGIN + timedelta(days=400, hours=12 * (size != BATCH))
    ensure_days(engine, [begin.date()])
    for number in range(count):
        first = number * size
        beats = [
            Heartbeat(
                f"customer-{n % customers:04d}",
                begin + n * timedelta(seconds=1) / customers,
                60 + n % 90,
            )
            for n in range(first, first + size)
        ]
        sources: Any = range(size)
        yield Batch(
            "bench", f"bench-{size}", 0, first, first + size, 0, first + size, beats,
            sources, [],
        )  # fmt: skip


def batches_wal(engine: Engine, customers: int) -> Iterator[int]:
    """Bytes of WAL of each of some batches."""
    writer = Writer(engine)
    for batch in make_batches(engine, customers, BATCHES):
        before = wal_bytes(engine)
        writer.write(batch)
        yield wal_bytes(engine) - before


@contextmanager
def clock(what: str) -> Iterator[None]:
    """Say how long it took."""
    began = time.perf_counter()
    yield
    click.echo(f"{what}: {time.perf_counter() - began:.1f} s")


QUERIES = {
    "one customer, a day by minute": (
        "SELECT minute, sum::FLOAT / count, min, max FROM heartbeats_minute WHERE"
        " customer_id = 'customer-0002' AND minute >= '2026-01-15Z'"
        " AND minute < '2026-01-16Z' ORDER BY minute"
    ),
    "one customer, the month by hour": (
        "SELECT hour, sum::FLOAT / count, min, max FROM heartbeats_hour WHERE"
        " customer_id = 'customer-0002' ORDER BY hour"
    ),
    "percentiles of all, the month by hour": (
        "SELECT hour, rate_quantile(histogram, 0.05), rate_quantile(histogram, 0.5),"
        " rate_quantile(histogram, 0.95) FROM heartbeats_hour_all ORDER BY hour"
    ),
    "percentiles of all, a day by minute": (
        "SELECT minute, rate_quantile(histogram, 0.5) FROM heartbeats_minute_all"
        " WHERE minute >= '2026-01-15Z' AND minute < '2026-01-16Z' ORDER BY minute"
    ),
    "the seed's query, a day": (
        'SELECT "timestamp" AS "time", "heart_rate" AS "value" FROM heartbeats'
        " WHERE \"timestamp\" BETWEEN '2026-01-15Z' AND '2026-01-16Z'"
        ' ORDER BY "timestamp" ASC'
    ),
}


@click.command()
@click.option("--rows", default=3_000_000, show_default=True)
@click.option("--days", default=30, show_default=True)
@click.option("--every", default=10, show_default=True, help="Seconds.")
@click.option("--ingest-days", default=365, show_default=True, help="Of ingest_minute.")
@click.option("--letters", type=int, help="Dead letters, not one for 100 beats.")
@click.option("--keep", is_flag=True, help="Leave the server's data.")
def main(
    rows: int, days: int, every: int, ingest_days: int, letters: int | None, keep: bool
) -> None:
    """Fill, roll up, measure."""
    customers = math.ceil(rows * every / (days * 86_400))
    rows = customers * days * 86_400 // every
    letters = rows // 100 if letters is None else letters
    year = {
        "until": BEGIN + timedelta(days=days),
        "before": timedelta(days=ingest_days),
    }
    with own_server(keep=keep) as engine:
        with clock(f"{rows:,} rows of {customers:,} customers inserted"):
            fill(engine, rows, customers, days)
        with clock("ingest_minute"), engine.begin() as connection:
            # Not the worker's few seconds for a statement.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(INGEST, year)
        with clock(f"{letters:,} dead letters"), engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(LEDGER, {"rows": rows, "letters": letters})
            if letters:
                values = {**year, "letters": letters, "reasons": REASONS}
                connection.execute(LETTERS, values)
        with clock("ingest_minute added up by hour"):
            hours = ingest.Hours(engine)
            while not hours.run_pass():
                pass
        before = wal_bytes(engine)
        began = time.perf_counter()
        job = rollup.Job(engine)
        while not job.run_pass():
            pass
        seconds = time.perf_counter() - began
        wal = wal_bytes(engine) - before
        click.echo(
            f"rolled up: {seconds:.1f} s, {rows / seconds:,.0f} rows a second, "
            f"{wal / rows:.1f} bytes of WAL a row"
        )
        with engine.connect() as connection:
            options = {"isolation_level": "AUTOCOMMIT"}
            connection.execution_options(**options).execute(text("VACUUM ANALYZE"))
        for table in ("heartbeats", "heartbeats_minute", "heartbeats_hour"):
            click.echo(f"\n{table}")
            click.echo("\n".join(measure(engine, table).lines()))
        for table in ("heartbeats_minute_all", "heartbeats_hour_all"):
            query = f"SELECT count(*), pg_total_relation_size('{table}') FROM {table}"  # noqa: S608 (ours)
            with engine.connect() as connection:
                count, size = connection.execute(text(query)).one()
            click.echo(f"\n{table}: {count:,} rows, {size / count:.0f} bytes a row")
        click.echo("\nqueries, the second of two runs")
        for name, query in QUERIES.items():
            for _ in range(2):
                began = time.perf_counter()
                with engine.connect() as connection:
                    got = len(connection.execute(text(query)).all())
                took = time.perf_counter() - began
            click.echo(f"{name:40} {took * 1000:8.1f} ms, {got:,} points")
        with clock("\nbooks --deep"):
            problems = read_books(engine, deep=True).problems
        click.echo("\n".join(problems) or "The books balance.")
        wals = list(batches_wal(engine, customers))
        # The first ones after a checkpoint have whole pages in the WAL.
        click.echo(
            f"WAL of a worker's batches of {BATCH:,}: {max(wals) / BATCH:.0f} bytes a "
            f"beat at most, {sorted(wals)[len(wals) // 2] / BATCH:.0f} in the middle"
        )


if __name__ == "__main__":
    main()
