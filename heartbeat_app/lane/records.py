"""Unpacks whole fetches, in a fifth of the time that aiokafka's own way takes.

That is a generator that makes a ConsumerRecord of each record: it took more than to
decode, check and write the record take together.

A batch that is small when it is decompressed, as producers make them, is unpacked at
once, by aiokafka's parser in C. Any other is taken apart piece by piece, by `_Reader`:
whatever it expands to, little of it is held, and no step takes long. A record that is
too large is not held at all: an excerpt is made of it as it comes by.
"""

from __future__ import annotations

import math
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import msgspec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from heartbeat_app.lane.decompress import (
    PIECE_BYTES,
    UnreadableError,
    decompressed,
    memory,
)

# Where a batch tells its length, and what comes before the bytes that it counts.
LENGTH = struct.Struct(">8xi")
# What comes before a batch's records: base offset, attributes, last offset delta, and
# how many records there are.
HEADER = struct.Struct(">q13xhi30xi")
COUNT = struct.Struct(">i")
MAGIC_AT, ATTRIBUTES_AT, DELTA_AT = 16, 21, 23
IDENTITY_BYTES = ATTRIBUTES_AT
_NO_BATCH: tuple[int, bytes] | None = None
# What a batch of each format has at least: its header, without a record.
LEAST_SIZES = (26, 34, HEADER.size)

# What a record takes in memory beside its bytes; empty ones have eight in a batch.
RECORD_BYTES = 128
# What a header takes in memory beside its bytes. It counts as so many bytes more: a
# megabyte can hold half a million empty ones.
HEADER_BYTES = 64
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
# So much may be held to take batches apart, by all partitions together, where it is not
# a single one that takes more.
MOST_HELD_BYTES = 20 * 1024 * 1024
# A partition whose records nobody takes for so long lets another one's turn come.
PATIENCE_SECONDS = 5.0


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


class DamagedError(Exception):
    """Why a record batch is not as it was written, in words."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A record batch that is not as it was written.

    Kafka's disk or the network may have damaged it: a later fetch, or one from another
    broker, may give it right.

    Attributes:
        offset: The first one that cannot be read.
        next_offset: The one after the batch, as far as the batch can be believed.
        why: In words.
    """

    offset: int
    next_offset: int | None
    why: str

    def __str__(self) -> str:
        end = "" if self.next_offset is None else f" (up to {self.next_offset - 1})"
        return f"the record batch at offset {self.offset}{end} is damaged: {self.why}"


@dataclass(slots=True)
class Unpacked:
    """What was taken out of a fetch.

    Attributes:
        records: The records, ascending by offset, but for those that are too large.
        large: What was made of those.
        unread: What cannot be taken apart.
        size: About as many bytes as all of it takes.
        passed_over: Offsets that are a transaction's own: control batches and aborted
            records.
        is_cut_short: The time was over; more is there.
        damage: Behind all of this comes a batch that has to be fetched again.
    """

    records: list[Record] = field(default_factory=list)
    large: list[Any] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    size: int = 0
    passed_over: int = 0
    is_cut_short: bool = False
    damage: Damage | None = None

    @property
    def explained(self) -> int:
        """How many offsets are a record, cannot be read, or are a transaction's own."""
        unread = sum(each.last - each.first + 1 for each in self.unread)
        return len(self.records) + len(self.large) + unread + self.passed_over


