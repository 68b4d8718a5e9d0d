"""The dead letters: kept by the worker's writer, and to look at."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from heartbeat_app.batches import Batch, Refused
from heartbeat_app.storage.prepared import Prepared
from heartbeat_app.storage.tables import dead_letters
from heartbeat_app.validation import Reason

# PostgreSQL ends a session whose statement has 1 GB or more, for ever the same one. A
# byte takes two characters, and some records of a megabyte fit into a small fetch.
MAX_STATEMENT_BYTES = 8 * 1024 * 1024

INSERT = Prepared(
    "dead_letters_insert",
    (
        "TEXT", "TEXT", "INTEGER", "TIMESTAMPTZ",
        "BIGINT[]", *["BYTEA[]"] * 2, *["TEXT[]"] * 3,
    ),
    # There already only where a person had the partition read again.
    """
    INSERT INTO dead_letters (
        topic, topic_id, partition, first_seen,
        "offset", key, value, headers, reason, detail)
    SELECT $1, $2, $3, $4, "offset", key, value, CAST(headers AS JSONB), reason, detail
    FROM unnest($5, $6, $7, $8, $9, $10) AS new (
        "offset", key, value, headers, reason, detail)
    ON CONFLICT (topic_id, partition, "offset") DO NOTHING
    """,
)  # fmt: skip


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


def insert_dead_letters(
    connection: Connection, batch: Batch, refused: Sequence[Refused], now: datetime
) -> None:
    """Keep refused records as they were received, with the reason."""
    for page in _pages(refused):
        INSERT.execute(
            connection,
            batch.topic,
            batch.topic_id,
            batch.partition,
            now,
            [each.record.offset for each in page],
            [each.record.key for each in page],
            [each.record.value for each in page],
            [_headers_json(each.record.headers) for each in page],
            [each.refusal.reason.value for each in page],
            [each.refusal.detail for each in page],
        )


def _pages(refused: Sequence[Refused]) -> Iterator[list[Refused]]:
    """The same in parts that fit into a statement, each record whole."""
    page: list[Refused] = []
    size = 0
    for each in refused:
        page.append(each)
        size += len(each.record.key or b"") + len(each.record.value or b"")
        if size >= MAX_STATEMENT_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


def _headers_json(headers: Sequence[tuple[str, bytes | None]]) -> str:
    # A name that is not UTF-8 came out of the lane as lone surrogates.
    return json.dumps(
        [
            [_header_text(name.encode("utf-8", "surrogateescape")), _header_text(value)]
            for name, value in headers
        ]
    )


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
