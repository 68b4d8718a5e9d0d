"""A record of a topic, and what is made of one that is too large to be held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

# What a record takes in memory beside its bytes; empty ones have eight in a batch.
RECORD_BYTES = 128
# What a header takes in memory beside its bytes. It counts as so many bytes more: a
# megabyte can hold half a million empty ones.
HEADER_BYTES = 64


# gc=False: hundreds of thousands of objects that the garbage collector looks at again
# and again, for cycles that they cannot form, took half of the worker's time.
class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of a topic, as it was received."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Large(Protocol):
    """Makes something of a record that is too large, as its parts come by.

    Each part's size (None: it is null) is told before its pieces.
    """

    def key(self, size: int | None) -> None: ...
    def value(self, size: int | None) -> None: ...
    def header_name(self, size: int) -> None: ...
    def header_value(self, size: int | None) -> None: ...
    def encoded_headers(self, size: int) -> None: ...
    def add(self, piece: bytes | memoryview) -> None: ...
    def end(self, offset: int) -> Any: ...


class LargeRecord(msgspec.Struct, gc=False):
    """The least that can be made of a record that is too large: that it was there."""

    offset: int = -1
    size: int = 0

    def key(self, size: int | None) -> None:
        """Begin the key."""

    def value(self, size: int | None) -> None:
        """Begin the value."""

    def header_name(self, size: int) -> None:
        """Begin a header."""

    def header_value(self, size: int | None) -> None:
        """Begin a header's value."""

    def encoded_headers(self, size: int) -> None:
        """Begin headers that are too many to be taken apart, as Kafka has them."""

    def add(self, piece: bytes | memoryview) -> None:
        """Count the bytes of what was begun."""
        self.size += len(piece)

    def end(self, offset: int) -> LargeRecord:
        """All of it came by."""
        self.offset = offset
        return self


@dataclass(frozen=True, slots=True)
class Unread:
    """What of a batch cannot be taken apart.

    Attributes:
        first, last: Its offsets; the last one belongs to it.
        why: In words.
    """

    first: int
    last: int
    why: str


def widest(records: Sequence[Record]) -> int:
    """The most bytes that one of the records, without headers, may have.

    Quicker than to weigh each: many batches have more bytes than a record may have.
    """
    keys = max([len(record.key) for record in records if record.key], default=0)
    values = max([len(record.value) for record in records if record.value], default=0)
    return keys + values


def weight(record: Record) -> int:
    size = len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        size += HEADER_BYTES + len(name.encode("utf-8", "surrogateescape"))
        size += len(value or b"")
    return size


def told(record: Record, large: Large) -> Any:
    """What is made of a record that is held whole."""
    for tell, part in ((large.key, record.key), (large.value, record.value)):
        tell(None if part is None else len(part))
        large.add(part or b"")
    for name, value in record.headers:
        encoded = name.encode("utf-8", "surrogateescape")
        large.header_name(len(encoded))
        large.add(encoded)
        large.header_value(None if value is None else len(value))
        large.add(value or b"")
    return large.end(record.offset)


def records_of(batch: Any) -> list[Record]:
    return [Record(r.offset, r.key, r.value, r.headers or ()) for r in batch]
