"""Reads the bytes of a binary COPY, as PostgreSQL's documentation has them."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def fields(rows: bytes) -> list[list[bytes]]:
    """The fields of each row."""
    stream = io.BytesIO(rows)

    def number(size: int) -> int:
        read = stream.read(size)
        assert len(read) == size
        return int.from_bytes(read, signed=True)

    assert stream.read(11) == b"PGCOPY\n\xff\r\n\0"
    assert (number(4), number(4)) == (0, 0)  # flags, length of an extension
    found = []
    while (count := number(2)) != -1:
        row = []
        for _ in range(count):
            length = number(4)
            row.append(stream.read(length))
            assert len(row[-1]) == length
        found.append(row)
    assert not stream.read()
    return found


def instant(field: bytes) -> datetime:
    """A TIMESTAMPTZ."""
    assert len(field) == 8
    return _EPOCH + timedelta(microseconds=int.from_bytes(field, signed=True))


def integer(field: bytes) -> int:
    """An INTEGER."""
    assert len(field) == 4
    return int.from_bytes(field, signed=True)
