# ruff: noqa: E402 (a signal may come while the rest is imported)
"""Runs the migrations on the database that the settings name."""

from __future__ import annotations

import signal
import sys

kept = "Nothing was changed."


def interrupted(*_: object) -> None:
    """End with the status that shells know of Ctrl-C, and say what was kept."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"Interrupted. {kept}", file=sys.stderr)
    raise SystemExit(128 + signal.SIGINT)


signal.signal(signal.SIGINT, interrupted)

import re
from logging.config import fileConfig

from alembic import command, context
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, pool

from heartbeat_app.config import load_settings
from heartbeat_app.exceptions import HeartbeatError
from heartbeat_app.storage.days.retention import Kept
from heartbeat_app.storage.db import comments
from heartbeat_app.storage.db.engine import database_url, make_migration_engine
from heartbeat_app.storage.db.migrating import explained, heed_signals, take_turn
from heartbeat_app.storage.db.roles import ensure_roles, forget_roles
from heartbeat_app.storage.db.tables import metadata

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Leave out the partitions of days and months, made at run time: no drift."""
    partition = r"heartbeats_(\d{4}_\d\d_\d\d|(minute|hour)_\d{4}_\d\d)"
    return not (kind == "table" and name and re.fullmatch(partition, name))


def run_migrations_offline() -> None:
    """Print the SQL instead of running it; the roles are left out."""
    context.configure(
        url=database_url(load_settings().owner),
        target_metadata=metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},  # with psycopg2's each % comes twice
    )
    with context.begin_transaction():
        # Whoever runs the script may have other defaults.
        context.execute("SET LOCAL standard_conforming_strings = on")
        context.execute("SET LOCAL search_path = public")
        context.run_migrations()


def run_migrations_online() -> None:
    """Run the migrations, all in one transaction, and one after the other."""
    settings = load_settings().owner
    engine = make_migration_engine(settings, poolclass=pool.NullPool)
    global kept
    with explained(settings), engine.connect() as connection:
        heed_signals()
        if running() in {command.upgrade, command.downgrade, command.stamp}:
            take_turn(connection)
        context.configure(
            connection=connection,
            target_metadata=metadata,
            include_name=include_name,
            compare_server_default=True,
            # Comments are no part of the migrations.
            autogenerate_plugins=[
                "alembic.autogenerate.*",
                "~alembic.autogenerate.comments",
            ],
        )
        with context.begin_transaction():
            context.run_migrations()
            settings_follow(connection)
        kept = "It was being committed: `alembic current` tells whether it is there."
        connection.commit()  # what began with the turn is not Alembic's to end
        kept = "All was done."
    engine.dispose()


def running() -> object:
    """The function of `alembic.command` that runs; None where that is not known."""
    found, *_ = getattr(context.config.cmd_opts, "cmd", (None,))
    return found


def settings_follow(connection: Connection) -> None:
    """After each `alembic upgrade` roles, retention, comments are as they should be."""
    heads = set(context.get_context().get_current_heads())
    if running() is command.upgrade:
        if heads == set(ScriptDirectory.from_config(context.config).get_heads()):
            ensure_roles(connection, load_settings())
            Kept.of(load_settings()).write(connection)
            comments.write(connection)
    elif running() is command.downgrade and not heads:
        forget_roles(connection, load_settings())


try:
    if context.is_offline_mode():
        run_migrations_offline()
    else:
        run_migrations_online()
except HeartbeatError as error:
    raise CommandError(str(error)) from error  # printed without a trace
