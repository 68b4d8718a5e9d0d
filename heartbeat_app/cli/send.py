"""The command `send`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import click

# The whole group: Faust's own commands must be there before ours, since its `send`
# (to any topic or agent) gives way to the one below.
from faust.cli.faust import cli

from heartbeat_app.cli import report
from heartbeat_app.cli.common import (
    CustomerId,
    quiet,
)
from heartbeat_app.cli.recordings import read
from heartbeat_app.cli.sending import Sender, Tally, paced
from heartbeat_app.exceptions import CommandError, printable
from heartbeat_app.kafka.client import Admin, explained
from heartbeat_app.terminal.output import say
from heartbeat_app.terminal.progress import ProgressDisplay
from heartbeat_app.worker.application import app


@cli.command()
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Keep the gaps of the timestamps, X times as fast as real time (1: as it "
    "was recorded); all files begin together. Without it everything is sent at once.",
)
@click.option(
    "--as",
    "customer_id",
    type=CustomerId(),
    metavar="CUSTOMER",
    help="Send all beats as this customer's.",
)
@click.option(
    "--start-now",
    is_flag=True,
    help="Shift the times of each file so that its first beat is now.",
)
@click.option(
    "--skip-bad", is_flag=True, help="Name and pass over bad lines; go on after them."
)
@click.pass_context
def send(
    ctx: click.Context,
    files: tuple[str, ...],
    speed: float | None,
    customer_id: str | None,
    start_now: bool,
    skip_bad: bool,
) -> None:
    """Send recordings into the topic.

    A FILE is a CSV file in UTF-8 with the header customer_id,timestamp,heart_rate; -
    is standard input. It is sent keyed by customer; sending it again stores nothing
    twice.
    """
    if files.count("-") > 1:
        raise click.UsageError("Standard input (-) can be read only once.")
    settings = app.settings
    topic = settings.heartbeats_topic
    admin = Admin(settings)
    with explained(settings, admin):
        if topic not in admin.topic_ids([topic]):
            raise CommandError(
                f"Kafka at {settings.kafka_bootstrap_servers} has no topic {topic} "
                "(HEARTBEATS_TOPIC). A worker makes it when it starts."
            )
    with ExitStack() as stack:
        streams = [_open(stack, file) for file in files]
        total = _bytes_of(files)
        display = stack.enter_context(ProgressDisplay("Sending", quiet=quiet(ctx)))

        def progress(tally: Tally) -> None:
            done = sum(stream.tell() for stream in streams) if total else 0
            display.show(done, total, report.sending(tally))

        sender = Sender(
            settings,
            topic,
            skip_bad=skip_bad,
            tell=display.tell,
            progress=progress,
            latest=timedelta(seconds=settings.max_future_seconds)
            if start_now
            else None,
        )
        start = datetime.now(UTC) if start_now else None
        recordings = [
            read(
                stream,
                "standard input" if file == "-" else click.format_filename(file),
                customer_id=customer_id,
                start=start,
            )
            for stream, file in zip(streams, files, strict=True)
        ]
        for recording in recordings:
            stack.callback(recording.close)  # before its file
        tally = sender.send(paced(recordings, speed))
    problem = report.sending_problem(tally)
    try:
        say(report.sent(tally, topic), done=True)
    except (CommandError, BrokenPipeError):
        if problem:
            click.echo(printable(problem), err=True)
        raise
    if tally.stopped_by is not None:
        ctx.exit(128 + tally.stopped_by)
    if problem:
        raise CommandError(problem)


def _open(stack: ExitStack, file: str) -> BinaryIO:
    if file == "-":
        return sys.stdin.buffer
    return stack.enter_context(Path(file).open("rb"))


def _bytes_of(files: tuple[str, ...]) -> int | None:
    """The size of all; None where one of them has none (a pipe)."""
    paths = [Path(file) for file in files if file != "-"]
    if len(paths) < len(files) or not all(path.is_file() for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)
