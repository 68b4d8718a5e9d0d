"""Unpacks whole fetches, in a fifth of the time that aiokafka's own way takes.

That is a generator that makes a ConsumerRecord of each record: it took more than to
decode, check and write the record take together.
"""

from __future__ import annotations

import math
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka.errors import KafkaError

from heartbeat_app.lane.batch_reader import BatchReader
from heartbeat_app.lane.decompress import (
    PIECE_BYTES,
    UnreadableError,
    decompressed,
)
from heartbeat_app.lane.fetched import (
    MAGIC_AT,
    Damage,
    DamagedError,
    FetchedRecords,
    Unpacked,
)
from heartbeat_app.lane.records import (
    HEADER_BYTES,
    RECORD_BYTES,
    Large,
    Record,
    Unread,
    records_of,
    told,
    weight,
    widest,
)

# So much may be held to take batches apart, by all partitions together, where it is not
# a single one that takes more.
MOST_HELD_BYTES = 20 * 1024 * 1024
# A partition whose records nobody takes for so long lets another one's turn come.
PATIENCE_SECONDS = 5.0


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
        self._readers: weakref.WeakSet[BatchReader] = weakref.WeakSet()

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
            reader = BatchReader(raw, self.max_record_bytes, self.large)
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
            most or widest(records) > self.max_record_bytes
        ):
            records = self._without_large(records, found)
        found.records += records
        found.size += size + RECORD_BYTES * len(records) + HEADER_BYTES * sum(headers)

    def _without_large(
        self, records: Sequence[Record], found: Unpacked
    ) -> list[Record]:
        kept = []
        for record in records:
            if weight(record) > self.max_record_bytes:
                found.large.append(told(record, self.large()))
            else:
                kept.append(record)
        return kept

    def _may(self, reader: BatchReader) -> bool:
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
        records = records_of(batch)
    except UnreadableError as why:
        found.unread.append(Unread(fetched.next_fetch_offset, last, str(why)))
    except Exception as error:  # noqa: BLE001 (they fail as it comes, and for ever)
        words = f"It is of the format before Kafka 0.11 and broken: {error!r}."
        found.unread.append(Unread(fetched.next_fetch_offset, last, words))
    else:
        return records, size
    return [], 0
