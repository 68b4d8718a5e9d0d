"""Removes a customer: beats, roll-ups, and what was received of refused records.

1. note the customer's digest, which waits for all transactions that store (see
   `erasures`): from then on nothing of the customer is stored
2. delete the beats, a day in a transaction, count them at the note, and mark the day,
   so that what all customers together had is counted anew
3. delete the customer's own roll-ups, also of days whose beats were dropped
4. empty the dead letters that name the customer (see `naming`), some in a transaction
5. look again, in another way (see `erase_check`)
6. note that it is finished, unless something was left

Broken off, it is simply run again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    TableClause,
    Text,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from heartbeat_app.exceptions import NotErasedError
from heartbeat_app.storage.db import catalog, errors
from heartbeat_app.storage.db.tables import (
    dead_letters,
    dropped_days,
    erased_customers,
    heartbeats_hour,
    heartbeats_minute,
)
from heartbeat_app.storage.operator import replay
from heartbeat_app.storage.operator.erase_check import Check, check_letters, check_rows
from heartbeat_app.storage.rollup import marks
from heartbeat_app.storage.write.erasures import digest_of
from heartbeat_app.storage.write.naming import customers_named, is_unreadable, may_name

DETAIL = "What was received was erased with its customer."

# Not to hold up the workers, which wait behind this lock.
NOTE_LOCK_TIMEOUT_MS = 2_000
# Others may hold what is needed for some seconds, a batch for half a minute.
PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 1.0
_LOST_AGAINST_ANOTHER = {"40001", "40P01", errors.LOCK_NOT_AVAILABLE}

# Waits for whatever changes roll-ups, or what they are made of, and keeps it waiting:
# else minutes that were counted before the beats went would be written after it.
ROLLUPS_LOCK = text("LOCK TABLE rollups_lock IN SHARE ROW EXCLUSIVE MODE")

DROPPED_DAYS_OF = text(
    """
    SELECT count(*) FROM dropped_days WHERE EXISTS (
        SELECT FROM heartbeats_hour
        WHERE customer_id = :id
          AND hour >= (day || ' 00:00:00+00')::TIMESTAMPTZ
          AND hour < (day + 1 || ' 00:00:00+00')::TIMESTAMPTZ
    )
    """
)

T = TypeVar("T")

_c = erased_customers.c
_l = dead_letters.c


@dataclass(slots=True)
class Erasure:
    """What an erasure removed, with all earlier ones of the same customer.

    Attributes:
        id: Of the row in erased_customers.
        beats, rollups: How many rows.
        letters: How many dead letters were emptied.
        elsewhere: Ids of letters that may name the customer, in order: a person has
            to look at them.
        unreadable: Ids of letters that cannot be looked into, in order.
        shares: Of how many dropped days the sums over all customers keep the share
            of this one.
        done, total: Days and letters that were looked at, twice, and how many there
            are.
    """

    id: int
    beats: int = 0
    rollups: int = 0
    letters: int = 0
    elsewhere: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    shares: int = 0
    done: int = 0
    total: int = 0


def erase(
    engine: Engine,
    customer_id: str,
    progress: Callable[[Erasure], None] = lambda so_far: None,
    go_on: Callable[[], None] = lambda: None,
) -> Erasure:
    """Remove a customer, and have everything of them refused from now on.

    Arguments:
        engine: The owner's.
        progress: Told when the customer is noted, and after every day and batch of
            letters.
        go_on: Called before every try of a transaction; raises what is to end it.

    Raises:
        NotErasedError: Something of the customer is still there; it is not noted as
            finished.
    """
    erasure = Erasure(_patiently(go_on, _note, engine, customer_id))
    progress(erasure)
    with engine.connect() as connection:
        # Detached ones, too: they come back with their rows when a beat of them comes.
        tables = sorted(catalog.day_tables(connection))
        pending, last = connection.execute(
            select(func.count(), func.max(_l.id)).where(_has_contents())
        ).one()
    erasure.total = 2 * (len(tables) + pending)
    for name in tables:
        _patiently(go_on, _delete_day, engine, erasure.id, customer_id, name)
        erasure.done += 1
        progress(erasure)
    erasure.shares = _patiently(go_on, _delete_rollups, engine, erasure.id, customer_id)
    _empty_letters(engine, erasure, customer_id, last or 0, progress, go_on)
    check = Check(customer_id)
    for name in check.tables(engine):
        _patiently(go_on, check_rows, engine, check, name)
    erasure.done += len(tables)
    progress(erasure)
    for looked_at in check_letters(engine, check):
        erasure.done = min(erasure.done + looked_at, erasure.total)
        progress(erasure)
    if check.rows or check.letters:
        _patiently(go_on, _unfinish, engine, erasure)
        raise NotErasedError(check.rows, sorted(check.letters))
    erasure.elsewhere = sorted({*erasure.elsewhere, *check.elsewhere})
    erasure.unreadable = sorted(
        {*erasure.unreadable, *check.too_large} - {*erasure.elsewhere}
    )
    erasure.done = erasure.total
    progress(erasure)
    return _finish(engine, erasure)


def _patiently(go_on: Callable[[], None], work: Callable[..., T], *arguments: Any) -> T:
    """Do it again where it only lost against another transaction."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        go_on()
        try:
            return work(*arguments)
        except DBAPIError as error:
            lost = errors.sqlstate(error) in _LOST_AGAINST_ANOTHER
            if not lost or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def _note(engine: Engine, customer_id: str) -> int:
    """Add the customer's row, unless it is there; its id."""
    with engine.begin() as connection:
        connection.execute(
            select(func.set_config("lock_timeout", f"{NOTE_LOCK_TIMEOUT_MS}ms", True))
        )
        connection.execute(text("LOCK TABLE erased_customers IN ACCESS EXCLUSIVE MODE"))
        keys = [bytes(key) for key in connection.scalars(select(_c.key).distinct())]
        found: int | None = connection.scalar(
            select(_c.id).where(
                _c.digest.in_([digest_of(key, customer_id) for key in keys])
            )
        )
        if found is not None:
            return found
        key = keys[0] if keys else secrets.token_bytes(32)
        made: int = connection.execute(
            insert(erased_customers)
            .values(
                key=key,
                digest=digest_of(key, customer_id),
                begun_at=func.clock_timestamp(),
            )
            .returning(_c.id)
        ).scalar_one()
        return made


