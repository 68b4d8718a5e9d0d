"""The command `erase`."""

from __future__ import annotations

import signal

import click
from faust.cli.faust import cli

from heartbeat_app.cli import report
from heartbeat_app.cli.common import (
    CustomerId,
    database,
    quiet,
)
from heartbeat_app.exceptions import CommandError, printable
from heartbeat_app.kafka.client import Admin, explained
from heartbeat_app.storage.operator.erase import Erasure, erase
from heartbeat_app.terminal.output import say
from heartbeat_app.terminal.progress import ProgressDisplay
from heartbeat_app.terminal.stopping import StopSignals
from heartbeat_app.worker.application import app


@cli.command("erase")
@click.argument("customer", metavar="CUSTOMER", type=CustomerId())
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def erase_customer(ctx: click.Context, customer: str, yes: bool) -> None:
    """Remove a customer, for good.

    Deletes the customer's beats and roll-ups, empties the dead letters, and has
    workers refuse what comes again, also out of Kafka. Workers may run meanwhile. It
    connects as the owner of the tables. When it is broken off, run it again.
    """
    if not yes:
        click.confirm(
            f"Delete all that is kept of {report.escaped(customer)}, for good?",
            abort=True,
            err=True,
        )
    stop = StopSignals()
    noted = False
    with (
        database("erase", app.settings.owner) as engine,
        ProgressDisplay("Erasing", quiet=quiet(ctx)) as display,
        stop.caught(),
    ):

        def go_on() -> None:
            if stop.signal is not None:
                raise KeyboardInterrupt

        def progress(so_far: Erasure) -> None:
            nonlocal noted
            noted = True
            display.show(so_far.done, so_far.total, report.erasing(so_far))
            go_on()

        try:
            result = erase(engine, customer, progress, go_on)
        except KeyboardInterrupt:
            click.echo(printable(report.erasure_stopped(noted=noted)), err=True)
            ctx.exit(128 + (stop.signal or signal.SIGINT))
    words = [report.erased(result), _still_in_kafka(), report.ERASE_ELSEWHERE]
    say("\n".join(words), done=True)


def _still_in_kafka() -> str:
    topic = app.settings.heartbeats_topic
    admin = Admin(app.settings)
    try:
        with explained(app.settings, admin):
            log = admin.topic_logs([topic]).get(topic)
            config = admin.topic_config(topic) if log else {}
    except CommandError as error:
        return (
            f"{error.message}\nWhat topic {topic} still holds of the customer is "
            "refused when it is read."
        )
    return report.still_in_kafka(topic, log, config)
