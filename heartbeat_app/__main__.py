"""The console script: the Faust app's own command group."""

from __future__ import annotations

import gc
import io
import os
import sys


def main() -> None:
    """Run `heartbeat_app …`; what goes wrong ends in a sentence and a status."""
    _open_streams()
    # All that is imported stays: to search it for garbage, again and again while it
    # grows, would be a third of the start.
    gc.disable()
    try:
        # In here, so that Ctrl-C while they are imported is no traceback either.
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    import click

    from heartbeat_app.config import load_settings
    from heartbeat_app.exceptions import HeartbeatError, printable
    from heartbeat_app.terminal.output import explained

    try:
        # Faust reads WEB_PORT by itself as it is imported, and fails where it is none.
        load_settings(database=False)
        from heartbeat_app.worker.application import app

        app.on_worker_init.connect(_collect_garbage)
        with explained():
            app.main()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HeartbeatError as error:
        click.echo(printable(f"Error: {error}"), err=True)
        sys.exit(1)


def _open_streams() -> None:
    """No file or connection takes the place of a stream that is closed.

    What is written to that stream would go there. A closed standard output fails when
    it is written, a closed standard error takes everything.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal in Latin-1 is shown what it can show.
            stream.reconfigure(errors="backslashreplace")


def _collect_garbage(*args: object, **kwargs: object) -> None:
    """From now on, but never of what is there: a command or the worker begins."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    main()