def _delete_day(engine: Engine, erasure_id: int, customer_id: str, name: str) -> None:
    """By the table's name: somebody may detach or attach the day meanwhile."""
    beats = table(name, column("customer_id"), schema="public")
    day = catalog.day_of_table(name)
    try:
        with engine.begin() as connection:
            connection.execute(ROLLUPS_LOCK)
            # The retention counts a day that it detached, and drops it, while it holds
            # this row: it must not have counted what is deleted here.
            connection.execute(
                select(dropped_days.c.day)
                .where(dropped_days.c.day == day)
                .with_for_update()
            )
            gone = _delete_from(connection, beats, customer_id)
            if gone:
                marks.mark_spans(connection, [marks.day_span(day)])
                _count(connection, erasure_id, "beats", gone)
    except DBAPIError as error:
        # The retention may have dropped it since we looked.
        if errors.sqlstate(error) != errors.UNDEFINED_TABLE:
            raise


def _delete_rollups(engine: Engine, erasure_id: int, customer_id: str) -> int:
    """Also those of detached months; of how many dropped days there were any."""
    with engine.begin() as connection:
        connection.execute(ROLLUPS_LOCK)
        shares: int = connection.execute(
            DROPPED_DAYS_OF, {"id": customer_id}
        ).scalar_one()
        detached = [
            table(name, column("customer_id"), schema="public")
            for name in catalog.detached_months(connection)
        ]
        for rollups in (heartbeats_minute, heartbeats_hour, *detached):
            gone = _delete_from(connection, rollups, customer_id)
            _count(connection, erasure_id, "rollups", gone)
    return shares


