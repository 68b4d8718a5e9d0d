"""One transaction per batch: beats, dead letters, what came in, and the ledger.

Small batches of several partitions share one, in which 2 is one message to PostgreSQL,
and 7 and 8 are another.

1. make the partitions of the batch's days, in a transaction of their own
2. lock the partition's row of the ledger; read who was erased, which holds off new
   erasures until the end
3. compare: what lies below its next offset was stored before (the fence); a batch
   that begins above it means that the ledger went back: nothing is written
4. refuse what erased customers sent
5. insert the beats; those that conflict or are rejected join the dead letters
6. insert the dead letters
7. mark the beats' minutes for the roll-ups; add the batch to the minute in which it
   came and to the ledger, whose constraints check the sums
8. commit

What fails is tried again. What fails once more is halved, whatever the error, as long
as a probe, a record that is made up, passes 2 to 7 and is rolled back: the database
takes records, so one of these may be at fault. A record that fails alone, again and
again, between probes that pass, is kept as a dead letter. Everything else is an outage.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from msgspec import structs
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.domain.batches import Batch, Refused, refuse_beats
from heartbeat_app.domain.excerpts import Excerpt, excerpt
from heartbeat_app.domain.validation import Reason, Refusal
from heartbeat_app.exceptions import ApartError, BooksError, LedgerWentBackError
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog, errors
from heartbeat_app.storage.db import engine as limits
from heartbeat_app.storage.db.engine import Uses
from heartbeat_app.storage.db.prepared import Plain, run
from heartbeat_app.storage.db.transactions import COMMIT, ROLLBACK, transaction
from heartbeat_app.storage.rollup import ingest, marks
from heartbeat_app.storage.write import erasures, ledger, opening
from heartbeat_app.storage.write.beats import (
    Inserted,
    insert_beats,
    insert_every_way,
    insert_new_beats,
)
from heartbeat_app.storage.write.dead_letters import insert_dead_letters
from heartbeat_app.storage.write.erasures import Erased
from heartbeat_app.storage.write.probe import probe_of
from heartbeat_app.storage.write.repeats import Repeats
from heartbeat_app.storage.write.trouble import Trouble

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
        unreadable: Offsets of batches that could not be taken apart.
        seconds: What the transaction took, its commit included.
        reasons: How many became dead letters for which reason; their sum is `dead`.
        delays: Of the beats that were stored.
        unexplained: Offsets without a record that no transaction explains.
        rest: What is still to be written: all of it was too much at once, or some
            record of it may be at fault.
    """

    consumed: int = 0
    stored: int = 0
    duplicate: int = 0
    dead: int = 0
    missing: int = 0
    unreadable: int = 0
    seconds: float = field(default=0.0, compare=False)
    reasons: Mapping[Reason, int] = field(default_factory=dict)
    delays: ingest.Delays = ingest.NO_DELAYS
    unexplained: int = 0
    rest: Batch | None = field(default=None, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """What the books count of it, but for the holes."""
        return {name: getattr(self, name) for name in ingest.COUNTED}


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
        # Those of them that were found locked at once.
        self._held: set[tuple[str, int]] = set()
        # By partition: which beats may be there already.
        self._repeats: defaultdict[tuple[str, int], Repeats] = defaultdict(Repeats)
        self._erased = Erased()
        # Of partitions whose last transaction failed, or was slow.
        self._troubles: dict[tuple[str, int], Trouble] = {}
        # By partition: how often a write has made its days, or has ended in any way.
        self.signs_of_life: Counter[tuple[str, int]] = Counter()
        self.uses = Uses(engine)

    def write(self, batch: Batch) -> Written:
        """Store a batch, exactly once however often it is called with it.

        In one transaction. Only a part of it, or nothing, where the database was too
        slow for all of it or may not take some record: then the result tells the rest,
        to be written at once.

        Raises:
            LedgerWentBackError: The batch does not follow what is stored.
            sqlalchemy.exc.DBAPIError, psycopg2.Error: Nothing was written, but the
                same batch may be tried again.
        """
        row = _row(batch)
        trouble = self._troubles.get(row)
        if trouble is None:
            return self._write_all(batch)
        rest = trouble.rest_of(batch)
        part, probed = self._next_part(trouble, rest)
        rejects = probed and part.records == 1 and trouble.is_found
        given = _rejected(part, trouble) if rejects else part
        began = time.monotonic()
        try:
            [written] = self._try([given], halves=probed and part.records > 1)
        except (LedgerWentBackError, BooksError):
            del self._troubles[row]
            raise
        except Exception as error:
            seconds = time.monotonic() - began
            if self._goes_on_at_once(trouble, part, error, seconds, probed=probed):
                return Written(rest=rest)
            raise
        found = trouble.error
        trouble.move(part.position)
        # What was stored before says nothing of how quick the database is.
        if written.consumed and time.monotonic() - began < SLOW_SECONDS / 4:
            if rejects:
                trouble.known, trouble.records = found, 1  # so may the next be
            else:
                trouble.records = 2 * (part.records if probed else trouble.records)
            if not trouble.is_searched and trouble.records >= rest.records:
                del self._troubles[row]
        if part.position == batch.position:
            return written
        return replace(written, rest=batch.since(part.position))

    def _next_part(self, trouble: Trouble, rest: Batch) -> tuple[Batch, bool]:
        """What to write next; and whether a record of it is searched for."""
        if not trouble.is_searched:
            return trouble.part_of(rest), False
        suspected = trouble.suspected_of(rest)
        halves = suspected.records > 1
        # To find it takes a few attempts; what comes of them is not believed before
        # it is alone, and the database was asked again.
        if not (halves and trouble.takes_others) and not self._takes_others(
            suspected, as_large=trouble.lacks_resources
        ):
            # What failed before was no proof: no probe passed after it.
            trouble.failures, trouble.error = 0, ""
            return trouble.part_of(rest), False
        if not trouble.takes_others:
            trouble.takes_others = True
            log.warning(
                "%s: it fails again while the database takes other records: looking "
                "for the one that it fails for, to keep it as a dead letter "
                "(rejected_by_database)",
                suspected,
            )
        return (suspected.first(suspected.records // 2) if halves else suspected), True

    def _write_all(self, batch: Batch) -> Written:
        began = time.monotonic()
        try:
            [written] = self._try([batch])
        except (LedgerWentBackError, BooksError):
            raise
        except Exception as error:
            trouble = self._troubles[_row(batch)] = Trouble(batch.asked)
            trouble.lacks_resources = errors.is_lack_of_resources(error)
            if time.monotonic() - began >= SLOW_SECONDS:
                _halve(trouble, batch)
            raise
        return written

    def _goes_on_at_once(
        self,
        trouble: Trouble,
        part: Batch,
        error: Exception,
        seconds: float,
        *,
        probed: bool,
    ) -> bool:
        """Learn from a failure that is not the first; False: after a pause.

        True only where a probe passed, and something comes of it: fewer records, or one
        proof more.
        """
        if seconds >= SLOW_SECONDS:
            _halve(trouble, part)
            return False
        trouble.lacks_resources = errors.is_lack_of_resources(error)
        was_searched = trouble.is_searched
        trouble.until = part.position
        if not probed:
            return trouble.takes_others and not was_searched
        if part.records != 1:
            return part.records > 1
        # As long as a wait for another session may be; that is no fault of a record's.
        if seconds >= min(limits.LOCK_TIMEOUT_MS, limits.STATEMENT_TIMEOUT_MS) / 1000:
            return False
        if errors.is_taken_id(error):
            return False
        if trouble.is_found:  # its dead letter failed
            was_empty, trouble.keeps_nothing = trouble.keeps_nothing, True
            return not was_empty
        trouble.failures += 1
        trouble.error, trouble.why = errors.name(error), errors.sentence(error)
        return True

    def _takes_others(self, batch: Batch, *, as_large: bool) -> bool:
        """Whether a probe of the batch's first day passes."""
        try:
            with self._attempt([batch]):
                batch = self._make_days(batch)
                with transaction(self._engine) as connection:
                    self._probe(connection, batch, as_large=as_large)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is an answer)
            log.debug("%s: the database takes no others: %r", batch, error)
            return False
        return True

    def _probe(self, connection: Connection, batch: Batch, *, as_large: bool) -> None:
        began = time.perf_counter()
        next_offsets, _ = self._begin(connection, [batch])
        made = probe_of(batch, next_offsets[batch.partition], as_large=as_large)
        insert_every_way(connection, made.beats)
        found = Inserted(stored=[beat.timestamp for beat in made.beats])
        self._book(connection, [made], [found], began, end=ROLLBACK)

    def write_together(self, batches: Sequence[Batch]) -> list[Written]:
        """Store batches of several partitions of a topic in one transaction.

        For small ones, where a transaction takes longer than what is in it.

        Raises:
            ApartError, LedgerWentBackError, sqlalchemy.exc.DBAPIError, psycopg2.Error:
                Nothing was written; `write` each by itself.
        """
        if len(batches) == 1:
            return [self.write(batches[0])]
        rows = [_row(batch) for batch in batches]
        if len({topic_id for topic_id, _ in rows}) > 1:
            raise ApartError("They are of a topic that was made again.")
        if not self._troubles.keys().isdisjoint(rows):
            raise ApartError("The last write of one of them failed, or was slow.")
        if any(days.days_of(batch.beats) - self._known_days for batch in batches):
            raise ApartError("They need new days.")
        began = time.monotonic()
        try:
            return self._try(batches)
        except Exception:
            if time.monotonic() - began >= SLOW_SECONDS:
                # Apart until each was written quickly by itself.
                for row, batch in zip(rows, batches, strict=True):
                    self._troubles[row] = Trouble(batch.asked, max(1, batch.records))
            raise

    def _try(self, batches: Sequence[Batch], *, halves: bool = False) -> list[Written]:
        """Write batches of different partitions in one transaction."""
        with self._attempt(batches, halves=halves):
            batches = [self._make_days(batch) for batch in batches]
            self._show_life(batches)
            began = time.perf_counter()
            with transaction(self._engine) as connection:
                written = self._write(connection, batches)
            seconds = time.perf_counter() - began
            return [replace(each, seconds=seconds) for each in written]

    @contextmanager
    def _attempt(
        self, batches: Sequence[Batch], *, halves: bool = False
    ) -> Iterator[None]:
        """Forget, where it fails, what may have been the reason.

        Arguments:
            halves: It is one of those that look for a record, which are many, and of
                which nothing is believed.
        """
        try:
            yield
        except ApartError:
            raise
        except LedgerWentBackError:
            # Another database answers than before; not on every session yet where an
            # address was moved under them.
            self._erased = Erased()
            self._engine.dispose()
            raise
        except Exception as error:
            if errors.is_missing_day(error):
                self._known_days.clear()  # dropped behind our back
            # A restored database may have other rows with the same ids.
            self._erased = Erased()
            if not halves:
                # The next attempt begins with new sessions: one that was opened while
                # the database was read-only stays so.
                self._engine.dispose()
            raise
        finally:
            self._show_life(batches)

    def _show_life(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self.signs_of_life[batch.topic, batch.partition] += 1

    def _make_days(self, batch: Batch) -> Batch:
        """Make the days of the batch; beats whose day cannot be made are refused."""
        new = days.days_of(batch.beats) - self._known_days
        if not new:
            return batch
        with self._engine.connect() as connection:
            self._known_days = catalog.existing_days(connection)
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

    def _write(self, connection: Connection, batches: Sequence[Batch]) -> list[Written]:
        began = time.perf_counter()
        next_offsets, erased = self._begin(connection, batches)
        new = [
            rest
            for batch in batches
            if (rest := _only_new(batch, next_offsets.get(batch.partition)))
        ]
        if not new:
            return [Written() for _ in batches]
        self._erased = erased
        new = [erasures.refuse(batch, erased) for batch in new]
        inserted = self._insert(connection, new)
        written = self._book(connection, new, inserted, began, end=COMMIT)
        return [written.get(batch.partition, Written()) for batch in batches]

    def _book(
        self,
        connection: Connection,
        batches: Sequence[Batch],
        inserted: Sequence[Inserted],
        began: float,
        *,
        end: Plain,
    ) -> Mapping[int, Written]:
        """Write all that belongs to the beats, and end; by partition what it was."""
        now = self._clock()
        written = {}
        for batch, found in zip(batches, inserted, strict=True):
            refused = _all_refused(batch, found)
            insert_dead_letters(connection, batch, refused, now)
            written[batch.partition] = Written(
                consumed=batch.records,
                stored=len(found.stored),
                duplicate=found.duplicate,
                dead=len(refused),
                missing=batch.missing,
                unreadable=sum(each.offsets for each in batch.unreadable),
                reasons=Counter(each.refusal.reason for each in refused),
                delays=ingest.Delays.of(found.stored, now),
                unexplained=min(batch.unexplained, batch.gap),
            )
        booked = [(batch, written[batch.partition]) for batch in batches]
        run(
            connection,
            [
                *marks.marking([each for one in inserted for each in one.stored]),
                ingest.recording(
                    [_arrival(*each) for each in booked],
                    now,
                    write_seconds=time.perf_counter() - began,
                ),
                ledger.booking([_entry(*each) for each in booked]),
                end,
            ],
        )
        return written

    def _insert(
        self, connection: Connection, batches: Sequence[Batch]
    ) -> list[Inserted]:
        """Insert the beats: of several batches at once, if all should be new.

        Raises:
            ApartError: They are not.
        """
        repeats = [self._repeats[_row(batch)] for batch in batches]
        if len(batches) > 1 and not any(each.are_expected for each in repeats):
            insert_new_beats(connection, [b for batch in batches for b in batch.beats])
            return [
                Inserted(stored=[beat.timestamp for beat in batch.beats])
                for batch in batches
            ]
        inserted = []
        for each, batch in zip(repeats, batches, strict=True):
            suspects = each.suspects(batch.beats)
            found = insert_beats(connection, batch.beats, suspects)
            each.learn(
                batch.beats,
                some=bool(found.duplicate or found.conflicts),
                others=found.unsuspected,
            )
            inserted.append(found)
        return inserted

    def _begin(
        self, connection: Connection, batches: Sequence[Batch]
    ) -> tuple[Mapping[int, int], Erased]:
        """Lock the ledger's rows: the next offsets of those that there are.

        And hold off erasures: who was erased.
        """
        known = self._erased
        if len(batches) == 1:
            next_offset = self._begin_one(connection, batches[0])
            found = {} if next_offset is None else {batches[0].partition: next_offset}
            return found, erasures.read(connection, known)
        partitions = [batch.partition for batch in batches]
        found, erased = opening.begin_with_free(
            connection, batches[0].topic_id, partitions, known
        )
        rows = {_row(batch) for batch in batches}
        self._blocked -= rows
        if held := {row for row in rows if row[1] not in found}:
            self._held = held
            raise ApartError(
                "The ledger's rows of the partitions "
                f"{sorted(partition for _, partition in held)} are not free."
            )
        return found, erased

    def _begin_one(self, connection: Connection, batch: Batch) -> int | None:
        """Lock one row; after a time-out before, end who blocks it."""
        timer = None
        row = _row(batch)
        if row in self._blocked:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            timer = threading.Timer(
                END_BLOCKERS_AFTER_SECONDS, self._end_blockers, (pid,)
            )
            timer.start()
        try:
            next_offset = opening.begin(connection, *row)
        except Exception as error:
            if errors.is_lock_timeout(error):
                # Who froze in a transaction of several holds the rows of them all.
                self._blocked |= self._held if row in self._held else {row}
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


def _row(batch: Batch) -> tuple[str, int]:
    """The key of its partition's row in the ledger."""
    return batch.topic_id, batch.partition


def _only_new(batch: Batch, next_offset: int | None) -> Batch | None:
    """The part of the batch that is not stored yet; None if all of it is.

    Raises:
        LedgerWentBackError: The batch does not follow what is stored.
    """
    if next_offset is None or batch.asked > next_offset:
        raise LedgerWentBackError(str(batch), batch.asked, next_offset)
    if batch.position <= next_offset:
        return None
    return batch.since(next_offset)


def _all_refused(batch: Batch, inserted: Inserted) -> list[Refused]:
    """What was refused before it came to the table, and there."""
    conflict = Refusal(Reason.CONFLICT, CONFLICT_DETAIL)
    return [
        *batch.refused,
        *(Refused(batch.sources[index], conflict) for index in inserted.conflicts),
    ]


def _halve(trouble: Trouble, part: Batch) -> None:
    """Go on with less than what was too much for the time-outs."""
    trouble.records = max(1, part.records // 2)
    log.warning(
        "%s: too much at once for the database as it is: going on with %s records a "
        "transaction",
        part,
        f"{trouble.records:,}",
    )


def _rejected(part: Batch, trouble: Trouble) -> Batch:
    """The batch of a single record as one of its dead letter."""
    detail = trouble.why
    customers = [beat.customer_id for beat in part.beats]
    records: list[Any] = list(part.sources)
    for each in part.refused:
        records.append(each.record)
        detail += f" (Its dead letter of the reason {each.refusal.reason} failed.)"
    [record] = records
    kept = record if isinstance(record, Excerpt) else excerpt(record, customers)
    if trouble.keeps_nothing:
        kept = structs.replace(kept, key=None, value=None, headers=(), customer_ids=())
        detail = (
            "PostgreSQL took neither the record nor the beginning of it, so nothing "
            "of its bytes is kept."
        )
    return replace(
        part,
        beats=[],
        sources=[],
        refused=[Refused(kept, Refusal(Reason.REJECTED_BY_DATABASE, detail))],
    )


def _arrival(batch: Batch, written: Written) -> ingest.Arrival:
    return ingest.Arrival(
        batch.topic_id, batch.partition, written.counts, written.delays
    )


def _entry(batch: Batch, written: Written) -> ledger.Entry:
    return ledger.Entry(
        batch.topic_id,
        batch.partition,
        next_offset=batch.position,
        end_offset=batch.end_offset,
        counts={
            **written.counts,
            "missing": batch.missing,
            "unreadable": written.unreadable,
            "gap": batch.gap,
        },
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
