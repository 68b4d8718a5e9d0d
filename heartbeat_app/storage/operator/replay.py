"""Checks dead letters again under today's rules, and stores what is valid now.

A replay never changes what was received, the reason that it was refused for, or the
ledger: it stores beats, and notes at each letter what became of it.

Each batch of letters is one transaction:
1. make the partitions of the days of its valid beats, in a transaction of their own
2. lock the letters that are still to be replayed and that nobody else has locked;
   refuse those of erased customers
3. insert the valid beats that are not there
4. mark the minutes of those that were stored for the roll-ups
5. tell duplicates from conflicts among those that are
6. note the outcomes, commit
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    func,
    not_,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from heartbeat_app.domain.excerpts import KEPT_BYTES
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Reason, Refusal, Rules, check
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db import catalog, errors
from heartbeat_app.storage.db.tables import dead_letters, heartbeats
from heartbeat_app.storage.rollup import marks
from heartbeat_app.storage.write import erasures, probe
from heartbeat_app.storage.write.trouble import PROOFS

STORED = "stored"
DUPLICATE = "duplicate"
CONFLICT = "conflict"
ERASED = "erased"

# One transaction: so many letters, so many bytes of them. It holds its locks for a
# short time, and records of a megabyte do not fill the memory.
BATCH_LETTERS = 500
BATCH_BYTES = 8 * 1024 * 1024

# A worker that stores the same beats meanwhile, in another order: PostgreSQL ends
# one of the two, which tries again.
ATTEMPTS = 5
PAUSE_SECONDS = 0.2
_LOST_AGAINST_ANOTHER = {
    "40001",  # serialization failure
    "40P01",  # deadlock
    errors.LOCK_NOT_AVAILABLE,
}

_c = dead_letters.c
# Of an erased customer's letters nothing is left to be replayed. NOT IN alone would
# leave out those that were never replayed.
_pending = and_(
    or_(
        _c.replay_outcome.is_(None),
        _c.replay_outcome.not_in([STORED, DUPLICATE, ERASED]),
    ),
    _c.reason != Reason.CUSTOMER_ERASED.value,
)
# What it needs was not kept.
_incomplete = or_(
    # Never null, which would leave out letters of whole records.
    and_(
        _c.record_size.is_not(None),
        or_(_c.record_size > KEPT_BYTES, _c.value.is_(None)),
    ),
    _c.last_offset.is_not(None),
)


def refused(reason: Reason) -> str:
    """The outcome of a letter that is still refused."""
    return f"refused: {reason}"


@dataclass(slots=True)
class Replayed:
    """How a replay went so far.

    Attributes:
        pending: How many letters there were to replay when it began.
        outcomes: How many letters had each outcome.
        elsewhere: How many were left to another replay that had them in hand.
        incomplete: How many cannot be replayed, since their records are not kept whole.
    """

    pending: int = 0
    incomplete: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0

    @property
    def done(self) -> int:
        """How many letters were looked at."""
        return self.outcomes.total() + self.elsewhere


def replay(
    engine: Engine,
    rules: Rules,
    now: datetime,
    *,
    reason: Reason | None = None,
    dry_run: bool = False,
    progress: Callable[[Replayed], None] = lambda so_far: None,
) -> Replayed:
    """Check the letters again that are not in the table yet, and store what is valid.

    Letter by letter in the order of their ids; of two with the same key the first
    stays. Each batch is one transaction, and several replays share the work. One that
    was broken off is simply run again.

    Arguments:
        rules: Today's bounds, at the moment `now`.
        reason: Only letters that were first refused for this.
        dry_run: Change nothing; tell what would become of them.
        progress: Told after every batch.
    """
    which = _pending if reason is None else and_(_pending, _c.reason == reason.value)
    so_far = Replayed()
    with engine.connect() as connection:
        so_far.incomplete = connection.execute(
            select(func.count()).where(which, _incomplete)
        ).scalar_one()
        which = and_(which, not_(_incomplete))
        so_far.pending, last = connection.execute(
            select(func.count(), func.max(_c.id)).where(which)
        ).one()
    foreseen: dict[tuple[str, datetime], int] = {}
    progress(so_far)
    for batch in _batches(engine, which, last or 0, rules):
        if dry_run:
            outcomes = _foresee(engine, batch, now, foreseen)
        else:
            outcomes = _store_patiently(engine, batch, which, now)
        so_far.outcomes.update(outcomes.values())
        so_far.elsewhere += len(batch) - len(outcomes)
        progress(so_far)
    return so_far


# What a letter turned out to be, by its id.
_Batch = dict[int, Heartbeat | Refusal]
_Outcomes = dict[int, str]


def _batches(
    engine: Engine, which: ColumnElement[bool], last: int, rules: Rules
) -> Iterator[_Batch]:
    """The letters up to the id `last`, checked, in batches of bounded size."""
    after = 0
    while True:
        with engine.connect() as connection:
            sizes = connection.execute(
                select(_c.id, func.coalesce(func.octet_length(_c.value), 0))
                .where(which, _c.id > after, _c.id <= last)
                .order_by(_c.id)
                .limit(BATCH_LETTERS)
            ).all()
            if not sizes:
                return
            ids = bounded([(row[0], row[1]) for row in sizes])
            values = connection.execute(
                select(_c.id, _c.value).where(_c.id.in_(ids)).order_by(_c.id)
            ).all()
        after = ids[-1]
        yield {
            letter_id: check(None if value is None else bytes(value), rules)
            for letter_id, value in values
        }


def bounded(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """As many ids from the beginning as fit, at least one."""
    ids: list[int] = []
    room = BATCH_BYTES
    for letter_id, size in sizes:
        room -= size
        if ids and room < 0:
            break
        ids.append(letter_id)
    return ids


def _refuse_days(engine: Engine, batch: _Batch, now: datetime, *, make: bool) -> None:
    """Refuse the beats whose day was dropped or is one too many.

    Arguments:
        make: Make the other days.
    """
    wanted = days.days_of([b for b in batch.values() if isinstance(b, Heartbeat)])
    if not wanted:
        return
    with engine.connect() as connection:
        existing = catalog.existing_days(connection)
        dropped = days.dropped_days(connection) - existing
    affordable = days.affordable(
        wanted - existing - dropped,
        existing=len(existing),
        today=now.astimezone(UTC).date(),
    )
    if make and affordable:
        days.ensure_days(engine, affordable)
    for letter_id, found in batch.items():
        if isinstance(found, Refusal) or _day(found) in affordable | existing:
            continue
        batch[letter_id] = Refusal(
            Reason.TIMESTAMP_PAST_RETENTION
            if _day(found) in dropped
            else Reason.TOO_MANY_DAYS,
            "",
        )


def _day(beat: Heartbeat) -> date:
    return beat.timestamp.astimezone(UTC).date()


def _store_patiently(
    engine: Engine, batch: _Batch, which: ColumnElement[bool], now: datetime
) -> _Outcomes:
    """Store a batch; again when it only lost against another transaction."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _refuse_days(engine, batch, now, make=True)
            return _store(engine, batch, which)
        except DBAPIError as error:
            if attempt == ATTEMPTS or not _passes_by_itself(error):
                raise
        time.sleep(PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")


def _store(engine: Engine, batch: _Batch, which: ColumnElement[bool]) -> _Outcomes:
    """Store a batch in one transaction and note the outcomes.

    Letters that another replay has in hand, or has just finished, are left out.
    """
    with engine.begin() as connection:
        locked = connection.scalars(
            select(_c.id)
            .where(_c.id.in_(list(batch)), which)
            .order_by(_c.id)
            .with_for_update(skip_locked=True)
        ).all()
        mine = _refuse_erased(
            connection, {letter_id: batch[letter_id] for letter_id in locked}
        )
        beats = {i: b for i, b in mine.items() if isinstance(b, Heartbeat)}
        outcomes = {
            i: refused(r.reason) for i, r in mine.items() if isinstance(r, Refusal)
        }
        try:
            with connection.begin_nested():
                stored = _insert(connection, beats)
        except DBAPIError as error:
            if _passes_by_itself(error):
                raise
            stored = _insert_one_by_one(connection, beats, outcomes)
        outcomes.update(dict.fromkeys(stored, STORED))
        marks.mark(connection, [beats[letter_id].timestamp for letter_id in stored])
        rest = {i: b for i, b in beats.items() if i not in outcomes}
        rates = _rates_there(connection, rest.values())
        for letter_id, beat in rest.items():
            rate = rates.get(_key(beat))
            # Neither stored nor there: its row went away just now. Left for the next
            # replay.
            if rate is not None:
                outcomes[letter_id] = _against(rate, beat)
        for outcome in set(outcomes.values()):
            ids = [i for i, found in outcomes.items() if found == outcome]
            connection.execute(
                update(dead_letters)
                .where(_c.id.in_(ids))
                .values(replayed_at=func.clock_timestamp(), replay_outcome=outcome)
            )
    return outcomes


def _refuse_erased(connection: Connection, batch: _Batch) -> _Batch:
    """The batch with the beats of erased customers refused; holds off erasures."""
    erased = erasures.read(connection, erasures.Erased())
    beats = [found for found in batch.values() if isinstance(found, Heartbeat)]
    gone = erased.among(beat.customer_id for beat in beats)
    return {
        letter_id: erasures.REFUSAL
        if isinstance(found, Heartbeat) and found.customer_id in gone
        else found
        for letter_id, found in batch.items()
    }


def _insert(connection: Connection, beats: dict[int, Heartbeat]) -> list[int]:
    """Insert what is not there; the ids of the letters that were stored."""
    first: dict[tuple[str, datetime], int] = {}
    for letter_id, beat in beats.items():
        first.setdefault(_key(beat), letter_id)
    if not first:
        return []
    rows = [
        {
            "customer_id": beats[letter_id].customer_id,
            "timestamp": beats[letter_id].timestamp.astimezone(UTC),
            "heart_rate": beats[letter_id].heart_rate,
        }
        # Always in the same order, so that two that insert the same rows wait for
        # each other instead of both.
        for _, letter_id in sorted(first.items())
    ]
    new = connection.execute(
        insert(heartbeats)
        .on_conflict_do_nothing(index_elements=["customer_id", "timestamp"])
        .returning(heartbeats.c.customer_id, heartbeats.c.timestamp),
        rows,
    )
    return [first[customer_id, timestamp] for customer_id, timestamp in new]


def _insert_one_by_one(
    connection: Connection, beats: dict[int, Heartbeat], outcomes: _Outcomes
) -> list[int]:
    """The same where some row fails: only what fails alone stays refused.

    Raises:
        DBAPIError: A probe fails, too: it is an outage.
    """
    stored: list[int] = []
    for letter_id, beat in beats.items():
        for _ in range(PROOFS):
            try:
                with connection.begin_nested():
                    stored.extend(_insert(connection, {letter_id: beat}))
                break
            except DBAPIError as error:
                if _passes_by_itself(error):
                    raise
            _probe(connection, beat)
        else:
            outcomes[letter_id] = refused(Reason.REJECTED_BY_DATABASE)
    return stored


def _probe(connection: Connection, beat: Heartbeat) -> None:
    """Insert a beat like it that is made up, and take it back."""
    savepoint = connection.begin_nested()
    try:
        _insert(connection, {0: probe.beat_like(beat)})
    finally:
        savepoint.rollback()


def _passes_by_itself(error: DBAPIError) -> bool:
    """Whether another transaction was in the way, or the day was dropped just now."""
    lost = errors.sqlstate(error) in _LOST_AGAINST_ANOTHER
    return lost or errors.is_missing_day(error)


def _rates_there(
    connection: Connection, beats: Collection[Heartbeat]
) -> dict[tuple[str, datetime], int]:
    """The heart rates of the rows that have the keys of these beats.

    Day by day, so that PostgreSQL opens and locks the partitions of these days only.
    """
    c = heartbeats.c
    by_day: dict[date, list[Heartbeat]] = {}
    for beat in beats:
        by_day.setdefault(_day(beat), []).append(beat)
    found: dict[tuple[str, datetime], int] = {}
    for some in by_day.values():
        instants = [beat.timestamp.astimezone(UTC) for beat in some]
        keys = [
            (beat.customer_id, instant)
            for beat, instant in zip(some, instants, strict=True)
        ]
        for customer_id, timestamp, heart_rate in connection.execute(
            select(c.customer_id, c.timestamp, c.heart_rate).where(
                c.timestamp.between(min(instants), max(instants)),
                tuple_(c.customer_id, c.timestamp).in_(keys),
            )
        ):
            found[customer_id, timestamp] = heart_rate
    return found


def _foresee(
    engine: Engine,
    batch: _Batch,
    now: datetime,
    foreseen: dict[tuple[str, datetime], int],
) -> _Outcomes:
    """The outcomes that storing the batch would have.

    Arguments:
        foreseen: The beats that earlier batches would have stored; added to.
    """
    _refuse_days(engine, batch, now, make=False)
    with engine.connect() as connection:
        batch = _refuse_erased(connection, batch)
        beats = [found for found in batch.values() if isinstance(found, Heartbeat)]
        rates = _rates_there(connection, beats)
    outcomes: _Outcomes = {}
    for letter_id, found in batch.items():
        if isinstance(found, Refusal):
            outcomes[letter_id] = refused(found.reason)
            continue
        rate = rates.get(_key(found), foreseen.get(_key(found)))
        if rate is None:
            foreseen[_key(found)] = found.heart_rate
            outcomes[letter_id] = STORED
        else:
            outcomes[letter_id] = _against(rate, found)
    return outcomes


def _key(beat: Heartbeat) -> tuple[str, datetime]:
    return beat.customer_id, beat.timestamp


def _against(rate: int, beat: Heartbeat) -> str:
    """What a beat is whose key is there with that rate."""
    return DUPLICATE if rate == beat.heart_rate else CONFLICT
