"""What the live page shows: everybody's last beat, then only what came since.

Nothing here gets slower with the size of the table. The first look takes one descent
into the index for each customer, and the beats of the last minutes; each further one
takes the rows that were added since the look before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, TextClause, func, select, text

from heartbeat_app.storage.db.tables import erased_customers, partition_ledger
from heartbeat_app.storage.read.reads import Recent, read_recent

# A customer's last minutes are a row of slots with the lowest and the highest rate.
SLOT_SECONDS = 10
SLOTS = 30
# What was not looked at for longer is read anew.
LONGEST_GAP = timedelta(seconds=60)
# A transaction that takes longer is not waited for: see `_Mark`.
LONGEST_TRANSACTION = timedelta(seconds=20)

FETCH_ROWS = 2_000

HOUR = timedelta(hours=1)
HOUR_STEP_SECONDS = 5

# A beat counts for the moment at which it was seen when its own clock is ahead.
# What is older than the slots has none; its time and rate may still be the latest.
#
# By the primary key, whose beginning `id` is. The bounds of "timestamp" are those of
# whole days, which leave out the other days and do not tempt the planner.
ADDED = text("""
SELECT customer_id,
       CASE WHEN "timestamp" >= :recent THEN
           floor(date_part('epoch', LEAST("timestamp", :now)) / :seconds)::BIGINT
       END,
       date_part('epoch', max("timestamp")),
       (array_agg(heart_rate ORDER BY "timestamp" DESC))[1],
       min(heart_rate),
       max(heart_rate),
       max(id)
FROM heartbeats
WHERE "timestamp" >= :since AND "timestamp" < :until AND id > :after
GROUP BY 1, 2
""")

# The same for the first look, by the index on "timestamp". EVERYBODY tells the last
# rates: without them nothing has to be sorted, which took most of the time.
LATELY = text("""
SELECT customer_id,
       floor(date_part('epoch', LEAST("timestamp", :now)) / :seconds)::BIGINT,
       date_part('epoch', max("timestamp")),
       0,
       min(heart_rate),
       max(heart_rate),
       max(id)
FROM heartbeats
WHERE "timestamp" >= :recent AND "timestamp" < :until
GROUP BY 1, 2
""")

# One after the other by idx_customer_id, then each one's last row by the same index.
# The bounds are those of whole days: with others a customer whose rows lie before
# them would be read row by row.
EVERYBODY = text("""
WITH RECURSIVE known AS (
    SELECT customer_id FROM (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id FROM known CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until
          AND heartbeats.customer_id > known.customer_id
        ORDER BY customer_id LIMIT 1
    ) AS next
)
SELECT customer_id, NULL, date_part('epoch', "timestamp"),
       heart_rate, heart_rate, heart_rate, id
FROM known CROSS JOIN LATERAL (
    SELECT id, "timestamp", heart_rate FROM heartbeats
    WHERE heartbeats.customer_id = known.customer_id
      AND "timestamp" >= :since AND "timestamp" < :until
    ORDER BY "timestamp" DESC LIMIT 1
) AS last
""")

LAST_ID = text(
    'SELECT max(id) FROM heartbeats WHERE "timestamp" >= :since'
    ' AND "timestamp" < :until'
)

SNAPSHOT = text(
    "SELECT now(), pg_snapshot_xmin(here)::TEXT::BIGINT,"
    " pg_snapshot_xmax(here)::TEXT::BIGINT FROM pg_current_snapshot() AS here"
)

LAST_HOUR = text("""
SELECT (floor(date_part('epoch', "timestamp") / :seconds) * :seconds)::BIGINT,
       avg(heart_rate)::DOUBLE PRECISION, min(heart_rate), max(heart_rate), count(*)
FROM heartbeats
WHERE customer_id = :customer_id
  AND "timestamp" >= now() - :span AND "timestamp" < now()
GROUP BY 1 ORDER BY 1
""")


class Heard(NamedTuple):
    """Some beats of one customer, all of one slot.

    Attributes:
        slot: Since 1970, SLOT_SECONDS each; None: too old for the slots.
        at: Timestamp of the last of them, in seconds since 1970.
        rate: Heart rate of that one, in beats a minute; 0: another one of the same look
            tells it.
        low, high: Lowest and highest rate among them.
    """

    customer_id: str
    slot: int | None
    at: float
    rate: int
    low: int
    high: int


class Step(NamedTuple):
    """HOUR_STEP_SECONDS of one customer: from when, mean, lowest, highest, how many."""

    begin: int
    mean: float
    low: int
    high: int
    beats: int


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the database found.

    Attributes:
        now: The database's time, in seconds since 1970.
        is_anew: Whether what was known before does not count any more.
        heard: What came since the last look, and some that was known already.
        stored, dead: Sums of the ledger.
        next_offsets: The ledger's, by topic id and partition.
    """

    now: float
    is_anew: bool
    heard: Sequence[Heard]
    stored: int
    dead: int
    next_offsets: Mapping[tuple[str, int], int]
    recent: Recent


