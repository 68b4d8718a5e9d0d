"""The dead letters, to look at; the worker's writer keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select

from heartbeat_app.storage.tables import dead_letters
from heartbeat_app.validation import Reason


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its contents."""

    id: int
    topic: str
    topic_id: str
    partition: int
    offset: int
    reason: str
    detail: str
    first_seen: datetime
    replayed_at: datetime | None
    replay_outcome: str | None
    size: int | None  # bytes of the value; None: it had none


@dataclass(frozen=True, slots=True)
class Contents:
    """What was received: key and value as they came, headers as pairs."""

    key: bytes | None
    value: bytes | None
    headers: Any


_c = dead_letters.c
_letter_columns = (
    _c.id,
    _c.topic,
    _c.topic_id,
    _c.partition,
    _c.offset,
    _c.reason,
    _c.detail,
    _c.first_seen,
    _c.replayed_at,
    _c.replay_outcome,
    func.octet_length(_c.value).label("size"),
)


def list_letters(
    engine: Engine, *, reason: Reason | None = None, limit: int
) -> list[Letter]:
    """The latest letters, the last one first."""
    query = select(*_letter_columns).order_by(_c.id.desc()).limit(limit)
    if reason is not None:
        query = query.where(_c.reason == reason.value)
    with engine.connect() as connection:
        return [Letter(**row._mapping) for row in connection.execute(query)]


def count_by_reason(engine: Engine) -> dict[str, int]:
    """How many letters there are of each reason, most first."""
    count = func.count()
    query = (
        select(_c.reason, count).group_by(_c.reason).order_by(count.desc(), _c.reason)
    )
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def get_letter(engine: Engine, letter_id: int) -> tuple[Letter, Contents] | None:
    """A letter with its contents; None if there is none with that id."""
    letter_query = select(*_letter_columns).where(_c.id == letter_id)
    contents_query = select(_c.key, _c.value, _c.headers).where(_c.id == letter_id)
    with engine.connect() as connection:
        letter = connection.execute(letter_query).one_or_none()
        contents = connection.execute(contents_query).one_or_none()
    if letter is None or contents is None:
        return None
    return Letter(**letter._mapping), Contents(
        key=_bytes(contents.key),
        value=_bytes(contents.value),
        headers=contents.headers,
    )


def _bytes(found: memoryview | bytes | None) -> bytes | None:
    return None if found is None else bytes(found)
