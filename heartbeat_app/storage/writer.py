"""One transaction per batch: beats, dead letters, what came in, and the ledger.

1. make the partitions of the batch's days, in a transaction of their own
2. lock the partition's row of the ledger
3. compare: what lies below its next offset was stored before (the fence); a batch
   that begins above it means that the ledger went back: nothing is written
4. refuse what erased customers sent, which also holds off new erasures
5. insert the beats and mark their minutes for the roll-ups; beats that conflict or are
   rejected join the dead letters
6. insert the dead letters
7. add the batch to its minute and to the ledger, whose constraints check the sums
8. commit
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

import psycopg2
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.batches import Batch, Refused, refuse_beats
from heartbeat_app.exceptions import LedgerWentBackError
from heartbeat_app.storage import days, erasures, errors, ingest, ledger, marks
from heartbeat_app.storage.beats import insert_beats
from heartbeat_app.storage.engine import Uses
from heartbeat_app.storage.tables import dead_letters
from heartbeat_app.validation import Reason, Refusal

log = logging.getLogger(__name__)

# A worker that froze inside its transaction holds its partition's row. The one that
# took the partition over waits for the lock's time-out once, then this long, and ends
# the session that blocks it.
END_BLOCKERS_AFTER_SECONDS = 1.0

# A write that failed after so long may have been too much for a slow database: what
# does not fit into the time-outs would be tried again for ever. Longer than the waits
# for a lock, a connection or a place in the pool.
SLOW_SECONDS = 20.0

# Ended in the list of what is selected, which is worked out for those rows only: the
# conditions may be checked in any order.
END_BLOCKERS = text(
    "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid = ANY(pg_blocking_pids(:pid)) AND usename = current_user"
)

# PostgreSQL ends a session whose statement has 1 GB or more, for ever the same one. A
# byte takes two characters, and some records of a megabyte fit into a small fetch.
MAX_STATEMENT_BYTES = 8 * 1024 * 1024

DROPPED_DETAIL = (
    "Its day was dropped by the retention (RETENTION_DAYS), and does not come back."
)
CONFLICT_DETAIL = (
    "A beat of this customer at this instant is stored with another heart rate; the "
    "first one stays."
)
TOO_MANY_DAYS_DETAIL = (
    f"Its day would be one of too many: {days.MAX_DAYS:,} in all, or "
    f"{days.MAX_NEW_DAYS_A_BATCH} new ones in one batch. Drop days or replay it later."
)


@dataclass(frozen=True, slots=True)
class Written:
    """What a batch was; all zero where it had been stored before.

    consumed = stored + duplicate + dead.

    Attributes:
        seconds: What the transaction took, its commit included.
        reasons: How many became dead letters for which reason; their sum is `dead`.
        delays: Of the beats that were stored.
        rest: What is still to be written, since all of it was too much at once.
    """

    consumed: int = 0
    stored: int = 0
    duplicate: int = 0
    dead: int = 0
    missing: int = 0
    seconds: float = field(default=0.0, compare=False)
    reasons: Mapping[Reason, int] = field(default_factory=dict)
    delays: ingest.Delays | None = None
    rest: Batch | None = field(default=None, compare=False)


class Writer:
    """Writes batches; from several threads, but those of a partition one at a time.

    Arguments:
        engine: Of two connections a thread: one to write, one to end a session that
            blocks it.
        clock: Tells the time, aware.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._known_days: set[date] = set()
        # Partitions whose row of the ledger was locked for too long.
        self._blocked: set[tuple[str, int]] = set()
        # Partitions whose last batch held beats that were there already.
        self._repeating: set[tuple[str, int]] = set()
        self._erased = erasures.Erased()
        # How many records go into a transaction, of partitions that write slowly.
        self._most: dict[tuple[str, int], int] = {}
        # By partition: how often a write has made its days, or has ended in any way.
        self.signs_of_life: Counter[tuple[str, int]] = Counter()
        self.uses = Uses(engine)

    def write(self, batch: Batch) -> Written:
        """Store a batch, exactly once however often it is called with it.

        In one transaction; only its first part where the database was too slow for
        all of it, and then the result tells the rest.

        Raises:
            LedgerWentBackError: The batch does not follow what is stored.
            sqlalchemy.exc.DBAPIError, psycopg2.Error: Nothing was written, but the
                same batch may be tried again.
        """
        row = batch.topic_id, batch.partition
        part = batch.first(self._most.get(row, batch.records))
        began = time.monotonic()
        try:
            written = self._try(part)
        except LedgerWentBackError:
            raise
        except Exception:
            if time.monotonic() - began >= SLOW_SECONDS:
                self._most[row] = max(1, part.records // 2)
                log.warning(
                    "%s: too much at once for the database as it is: going on with "
                    "%s records a transaction",
                    part,
                    f"{self._most[row]:,}",
                )
            raise
        # What was stored before says nothing of how quick the database is.
        quick = written.consumed and time.monotonic() - began < SLOW_SECONDS / 4
        if row in self._most and quick:
            self._most[row] *= 2
            if self._most[row] >= batch.records:
                del self._most[row]
        if part is batch:
            return written
        return replace(written, rest=batch.since(part.position))

    def _try(self, batch: Batch) -> Written:
        """Write a batch in one transaction."""
        try:
            batch = self._make_days(batch)
            self.signs_of_life[batch.topic, batch.partition] += 1
            began = time.perf_counter()
            with self._engine.begin() as connection:
                raw: Any = connection.connection.dbapi_connection
                try:
                    written = self._write(connection, batch)
                except psycopg2.Error as error:
                    # SQLAlchemy knows nothing of COPY's errors. On a connection that
                    # is gone its rollback would fail and hide this one.
                    if raw.closed:
                        connection.invalidate(error)
                    raise
            return replace(written, seconds=time.perf_counter() - began)
        except LedgerWentBackError:
            raise
        except Exception as error:
            if errors.is_missing_day(error):
                self._known_days.clear()  # dropped behind our back
            # A restored database may have other rows with the same ids.
            self._erased = erasures.Erased()
            # The next attempt begins with new sessions: one that was opened while
            # the database was read-only stays so.
            self._engine.dispose()
            raise
        finally:
            self.signs_of_life[batch.topic, batch.partition] += 1

    def _make_days(self, batch: Batch) -> Batch:
        """Make the days of the batch; beats whose day cannot be made are refused."""
        new = days.days_of(batch.beats) - self._known_days
        if not new:
            return batch
        with self._engine.connect() as connection:
            self._known_days = days.existing_days(connection)
            new -= self._known_days
            dropped = new & days.dropped_days(connection)
        new -= dropped
        made = days.affordable(
            new, existing=len(self._known_days), today=self._clock().date()
        )
        days.ensure_days(self._engine, made)
        self._known_days |= made
        batch = _refuse_days(
            batch, dropped, Reason.TIMESTAMP_PAST_RETENTION, DROPPED_DETAIL
        )
        return _refuse_days(
            batch, new - made, Reason.TOO_MANY_DAYS, TOO_MANY_DAYS_DETAIL
        )

    def _write(self, connection: Connection, batch: Batch) -> Written:
        began = time.perf_counter()
        next_offset = self._lock(connection, batch)
        if next_offset is None or batch.asked > next_offset:
            raise LedgerWentBackError(str(batch), batch.asked, next_offset)
        if batch.position <= next_offset:
            return Written()
        batch = batch.since(next_offset)
        records = batch.records
        self._erased = erased = erasures.read(connection, self._erased)
        batch = erasures.refuse(batch, erased)

        row = batch.topic_id, batch.partition
        inserted = insert_beats(
            connection, batch.beats, look_first=row in self._repeating
        )
        # Beats that are sent again seldom come alone.
        if inserted.duplicate or inserted.conflicts:
            self._repeating.add(row)
        else:
            self._repeating.discard(row)
        marks.mark(connection, inserted.stored)
        refused = [
            *batch.refused,
            *(
                Refused(batch.sources[index], Refusal(Reason.CONFLICT, CONFLICT_DETAIL))
                for index in inserted.conflicts
            ),
            *(
                Refused(batch.sources[index], Refusal(Reason.REJECTED_BY_DATABASE, why))
                for index, why in inserted.rejected
            ),
        ]

        now = self._clock()
        insert_dead_letters(connection, batch, refused, now)
        counts = {
            "consumed": records,
            "stored": len(inserted.stored),
            "duplicate": inserted.duplicate,
            "dead": len(refused),
        }
        delays = ingest.Delays.of(inserted.stored, now)
        ingest.record(
            connection,
            batch.topic_id,
            batch.partition,
            now,
            counts=counts,
            delays=delays,
            write_seconds=time.perf_counter() - began,
        )
        holes = batch.position - batch.asked - records
        ledger.book(
            connection,
            batch.topic_id,
            batch.partition,
            next_offset=batch.position,
            end_offset=batch.end_offset,
            counts={
                **counts,
                "missing": batch.missing,
                "gap": holes - batch.missing,
            },
        )
        return Written(
            consumed=records,
            stored=len(inserted.stored),
            duplicate=inserted.duplicate,
            dead=len(refused),
            missing=batch.missing,
            reasons=Counter(each.refusal.reason for each in refused),
            delays=delays,
        )

    def _lock(self, connection: Connection, batch: Batch) -> int | None:
        """Lock the ledger's row; after a time-out before, end who blocks it."""
        timer = None
        row = batch.topic_id, batch.partition
        if row in self._blocked:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            timer = threading.Timer(
                END_BLOCKERS_AFTER_SECONDS, self._end_blockers, (pid,)
            )
            timer.start()
        try:
            next_offset = ledger.lock(connection, *row)
        except Exception as error:
            if errors.is_lock_timeout(error):
                self._blocked.add(row)
            raise
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        self._blocked.discard(row)
        return next_offset

    def _end_blockers(self, pid: int) -> None:
        try:
            with self._engine.begin() as connection:
                ended = connection.execute(END_BLOCKERS, {"pid": pid}).all()
        except SQLAlchemyError as error:
            log.warning("Cannot end who blocks the ledger: %s", errors.words(error))
            return
        for blocker, application, _ in ended:
            log.warning(
                "Ended session %d (%s), which held the ledger of this partition: a "
                "frozen worker?",
                blocker,
                application,
            )


def _refuse_days(batch: Batch, wrong: set[date], reason: Reason, detail: str) -> Batch:
    """The batch with the beats of these days refused."""
    if not wrong:
        return batch
    indexes = [
        index
        for index, beat in enumerate(batch.beats)
        if beat.timestamp.astimezone(UTC).date() in wrong
    ]
    return refuse_beats(batch, indexes, reason, detail)


def insert_dead_letters(
    connection: Connection, batch: Batch, refused: Sequence[Refused], now: datetime
) -> None:
    """Keep refused records as they were received, with the reason."""
    if not refused:
        return
    rows = [
        {
            "topic": batch.topic,
            "topic_id": batch.topic_id,
            "partition": batch.partition,
            "offset": each.record.offset,
            "key": each.record.key,
            "value": each.record.value,
            "headers": [
                # A name that is not UTF-8 came out of the lane as lone surrogates.
                [
                    _header_text(name.encode("utf-8", "surrogateescape")),
                    _header_text(value),
                ]
                for name, value in each.record.headers
            ],
            "reason": each.refusal.reason.value,
            "detail": each.refusal.detail,
            "first_seen": now,
        }
        for each in refused
    ]
    statement = (
        insert(dead_letters)
        # There already only where a person had the partition read again.
        .on_conflict_do_nothing(index_elements=["topic_id", "partition", "offset"])
        # Without it SQLAlchemy sends every row in a statement of its own.
        .returning(dead_letters.c.id)
    )
    for page in _pages(rows):
        connection.execute(statement, page)


def _pages(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows in parts that fit into a statement, each one whole."""
    page: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        page.append(row)
        size += len(row["key"] or b"") + len(row["value"] or b"")
        if size >= MAX_STATEMENT_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


def _header_text(value: bytes | None) -> object:
    """A header as JSON that PostgreSQL can hold: a text, or base64 where it is none."""
    if value is None:
        return None
    try:
        found = value.decode()
    except UnicodeDecodeError:
        found = "\x00"
    if "\x00" in found:
        return {"base64": base64.b64encode(value).decode()}
    return found
