"""The commands `dead-letters list`, `show` and `replay`."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from faust.cli.faust import cli

from heartbeat_app.cli import report
from heartbeat_app.cli.common import (
    database,
    json_option,
    quiet,
    wants_json,
)
from heartbeat_app.domain.validation import Reason, Rules
from heartbeat_app.exceptions import CommandError
from heartbeat_app.storage.operator.replay import Replayed, replay
from heartbeat_app.storage.write import dead_letters
from heartbeat_app.terminal.output import say
from heartbeat_app.terminal.progress import ProgressDisplay
from heartbeat_app.worker.application import app

_reason_option = click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    metavar="REASON",
    help="Only letters refused for this reason, such as timestamp_in_future.",
)


@cli.group("dead-letters")
def dead_letters_group() -> None:
    """Look at refused records, and replay them.

    A record that is no heartbeat is kept as it was received, with the reason. The
    reasons are listed in docs/reference/dead-letters.md.
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
@json_option
@click.pass_context
def list_letters(
    ctx: click.Context, reason: str | None, limit: int, as_json: bool
) -> None:
    """List the latest dead letters, and how many there are of each reason."""
    wanted = Reason(reason) if reason else None
    with database("dead-letters") as engine:
        counts = dead_letters.count_by_reason(engine)
        letters = dead_letters.list_letters(engine, reason=wanted, limit=limit)
    if wants_json(ctx, as_json):
        say(report.letters_json(letters, counts))
    else:
        say(report.letters_table(letters, counts))


@dead_letters_group.command("show")
@click.argument("letter_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@json_option
@click.pass_context
def show_letter(ctx: click.Context, letter_id: int, as_json: bool) -> None:
    """Show one dead letter with what was received."""
    with database("dead-letters") as engine:
        found = dead_letters.get_letter(engine, letter_id)
    if found is None:
        raise CommandError(f"There is no dead letter {letter_id}.")
    if wants_json(ctx, as_json):
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
        database("dead-letters") as engine,
        ProgressDisplay("Replaying", quiet=quiet(ctx)) as display,
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
