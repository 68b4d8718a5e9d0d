"""Puts beats into the table, each once.

1. COPY of all that nobody suspects, which goes if they are new: the common case is all
2. the others are staged, those of them that are there already are looked up, and the
   rest goes in by COPY; so are all, where 1. did not go
3. where that fails, too, since another worker was faster, from the staging table
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any

import psycopg2
from sqlalchemy import Connection

from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.exceptions import ApartError
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog, copy, errors

COPY_BEATS = (
    'COPY heartbeats (customer_id, "timestamp", heart_rate)'
    " FROM STDIN WITH (FORMAT binary)"
)

# One a session; emptied by each commit, and here where a transaction has more batches
# than one.
MAKE_STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS staged_beats (
    index INTEGER NOT NULL,
    customer_id TEXT NOT NULL,
    "timestamp" TIMESTAMPTZ NOT NULL,
    heart_rate INTEGER NOT NULL
) ON COMMIT DELETE ROWS;
DELETE FROM staged_beats
"""

COPY_STAGED = (
    'COPY staged_beats (index, customer_id, "timestamp", heart_rate)'
    " FROM STDIN WITH (FORMAT binary)"
)

# Of beats with the same key the first stays. The conflict has its target named:
# without it a reset id sequence would silently swallow new beats.
INSERT_STAGED = """
INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)
SELECT DISTINCT ON (customer_id COLLATE "C", "timestamp")
    customer_id, "timestamp", heart_rate
FROM staged_beats
ORDER BY customer_id COLLATE "C", "timestamp", index
ON CONFLICT (customer_id, "timestamp") DO NOTHING
RETURNING "timestamp"
"""

# A statement of its own: only then does it see rows that another transaction
# committed while the insert waited for it.
# Row by row, which only the unique index can do well. As a join PostgreSQL, which knows
# nothing of a day that has just begun, takes it for nearly empty and compares every
# staged row with every row of the day: 17 s for 10,000. OFFSET 0: looked up once only.
SELECT_KNOWN = """
SELECT index, known <> heart_rate
FROM (
    SELECT staged.index, staged.heart_rate, (
        SELECT there.heart_rate
        FROM heartbeats AS there
        WHERE there.customer_id = staged.customer_id
            AND there."timestamp" = staged."timestamp"
            AND ({days})
    ) AS known
    FROM staged_beats AS staged
    OFFSET 0
) AS looked_up
WHERE known IS NOT NULL
"""

# What leaves the other days out, so that they are neither opened nor locked. Bounded,
# since planning takes the square of the number of days.
ON_THAT_DAY = '(there."timestamp" >= %s AND there."timestamp" < %s)'
DAYS_A_QUERY = 25


@dataclass(slots=True)
class Inserted:
    """What became of beats; indexes are those of the sequence that was given.

    Attributes:
        stored: Timestamps of the rows that are new.
        duplicate: How many were there already, or came twice.
        conflicts: Indexes of beats whose key is there with another heart rate.
        unsuspected: Some of the other beats than the suspects were not new.
    """

    stored: list[datetime] = field(default_factory=list)
    duplicate: int = 0
    conflicts: list[int] = field(default_factory=list)
    unsuspected: bool = False


def insert_beats(
    connection: Connection, beats: Sequence[Heartbeat], suspects: Sequence[int] = ()
) -> Inserted:
    """Insert beats inside the connection's transaction, once in each.

    Arguments:
        suspects: Ascending indexes of those that are likely to be there, or to come
            after another of the same key: they are looked up at once. Whoever suspects
            one suspects all that come after it with its key.

    Raises:
        psycopg2.Error: The transaction is to be rolled back and tried again.
    """
    found = Inserted()
    if not beats:
        return found
    # psycopg2's own cursor, for COPY, which SQLAlchemy does not know.
    cursor: Any = connection.connection.cursor()
    with cursor:
        if len(suspects) < len(beats):
            others = _but(beats, suspects)
            if _copy_new(cursor, others):
                found.stored = [beat.timestamp for beat in others]
            else:
                found.unsuspected = True
                suspects = range(len(beats))
        if suspects:
            some = _insert_staging(cursor, [beats[index] for index in suspects])
            found.stored += some.stored
            found.conflicts = [suspects[index] for index in some.conflicts]
    found.duplicate = len(beats) - len(found.stored) - len(found.conflicts)
    return found


