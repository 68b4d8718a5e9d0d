"""The settings that every session relies on, whatever the defaults of the server,
the database or the role are.

They are set by a query and not by startup options: poolers refuse or ignore those, and
nobody can ignore a query. It takes one round trip, when a connection is made.

A pooler that gives each transaction another session (transaction or statement pooling)
is recognised and refused: what is set or prepared in one session is missing in the
next. One that keeps a session for each client (session pooling) is all right.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

import psycopg2
from sqlalchemy import Engine
from sqlalchemy.exc import InvalidatePoolError

from heartbeat_app.config import address
from heartbeat_app.exceptions import StorageError

# Each changes what a statement means, what its answer looks like, or ends a session.
PINNED = {
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "bytea_output": "hex",
    # psycopg2 sends and reads in it, see the engine's connect_args; a pooler that
    # resets a session would reset this, too.
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "default_transaction_deferrable": "off",
    # A statement counts on seeing what the lock before it waited for, such as an
    # erasure.
    "default_transaction_isolation": "read committed",
    # A beat that is there already must not end the session.
    "exit_on_error": "off",
    "extra_float_digits": "1",
    "idle_session_timeout": "0",  # a pool keeps what is idle
    "intervalstyle": "postgres",
    "quote_all_identifiers": "off",
    "search_path": "public",
    "standard_conforming_strings": "on",  # as it began, see Sessions.connect
    "timezone": "UTC",
    "transaction_timeout": "0",  # since version 17; the statements have their limit
    "transform_null_equals": "off",
}

STANDARD = "standard_conforming_strings"

# The limit first, in a statement of its own: the database's may be too short for the
# next one. A commit that is acknowledged has to survive a crash of PostgreSQL: `off` is
# the only value that does not promise it.
PIN = """
SET statement_timeout = %s;
SELECT pg_catalog.pg_backend_pid(), (
    SELECT pg_catalog.array_agg(pg_catalog.set_config(name, value, false))
    FROM ROWS FROM (pg_catalog.unnest(%s::TEXT[]), pg_catalog.unnest(%s::TEXT[]))
        AS wanted(name, value)
    WHERE pg_catalog.current_setting(name, true) IS NOT NULL
), CASE pg_catalog.current_setting('synchronous_commit')
    WHEN 'off' THEN pg_catalog.set_config('synchronous_commit', 'on', false)
    ELSE pg_catalog.current_setting('synchronous_commit')
