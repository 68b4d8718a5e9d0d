"""The command `books`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import click
from aiokafka.errors import KafkaError
from faust.cli.faust import cli
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from heartbeat_app.audit.deep import Comparer, DeepAudit
from heartbeat_app.audit.findings import audit
from heartbeat_app.audit.log_reader import LogReader
from heartbeat_app.cli import report
from heartbeat_app.cli.common import (
    database,
    json_option,
    quiet,
    wants_json,
)
from heartbeat_app.exceptions import CommandError, printable
from heartbeat_app.kafka.client import Admin, explained
from heartbeat_app.kafka.policy import Fault
from heartbeat_app.kafka.topics import find_faults
from heartbeat_app.storage.read.books import PartitionBooks, read_books
from heartbeat_app.storage.read.compare import Lookup
from heartbeat_app.terminal.output import say
from heartbeat_app.terminal.progress import ProgressDisplay
from heartbeat_app.worker.application import app, credentials


@cli.command()
@json_option
@click.option(
    "--deep",
    is_flag=True,
    help="Also count the rows, compare the roll-ups, and hold every record that Kafka "
    "still has against the tables; reads them all.",
)
@click.pass_context
def books(ctx: click.Context, as_json: bool, deep: bool) -> None:
    """Tell whether the books balance.

    Per partition and in all: how far it was read, and that what was consumed was
    stored, a duplicate or refused. A worker may run meanwhile. Exit status 1 when
    something does not add up, or when Kafka could not be asked.
    """
    settings = app.settings
    if deep and not quiet(ctx):
        click.echo("Counting the rows of heartbeats …", err=True)
    topic = settings.heartbeats_topic
    admin = Admin(settings)
    trouble = None
    before = logs = None
    faults: Sequence[Fault] = ()
    try:
        with explained(settings, admin):
            before = admin.topic_logs([topic])
            faults = (find_faults(admin, topic) or []) if topic in before else []
    except CommandError as error:
        trouble = error.message
    compared: DeepAudit | None = None
    with (
        database("books") as engine,
        ProgressDisplay("Comparing with Kafka", quiet=quiet(ctx)) as display,
    ):

        def compare(snapshot: str, ledger: Sequence[PartitionBooks]) -> None:
            nonlocal compared, trouble
            if trouble is not None:
                return
            try:
                with explained(settings, admin), LogReader(connection()) as reader:
                    comparer = Comparer(
                        reader,
                        admin,
                        lambda done, total: display.show(
                            done, total, f"{done:,} of {total:,} offsets"
                        ),
                    )
                    comparer.run(Lookup(engine, snapshot), ledger)
                    compared = comparer.result
            except KafkaError as error:
                trouble = (
                    f"Kafka at {settings.kafka_bootstrap_servers} could not be read: "
                    f"{type(error).__name__}: {error}. Try again."
                )
            except CommandError as error:
                trouble = error.message

        def connection() -> dict[str, Any]:
            servers = settings.kafka_bootstrap_servers.split(",")
            login = credentials_to_aiokafka_auth(credentials(settings))
            return {"bootstrap_servers": servers, **login}

        try:
            found = read_books(engine, deep=deep, compare=compare)
        except KeyboardInterrupt:
            click.echo(
                "Stopped before all was compared; nothing was changed.", err=True
            )
            ctx.exit(128 + signal.SIGINT)
    if before is not None:
        try:
            with explained(settings, admin):
                logs = admin.topic_logs({topic, *(p.topic for p in found.partitions)})
        except CommandError as error:
            trouble = error.message
    result = audit(found, topic, logs, before=before, faults=faults, deep=compared)
    if wants_json(ctx, as_json):
        say(report.books_json(result, trouble))
        ctx.exit(1 if trouble or result.problems else 0)
    say(report.books_table(result))
    for warning in result.warnings:
        click.echo(printable(f"Warning: {warning}"), err=True)
    if result.problems:
        raise CommandError(report.imbalance(result, trouble))
    if trouble:
        raise CommandError(
            f"{trouble}\nThe books balance in PostgreSQL; what Kafka holds was not "
            "checked."
        )
    say(report.balance(result))
