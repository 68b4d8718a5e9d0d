"""Kafka's record batches, written byte by byte as Kafka's documents have them.

Not aiokafka's builder: that one makes neither control batches nor compacted ones, and
takes only texts for the names of headers.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cramjam
from aiokafka.codec import snappy_encode
from aiokafka.record.util import calc_crc32c

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")

COMMIT, ABORT = 1, 0


@dataclass(frozen=True)
class Entry:
    """A record; its offset counts from the batch's first."""

    delta: int
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()


@dataclass(frozen=True)
class RecordBatch:
    """A batch of the current format ("magic 2").

    Attributes:
        length: How many offsets it has; compaction may have taken records of them.
        producer: Its producer's id; -1 where it has none.
        control: COMMIT or ABORT: a transaction's marker, and no records of a user.
            Its record may be gone: compaction keeps the empty batch.
    """

    first: int
    length: int
    entries: Sequence[Entry]
    codec: str = "none"
    producer: int = -1
    transactional: bool = False
    control: int | None = None

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.first + self.length

    def encode(self) -> bytes:
        """The batch as a broker keeps and sends it."""
        records = b"".join(_record(entry) for entry in self.entries)
        # What compaction has left without records is not compressed any more.
        codec = self.codec if self.entries else "none"
        attributes = CODECS.index(codec)
        attributes |= (self.transactional << 4) | ((self.control is not None) << 5)
        # From the attributes on: what the checksum covers.
        tail = struct.pack(
            ">hiqqqhii",
            attributes, self.length - 1, 0, 0, self.producer,
            0 if self.producer >= 0 else -1, -1, len(self.entries),
        ) + _compressed(records, codec)  # fmt: skip
        return (
            struct.pack(">qiibI", self.first, len(tail) + 9, 0, 2, calc_crc32c(tail))
            + tail
        )


def marker(first: int, producer: int, control: int, *, empty: bool = False) -> Any:
    """The end of a transaction."""
    key = struct.pack(">hh", 0, control)
    entries = [] if empty else [Entry(0, key, struct.pack(">hi", 0, 0))]
    return RecordBatch(
        first, 1, entries, producer=producer, transactional=True, control=control
    )


def _compressed(data: bytes, codec: str) -> bytes:
    if codec == "gzip":
        return gzip.compress(data)
    if codec == "snappy":
        return bytes(snappy_encode(data))  # with the frame that Java's clients write
    if codec == "lz4":
        return bytes(cramjam.lz4.compress(data))
    if codec == "zstd":
        return bytes(cramjam.zstd.compress(data))
    return data


def _record(entry: Entry) -> bytes:
    body = b"\x00" + _varint(0) + _varint(entry.delta)
    body += _bytes(entry.key) + _bytes(entry.value) + _varint(len(entry.headers))
    for name, value in entry.headers:
        body += _bytes(name) + _bytes(value)
    return _varint(len(body)) + body


def _bytes(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _varint(number: int) -> bytes:
    left = (number << 1) ^ (number >> 63)
    found = bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)