def insert_new_beats(connection: Connection, beats: Sequence[Heartbeat]) -> None:
    """Insert beats that all are new, as a rule.

    Without a savepoint, which takes a small transaction two more answers of PostgreSQL.

    Raises:
        ApartError: They are not; the transaction is to be rolled back.
        psycopg2.Error: Anything else; as for `insert_beats`.
    """
    cursor: Any = connection.connection.cursor()
    try:
        with cursor:
            _copy(cursor, beats)
    except psycopg2.Error as error:
        if errors.is_duplicate(error):
            raise ApartError("Some of the beats are not new.") from error
        raise


def insert_every_way(connection: Connection, beats: Sequence[Heartbeat]) -> None:
    """Insert new beats in each of the ways above, to see whether they all go.

    Raises:
        psycopg2.Error: One does not.
    """
    if not beats:
        return
    cursor: Any = connection.connection.cursor()
    with cursor:
        _copy(cursor, beats[:1])
        _insert_staging(cursor, beats)
        cursor.execute(INSERT_STAGED)


def _but(beats: Sequence[Heartbeat], indexes: Sequence[int]) -> Sequence[Heartbeat]:
    """All but those."""
    if not indexes:
        return beats
    left_out = set(indexes)
    return [beat for index, beat in enumerate(beats) if index not in left_out]


def _insert_staging(cursor: Any, beats: Sequence[Heartbeat]) -> Inserted:
    """The slow way, where some may be there; duplicates are not counted."""
    found = Inserted()
    cursor.execute(MAKE_STAGING)
    copy.copy_in(cursor, COPY_STAGED, copy.numbered_beats_rows(beats))
    if not _copy_unknown(cursor, beats, found):
        cursor.execute(INSERT_STAGED)
        found.stored = [row[0] for row in cursor.fetchall()]
        if len(found.stored) < len(beats):
            known = _look_up(cursor, beats)
            found.conflicts = sorted(index for index in known if known[index])
    return found


def _copy_new(cursor: Any, beats: Sequence[Heartbeat]) -> bool:
    """The fast way; whether it went, that is, whether all beats are new."""
    if not beats:
        return True
    try:
        with _savepoint(cursor):
            _copy(cursor, beats)
    except psycopg2.Error as error:
        if errors.is_duplicate(error):
            return False
        raise
    return True


def _copy(cursor: Any, beats: Sequence[Heartbeat]) -> None:
    # In the order of the unique index, whose pages are then found and locked once for
    # all beats of a customer: a tenth less of PostgreSQL's time.
    in_order = sorted(beats, key=attrgetter("customer_id"))
    copy.copy_in(cursor, COPY_BEATS, copy.beats_rows(in_order))


def _copy_unknown(cursor: Any, beats: Sequence[Heartbeat], found: Inserted) -> bool:
    """Copy the beats whose key is neither in the table nor earlier among them.

    Whether it went; if not, nothing was done.
    """
    known = _look_up(cursor, beats)
    conflicts = [index for index, differs in known.items() if differs]
    first: dict[tuple[str, datetime], Heartbeat] = {}
    for index, beat in enumerate(beats):
        if index not in known:
            before = first.setdefault((beat.customer_id, beat.timestamp), beat)
            if before.heart_rate != beat.heart_rate:
                conflicts.append(index)
    if not _copy_new(cursor, list(first.values())):
        return False
    found.stored = [timestamp for _, timestamp in first]
    found.conflicts = sorted(conflicts)
    return True


@contextmanager
def _savepoint(cursor: Any) -> Iterator[None]:
    """What fails inside leaves the transaction as it was.

    SQLAlchemy's does not release a savepoint that it went back to: thousands of them
    would lie one in the other, and each statement would take longer than the last.
    """
    cursor.execute("SAVEPOINT beats")
    try:
        yield
    except psycopg2.Error:
        if not cursor.connection.closed:
            cursor.execute("ROLLBACK TO SAVEPOINT beats")
            cursor.execute("RELEASE SAVEPOINT beats")
        raise
    cursor.execute("RELEASE SAVEPOINT beats")


def _look_up(cursor: Any, beats: Sequence[Heartbeat]) -> dict[int, bool]:
    """Indexes of staged beats whose key is there; whether with another heart rate."""
    found: dict[int, bool] = {}
    wanted = iter(sorted(days.days_of(beats)))
    while some := list(islice(wanted, DAYS_A_QUERY)):
        cursor.execute(
            SELECT_KNOWN.format(days=" OR ".join([ON_THAT_DAY] * len(some))),
            [bound for day in some for bound in catalog.bounds(day)],
        )
        found.update(cursor.fetchall())
    return found
