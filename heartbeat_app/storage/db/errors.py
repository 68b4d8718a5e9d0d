"""What an error of the database says, by SQLSTATE, never by its text.

Whether a record is at fault no error tells: `writer` asks the database.
"""

from __future__ import annotations

import re

import psycopg2
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import first_words, printable
from heartbeat_app.storage.db.sessions import SessionError

CHECK_VIOLATION = "23514"
UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"
UNDEFINED_TABLE = "42P01"
DUPLICATE_TABLE = "42P07"
INVALID_SCHEMA = "3F000"
NOT_ALLOWED = "42501"
READ_ONLY = "25006"


def original(error: BaseException) -> BaseException:
    """psycopg2's own error, which SQLAlchemy may have wrapped."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE, or None where the server did not answer with one."""
    cause = original(error)
    return cause.pgcode if isinstance(cause, psycopg2.Error) else None


def is_poolers(error: BaseException) -> bool:
    """Whether a pooler is in the way; the error's words say what it has to do."""
    return isinstance(original(error), SessionError)


def constraint(error: BaseException) -> str | None:
    """Name of the violated constraint or unique index."""
    cause = original(error)
    return cause.diag.constraint_name if isinstance(cause, psycopg2.Error) else None


def words(error: BaseException) -> str:
    """What went wrong, in one line for a log: no SQL, no parameters."""
    return printable(first_words(str(original(error))) or type(error).__name__)


def name(error: BaseException) -> str:
    """What kind of error it is, for a log: none of its text, which may hold data."""
    state = sqlstate(error)
    kind = type(original(error)).__name__
    return kind if state is None else f"{kind} ({state})"


def sentence(error: BaseException) -> str:
    """What went wrong, for a dead letter: as PostgreSQL can keep it, and short."""
    cause = original(error)
    said = cause.diag.message_primary if isinstance(cause, psycopg2.Error) else None
    text = said or words(error)
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")[:1_000]


def is_duplicate(error: BaseException) -> bool:
    """Whether a row with that natural key is there already.

    On a partition its index has a name of its own, so the table tells: it has no
    other unique index but the primary key, whose ids a reset sequence may repeat.
    """
    return sqlstate(error) == UNIQUE_VIOLATION


def is_taken_id(error: BaseException) -> bool:
    """Whether an id that the database itself gave is there already.

    As after its sequence was set back: it goes on from there, whatever the record.
    """
    return is_duplicate(error) and (constraint(error) or "").endswith("_pkey")


def is_lack_of_resources(error: BaseException) -> bool:
    """Whether the server ran out of something: its disk, its memory, connections."""
    return (sqlstate(error) or "").startswith("53")


def is_missing_day(error: BaseException) -> bool:
    """Whether no partition fits the row: a check violation without a name."""
    return sqlstate(error) == CHECK_VIOLATION and not constraint(error)


def is_read_only(error: BaseException) -> bool:
    """Whether the server takes no writes.

    libpq, which lets us in only where they are taken, has no SQLSTATE for it.
    """
    state = sqlstate(error)
    return state == READ_ONLY or (state is None and "is read-only" in words(error))


def why_no_writes(error: BaseException) -> str:
    """What to say of servers that take no writes, in words that follow a comma."""
    told = words(error)
    if "; " in told and sqlstate(error) is None:  # of several candidates
        return f"has no server that takes writes: {told}"
    return (
        "takes no writes: default_transaction_read_only is on, or it is a standby: "
        f"{told}"
    )


# How libpq and the server say, without a SQLSTATE, that to ask again is in vain: in
# English, as servers speak by default. In another language they are asked again.
_REFUSED = re.compile(
    "authentication failed|no pg_hba.conf entry|no password supplied"
    '|(?:role|database|service|file) ".*" (?:does not exist|not found)'
    "|permission denied for database|is not permitted to log in"
    "|certificate verify failed|does not match host name"
    "|does not support SSL, but SSL was required"
)


def is_lasting(error: BaseException) -> bool:
    """Whether to ask again is in vain until a person has put something right."""
    state = sqlstate(error)
    if state is None:
        return is_poolers(error) or _REFUSED.search(words(error)) is not None
    return state in {UNDEFINED_TABLE, INVALID_SCHEMA, NOT_ALLOWED}


def explained(error: BaseException, settings: Settings) -> str:
    """What went wrong, where, and what to do, for a person who called a command."""
    if is_poolers(error):
        return words(error)
    where = (
        f"PostgreSQL at {settings.postgresql_address}, database "
        f"{settings.postgresql_database}"
    )
    if sqlstate(error) == UNDEFINED_TABLE:
        return (
            f"{where}, has not the tables of this version: {words(error)}\n"
            "Run `alembic upgrade head`."
        )
    if sqlstate(error) == NOT_ALLOWED:
        return (
            f"{where}, does not let {settings.postgresql_username} do that: "
            f"{words(error)}\nSet POSTGRESQL_OWNER_USERNAME and "
            "POSTGRESQL_OWNER_PASSWORD to the owner of the tables."
        )
    if is_read_only(error):
        return f"{where}, {why_no_writes(error)}"
    if isinstance(original(error), psycopg2.OperationalError):
        return f"{where}, does not answer: {words(error)}"
    return f"{where}: {words(error)}"


def is_lock_timeout(error: BaseException) -> bool:
    """Whether another session held the lock for too long."""
    return sqlstate(error) == LOCK_NOT_AVAILABLE
