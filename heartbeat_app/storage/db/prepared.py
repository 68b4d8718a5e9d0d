"""Statements that PostgreSQL plans once a session, not anew for each batch.

While beats come one by one there are a hundred transactions a second, and planning
their statements takes longer than running them. psycopg2 prepares nothing by itself.

Not for a statement that must see what it waited for: EXECUTE takes its snapshot before
the locks of its tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError, OperationalError

from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.sessions import SharedSessionError

# SQLSTATEs: there is no such prepared statement; there is one already.
PREPARED_ELSEWHERE = {"26000", "42P05"}


@dataclass(frozen=True, slots=True)
class Bound:
    """A prepared statement and its parameters, to be run."""

    statement: Prepared
    parameters: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Plain:
    """A statement without parameters that is not worth preparing, to be run."""

    sql: str


class Prepared:
    """A statement with parameters $1, $2, …

    Arguments:
        name: Of its own within a session.
        types: The parameters' types, in their order.
        sql: The statement.
    """

    def __init__(self, name: str, types: tuple[str, ...], sql: str) -> None:
        self.name = name
        self.prepare = f"PREPARE {name} ({', '.join(types)}) AS {sql}"
        self.execution = f"EXECUTE {name} ({', '.join(['%s'] * len(types))})"

    def bind(self, *parameters: Any) -> Bound:
        """It with these parameters."""
        return Bound(self, parameters)

    def execute(self, connection: Connection, *parameters: Any) -> CursorResult[Any]:
        """Run it by itself."""
        return run(connection, [self.bind(*parameters)])


def run(
    connection: Connection, statements: Sequence[Bound | Plain]
) -> CursorResult[Any]:
    """Run one after the other; the result of the last.

    All are sent at once: a small transaction waits longer for PostgreSQL's answers than
    for its work. What a session has not run before is prepared first.
    """
    bound = [each for each in statements if isinstance(each, Bound)]
    for each in bound:
        if each.statement.name not in connection.info:
            with _own_session(connection):
                connection.exec_driver_sql(each.statement.prepare)
            connection.info[each.statement.name] = True
    with _own_session(connection):
        return connection.exec_driver_sql(
            "; ".join(
                [
                    each.statement.execution if isinstance(each, Bound) else each.sql
                    for each in statements
                ]
            ),
            tuple([value for each in bound for value in each.parameters]),
        )


@contextmanager
def _own_session(connection: Connection) -> Iterator[None]:
    """Take a statement that only another session has prepared for what it means.

    Poolers that share sessions are refused when a connection is made; one that is
    configured anew under a running worker shows here.
    """
    try:
        yield
    except DBAPIError as error:
        if errors.sqlstate(error) not in PREPARED_ELSEWHERE:
            raise
        shared = SharedSessionError(connection.connection.dbapi_connection)
        connection.invalidate()
        raise OperationalError(None, None, shared) from error
