"""Takes a record batch apart: at once if it is small, or else piece by piece.

A batch that is small when it is decompressed, as producers make them, is parsed at
once, by aiokafka's parser in C. Any other is taken apart piece by piece: whatever it
expands to, little of it is held, and no step takes long. A record that is too large is
not held at all: an excerpt is made of it as it comes by.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from heartbeat_app.lane.decompress import (
    PIECE_BYTES,
    UnreadableError,
    decompressed,
    memory,
)
from heartbeat_app.lane.fetched import ATTRIBUTES_AT, HEADER, Unpacked
from heartbeat_app.lane.records import (
    HEADER_BYTES,
    RECORD_BYTES,
    Large,
    LargeRecord,
    Record,
    Unread,
    records_of,
    weight,
)

COUNT = struct.Struct(">i")
# A batch with more records is not unpacked at once.
MOST_AT_ONCE = 50_000
# Nor is one that may hold very many headers: an empty one is two bytes of 0. As many as
# fit into so many bytes do no harm.
HARMLESS_BYTES = 256 * 1024
# More than what is in a record beside key, value and headers.
BESIDE_BYTES = 64 * 1024
# What is looked at one by one takes microseconds each: the headers of a record that is
# too large, beyond which they pass by as they are encoded, and the records of a batch,
# beyond which it is unreadable. librdkafka makes a million at most, and 10,000 unless
# told.
MOST_HEADERS = 10_000
MOST_RECORDS = 1_000_000
FEED_BYTES = 64 * 1024
# So many small records of a batch that is taken apart are unpacked at once.
MOST_IN_A_GROUP = 5_000
LEAST_IN_A_GROUP = 8
MOST_BYTES_IN_A_GROUP = 16 * 1024  # of a record
# The time is looked at after so many that are not: to ask for it takes a microsecond.
RECORDS_A_LOOK = 64


class _Group(NamedTuple):
    """Records that were unpacked at once, and how many bytes they count."""

    records: list[Record]
    size: int


class BatchReader:
    """Takes a batch apart.

    Attributes:
        memory: About how many bytes it may hold.
        stepped: When it went on last, by time.monotonic().
    """

    def __init__(
        self, raw: memoryview, max_record_bytes: int, large: Callable[[], Large]
    ) -> None:
        self._base, attributes, self._last_delta, self._count = HEADER.unpack_from(raw)
        self._codec = attributes & 7
        self._raw = raw
        self._data = raw[HEADER.size :]
        self._max_record_bytes = max_record_bytes
        self._large = large
        self.memory = memory(self._codec, self._data) + PIECE_BYTES
        self.stepped = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin anew: what was given already is passed over."""
        self._pieces = decompressed(self._codec, self._data)
        self._buffer: bytes | memoryview = b""
        self._at = 0  # in the buffer
        self._before = 0  # bytes that came before the buffer
        self._has_ended = False
        self._error: UnreadableError | None = None
        self._items: Generator[Any] | None = None
        self._has_groups = True

    def at_once(self, batch: Any) -> tuple[list[Record] | None, int]:
        """All records, and how many bytes they are; None: take it apart.

        Arguments:
            batch: As aiokafka made it.
        """
        plain: bytes | memoryview = self._raw
        if not self._codec:
            if len(plain) > PIECE_BYTES:
                return None, 0
        else:
            parts: list[bytes | memoryview] = []
            size = 0
            while len(parts) < 100:
                if not (piece := self._next_piece()):
                    break
                parts.append(piece)
                size += len(piece)
                if size > PIECE_BYTES:
                    break
            self._buffer = b"".join(parts)
            if not self._has_ended or self._error:
                return None, 0
            plain = self._uncompressed(self._count, self._buffer)
            batch = DefaultRecordBatch(plain)
        if not 0 <= self._count <= MOST_AT_ONCE:
            return None, 0
        return self._parsed(batch, plain, self._count), len(plain)

    def _uncompressed(self, count: int, records: bytes | memoryview) -> bytes:
        """A batch of that many records that is not compressed."""
        codec_at = ATTRIBUTES_AT + 1
        return b"".join(
            [
                self._raw[:codec_at],
                bytes([self._raw[codec_at] & ~7]),
                self._raw[codec_at + 1 : HEADER.size - COUNT.size],
                COUNT.pack(count),
                records,
            ]
        )

    def _parsed(
        self, batch: Any, plain: bytes | memoryview, count: int
    ) -> list[Record] | None:
        """All of its records by aiokafka's parser; None: it may be harmful, or odd.

        Whoever looks at one by one finds what is odd, and reads names of headers that
        are no UTF-8.
        """
        if (
            len(plain) > HARMLESS_BYTES
            and bytes(plain).count(0) > 16 * count + HARMLESS_BYTES // 16
        ):
            return None
        try:
            records = records_of(batch)
        except (CorruptRecordException, ValueError, IndexError, OverflowError):
            return None
        return records if self._are_in_order(records) else None

    def _are_in_order(self, records: Sequence[Record]) -> bool:
        if not records:
            return True
        first, last = records[0].offset, records[-1].offset
        if first < self._base or last > self._base + self._last_delta:
            return False
        offsets = list(map(attrgetter("offset"), records))
        return offsets == list(range(first, first + len(records))) or all(
            before < after for before, after in pairwise(offsets)
        )

    def step(
        self,
        fetched: Any,
        found: Unpacked,
        max_records: int,
        max_bytes: int,
        deadline: float,
    ) -> bool:
        """Go on until a limit or the deadline; whether the batch is done."""
        if self._items is None:
            self._items = self._take_apart(fetched.next_fetch_offset)
        last = self._base + self._last_delta
        taken = 0
        try:
            for item in self._items:
                if type(item) is Record:
                    found.records.append(item)
                    found.size += weight(item) + RECORD_BYTES
                    fetched.next_fetch_offset = item.offset + 1
                    taken += 1
                elif type(item) is _Group:
                    found.records += item.records
                    found.size += item.size + RECORD_BYTES * len(item.records)
                    fetched.next_fetch_offset = item.records[-1].offset + 1
                    taken = 0
                elif item is not None:
                    found.large.append(item)
                    found.size += FEED_BYTES
                    fetched.next_fetch_offset = item.offset + 1
                    taken = 0
                else:
                    taken = 0
                if (
                    found.size >= max_bytes
                    or len(found.records) + len(found.large) >= max_records
                    or (taken % RECORDS_A_LOOK == 0 and time.thread_time() > deadline)
                ):
                    return False
        except UnreadableError as why:
            if fetched.next_fetch_offset <= last:
                found.unread.append(Unread(fetched.next_fetch_offset, last, str(why)))
        fetched.next_fetch_offset = max(last + 1, fetched.next_fetch_offset)
        return True

    def _take_apart(self, start: int) -> Generator[Any]:
        """The records from that offset on; None is a step without any."""
        before = -1
        number = 0
        while number < self._count:
            if number == MOST_RECORDS:
                raise UnreadableError(
                    f"It has {self._count:,} records; at most {MOST_RECORDS:,} of a "
                    "batch are read."
                )
            group = self._group(min(self._count, MOST_RECORDS) - number, before)
            if group is not None:
                number += len(group.records)
                before = group.records[-1].offset - self._base
                rest = [each for each in group.records if each.offset >= start]
                yield _Group(rest, group.size) if rest else None
                continue
            number += 1
            if not self._has(5):
                yield from self._fill(5)
            length, size = self._number(self._at)
            self._at += size
            if length < 0:
                raise UnreadableError("A record has a negative length.")
            record: Any = None
            if length <= self._max_record_bytes + BESIDE_BYTES:
                if not self._has(length):
                    yield from self._fill(length)
                    if not self._has(length):
                        raise UnreadableError("It ends in the middle of a record.")
                delta, record = self._held(self._at + length)
                if record is not None:
                    self._at += length
            if record is None:
                delta, record = yield from self._passed(length, start)
            if not before < delta <= self._last_delta:
                raise UnreadableError("The offsets of its records are not in order.")
            before = delta
            if self._base + delta >= start:
                yield record
        if before < self._last_delta:
            yield from self._fill(1)
            if self._has(1):
                raise UnreadableError("It holds more than it has records.")

    def _group(self, most: int, before: int) -> _Group | None:
        """The small records that are whole in the buffer, if there are several.

        Arguments:
            most: How many there may be.
            before: The offset that they come after, counted from the batch's first.
        """
        if not self._has_groups:
            return None
        buffer, at, count = self._buffer, self._at, 0
        limit = min(MOST_BYTES_IN_A_GROUP, self._max_record_bytes)
        end = min(len(buffer), at + HARMLESS_BYTES)
        while count < min(most, MOST_IN_A_GROUP) and end - at >= 5:
            try:
                length, size = self._number(at)
            except UnreadableError:
                break
            if not 0 <= length <= limit or end - at < size + length:
                break
            at += size + length
            count += 1
        if count < LEAST_IN_A_GROUP:
            return None
        plain = self._uncompressed(count, buffer[self._at : at])
        records = self._parsed(DefaultRecordBatch(plain), plain, count)
        if (
            not records
            or records[0].offset <= self._base + before
            or any(
                record.headers and weight(record) > self._max_record_bytes
                for record in records
            )
        ):
            # Not to look at the same ones again and again.
            self._has_groups = False
            return None
        headers = sum(len(record.headers) for record in records)
        group = _Group(records, at - self._at + HEADER_BYTES * headers)
        self._at = at
        return group

    def _has(self, size: int) -> bool:
        return len(self._buffer) - self._at >= size

    def _next_piece(self) -> bytes | memoryview:
        """The next piece; an empty one says nothing of the end."""
        try:
            piece = next(self._pieces, None)
        except UnreadableError as error:
            self._error, piece = error, None
        if piece is None:
            self._has_ended = True
            return b""
        return piece

    def _fill(self, size: int) -> Generator[None]:
        """Have so many bytes in the buffer, or all that there are."""
        while not self._has(size):
            yield None
            if self._has_ended:
                if self._error:
                    raise self._error
                return
            piece = self._next_piece()
            rest = self._buffer[self._at :]
            self._before += self._at
            self._at = 0
            self._buffer = b"".join((rest, piece)) if len(rest) else piece

    def _number(self, at: int) -> tuple[int, int]:
        """A number of Kafka's variable length, and how many bytes it takes."""
        buffer = self._buffer
        found = shift = 0
        for size in range(1, 11):
            if at >= len(buffer):
                break
            byte = buffer[at]
            at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (found >> 1) ^ -(found & 1), size
            shift += 7
        else:
            raise UnreadableError("A number in it has too many bytes.")
        raise UnreadableError("It ends in the middle of a record.")

    def _held(self, end: int) -> tuple[int, Record | None]:
        """The record in the buffer up to there; None: it is too large."""
        number = self._number
        at = self._at + 1  # its attributes
        at += number(at)[1]  # its timestamp
        delta, size = number(at)
        at += size
        key, at = self._part(at, end)
        value, at = self._part(at, end)
        count, size = number(at)
        at += size
        if count < 0 or 2 * count > end - at:
            raise UnreadableError(f"A record has {count:,} headers.")
        weight = len(key or b"") + len(value or b"") + HEADER_BYTES * count
        headers: list[tuple[str, bytes | None]] = []
        if weight <= self._max_record_bytes and count:
            for _ in range(count):
                name, at = self._part(at, end)
                content, at = self._part(at, end)
                if name is None:
                    raise UnreadableError("A header has no name.")
                weight += len(name) + len(content or b"")
                headers.append((name.decode("utf-8", "surrogateescape"), content))
        if weight > self._max_record_bytes:
            return delta, None
        if at != end:
            raise UnreadableError("A record is not as long as it says.")
        return delta, Record(self._base + delta, key, value, headers or ())

    def _part(self, at: int, end: int) -> tuple[bytes | None, int]:
        size, taken = self._number(at)
        at += taken
        if size < 0:
            return None, at
        if at + size > end:
            raise UnreadableError("A record is not as long as it says.")
        return bytes(self._buffer[at : at + size]), at + size

    def _passed(
        self, length: int, start: int
    ) -> Generator[None, None, tuple[int, Any]]:
        """What is made of a large record while it passes by."""
        end = self._before + self._at + length
        yield from self._fill(min(length, 32))
        self._at += 1  # its attributes
        yield from self._next_number()  # its timestamp
        delta = yield from self._next_number()
        is_new = self._base + delta >= start
        large: Large = self._large() if is_new else LargeRecord()
        yield from self._pass_part(large, large.key, end)
        yield from self._pass_part(large, large.value, end)
        count = yield from self._next_number()
        if count < 0:
            raise UnreadableError(f"A record has {count:,} headers.")
        if count > MOST_HEADERS:
            rest = end - self._before - self._at
            large.encoded_headers(rest)
            yield from self._pass(large, rest)
            count = 0
        for _ in range(count):
            yield from self._pass_part(large, large.header_name, end, is_name=True)
            yield from self._pass_part(large, large.header_value, end)
        if self._before + self._at != end:
            raise UnreadableError("A record is not as long as it says.")
        return delta, large.end(self._base + delta)

    def _next_number(self) -> Generator[None, None, int]:
        if not self._has(10):
            yield from self._fill(10)
        number, size = self._number(self._at)
        self._at += size
        return number

    def _pass_part(
        self, large: Large, tell: Callable[[Any], None], end: int, is_name: bool = False
    ) -> Generator[None]:
        size = yield from self._next_number()
        if self._before + self._at + size > end:
            raise UnreadableError("A record is not as long as it says.")
        if size < 0 and is_name:
            raise UnreadableError("A header has no name.")
        tell(None if size < 0 else size)
        yield from self._pass(large, size)

    def _pass(self, large: Large, size: int) -> Generator[None]:
        while size > 0:
            if not self._has(1):
                yield from self._fill(1)
                if not self._has(1):
                    raise UnreadableError("It ends in the middle of a record.")
            some = memoryview(self._buffer)[self._at :][: min(size, FEED_BYTES)]
            large.add(some)
            self._at += len(some)
            size -= len(some)
            yield None
