"""The command `export`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
from faust.cli.faust import cli

from heartbeat_app.cli import report
from heartbeat_app.cli.common import (
    CustomerId,
    Instant,
    database,
    quiet,
)
from heartbeat_app.cli.exporting import (
    CSV,
    PARQUET,
    Exported,
    export,
    standard_output,
    whole_file,
)
from heartbeat_app.exceptions import printable
from heartbeat_app.storage.read.extract import Page, read_pages
from heartbeat_app.terminal.output import say
from heartbeat_app.terminal.progress import ProgressDisplay


@cli.command("export")
@click.argument(
    "path", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True)
)
@click.option(
    "--customer",
    type=CustomerId(),
    metavar="CUSTOMER",
    help="Only this customer's beats.",
)
@click.option(
    "--from",
    "since",
    type=Instant(),
    metavar="INSTANT",
    help="Only beats from then on, such as 2026-01-01T00:00:00Z.",
)
@click.option(
    "--to", "until", type=Instant(), metavar="INSTANT", help="Only beats before then."
)
@click.option(
    "--format",
    type=click.Choice([CSV, PARQUET]),
    help="What to write; else parquet if FILE ends so, and csv if not.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.pass_context
def export_beats(
    ctx: click.Context,
    path: str,
    customer: str | None,
    since: datetime | None,
    until: datetime | None,
    format: str | None,
    force: bool,
) -> None:
    """Write beats into a file, as CSV or Parquet.

    All of them unless a customer or a time is given, in the order of their instants;
    - is standard output. FILE has its name only when it is complete. A worker may run
    meanwhile.
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError(
            f"--from {since.isoformat()} does not lie before --to {until.isoformat()}."
        )
    to_stream = path == "-"
    format = format or (PARQUET if path.endswith(".parquet") else CSV)
    with (
        database("export") as engine,
        ProgressDisplay("Exporting", quiet=quiet(ctx)) as display,
    ):

        def progress(so_far: Exported, page: Page) -> None:
            display.show(page.done, page.total, f"{so_far.beats:,} beats")

        result = export(
            read_pages(engine, customer_id=customer, since=since, until=until),
            standard_output() if to_stream else whole_file(Path(path), replace=force),
            format,
            progress,
        )
    words = report.exported(result, click.format_filename(path))
    if to_stream:
        click.echo(printable(words), err=True)
    else:
        say(words, done=True)
    if result.stopped_by is not None:
        ctx.exit(128 + result.stopped_by)
