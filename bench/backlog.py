"""How fast a backlog goes in, against raw COPY of the same rows in the same run.

    .venv/bin/python -m bench.backlog --records 1000000 --rounds 3

Starts real servers of its own. Each round runs COPY (psycopg2, the text already in
memory, a commit a batch, batches of 5,000 and of 20,000) into an equal, empty table,
and then the worker with all its guards into another. Only the ratio means anything:
it compares with the better of the two batch sizes. The worker is timed from the first
batch to the last, by what a reader of the ledger sees.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click
from sqlalchemy import Engine, text

from heartbeat_app.config import load_settings
from heartbeat_app.models import Heartbeat, encode
from heartbeat_app.storage.copy import COPY_BLOCK
from heartbeat_app.storage.days import ensure_days
from tests.servers import TEMPLATE, Servers, Topic, Worker, alembic, engine_of

DAY = date(2026, 1, 1)
PARTITIONS = 4
BATCH_SIZES = (5_000, 20_000)
COPY = 'COPY heartbeats (customer_id, "timestamp", heart_rate) FROM STDIN'


def make_beats(count: int) -> list[Heartbeat]:
    """1,000 customers in turn, all on one day."""
    begin = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
    step = timedelta(days=1) / (count + 1)
    return [
        Heartbeat(f"customer-{n % 1000:04d}", begin + n * step, 60 + n % 41)
        for n in range(count)
    ]


def time_copy(engine: Engine, beats: Sequence[Heartbeat], size: int) -> float:
    """Rows a second."""
    lines = [f"{b.customer_id}\t{b.timestamp}\t{b.heart_rate}\n" for b in beats]
    batches = ["".join(lines[i : i + size]) for i in range(0, len(lines), size)]
    del lines
    ensure_days(engine, [DAY])
    connection = engine.raw_connection()
    cursor = connection.cursor()
    began = time.perf_counter()
    for batch in batches:
        cursor.copy_expert(COPY, io.StringIO(batch), size=COPY_BLOCK)
        connection.commit()
    seconds = time.perf_counter() - began
    connection.close()
    return len(beats) / seconds


def time_worker(engine: Engine, worker: Worker, count: int) -> float:
    """Records a second, from the first batch that is seen to the last."""
    query = text("SELECT coalesce(sum(consumed), 0) FROM partition_ledger")
    worker.start()
    first: tuple[float, int] | None = None
    with engine.connect() as connection:
        while True:
            consumed = int(connection.scalar(query) or 0)
            connection.rollback()
            if consumed and first is None:
                first = time.perf_counter(), consumed
            if consumed >= count:
                break
            if not worker.is_running():
                raise click.ClickException(worker.log()[-2000:])
            time.sleep(0.02)
    assert first is not None
    return (count - first[1]) / (time.perf_counter() - first[0])


def usage(worker: Worker) -> tuple[float, int]:
    """CPU seconds and peak resident MB of the worker."""
    process = Path(f"/proc/{worker.pid}")
    ticks = process.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
    peak = process.joinpath("status").read_text().partition("VmHWM:")[2].split()[0]
    return sum(map(int, ticks)) / 100, int(peak) // 1024


@click.command()
@click.option("--records", default=1_000_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(records: int, rounds: int) -> None:
    """Time COPY and the worker in turn."""
    folder = Path(tempfile.mkdtemp(prefix="heartbeat-bench-"))
    click.echo("Starting the servers and loading the topic")
    servers = Servers.start(folder)
    ratios = []
    try:
        servers.make_database(TEMPLATE)
        alembic(servers.environ(TEMPLATE, "none"), "upgrade", "head")
        beats = make_beats(records)
        topic = Topic(servers, "backlog")
        topic.make(PARTITIONS)
        topic.produce(encode(beat) for beat in beats)
        click.echo("round  COPY 5,000  COPY 20,000  worker   ratio  CPU s  peak MB")
        for number in range(1, rounds + 1):
            copied = []
            for size in BATCH_SIZES:
                engine = fresh_engine(servers, f"copy-{number}-{size}")
                copied.append(time_copy(engine, beats, size))
                engine.dispose()
            name = f"worker-{number}"
            engine = fresh_engine(servers, name)
            environ = servers.environ(name, name, HEARTBEATS_TOPIC="backlog")
            worker = Worker(environ, folder / f"{name}.log")
            try:
                rate = time_worker(engine, worker, records)
                cpu, peak = usage(worker)
                worker.stop()
            finally:
                worker.end()
            engine.dispose()
            ratios.append(rate / max(copied))
            click.echo(
                f"{number:5}  {copied[0]:10,.0f}  {copied[1]:11,.0f}  {rate:7,.0f}  "
                f"{ratios[-1]:.2f}  {cpu:5.1f}  {peak:7,}"
            )
    finally:
        servers.stop()
    click.echo(
        f"ratio: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )


def fresh_engine(servers: Servers, name: str) -> Engine:
    """An engine on a new, migrated database."""
    servers.make_database(name, TEMPLATE)
    environ = servers.environ(name, name)
    return engine_of(load_settings(environ, Path("/nonexistent")))


if __name__ == "__main__":
    main()
