"""The command `partitions`."""

from __future__ import annotations

import click
from faust.cli.faust import cli

from heartbeat_app.cli import report
from heartbeat_app.cli.common import (
    database,
    json_option,
    wants_json,
)
from heartbeat_app.storage.days.partitions import read_partitions
from heartbeat_app.terminal.output import say


@cli.command()
@json_option
@click.pass_context
def partitions(ctx: click.Context, as_json: bool) -> None:
    """List the days: rows, size, roll-up state, when each is dropped.

    Also the months of roll-ups, and how much the retention dropped. Rows are what
    PostgreSQL's statistics say; `books --deep` counts.
    """
    with database("partitions") as engine:
        found = read_partitions(engine)
    if wants_json(ctx, as_json):
        say(report.partitions_json(found))
    else:
        say(report.partitions_table(found))
