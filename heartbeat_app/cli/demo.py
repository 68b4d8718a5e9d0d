"""The command `demo`."""

from __future__ import annotations

import click
from faust.cli.faust import cli

from heartbeat_app.worker.application import app


@cli.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop by itself, so many seconds after the first stored beat.",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Begin anew: delete what earlier runs kept, after asking.",
)
@click.option("--yes", is_flag=True, help="With --fresh: do not ask.")
@click.pass_context
def demo(ctx: click.Context, seconds: float | None, fresh: bool, yes: bool) -> None:
    """Run everything on this machine, without Docker.

    Starts PostgreSQL and Kafka, brings the tables up to date, starts a worker that
    invents 1,000 customers, and shows how it goes. Ctrl-C stops it all; what was kept
    stays in .heartbeat/ for the next run.
    """
    from heartbeat_app.demo import run_demo  # needs the extra `embedded`

    app.settings.require_database()
    ctx.exit(run_demo(app.settings, seconds=seconds, fresh=fresh, yes=yes))
