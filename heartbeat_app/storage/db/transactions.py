"""A transaction whose BEGIN and COMMIT travel along with statements of it.

psycopg2 and SQLAlchemy send each by itself and wait for its answer. A small transaction
waits longer for PostgreSQL's answers than for its work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from heartbeat_app.storage.db.prepared import Plain, run

# To be sent before the first statement, and behind the last.
BEGIN = Plain("BEGIN")
COMMIT = Plain("COMMIT")
ROLLBACK = Plain("ROLLBACK")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A connection for one transaction, which its user begins and may commit.

    Committed at the end unless it was before, rolled back where something is raised:
    whatever happens, no transaction is left open on a connection of the pool.

    Raises:
        SQLAlchemyError: At the end, too, where a failed statement or a lost session was
            passed over.
    """
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        # Not by SQLAlchemy's isolation level, which to be set back takes an answer.
        raw.autocommit = True

        def status() -> int:
            return int(raw.info.transaction_status)  # as libpq knows it, unasked

        try:
            yield connection
            if status() == TRANSACTION_STATUS_INERROR:  # its COMMIT would raise nothing
                raise InvalidRequestError("A statement of the transaction has failed.")
            if status() != TRANSACTION_STATUS_IDLE:  # open, or lost: then this raises
                run(connection, [COMMIT])
        except BaseException:
            if status() != TRANSACTION_STATUS_IDLE and not connection.invalidated:
                try:
                    run(connection, [ROLLBACK])
                except SQLAlchemyError:  # it would hide why
                    connection.invalidate()
            raise
        finally:
            if not raw.closed:
                raw.autocommit = False
