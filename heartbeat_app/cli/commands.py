"""The commands beside Faust's own: demo, send, books, partitions, dead-letters, and
export and erase.

They are click commands of Faust's group, so that `heartbeat_app …` and
`faust -A heartbeat_app …` both know them. Not Faust's AppCommand: it runs an event
loop that nothing here needs, and prints a traceback where a message is due.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec
from aiokafka.errors import KafkaError

# The whole group: Faust's own commands must be there before ours, since its `send`
# (to any topic or agent) gives way to the one below.
from faust.cli.base import State
from faust.cli.faust import cli
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from heartbeat_app.audit.deep import Comparer, DeepAudit
from heartbeat_app.audit.findings import audit
from heartbeat_app.audit.log_reader import LogReader
from heartbeat_app.cli import report
from heartbeat_app.cli.exporting import (
    CSV,
    PARQUET,
    Exported,
    export,
    standard_output,
    whole_file,
)
from heartbeat_app.cli.recordings import read
from heartbeat_app.cli.sending import Sender, Tally, paced
from heartbeat_app.config import Settings
from heartbeat_app.domain.models import why_no_customer_id
from heartbeat_app.domain.validation import Reason, Rules
from heartbeat_app.exceptions import CommandError, printable
from heartbeat_app.kafka.client import Admin, explained
from heartbeat_app.kafka.policy import Fault
from heartbeat_app.kafka.topics import find_faults
from heartbeat_app.storage.days.partitions import read_partitions
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.operator.erase import Erasure, erase
from heartbeat_app.storage.operator.replay import Replayed, replay
from heartbeat_app.storage.read.books import PartitionBooks, read_books
from heartbeat_app.storage.read.compare import Lookup
from heartbeat_app.storage.read.extract import Page, read_pages
from heartbeat_app.storage.write import dead_letters
from heartbeat_app.terminal.output import say
from heartbeat_app.terminal.progress import ProgressDisplay
from heartbeat_app.terminal.stopping import StopSignals
from heartbeat_app.worker.application import app, credentials


class CustomerId(click.ParamType):
    """An id that a customer may have."""

    name = "customer"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Take it as it is, or end the command with what is wrong with it."""
        if why := why_no_customer_id(value):
            self.fail(f"It {why}.", param, ctx)
        return value


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)
_reason_option = click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    metavar="REASON",
    help="Only letters refused for this reason, such as timestamp_in_future.",
)


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
        display = stack.enter_context(ProgressDisplay("Sending", quiet=_quiet(ctx)))

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


@cli.command()
@_json_option
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
    if deep and not _quiet(ctx):
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
        _database("books") as engine,
        ProgressDisplay("Comparing with Kafka", quiet=_quiet(ctx)) as display,
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
    if _wants_json(ctx, as_json):
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


@cli.command()
@_json_option
@click.pass_context
def partitions(ctx: click.Context, as_json: bool) -> None:
    """List the days: rows, size, roll-up state, when each is dropped.

    Also the months of roll-ups, and how much the retention dropped. Rows are what
    PostgreSQL's statistics say; `books --deep` counts.
    """
    with _database("partitions") as engine:
        found = read_partitions(engine)
    if _wants_json(ctx, as_json):
        say(report.partitions_json(found))
    else:
        say(report.partitions_table(found))


@cli.group("dead-letters")
def dead_letters_group() -> None:
    """Look at refused records, and replay them.

    A record that is no heartbeat is kept as it was received, with the reason. The
    reasons are listed in docs/dead-letters.md.
    """


@dead_letters_group.command("list")
@_reason_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="So many of the latest.",
)
@_json_option
@click.pass_context
def list_letters(
    ctx: click.Context, reason: str | None, limit: int, as_json: bool
) -> None:
    """List the latest dead letters, and how many there are of each reason."""
    wanted = Reason(reason) if reason else None
    with _database("dead-letters") as engine:
        counts = dead_letters.count_by_reason(engine)
        letters = dead_letters.list_letters(engine, reason=wanted, limit=limit)
    if _wants_json(ctx, as_json):
        say(report.letters_json(letters, counts))
    else:
        say(report.letters_table(letters, counts))


@dead_letters_group.command("show")
@click.argument("letter_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@_json_option
@click.pass_context
def show_letter(ctx: click.Context, letter_id: int, as_json: bool) -> None:
    """Show one dead letter with what was received."""
    with _database("dead-letters") as engine:
        found = dead_letters.get_letter(engine, letter_id)
    if found is None:
        raise CommandError(f"There is no dead letter {letter_id}.")
    if _wants_json(ctx, as_json):
        say(report.letter_json(*found))
    else:
        say(report.letter_text(*found))


@dead_letters_group.command("replay")
@_reason_option
@click.option("--dry-run", is_flag=True, help="Change nothing; tell what would happen.")
@click.pass_context
def replay_letters(ctx: click.Context, reason: str | None, dry_run: bool) -> None:
    """Check dead letters again, under today's rules and settings.

    What is valid now is stored, once; the outcome is noted at each letter. Letters
    that are in the table by an earlier replay are left alone. When it is broken off,
    run it again.
    """
    settings = app.settings
    now = datetime.now(UTC)
    rules = Rules.at(
        now,
        max_future_seconds=settings.max_future_seconds,
        retention_days=settings.retention_days,
    )
    with (
        _database("dead-letters") as engine,
        ProgressDisplay("Replaying", quiet=_quiet(ctx)) as display,
    ):

        def progress(so_far: Replayed) -> None:
            display.show(so_far.done, so_far.pending, report.replaying(so_far))

        result = replay(
            engine,
            rules,
            now,
            reason=Reason(reason) if reason else None,
            dry_run=dry_run,
            progress=progress,
        )
    say(report.replayed(result, dry_run=dry_run), done=True)


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
        _database("erase", app.settings.owner) as engine,
        ProgressDisplay("Erasing", quiet=_quiet(ctx)) as display,
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


class Instant(click.ParamType):
    """An instant with an offset, such as 2026-01-01T00:00:00Z; aware."""

    name = "instant"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse it, or end the command with what is allowed."""
        # In UTC the first and the last hours of all times may not be there.
        with suppress(msgspec.MsgspecError, ValueError, OverflowError):
            instant = msgspec.convert(value, datetime)
            if instant.tzinfo is not None:
                return instant.astimezone(UTC)
        self.fail(f"{value!r} is no instant such as 2026-01-01T00:00:00Z.")


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
        _database("export") as engine,
        ProgressDisplay("Exporting", quiet=_quiet(ctx)) as display,
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


@contextmanager
def _database(command: str, settings: Settings | None = None) -> Iterator[Engine]:
    """An engine for one command; what goes wrong becomes a `CommandError`."""
    settings = settings or app.settings
    settings.require_database()
    engine = make_engine(
        settings, application_name=f"heartbeat_app {command}", pool_size=2
    )
    try:
        yield engine
    except DBAPIError as error:
        raise CommandError(errors.explained(error, settings)) from error
    finally:
        engine.dispose()


def _state(ctx: click.Context) -> State:
    return ctx.ensure_object(State)


def _quiet(ctx: click.Context) -> bool:
    """Whether Faust's own --quiet was given, before the command's name."""
    return _state(ctx).quiet


def _wants_json(ctx: click.Context, as_json: bool) -> bool:
    """Faust has a --json of its own, before the command's name."""
    return as_json or _state(ctx).json
