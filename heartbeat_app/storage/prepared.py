"""Statements that PostgreSQL plans once a session, not anew for each batch.

While beats come one by one there are a hundred transactions a second, and planning
their statements takes longer than running them. psycopg2 prepares nothing by itself.

Not for a statement that must see what it waited for: EXECUTE takes its snapshot before
the locks of its tables.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, CursorResult


class Prepared:
    """A statement with parameters $1, $2, …

    Arguments:
        name: Of its own within a session.
        types: The parameters' types, in their order.
        sql: The statement.
    """

    def __init__(self, name: str, types: tuple[str, ...], sql: str) -> None:
        self._name = name
        self._prepare = f"PREPARE {name} ({', '.join(types)}) AS {sql}"
        self._execute = f"EXECUTE {name} ({', '.join(['%s'] * len(types))})"

    def execute(self, connection: Connection, *parameters: Any) -> CursorResult[Any]:
        """Run it; the first time in a session it is prepared, too."""
        if self._name not in connection.info:
            connection.exec_driver_sql(self._prepare)
            connection.info[self._name] = True
        return connection.exec_driver_sql(self._execute, parameters)
