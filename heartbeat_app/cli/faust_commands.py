"""The commands that Faust brings: each works, or ends in a sentence.

`send` is ours (see send.py); Faust's `models`, `model` and `completion` know no
model of ours, and need a package that is not installed.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class
from faust.cli.base import State
from faust.cli.faust import cli
from faust.cli.worker import worker as FaustsWorker
from mode import Worker

from heartbeat_app.cli import report
from heartbeat_app.domain.models import (
    HIGHEST_HEART_RATE,
    LOWEST_HEART_RATE,
    MAX_CUSTOMER_ID_LENGTH,
    Heartbeat,
)
from heartbeat_app.exceptions import CommandError
from heartbeat_app.terminal.output import say, written
from heartbeat_app.worker.application import app

FIELDS = {
    "customer_id": f"a text of 1 to {MAX_CUSTOMER_ID_LENGTH} characters",
    "timestamp": "an instant in RFC 3339 with an offset from UTC",
    "heart_rate": f"a whole number from {LOWEST_HEART_RATE} to {HIGHEST_HEART_RATE}",
}


@cli.command()
@click.pass_context
def models(ctx: click.Context) -> None:
    """List the models: what records hold."""
    help = (inspect.getdoc(Heartbeat) or "").partition("\n")[0]
    rows = [("name", "help"), (Heartbeat.__name__, help)]
    say(report.table(rows, as_json=ctx.ensure_object(State).json))


@cli.command()
@click.argument("name")
@click.pass_context
def model(ctx: click.Context, name: str) -> None:
    """Show the fields of a model."""
    if name not in {Heartbeat.__name__, f"{Heartbeat.__module__}.{Heartbeat.__name__}"}:
        program = ctx.find_root().command_path
        raise click.UsageError(
            f"There is no model {name!r}; `{program} models` lists them."
        )
    rows = [("field", "allowed"), *FIELDS.items()]
    say(report.table(rows, as_json=ctx.ensure_object(State).json))


@cli.command()
@click.argument(
    "shell", required=False, type=click.Choice(["bash", "fish", "zsh"]), metavar="SHELL"
)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print what makes a shell complete commands and options.

    SHELL is bash, fish or zsh; without it, the one of the variable SHELL. For bash,
    put this into ~/.bashrc: eval "$(heartbeat_app completion bash)"
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(
            f"The variable SHELL names {shell or 'no shell'}; say bash, fish or zsh."
        )
    root = ctx.find_root()
    program = root.info_name or "heartbeat_app"
    # The name that click looks for.
    variable = f"_{program}_complete".replace("-", "_").replace(".", "_").upper()
    with written():
        click.echo(kind(root.command, {}, program, variable).source())


def _replace_version() -> None:
    """`--version` tells ours, too."""

    def tell(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ours, fausts = version("heartbeat_app"), version("faust-streaming")
            say(f"{ctx.info_name}, version {ours} (Faust {fausts})")
            ctx.exit()

    for param in cli.params:
        if param.name == "version":
            param.callback = tell


Callback = Callable[..., Any]


def _replace(name: str, wrap: Callable[[Callback], Callback]) -> None:
    inner = cli.commands[name].callback
    assert inner is not None
    cli.commands[name].callback = functools.wraps(inner)(wrap(inner))


def _said(inner: Callback) -> Callback:
    """What the command prints goes through `say`."""

    def run(*arguments: Any, **options: Any) -> Any:
        root: Any = click.get_current_context().find_root()
        root.stdout = io.StringIO()
        try:
            return inner(*arguments, **options)
        finally:
            if words := root.stdout.getvalue():
                say(words.rstrip("\n"))

    return run


def _with_database(inner: Callback) -> Callback:
    """The command needs the database, so its settings have to be there."""

    def run(*arguments: Any, **options: Any) -> Any:
        app.settings.require_database()
        return inner(*arguments, **options)

    return run


def _show_banner(self: FaustsWorker, worker: Worker) -> None:
    # Beats are stored whether or not a banner can be read.
    with suppress(CommandError, BrokenPipeError), written():
        self.say(self.banner(worker))


_invoke = cli.invoke


def _invoke_or_stop(ctx: click.Context) -> Any:
    """Ctrl-C ends a command with the status that shells know, 130 and not 1."""
    try:
        return _invoke(ctx)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        ctx.exit(128 + signal.SIGINT)


_replace_version()
cli.invoke = _invoke_or_stop  # type: ignore[method-assign]
for _name in ("agents", "tables", "clean-versions", "reset"):
    _replace(_name, _said)
_replace("worker", _with_database)
FaustsWorker.on_worker_created = _show_banner  # type: ignore[method-assign]
