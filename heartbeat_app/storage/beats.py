"""Puts beats into the table: COPY where all are new, staging where some are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg2
from sqlalchemy import Connection, text

from heartbeat_app.models import Heartbeat
from heartbeat_app.storage import copy, errors

COPY_BEATS = (
    'COPY heartbeats (customer_id, "timestamp", heart_rate)'
    " FROM STDIN WITH (FORMAT text)"
)

# One a session; emptied by each commit.
MAKE_STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS staged_beats (
    index INTEGER NOT NULL,
    customer_id VARCHAR(255) NOT NULL,
    "timestamp" TIMESTAMPTZ NOT NULL,
    heart_rate INTEGER NOT NULL
) ON COMMIT DELETE ROWS
"""

COPY_STAGED = (
    'COPY staged_beats (index, customer_id, "timestamp", heart_rate)'
    " FROM STDIN WITH (FORMAT text)"
)

# Of beats with the same key the first stays. The conflict has its target named:
# without it a reset id sequence would silently swallow new beats.
INSERT_STAGED = """
INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)
SELECT DISTINCT ON (customer_id, "timestamp") customer_id, "timestamp", heart_rate
FROM staged_beats
ORDER BY customer_id, "timestamp", index
ON CONFLICT (customer_id, "timestamp") DO NOTHING
RETURNING "timestamp"
"""

# A statement of its own: only then does it see rows that another transaction
# committed while the insert waited for it. The bounds leave the other days out.
SELECT_CONFLICTS = """
SELECT staged.index
FROM staged_beats AS staged
JOIN heartbeats AS there USING (customer_id, "timestamp")
WHERE there.heart_rate <> staged.heart_rate
  AND there."timestamp" BETWEEN %s AND %s
ORDER BY staged.index
"""


@dataclass(slots=True)
class Inserted:
    """What became of beats; indexes are those of the sequence that was given.

    Attributes:
        stored: Timestamps of the rows that are new.
        duplicate: How many were there already, or came twice.
        conflicts: Indexes of beats whose key is there with another heart rate.
        rejected: Index and words of beats that PostgreSQL does not take.
    """

    stored: list[datetime] = field(default_factory=list)
    duplicate: int = 0
    conflicts: list[int] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)


def insert_beats(connection: Connection, beats: Sequence[Heartbeat]) -> Inserted:
    """Insert beats inside the connection's transaction.

    Raises:
        psycopg2.Error: Anything but a row at fault; the transaction is to be rolled
            back and tried again.
    """
    found = Inserted()
    _insert(connection, beats, 0, found)
    return found


def _insert(
    connection: Connection, beats: Sequence[Heartbeat], first: int, found: Inserted
) -> None:
    if not beats:
        return
    try:
        if not _copy_new(connection, beats, found):
            _insert_staged(connection, beats, first, found)
    except psycopg2.Error as error:
        if not errors.is_row_fault(error):
            raise
        if len(beats) == 1:
            words = error.diag.message_primary or type(error).__name__
            found.rejected.append((first, words))
            return
        # Some row is at fault: find it by halves, so that only it is refused.
        half = len(beats) // 2
        _insert(connection, beats[:half], first, found)
        _insert(connection, beats[half:], first + half, found)


def _copy_new(
    connection: Connection, beats: Sequence[Heartbeat], found: Inserted
) -> bool:
    """The fast way; whether it went, that is, whether all beats are new."""
    try:
        with connection.begin_nested(), _cursor(connection) as cursor:
            copy.copy_in(cursor, COPY_BEATS, copy.beats_text(beats))
    except psycopg2.Error as error:
        if errors.is_duplicate(error):
            return False
        raise
    found.stored.extend([beat.timestamp for beat in beats])
    return True


def _insert_staged(
    connection: Connection, beats: Sequence[Heartbeat], first: int, found: Inserted
) -> None:
    """The slower way, which tells new, duplicate and conflicting beats apart."""
    timestamps = [beat.timestamp for beat in beats]
    with connection.begin_nested(), _cursor(connection) as cursor:
        cursor.execute(MAKE_STAGING)
        cursor.execute("DELETE FROM staged_beats")  # of a half before this one
        copy.copy_in(cursor, COPY_STAGED, copy.numbered_beats_text(beats))
        cursor.execute(INSERT_STAGED)
        stored = [row[0] for row in cursor.fetchall()]
        conflicts: list[int] = []
        if len(stored) < len(beats):
            cursor.execute(SELECT_CONFLICTS, (min(timestamps), max(timestamps)))
            conflicts = [first + row[0] for row in cursor.fetchall()]
    found.stored.extend(stored)
    found.conflicts.extend(conflicts)
    found.duplicate += len(beats) - len(stored) - len(conflicts)


def _cursor(connection: Connection) -> Any:
    """psycopg2's cursor, for COPY, which SQLAlchemy does not know."""
    return connection.connection.cursor()


def count_beats(connection: Connection) -> int:
    """How many rows there are; reads them all."""
    return int(connection.scalar(text("SELECT count(*) FROM heartbeats")) or 0)
