"""What aiokafka fetched of a partition: the bytes of its record batches.

`FetchedRecords` takes the place of aiokafka's MemoryRecords.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from heartbeat_app.lane.records import Record, Unread

if TYPE_CHECKING:
    from heartbeat_app.lane.batch_reader import BatchReader

# Where a batch tells its length, and what comes before the bytes that it counts.
LENGTH = struct.Struct(">8xi")
# What comes before a batch's records: base offset, attributes, last offset delta, and
# how many records there are.
HEADER = struct.Struct(">q13xhi30xi")
MAGIC_AT, ATTRIBUTES_AT, DELTA_AT = 16, 21, 23
IDENTITY_BYTES = ATTRIBUTES_AT
_NO_BATCH: tuple[int, bytes] | None = None
# What a batch of each format has at least: its header, without a record.
LEAST_SIZES = (26, 34, HEADER.size)


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


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """That Kafka lets nobody with this login read the topic.

    Attributes:
        offset: The first one that cannot be read.
    """

    offset: int

    def __str__(self) -> str:
        return "Kafka does not let this login read the topic (ACL: Read)"


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
        self.reader: BatchReader | None = None

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


fetcher.MemoryRecords = FetchedRecords