def _delete_from(connection: Connection, where: TableClause, customer_id: str) -> int:
    return connection.execute(
        delete(where).where(where.c.customer_id == customer_id)
    ).rowcount


def _empty_letters(
    engine: Engine,
    erasure: Erasure,
    customer_id: str,
    last: int,
    progress: Callable[[Erasure], None],
    go_on: Callable[[], None],
) -> None:
    """Look at all letters up to the id `last`; what came after it came empty."""
    after = 0
    while True:
        with engine.connect() as connection:
            sizes = connection.execute(
                select(
                    _l.id,
                    func.coalesce(func.octet_length(_l.key), 0)
                    + func.coalesce(func.octet_length(_l.value), 0)
                    + func.octet_length(cast(_l.headers, Text)),
                )
                .where(_has_contents(), _l.id > after, _l.id <= last)
                .order_by(_l.id)
                .limit(replay.BATCH_LETTERS)
            ).all()
            if not sizes:
                return
            ids = replay.bounded([(row[0], row[1]) for row in sizes])
            letters = connection.execute(
                select(
                    _l.id,
                    _l.key,
                    _l.value,
                    _l.headers,
                    _l.detail,
                    _l.customer_ids,
                    _l.record_size,
                )
                .where(_l.id.in_(ids))
                .order_by(_l.id)
            ).all()
        after = ids[-1]
        theirs = []
        for letter_id, key, value, headers, detail, named, size in letters:
            key, value = bytes(key or b""), bytes(value or b"")
            # Of an excerpt the name may stand in what is not kept.
            if customer_id in {*customers_named(key, value, headers), *(named or ())}:
                theirs.append(letter_id)
            elif may_name(customer_id, key, value, headers, detail):
                erasure.elsewhere.append(letter_id)
            # An excerpt, or the letter of a batch: there is more than what was kept.
            elif size is not None or is_unreadable(key, value, headers):
                erasure.unreadable.append(letter_id)
        if theirs:
            _patiently(go_on, _empty, engine, erasure.id, theirs)
        erasure.done += len(ids)
        progress(erasure)


def _empty(engine: Engine, erasure_id: int, ids: Collection[int]) -> None:
    """Keep where they were and why they were refused, and nothing else.

    What a replay stored stays noted as such: the books count it.
    """
    with engine.begin() as connection:
        emptied = connection.execute(
            update(dead_letters)
            .where(_l.id.in_(ids))
            .values(
                key=None,
                value=None,
                headers=cast(literal("[]"), JSONB),
                record_sha256=None,
                customer_ids=null(),
                detail=DETAIL,
                replay_outcome=case(
                    (
                        _l.replay_outcome.in_([replay.STORED, replay.DUPLICATE]),
                        _l.replay_outcome,
                    ),
                    else_=replay.ERASED,
                ),
            )
        ).rowcount
        _count(connection, erasure_id, "letters", emptied)


def _has_contents() -> Any:
    return or_(
        _l.key.is_not(None),
        _l.value.is_not(None),
        _l.headers != cast(literal("[]"), JSONB),
        _l.customer_ids.is_not(None),
    )


def _count(connection: Connection, erasure_id: int, name: str, more: int) -> None:
    """In the transaction that removes them, so that the books balance at any time."""
    if more:
        connection.execute(
            update(erased_customers)
            .where(_c.id == erasure_id)
            .values({name: _c[name] + more})
        )


def _unfinish(engine: Engine, erasure: Erasure) -> None:
    """An earlier one may have been noted as finished."""
    with engine.begin() as connection:
        connection.execute(
            update(erased_customers).where(_c.id == erasure.id).values(finished_at=None)
        )


def _finish(engine: Engine, erasure: Erasure) -> Erasure:
    with engine.begin() as connection:
        erasure.beats, erasure.rollups, erasure.letters = connection.execute(
            update(erased_customers)
            .where(_c.id == erasure.id)
            .values(finished_at=func.clock_timestamp())
            .returning(_c.beats, _c.rollups, _c.letters)
        ).one()
    return erasure