END, pg_catalog.current_setting('transaction_read_only')
"""
IN_FORCE = """
SELECT pg_catalog.pg_backend_pid(), (
    SELECT pg_catalog.array_agg(pg_catalog.current_setting(name))
    FROM pg_catalog.unnest(%s::TEXT[]) AS wanted(name)
    WHERE pg_catalog.current_setting(name, true) IS NOT NULL
), pg_catalog.current_setting('synchronous_commit'),
pg_catalog.current_setting('transaction_read_only')
"""

# The server tells each session, before its next answer ends, when one of them changes.
READ_ONLY = ("default_transaction_read_only", "in_hot_standby")

# So often two sessions look whether they are one. Once is enough unless other clients
# of the pooler change who gets which at that moment.
LOOKS = 3
# A pooler without a session to spare lets the second connection wait.
SECOND_SECONDS = 3.0


class SessionError(StorageError, psycopg2.OperationalError):
    """A pooler is in the way; the message says what it has to do.

    To whoever waits for the database it is an outage like others.
    """


class SharedSessionError(SessionError):
    """It gives each transaction another session."""

    def __init__(self, connection: Any) -> None:
        super().__init__(
            f"PostgreSQL at {_address(connection)} (POSTGRESQL_HOST, POSTGRESQL_PORT) "
            "is behind a pooler that does not keep a session for each client "
            "(transaction or statement pooling): what a session sets and prepares is "
            "lost. Let it use session pooling for this database (PgBouncer: pool_mode "
            "= session), or connect to PostgreSQL itself."
        )


class BackslashError(SessionError):
    """It passes on neither startup options nor a right default."""

    def __init__(self, connection: Any) -> None:
        super().__init__(
            f"PostgreSQL at {_address(connection)} (POSTGRESQL_HOST, POSTGRESQL_PORT) "
            "has standard_conforming_strings off by default, and a pooler before it "
            "lets nobody ask for another: ALTER ROLE … SET "
            "standard_conforming_strings = on for the worker's role and the owner."
        )


class ReadOnlyError(StorageError, psycopg2.OperationalError):
    """The server takes no writes, whatever a pooler remembers of an earlier one."""

    def __init__(self, connection: Any) -> None:
        super().__init__(f"{_address(connection)}: session is read-only")


class Sessions:
    """Begins the sessions of an engine.

    Arguments:
        connect_args: What the engine connects with beside its URL.
        limits: Settings on top of PINNED; `statement_timeout` has to be among them.
    """

    def __init__(
        self, engine: Engine, connect_args: Mapping[str, Any], limits: Mapping[str, str]
    ) -> None:
        self._engine = engine
        self._connect_args = connect_args
        self._limits = limits
        wanted = {**PINNED, **limits}
        self._names, self._values = list(wanted), list(wanted.values())
        self._own = False  # known of the pooler

    def connect(self, dialect: Any, _: object, arguments: Any, options: Any) -> Any:
        """Connect; for SQLAlchemy's event `do_connect`.

        psycopg2 decides once, by what a session begins with, whether it writes E'…';
        to set standard_conforming_strings later would break each text with a backslash.

        Raises:
            BackslashError: It is off, and cannot be asked for.
        """
        connection = dialect.connect(*arguments, **options)
        if _reads_backslashes(connection):
            refused = BackslashError(connection)
            connection.close()
            asked = f"-c {STANDARD}=on"
            try:
                connection = dialect.connect(*arguments, **options, options=asked)
            except psycopg2.OperationalError as error:
                if "startup parameter" not in str(error):
                    raise
                raise refused from error
            if _reads_backslashes(connection):
                connection.close()
                raise refused
        return connection

    def begin(self, connection: Any, *_: object) -> None:
        """Set what the session relies on; for SQLAlchemy's event `connect`.

        Raises:
            SharedSessionError: A pooler gives the session to others between two
                transactions.
            ReadOnlyError: libpq looked at what a pooler kept of another server.
        """
        try:
            connection.autocommit = True  # neither BEGIN nor COMMIT by themselves
            with connection.cursor() as cursor:
                found = self._pin(cursor)
                # libpq knows the process from the login. Poolers invent one.
                if found[0] != connection.info.backend_pid:
                    self._require_own(cursor, found)
                    # What the last client left there: prepared statements, tables.
                    cursor.execute("DISCARD ALL")
                    found = self._pin(cursor)
                if found[-1] == "on":
                    raise ReadOnlyError(connection)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise

    def require_writable(self, connection: Any, *_: object) -> None:
        """Have a session replaced, with all that wait in its pool, whose server has
        become read-only; for SQLAlchemy's event `checkout`.

        libpq looks at that when it connects only. A primary that was demoted in place
        would be read from for ever, and what it has is not the database's any more.

        Raises:
            InvalidatePoolError: It has become so, as far as the server has told.
        """
        told = connection.info.parameter_status
        if any(told(name) == "on" for name in READ_ONLY):
            raise InvalidatePoolError("The server takes no writes any more.")

    def _pin(self, cursor: Any) -> Any:
        timeout = self._limits["statement_timeout"]
        cursor.execute(PIN, (timeout, self._names, self._values))
        return cursor.fetchone()

    def _require_own(self, cursor: Any, found: Any) -> None:
        if self._own:
            return
        shared = SharedSessionError(cursor.connection)
        try:
            second = self._connect(beside=cursor.connection)
        except psycopg2.OperationalError:  # there is no room for it
            return
        # Who waits for a session has none of another client's.
        limit = threading.Timer(SECOND_SECONDS, break_off, (second,))
        limit.start()
        try:
            with closing(second), second.cursor() as other:
                others: set[int] = set()
                for _ in range(LOOKS):
                    with suppress(psycopg2.Error):  # it was broken off
                        other.execute("SELECT pg_catalog.pg_backend_pid()")
                        others.add(other.fetchone()[0])
                    cursor.execute(IN_FORCE, (self._names,))
                    if cursor.fetchone() != found or found[0] in others:
                        raise shared
                if len(others) > 1:
                    raise shared
        finally:
            limit.cancel()
        self._own = True

    def _connect(self, *, beside: Any) -> Any:
        """Connect to the server that this connection has, of several candidates."""
        dialect = self._engine.dialect
        arguments, options = dialect.create_connect_args(self._engine.url)
        server = {"host": beside.info.host, "port": beside.info.port}
        connection: Any = dialect.connect(
            *arguments, **{**options, **self._connect_args, **server}
        )
        connection.autocommit = True
        return connection


def _address(connection: Any) -> str:
    """Which of the candidates it is connected to."""
    return address(connection.info.host, connection.info.port)


def _reads_backslashes(connection: Any) -> bool:
    return bool(connection.info.parameter_status(STANDARD) != "on")


def break_off(connection: Any) -> bool:
    """Break a connection off, from another thread, where it is still open.

    Whoever waits for its answer gets an error.
    """
    with (
        suppress(OSError, psycopg2.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)
        return True
    return False
