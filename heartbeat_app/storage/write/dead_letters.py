"""The dead letters: kept by the worker's writer, and to look at."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from heartbeat_app.domain.batches import Batch, Refused, Unreadable
from heartbeat_app.domain.excerpts import Excerpt, size_of
from heartbeat_app.domain.validation import Reason, Refusal
from heartbeat_app.storage.db.prepared import Prepared
from heartbeat_app.storage.db.tables import dead_letters

# PostgreSQL ends a session whose statement has 1 GB or more, for ever the same one. A
# byte takes two characters, and some records of a megabyte fit into a small fetch.
MAX_STATEMENT_BYTES = 2 * 1024 * 1024

INSERT = Prepared(
    "dead_letters_insert",
    (
        "TEXT", "TEXT", "INTEGER", "TIMESTAMPTZ",
        "BIGINT[]", *["BYTEA[]"] * 2, *["TEXT[]"] * 3,
        "BIGINT[]", "BYTEA[]", "TEXT[]", "BIGINT[]",
    ),
    # There already only where a person had the partition read again.
    """
    INSERT INTO dead_letters (
        topic, topic_id, partition, first_seen,
        "offset", key, value, headers, reason, detail,
        record_size, record_sha256, customer_ids, last_offset)
    SELECT $1, $2, $3, $4, "offset", key, value, CAST(headers AS JSONB), reason, detail,
           record_size, record_sha256, CAST(customer_ids AS JSONB), last_offset
    FROM unnest($5, $6, $7, $8, $9, $10, $11, $12, $13, $14) AS new (
        "offset", key, value, headers, reason, detail,
        record_size, record_sha256, customer_ids, last_offset)
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
    size: int | None  # bytes of the value that is kept; None: there is none
    # Where the record is not kept whole: bytes of all of it.
    record_size: int | None
    record_sha256: str | None  # of them, in hexadecimal
    customer_ids: Sequence[str] | None  # who is named in it
    last_offset: int | None  # of an unreadable batch, whose first is `offset`


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
    _c.record_size,
    func.encode(_c.record_sha256, "hex").label("record_sha256"),
    _c.customer_ids,
    _c.last_offset,
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
    """Keep refused records as they were received, or excerpts, with the reason.

    And of what cannot be read where it is.
    """
    unreadable = [_unreadable(each) for each in batch.unreadable]
    for page in _pages([*refused, *unreadable]):
        records = [each.record for each in page]
        excerpts = [
            record if isinstance(record, Excerpt) else None for record in records
        ]
        INSERT.execute(
            connection,
            batch.topic,
            batch.topic_id,
            batch.partition,
            now,
            [record.offset for record in records],
            [record.key for record in records],
            [record.value for record in records],
            [_headers_json(record.headers) for record in records],
            [each.refusal.reason.value for each in page],
            [each.refusal.detail for each in page],
            [each and each.size for each in excerpts],
            [each and each.sha256 for each in excerpts],
            [each and json.dumps(each.customer_ids) for each in excerpts],
            [getattr(record, "last_offset", None) for record in records],
        )


@dataclass(frozen=True, slots=True)
class _Unread:
    """In the place of a record: a batch of which nothing is kept but where it is."""

    offset: int
    last_offset: int
    key: None = None
    value: None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def _unreadable(found: Unreadable) -> Refused:
    return Refused(
        _Unread(found.first, found.last),
        Refusal(Reason.UNREADABLE_BATCH, found.why),
    )


def _pages(refused: Sequence[Refused]) -> Iterator[list[Refused]]:
    """The same in parts that fit into a statement, each record whole."""
    page: list[Refused] = []
    size = 0
    for each in refused:
        page.append(each)
        size += size_of(each.record)
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
