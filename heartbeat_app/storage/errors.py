"""Tells a row at fault from everything else, by SQLSTATE, never by an error's text.

Whatever is not a row's fault is retried in place: an outage must never turn a good
beat into a dead letter.
"""

from __future__ import annotations

import psycopg2
from sqlalchemy.exc import DBAPIError

from heartbeat_app.exceptions import printable

# Ours: only these make a row wrong in PostgreSQL's eyes.
ROW_CONSTRAINTS = frozenset({"heart_rate_range"})

CHECK_VIOLATION = "23514"
UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"
UNDEFINED_TABLE = "42P01"
DUPLICATE_TABLE = "42P07"
INVALID_SCHEMA = "3F000"
NOT_ALLOWED = "42501"


def original(error: BaseException) -> BaseException:
    """psycopg2's own error, which SQLAlchemy may have wrapped."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE, or None where the server did not answer with one."""
    cause = original(error)
    return cause.pgcode if isinstance(cause, psycopg2.Error) else None


def constraint(error: BaseException) -> str | None:
    """Name of the violated constraint or unique index."""
    cause = original(error)
    return cause.diag.constraint_name if isinstance(cause, psycopg2.Error) else None


def words(error: BaseException) -> str:
    """What went wrong, in one line for a log: no SQL, no parameters."""
    text = str(original(error)).strip() or type(error).__name__
    return printable(text.splitlines()[0])


def is_duplicate(error: BaseException) -> bool:
    """Whether a row with that natural key is there already.

    On a partition its index has a name of its own, so the table tells: it has no
    other unique index but the primary key, whose ids a reset sequence may repeat.
    """
    return sqlstate(error) == UNIQUE_VIOLATION


def is_missing_day(error: BaseException) -> bool:
    """Whether no partition fits the row: a check violation without a name."""
    return sqlstate(error) == CHECK_VIOLATION and not constraint(error)


def is_row_fault(error: BaseException) -> bool:
    """Whether the statement that writes rows failed for what a row holds."""
    state = sqlstate(error)
    if state is None:
        return False
    return state.startswith("22") or (
        state.startswith("23") and constraint(error) in ROW_CONSTRAINTS
    )


def is_lock_timeout(error: BaseException) -> bool:
    """Whether another session held the lock for too long."""
    return sqlstate(error) == LOCK_NOT_AVAILABLE
