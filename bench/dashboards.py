"""Times what people look at, on a database that is there: no query writes.

    .venv/bin/python -m bench.dashboards > times.md

Every query of Grafana's dashboards and alert rules, with its macros filled in as
Grafana does, the functions behind the read API, and the seed's own query, over ranges
from five minutes to a year that end with the last roll-up. Settings from the
environment or `.env`, as for the commands; or `--folder`, the data that
`python -m bench.fill --keep` left, with a server of its own.

Each is run twice: the first time may wait for the disk, the second time is the one that
somebody sees who looks again. The seed's query returns every row, so it is ended after
`--patience` seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from sqlalchemy import Connection, Engine, text

from bench.fill import NOBODY, own_server
from heartbeat_app.config import load_settings
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.db.roles import READER_SETTINGS
from heartbeat_app.storage.read import customers, history, reads
from testkit import dashboards
from testkit.dashboards import FIRST_QUERY, SPANS
from testkit.grafana_macros import View, expand

ROWS_A_FETCH = 50_000
LIMIT_SECONDS = 1.0


def last_hour(connection: Connection) -> datetime:
    """When the last hour that has beats is over."""
    found = connection.scalar(text("SELECT max(hour) FROM heartbeats_hour_all"))
    if found is None:
        raise click.ClickException("Nothing is rolled up in this database.")
    assert isinstance(found, datetime)
    return found.astimezone(UTC) + timedelta(hours=1)


def a_customer(connection: Connection) -> str:
    """Any one that has beats in the last hours."""
    found = connection.scalar(
        text("SELECT customer_id FROM heartbeats_hour ORDER BY hour DESC LIMIT 1")
    )
    return str(found)


def timed(run: Callable[[], object]) -> float:
    """How many seconds it takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def run_sql(engine: Engine, sql: str) -> None:
    """Fetch all rows, in a session that begins as those of Grafana's role."""
    setting = text("SELECT set_config(:name, :value, false)")
    with engine.connect() as connection:
        for name, value in READER_SETTINGS.items():
            connection.execute(setting, {"name": name, "value": value})
        connection.exec_driver_sql(sql.replace("%", "%%")).all()


def run_seed(engine: Engine, start: datetime, end: datetime, patience: float) -> str:
    """The seed's query; what came of it."""
    sql = expand(FIRST_QUERY, View.of(start, end)).replace("%", "%%")
    began = time.perf_counter()
    rows = 0
    with engine.connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        options = {"stream_results": True, "max_row_buffer": ROWS_A_FETCH}
        found = connection.execution_options(**options).exec_driver_sql(sql)
        for some in found.partitions(ROWS_A_FETCH):
            rows += len(some)
            if time.perf_counter() - began > patience:
                return f"over {patience:.0f} s, {rows / 1e6:.1f} million rows by then"
    return f"{time.perf_counter() - began:.2f} s, {rows:,} rows"


def api(
    engine: Engine, customer: str, start: datetime, end: datetime
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What the pages of the read API call."""
    yield (
        "/api/customers",
        lambda: customers.list_customers(engine, after="", limit=1_000),
    )
    yield (
        "/api/latest",
        # It looks back a month at most.
        lambda: customers.list_latest(
            engine, since=max(start, end - timedelta(days=31)), after="", limit=1_000
        ),
    )
    yield "/api/summary", lambda: reads.read_summary(engine)
    yield (
        "/api/customers/ID/heart-rate",
        lambda: history.read_history(engine, customer, start, end),
    )


def table(
    engine: Engine, customer: str, end: datetime, patience: float
) -> Iterator[str]:
    """The lines of a table in Markdown; times in milliseconds, first and again."""
    yield "| query | " + " | ".join(SPANS) + " |"
    yield "|---" * (len(SPANS) + 1) + "|"
    slow: list[str] = []

    def line(name: str, runs: list[Callable[[], object]]) -> str:
        cells = []
        for span, run in zip(SPANS, runs, strict=True):
            first, again = timed(run), timed(run)
            if again > LIMIT_SECONDS:
                slow.append(f"{name}, {span}")
            cells.append(f"{first * 1000:,.0f}, {again * 1000:,.0f}")
        return f"| {name} | " + " | ".join(cells) + " |"

    for query in dashboards.queries():
        sqls = [
            query.expand(end - span, end, customer=customer) for span in SPANS.values()
        ]
        yield line(str(query), [lambda sql=sql: run_sql(engine, sql) for sql in sqls])  # type: ignore[misc]
    asked = [dict(api(engine, customer, end - span, end)) for span in SPANS.values()]
    for name in asked[0]:
        yield line(name, [each[name] for each in asked])
    seed = [run_seed(engine, end - span, end, patience) for span in SPANS.values()]
    yield "| the seed's own query | " + " | ".join(seed) + " |"
    yield ""
    yield f"Above {LIMIT_SECONDS:.0f} s the second time: {'; '.join(slow) or 'none'}."


@contextmanager
def given_database() -> Iterator[Engine]:
    """The one that the settings name."""
    settings = load_settings({**NOBODY, **os.environ})
    engine = make_engine(settings, application_name="bench", pool_size=2)
    try:
        yield engine
    finally:
        engine.dispose()


@click.command()
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What bench.fill --keep left.",
)
@click.option("--customer", help="Whose heart rate; anybody's unless given.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds.")
def main(folder: Path | None, customer: str | None, patience: float) -> None:
    """Print the times as a table in Markdown."""
    database = own_server(folder=folder) if folder else given_database()
    with database as engine:
        with engine.connect() as connection:
            end = last_hour(connection)
            customer = customer or a_customer(connection)
            rows = connection.scalar(
                text("SELECT sum(count)::BIGINT FROM heartbeats_hour_all")
            )
        click.echo(
            f"Ranges end at {end:%Y-%m-%d %H:%M} UTC; {rows:,} beats; milliseconds, "
            "the first time and again.\n"
        )
        for each in table(engine, customer, end, patience):
            click.echo(each)


if __name__ == "__main__":
    main()
