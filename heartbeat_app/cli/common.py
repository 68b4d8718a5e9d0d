"""What the commands share: options, an engine, and what is printed how.

The commands are click commands of Faust's group, so that `heartbeat_app …` and
`faust -A heartbeat_app …` both know them. Not Faust's AppCommand: it runs an event
loop that nothing here needs, and prints a traceback where a message is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from faust.cli.base import State
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.models import why_no_customer_id
from heartbeat_app.exceptions import CommandError
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.worker.application import app


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


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)


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


@contextmanager
def database(command: str, settings: Settings | None = None) -> Iterator[Engine]:
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


def quiet(ctx: click.Context) -> bool:
    """Whether Faust's own --quiet was given, before the command's name."""
    return _state(ctx).quiet


def wants_json(ctx: click.Context, as_json: bool) -> bool:
    """Faust has a --json of its own, before the command's name."""
    return as_json or _state(ctx).json
