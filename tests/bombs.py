"""Record batches that expand to much more than they are, made as producers make them.

And such as no producer makes: broken, or made to lie.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterable, Iterator

import cramjam
import lz4.frame
from aiokafka.record.util import calc_crc32c
from backports import zstd

from tests.record_batches import CODECS

COMPRESSED = CODECS[1:]
MIB = 1024 * 1024


def varint(number: int) -> bytes:
    """Kafka's number of variable length."""
    left = (number << 1) ^ (number >> 63)
    found = bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


def record(
    delta: int,
    value: int = 0,
    *,
    key: int = -1,
    header: int = -1,
    headers: int = 0,
    fill: bytes = b"a",
    end: bytes = b"",
) -> Iterator[bytes]:
    """A record whose parts have so many bytes, piece by piece.

    Arguments:
        header: Of the value of the one header.
        headers: So many empty ones instead.
        end: The value's last bytes, beside the others.
    """
    head = b"\0\0" + varint(delta)
    key_size, value_size = varint(key), varint(value + len(end))
    tail = b"\0" * 2 * headers
    count = varint(headers)
    if header >= 0:
        count = varint(1) + varint(1) + b"h" + varint(header)
    length = len(head + key_size + value_size + count + tail + end)
    length += max(key, 0) + value + max(header, 0)
    yield varint(length) + head + key_size
    yield from filled(max(key, 0), fill)
    yield value_size
    yield from filled(value, fill)
    yield end + count
    yield from filled(max(header, 0), fill)
    yield tail


def filled(size: int, fill: bytes) -> Iterator[bytes]:
    """So many bytes, a megabyte at a time."""
    if not size:
        return
    piece = (fill * (min(size, MIB) // len(fill) + 1))[:MIB]
    for _ in range(size // MIB):
        yield piece
    yield piece[: size % MIB]


def compress(codec: str, pieces: Iterable[bytes]) -> bytes:
    """What a client would send, never held whole but for snappy's raw block."""
    if codec == "gzip":
        gzip = zlib.compressobj(wbits=31)
        return b"".join([*map(gzip.compress, pieces), gzip.flush()])
    if codec == "lz4":
        frame = lz4.frame.LZ4FrameCompressor(block_linked=False)
        begin = frame.begin()
        return b"".join([begin, *map(frame.compress, pieces), frame.flush()])
    if codec == "zstd":
        stream = zstd.ZstdCompressor()
        return b"".join([*map(stream.compress, pieces), stream.flush()])
    if codec == "snappy":  # in Java's frame
        found = [b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)]
        for piece in pieces:
            for begin in range(0, len(piece), 32_768):
                block = cramjam.snappy.compress_raw(piece[begin : begin + 32_768])
                found += [struct.pack(">i", len(block)), bytes(block)]
        return b"".join(found)
    if codec == "raw snappy":  # as librdkafka has it
        return bytes(cramjam.snappy.compress_raw(b"".join(pieces)))
    return b"".join(pieces)


def batch(
    data: bytes,
    codec: str = "none",
    *,
    first: int = 0,
    count: int = 1,
    length: int | None = None,
) -> bytes:
    """A batch around records that are compressed already.

    Arguments:
        count: How many records it says that it has.
        length: How many offsets it has, as many as that unless given.
    """
    attributes = CODECS.index(codec.removeprefix("raw "))
    tail = struct.pack(
        ">hiqqqhii",
        attributes, (count if length is None else length) - 1, 0, 0, -1, -1, -1, count,
    ) + data  # fmt: skip
    return struct.pack(">qiibI", first, len(tail) + 9, 0, 2, calc_crc32c(tail)) + tail


@functools.cache
def many_records(count: int) -> tuple[bytes, ...]:
    """So many records with an empty value."""
    bodies = (b"\0\0" + varint(delta) + b"\1\0\0" for delta in range(count))
    return (b"".join(varint(len(body)) + body for body in bodies),)


def bomb(codec: str, size: int, where: str, *, first: int = 0) -> tuple[bytes, int]:
    """A batch that expands to about so many bytes, and how many records it has."""
    count = 1
    pieces: Iterable[bytes]
    if where == "records":
        count = size // 8
        pieces = many_records(count)
    elif where == "headers":
        pieces = record(0, 1, headers=size // 2)
    else:
        sizes = {"value": 1, where: size}
        pieces = record(
            0,
            sizes["value"],
            key=sizes.get("key", -1),
            header=sizes.get("header", -1),
        )
    return batch(compress(codec, pieces), codec, first=first, count=count), count