class Unpacker:
    """Takes records out of fetches, of all partitions of a worker; in one thread.

    Arguments:
        max_record_bytes: Of a record's key, value and headers together; one that has
            more is too large.
        large: Makes what is to be made of such a record.
    """

    def __init__(self, max_record_bytes: int, large: Callable[[], Large]) -> None:
        self.max_record_bytes = max_record_bytes
        self.large = large
        self.crowded = -math.inf  # when one had to wait for another
        # Those that are under way.
        self._readers: weakref.WeakSet[_Reader] = weakref.WeakSet()

    def unpack(
        self,
        fetched: Any,
        max_records: int,
        max_bytes: int,
        deadline: float = math.inf,
        log_end: float = math.inf,
    ) -> Unpacked:
        """Take records out of aiokafka's PartitionRecords.

        Stops after the batch that reaches a limit, or in the middle of a large one,
        and goes on there when it is called again; so it does at the deadline, by
        time.thread_time(), maybe without any record. It also stops before a batch that
        is damaged. Follows `_unpack_records` of aiokafka 0.14: control batches and
        aborted transactions are passed over.

        Arguments:
            log_end: No batch reaches beyond that offset.
        """
        # The iterator that is not used holds its object, and so the fetch, in a cycle
        # until the garbage collector comes by, seldom: 60 MB of what was read already.
        fetched._records_iterator = None
        found = Unpacked()
        source: FetchedRecords = fetched._records
        while (
            len(found.records) + len(found.large) < max_records
            and found.size < max_bytes
        ):
            reader = source.reader
            if reader is not None:
                limits = max_records, max_bytes, deadline
                if not self._may(reader):
                    break  # until another one is done
                if not reader.step(fetched, found, *limits):
                    found.is_cut_short = time.thread_time() > deadline
                    break
                source.reader = None
                self._readers.discard(reader)
                continue
            if not source.has_next():
                break
            if time.thread_time() > deadline:
                found.is_cut_short = True
                break
            batch = None
            try:
                batch = source.next_batch()
                _check(fetched, batch, log_end)
                ends = batch.is_control_batch and _is_abort(fetched, batch)
            except DamagedError as why:
                if batch is not None:
                    source.go_back()
                found.damage = _damage(fetched, batch, log_end, str(why))
                break
            if batch.producer_id is not None:
                fetched._consume_aborted_up_to(batch.base_offset)
                if ends:
                    fetched._aborted_producers.discard(batch.producer_id)
            aborted = (
                batch.is_transactional
                and batch.producer_id in fetched._aborted_producers
            )
            if not (batch.is_control_batch or aborted):
                self._read(fetched, batch, found)
                if source.reader is not None:
                    continue
            else:
                begin = max(batch.base_offset, fetched.next_fetch_offset)
                found.passed_over += max(0, batch.next_offset - begin)
            # Not the last record's: compaction may have taken that.
            fetched.next_fetch_offset = max(
                batch.next_offset, fetched.next_fetch_offset
            )
        return found

    def _read(self, fetched: Any, batch: Any, found: Unpacked) -> None:
        """Unpack a batch at once, or begin to take it apart."""
        source: FetchedRecords = fetched._records
        raw = source.raw
        if raw[MAGIC_AT] < 2:
            records, size = _old(fetched, batch, raw, found)
        else:
            reader = _Reader(raw, self.max_record_bytes, self.large)
            whole, size = reader.at_once(batch)
            if whole is None:
                reader.begin()  # it holds nothing before its turn
                source.reader = reader
                return
            records = whole
        if records and records[0].offset < fetched.next_fetch_offset:
            # A fetch begins with the whole batch that holds its offset.
            records = [r for r in records if r.offset >= fetched.next_fetch_offset]
        headers = [len(record.headers) for record in records]
        most = max(headers, default=0)
        if size + most * HEADER_BYTES > self.max_record_bytes and (
            most or _widest(records) > self.max_record_bytes
        ):
            records = self._without_large(records, found)
        found.records += records
        found.size += size + RECORD_BYTES * len(records) + HEADER_BYTES * sum(headers)

    def _without_large(
        self, records: Sequence[Record], found: Unpacked
    ) -> list[Record]:
        kept = []
        for record in records:
            if _weight(record) > self.max_record_bytes:
                found.large.append(_told(record, self.large()))
            else:
                kept.append(record)
        return kept

    def _may(self, reader: _Reader) -> bool:
        """Whether it is the reader's turn, by what all hold together."""
        now = time.monotonic()
        if reader not in self._readers:
            for other in list(self._readers):
                if now - other.stepped > PATIENCE_SECONDS:
                    other.begin()
                    self._readers.discard(other)
            held = sum(each.memory for each in self._readers)
            if self._readers and held + reader.memory > MOST_HELD_BYTES:
                self.crowded = now
                return False
            self._readers.add(reader)
        reader.stepped = now
        return True


def _widest(records: Sequence[Record]) -> int:
    """The most bytes that one of the records, without headers, may have.

    Quicker than to weigh each: many batches have more bytes than a record may have.
    """
    keys = max([len(record.key) for record in records if record.key], default=0)
    values = max([len(record.value) for record in records if record.value], default=0)
    return keys + values


def _weight(record: Record) -> int:
    size = len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        size += HEADER_BYTES + len(name.encode("utf-8", "surrogateescape"))
        size += len(value or b"")
    return size


def _told(record: Record, large: Large) -> Any:
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


def _check(fetched: Any, batch: Any, log_end: float) -> None:
    """Look whether a batch is as it was written.

    Raises:
        DamagedError: It is not.
    """
    if fetched._check_crcs and not batch.validate_crc():
        raise DamagedError("its checksum is wrong")
    # No checksum is over the first offset; beyond the end all else would be lost.
    if batch.next_offset > log_end:
        raise DamagedError(
            f"it says that its last offset is {batch.next_offset - 1}, and the log "
            f"ends at {log_end}"
        )


def _damage(fetched: Any, batch: Any, log_end: float, why: str) -> Damage:
    at = fetched.next_fetch_offset
    end = None if batch is None else batch.next_offset
    return Damage(at, end if end is not None and at < end <= log_end else None, why)


def _is_abort(fetched: Any, batch: Any) -> bool:
    """Whether a control batch is the end of a transaction that was aborted.

    Raises:
        DamagedError: Nobody can tell.
    """
    try:
        return bool(fetched._contains_abort_marker(batch))
    except Exception as error:
        if type(error) is KafkaError:
            # Compaction keeps the last batch of a producer, but not the marker in it,
            # nor the records that it was about. aiokafka raises, and would for ever.
            return False
        raise DamagedError(f"its control record cannot be read ({error!r})") from error


