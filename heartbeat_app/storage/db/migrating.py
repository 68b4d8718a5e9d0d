"""What surrounds the migrations: one of them at a time, and errors in words."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, set_wait_callback
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import CommandError
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.errors import sqlstate, words

# Alembic's, so that it is shown beside what the migrations say.
log = logging.getLogger("alembic.turns")

# The owner alone may take this lock: nobody who only reads can stop a migration. It
# ends with the transaction.
LOCK = text("LOCK TABLE public.alembic_version IN SHARE UPDATE EXCLUSIVE MODE")
# As Alembic makes it. Another migration that has made it and is not done yet is waited
# for, as for the lock.
MAKE = text(
    "CREATE TABLE IF NOT EXISTS public.alembic_version ("
    "version_num VARCHAR(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
WAIT = text("SET LOCAL lock_timeout = '1s'")
WAIT_NO_MORE = text("SET LOCAL lock_timeout = DEFAULT")
# The first of those that migrate, by when they began, or who else holds the table.
WHO = text("""
SELECT pid, usename, application_name, client_addr FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (
    application_name = current_setting('application_name')
    OR pid IN (
        SELECT pid FROM pg_locks
        WHERE granted AND mode <> 'AccessShareLock'
        AND relation = to_regclass('public.alembic_version')
    )
)
ORDER BY xact_start NULLS LAST LIMIT 1
""")
TELL_SECONDS = 10.0


def take_turn(connection: Connection) -> None:
    """Begin a transaction when no other migration of this database runs.

    Others wait until it ends. Who is waited for is said, at once and every 10 s; the
    wait has no limit, as a migration has none.
    """
    next_words = 0.0
    statements = [LOCK]
    while True:
        try:
            for statement in (WAIT, *statements, WAIT_NO_MORE):
                connection.execute(statement)
            return
        except DBAPIError as error:
            connection.rollback()
            match sqlstate(error):
                case errors.UNDEFINED_TABLE:
                    statements = [MAKE, LOCK]
                case (
                    errors.UNIQUE_VIOLATION | errors.DUPLICATE_TABLE
                ):  # another has just made it
                    statements = [LOCK]
                case errors.LOCK_NOT_AVAILABLE:
                    if time.monotonic() >= next_words:
                        next_words = time.monotonic() + TELL_SECONDS
                        log.warning("Waiting for %s to end.", _who(connection))
                case _:
                    raise


def _who(connection: Connection) -> str:
    found = connection.execute(WHO).first()
    connection.rollback()
    if found is None:
        return "another migration of this database"
    where = f" at {found.client_addr}" if found.client_addr else ""
    return (
        "another migration of this database: PostgreSQL's process "
        f"{found.pid}, role {found.usename}{where} ({found.application_name})"
    )


def heed_signals() -> None:
    """Have a signal's handler run at once while a statement runs, which is cancelled
    if the handler raises.

    Call it once connected: what psycopg2 then connects has no time limit.
    """
    set_wait_callback(_wait)


def _wait(connection: Any) -> None:
    try:
        while (state := connection.poll()) != POLL_OK:
            line = [connection.fileno()]
            if state == POLL_READ:
                select.select(line, [], [])
            else:
                select.select([], line, [])
    except SystemExit:
        connection.cancel()
        raise


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Errors of PostgreSQL become sentences.

    Arguments:
        settings: Those that connect.

    Raises:
        CommandError: Says what happened, where, and what to do.
    """
    where = (
        f"PostgreSQL at {settings.postgresql_address}, database "
        f"{settings.postgresql_database}"
    )
    role = settings.postgresql_username
    try:
        yield
    except (DBAPIError, psycopg2.Error) as error:
        if errors.is_poolers(error):
            raise CommandError(words(error)) from error
        if errors.is_read_only(error):
            raise CommandError(
                f"{where}, {errors.why_no_writes(error)}. Nothing was changed."
            ) from error
        state = sqlstate(error)
        if state is None:
            raise CommandError(f"{where}, does not answer: {words(error)}") from error
        if state == errors.INVALID_SCHEMA:
            raise CommandError(
                f"{where}, has no schema public, in which the tables are. Make it: "
                f'CREATE SCHEMA public AUTHORIZATION "{role}"'
            ) from error
        if state == errors.NOT_ALLOWED:
            raise CommandError(
                f"{where}, does not let {role} do that: {words(error)}. Nothing was "
                "changed. The tables are in the schema public: let an administrator "
                f'GRANT CREATE, USAGE ON SCHEMA public TO "{role}", or set '
                "POSTGRESQL_OWNER_USERNAME and POSTGRESQL_OWNER_PASSWORD to the owner "
                "of the tables."
            ) from error
        raise CommandError(
            f"{where}: {words(error)} (SQLSTATE {state}). Nothing was changed."
        ) from error
