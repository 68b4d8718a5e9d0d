"""Takes compressed bytes apart piece by piece, whatever they expand to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from struct import error as StructError
from struct import unpack_from
from typing import Any

import cramjam
import lz4.frame
from backports import zstd

Pieces = Iterator[bytes | memoryview]

# One piece is as much at most, so that no step takes long. A batch of librdkafka, which
# has a megabyte or 10,000 records, is one piece.
PIECE_BYTES = 1_310_720
# What a batch may expand to in all. A producer's batches have some megabytes; a
# megabyte of zstd can be tens of gigabytes, and minutes of a processor.
MOST_BYTES = 1024 * 1024 * 1024
# Each codec lets data follow each other; empty ones would go on without end.
MOST_FRAMES = 1_000
# zstd holds what it may refer back to. Frames of the highest levels declare 128 MiB,
# also where they hold some kilobytes: what counts is what they come to.
MOST_WINDOW_BYTES = 8 * 1024 * 1024
# A block of snappy is all or nothing.
MOST_SNAPPY_BYTES = 64 * 1024 * 1024
# So many blocks of snappy are looked at to know what the largest one takes.
MOST_LOOKED_AT = 10_000

_XERIAL = b"\x82SNAPPY\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 27}


class UnreadableError(Exception):
    """Why bytes cannot be taken apart, in words."""


def decompressed(codec: int, data: memoryview) -> Pieces:
    """What the bytes expand to, in pieces; an empty piece is a step without any.

    Arguments:
        codec: Kafka's number of it.

    Raises:
        UnreadableError: They are broken, or expand to too much.
    """
    if codec not in _CODECS:
        raise UnreadableError(f"It is compressed by a codec of the number {codec}.")
    name, decompress = _CODECS[codec]
    produced = 0
    try:
        for piece in decompress(data):
            produced += len(piece)
            if produced > MOST_BYTES and codec:
                raise UnreadableError(
                    f"Its {name} data expand to more than {MOST_BYTES:,} bytes."
                )
            yield piece
    except (
        zlib.error,
        zstd.ZstdError,
        cramjam.DecompressionError,
        RuntimeError,  # lz4's
        StructError,
        EOFError,
        ValueError,
    ) as error:
        raise UnreadableError(f"Its {name} data are broken: {error}.") from error


def _plain(data: memoryview) -> Pieces:
    for begin in range(0, len(data), PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]


def _gzip(data: bytes | memoryview) -> Pieces:
    for _ in range(MOST_FRAMES):
        stream = zlib.decompressobj(wbits=31)
        piece = stream.decompress(data, PIECE_BYTES)
        yield piece
        while not stream.eof:
            rest = stream.unconsumed_tail
            if not rest and len(piece) < PIECE_BYTES:
                raise EOFError("they end too soon")
            piece = stream.decompress(rest, PIECE_BYTES)
            yield piece
        data = stream.unused_data.lstrip(b"\0")
        if not data:
            return
    raise UnreadableError(f"Its gzip data are more than {MOST_FRAMES:,} members.")


def _lz4(data: bytes | memoryview) -> Pieces:
    return _frames("lz4", data, lambda: lz4.frame.LZ4FrameDecompressor())


def _zstd(data: bytes | memoryview) -> Pieces:
    return _frames("zstd", data, lambda: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS))


def _frames(
    name: str, data: bytes | memoryview, decompressor: Callable[[], Any]
) -> Pieces:
    """One frame after the other, of a library that has a class for one."""
    for _ in range(MOST_FRAMES):
        window = _window(data)
        stream = decompressor()
        piece = stream.decompress(data, PIECE_BYTES)
        produced = len(piece)
        yield piece
        while not stream.eof:
            if stream.needs_input:
                raise EOFError("they end too soon")
            if produced > MOST_WINDOW_BYTES < window:
                raise UnreadableError(
                    f"A frame of its zstd data has a window of {window:,} bytes, and "
                    f"more than {MOST_WINDOW_BYTES:,}."
                )
            piece = stream.decompress(b"", PIECE_BYTES)
            produced += len(piece)
            yield piece
        data = stream.unused_data
        if not data:
            return
    raise UnreadableError(f"Its {name} data are more than {MOST_FRAMES:,} frames.")


def _window(data: bytes | memoryview) -> int:
    """How much a frame of zstd may refer back to, as its header says; else 0."""
    if len(data) < 6 or data[:4] != _ZSTD:
        return 0
    if data[4] & 0x20:  # a single segment: all of it
        return int(zstd.get_frame_info(bytes(data[:18])).decompressed_size or 0)
    base = 1 << (10 + (data[5] >> 3))
    return base + base // 8 * (data[5] & 7)


def _snappy(data: memoryview) -> Pieces:
    if data[:8] != _XERIAL:  # as librdkafka has it, one block
        yield from _snappy_block(data)
        return
    at = 16  # behind two numbers of a version
    while at < len(data):
        (size,) = unpack_from(">i", data, at)
        at += 4
        if not 0 <= size <= len(data) - at:
            raise EOFError("they end too soon")
        yield from _snappy_block(data[at : at + size])
        at += size


def _snappy_block(data: memoryview) -> Pieces:
    size = cramjam.snappy.decompress_raw_len(data)
    if size > MOST_SNAPPY_BYTES:
        raise UnreadableError(
            f"A block of its snappy data has {size:,} bytes; at most "
            f"{MOST_SNAPPY_BYTES:,} are taken apart."
        )
    if not 0 < size <= PIECE_BYTES:
        yield b""  # a large one not before it is asked for, and of none no end at once
    whole = memoryview(cramjam.snappy.decompress_raw(data))
    for begin in range(0, len(whole), PIECE_BYTES):
        yield whole[begin : begin + PIECE_BYTES]


def memory(codec: int, data: memoryview) -> int:
    """How many bytes the taking apart may hold, beside a few pieces."""
    if codec == 2:
        return _largest_block(data) if data[:8] == _XERIAL else _declared(data)
    return MOST_WINDOW_BYTES if codec in (3, 4) else 0


def _largest_block(data: memoryview) -> int:
    """What the largest block of framed snappy comes to, which is held whole."""
    at = 16
    largest = 0
    for _ in range(MOST_LOOKED_AT):
        if at + 4 > len(data):
            return largest
        (size,) = unpack_from(">i", data, at)
        at += 4
        if not 0 <= size <= len(data) - at:
            return largest  # it is unreadable from here on
        largest = max(largest, _declared(data[at : at + size]))
        at += size
    return MOST_SNAPPY_BYTES


def _declared(block: memoryview) -> int:
    """What a block of snappy comes to; of one that is too large nothing is held."""
    try:
        return min(int(cramjam.snappy.decompress_raw_len(block)), MOST_SNAPPY_BYTES)
    except cramjam.DecompressionError:
        return 0


_CODECS: dict[int, tuple[str, Callable[[memoryview], Pieces]]] = {
    0: ("uncompressed", _plain),
    1: ("gzip", _gzip),
    2: ("snappy", _snappy),
    3: ("lz4", _lz4),
    4: ("zstd", _zstd),
}
