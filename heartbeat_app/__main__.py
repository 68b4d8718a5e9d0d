"""The console script: the Faust app's own command group."""

from __future__ import annotations

import gc
import os
import sys

import click

from heartbeat_app.config import required
from heartbeat_app.exceptions import HeartbeatError, printable

EXPLAINS = {"--help", "--version"}


def main() -> None:
    """Run `heartbeat_app …`."""
    if len(sys.argv) == 1 or EXPLAINS.intersection(sys.argv):
        # Nothing connects, so what is missing need not be known yet.
        for name in required():
            os.environ.setdefault(name, "not set")
    # All that is imported stays: to search it for garbage, again and again while it
    # grows, would be a third of the start.
    gc.disable()
    try:
        from heartbeat_app.application import app

        app.on_worker_init.connect(_collect_garbage)
        app.main()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HeartbeatError as error:
        click.echo(printable(f"Error: {error}"), err=True)
        sys.exit(1)


def _collect_garbage(*args: object, **kwargs: object) -> None:
    """From now on, but never of what is there: a command or the worker begins."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    main()