def _old(
    fetched: Any, batch: Any, raw: memoryview, found: Unpacked
) -> tuple[list[Record], int]:
    """Unpack a message of the formats before Kafka 0.11, and how many bytes it has.

    Where it holds others, and is too large for that, it is not read.
    """
    last = batch.next_offset - 1
    codec, size = raw[MAGIC_AT + 1] & 7, len(raw)
    try:
        if codec:
            at = MAGIC_AT + (10 if raw[MAGIC_AT] else 2)
            for _ in range(2):  # the key, and then the value
                (length,) = struct.unpack_from(">i", raw, at)
                begin, at = at + 4, at + 4 + max(length, 0)
            size = 0
            for piece in decompressed(codec, raw[begin:at]):
                size += len(piece)
                if size > PIECE_BYTES:
                    raise UnreadableError(
                        f"It is of the format before Kafka 0.11 and expands to more "
                        f"than {PIECE_BYTES:,} bytes."
                    )
        records = _records_of(batch)
    except UnreadableError as why:
        found.unread.append(Unread(fetched.next_fetch_offset, last, str(why)))
    except Exception as error:  # noqa: BLE001 (they fail as it comes, and for ever)
        words = f"It is of the format before Kafka 0.11 and broken: {error!r}."
        found.unread.append(Unread(fetched.next_fetch_offset, last, words))
    else:
        return records, size
    return [], 0


class FetchedRecords:
    """In the place of aiokafka's MemoryRecords: keeps the bytes of the batch at hand.

    Attributes:
        reader: What takes a batch apart that is not unpacked at once, until it is done.
        last_batch: An offset of the batch that `next_batch` returned last and that was
            not gone back from, and its first bytes. No other batch begins with them:
            they hold that offset, the length, the leader's epoch and the checksum.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._begin = self._end = 0
        self.last_batch = self._batch_before = _NO_BATCH
        self.reader: _Reader | None = None

    def size_in_bytes(self) -> int:
        """How many bytes were fetched."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether there is another batch. The end of a fetch may cut one off.

        Kafka sends the first one whole.
        """
        rest = len(self._data) - self._end
        if not self._end:
            return rest > 0
        return rest >= LENGTH.size and self._length() <= rest - LENGTH.size

    def _length(self) -> int:
        return int(LENGTH.unpack_from(self._data, self._end)[0])

    @property
    def is_done(self) -> bool:
        """Whether all was taken out of it."""
        return self.reader is None and not self.has_next()

    def next_batch(self) -> Any:
        """The next batch, as aiokafka makes it.

        Raises:
            DamagedError: It cannot be one.
        """
        rest = len(self._data) - self._end
        if rest <= MAGIC_AT:
            raise DamagedError(f"only {rest} bytes of it came")
        length = self._length()
        magic = self._data[self._end + MAGIC_AT]
        if magic >= len(LEAST_SIZES):
            raise DamagedError(f"it says that its format has the number {magic}")
        if not LEAST_SIZES[magic] <= LENGTH.size + length <= rest:
            raise DamagedError(f"it says that it has {length:,} bytes")
        end = self._end + LENGTH.size + length
        raw = memoryview(self._data)[self._end : end]
        if magic == 2:
            batch: Any = DefaultRecordBatch(raw)
            if raw[DELTA_AT] & 0x80:
                raise DamagedError("it says that it ends before it begins")
        else:
            # aiokafka takes it apart at once, and trusts what it says.
            if zlib.crc32(raw[MAGIC_AT:]) != int.from_bytes(
                raw[LENGTH.size : MAGIC_AT]
            ):
                raise DamagedError("its checksum is wrong")
            try:
                batch = LegacyRecordBatch(raw, magic)
            except Exception as error:
                raise DamagedError(f"it cannot be taken apart ({error!r})") from error
        self._begin, self._end = self._end, end
        self._batch_before = self.last_batch
        identity = bytes(raw[:IDENTITY_BYTES])
        self.last_batch = int.from_bytes(identity[: LENGTH.size - 4]), identity
        return batch

    def begins_with(self, identity: bytes) -> bool:
        """Whether its first batch is the one of that `last_batch`."""
        return self._data.startswith(identity)

    def go_back(self) -> None:
        """Have the batch that `next_batch` returned last come again."""
        self._end = self._begin
        self.last_batch = self._batch_before

    @property
    def raw(self) -> memoryview:
        """The bytes of the batch that `next_batch` returned last."""
        return memoryview(self._data)[self._begin : self._end]


def _records_of(batch: Any) -> list[Record]:
    return [Record(r.offset, r.key, r.value, r.headers or ()) for r in batch]


fetcher.MemoryRecords = FetchedRecords


class _Group(NamedTuple):
    """Records that were unpacked at once, and how many bytes they count."""

    records: list[Record]
    size: int


class _Reader:
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
            records = _records_of(batch)
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
                    found.size += _weight(item) + RECORD_BYTES
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
                record.headers and _weight(record) > self._max_record_bytes
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