class _Mark(NamedTuple):
    """How far a look saw.

    Ids are given before their transactions commit, so a row may appear below one that
    was seen long ago. But a transaction takes its number before its first id: one
    that had none yet when this look was made (its number is `xmax` or more) can only
    add ids above `last_id`.
    """

    xmax: int
    last_id: int
    at: datetime


class LiveReader:
    """Looks at the database; each look goes on where the last one ended.

    For one thread at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marks: deque[_Mark] = deque()
        self._unfinished = 0  # the first transaction that the last look did not see
        self._erasure: datetime | None = None  # the last one before the last look

    def read(self, *, anew: bool = False) -> Look:
        """Look once.

        Arguments:
            anew: Forget what was seen before.

        Raises:
            SQLAlchemyError: The database does not answer; the next look begins anew,
                since it may be another database (restored from a backup).
        """
        marks, self._marks = self._marks, deque()
        erasure = _last_erasure(self._engine)
        with snapshot(self._engine) as connection:
            now, xmin, xmax = connection.execute(SNAPSHOT).one()
            is_anew = (
                anew
                or not marks
                or erasure != self._erasure
                or _is_another_time(marks[-1], now, xmax)
            )
            if is_anew:
                marks.clear()
            bounds = _bounds(now)
            if _reaches_back(marks, self._unfinished, now):
                _forget(marks, self._unfinished, now)
                last_id = marks[-1].last_id
                after = {**bounds, "after": marks[0].last_id}
                rows = _fetch(connection, ADDED, after)
            else:
                last_id = connection.scalar(LAST_ID, bounds) or 0
                rows = [
                    *_fetch(connection, EVERYBODY, bounds),
                    *_fetch(connection, LATELY, bounds),
                ]
            ledger = connection.execute(
                select(
                    partition_ledger.c.topic_id,
                    partition_ledger.c.partition,
                    partition_ledger.c.next_offset,
                    partition_ledger.c.stored,
                    partition_ledger.c.dead,
                )
            ).all()
        look = Look(
            now=now.timestamp(),
            is_anew=is_anew,
            heard=[Heard(*row[:6]) for row in rows],
            stored=sum(row.stored for row in ledger),
            dead=sum(row.dead for row in ledger),
            next_offsets={(row[0], row[1]): row[2] for row in ledger},
            recent=read_recent(self._engine),
        )
        marks.append(_Mark(xmax, max([last_id, *(row[6] for row in rows)]), now))
        self._marks, self._unfinished, self._erasure = marks, xmin, erasure
        return look


def _last_erasure(engine: Engine) -> datetime | None:
    """When a customer was erased last, of whom nobody is to be told any more.

    By itself and before the look: a look that held the table would hold off erasures.
    """
    with engine.connect() as connection:
        found: datetime | None = connection.scalar(
            select(func.max(erased_customers.c.finished_at))
        )
    return found


def read_last_hour(engine: Engine, customer_id: str) -> list[Step]:
    """The customer's beats of the last hour; steps without a beat are left out."""
    with engine.connect() as connection:
        rows = connection.execute(
            LAST_HOUR,
            {"customer_id": customer_id, "span": HOUR, "seconds": HOUR_STEP_SECONDS},
        )
        return [Step(*row) for row in rows]


def _fetch(
    connection: Connection, query: TextClause, values: Mapping[str, Any]
) -> list[Any]:
    """All rows, some at a time: each time psycopg2 keeps Python's lock to the end."""
    found: list[Any] = []
    for some in connection.execute(query, values).partitions(FETCH_ROWS):
        found.extend(some)
    return found


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one moment only."""
    with engine.connect() as connection:
        yield connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )


def _bounds(now: datetime) -> dict[str, Any]:
    """Whole days of UTC: yesterday, and whatever a clock that is ahead may bring."""
    today = now.astimezone(UTC).date()
    recent = (now.timestamp() // SLOT_SECONDS - SLOTS + 1) * SLOT_SECONDS
    return {
        "now": now,
        "since": _midnight(today - timedelta(days=1)),
        "until": _midnight(today + timedelta(days=2)),
        "recent": datetime.fromtimestamp(recent, UTC),
        "seconds": SLOT_SECONDS,
    }


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _is_another_time(last: _Mark, now: datetime, xmax: int) -> bool:
    """Too long ago, of another day, or of a database that went back."""
    same_day = last.at.astimezone(UTC).date() == now.astimezone(UTC).date()
    return not same_day or now - last.at > LONGEST_GAP or xmax < last.xmax


def _reaches_back(marks: deque[_Mark], unfinished: int, now: datetime) -> bool:
    """Whether all that the last look missed lies above the first mark.

    Not so for the first looks, if transactions were going on at the very first one.
    """
    return bool(marks) and (
        marks[0].xmax <= unfinished or now - marks[0].at > LONGEST_TRANSACTION
    )


def _forget(marks: deque[_Mark], unfinished: int, now: datetime) -> None:
    """Leave the latest mark first above which lies all that the last look missed."""
    while len(marks) > 1 and (
        marks[1].xmax <= unfinished or now - marks[1].at > LONGEST_TRANSACTION
    ):
        marks.popleft()
