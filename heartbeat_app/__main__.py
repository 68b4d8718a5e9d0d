"""The console script: the Faust app's own command group."""

from __future__ import annotations

import sys

import click

from heartbeat_app.exceptions import HeartbeatError


def main() -> None:
    """Run `heartbeat_app …`."""
    try:
        from heartbeat_app.application import app

        app.main()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HeartbeatError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
