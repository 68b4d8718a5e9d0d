"""Reads Kafka's log for the audit, by requests and with a parser of its own.

Nothing of it is the lane's, so that the one does not repeat the other's mistakes. What
a record batch may expand to is bounded: of a larger one only its offsets are told.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cramjam
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

# Asked for at once; Kafka sends a larger batch whole.
FETCH_BYTES = 1024 * 1024
# What a batch may expand to.
MOST_BYTES = 64 * 1024 * 1024
# Of a record that is larger nobody wants the value.
MOST_VALUE_BYTES = 1024 * 1024
READ_COMMITTED = 1
ATTEMPTS = 10
WAIT_SECONDS = 0.5
REQUEST_TIMEOUT_MS = 15_000

# first offset, length, leader's epoch, format, checksum, attributes, last offset less
# first, two timestamps, producer, its epoch, sequence, records
_HEAD = struct.Struct(">qiibIhiqqqhii")
_COUNTED_FROM = 12
_CODEC, _TRANSACTIONAL, _CONTROL = 0b111, 0b1_0000, 0b10_0000
_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_FRAMED_SNAPPY = b"\x82SNAPPY\x00"


class Unreadable(Exception):
    """A batch that is not taken apart: damaged, unknown, or too large."""


class LogMoved(Exception):
    """Kafka holds the offset no more, or not yet."""


class Record(NamedTuple):
    """A record; `value` is None as well where it is larger than MOST_VALUE_BYTES."""

    offset: int
    value: bytes | None
    is_large: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Accounts for the offsets from `first` up to, not including, `end`.

    Attributes:
        records: What is there for a read_committed reader.
        transactions: How many offsets are a transaction's own.
        unreadable: Why its records are not known; None: they are.
    """

    first: int
    end: int
    records: Sequence[Record] = ()
    transactions: int = 0
    unreadable: str | None = None

    @property
    def holes(self) -> int:
        """How many offsets hold nothing, and no transaction explains them."""
        if self.unreadable is not None:
            return 0
        return self.end - self.first - len(self.records) - self.transactions


class LogReader:
    """Reads partitions from an offset to another; a context manager.

    Arguments:
        connection: How aiokafka's clients reach the brokers.

    Raises aiokafka's KafkaError where Kafka does not answer for some seconds.
    """

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._connection = connection

    def __enter__(self) -> LogReader:
        # Ctrl-C ends what it runs before it raises.
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(self._connect())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with self._runner:
            self._runner.run(self._client.close())

    def read(self, topic: str, partition: int, begin: int, end: int) -> Iterator[Part]:
        """All parts from `begin` up to, not including, `end`, in their order.

        Raises:
            LogMoved: Kafka does not hold them any more.
        """
        at, empty = begin, 0
        while at < end:
            fetched = self._runner.run(self._fetch(topic, partition, at))
            before = at
            for part in parts_of(fetched, at, end):
                yield part
                at = part.end
            empty = 0 if at > before else empty + 1
            if empty == ATTEMPTS:
                raise KafkaError(f"{topic}[{partition}] gives nothing at offset {at}")

    async def _connect(self) -> Any:
        client = AIOKafkaClient(
            client_id="heartbeat_app",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            **self._connection,
        )
        await client.bootstrap()
        return client

    async def _fetch(self, topic: str, partition: int, offset: int) -> Any:
        """The answer of the partition's leader, whoever that is by now."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._ask(topic, partition, offset)
            except (KafkaError, ConnectionError, TimeoutError, OSError):
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(WAIT_SECONDS)
                await self._client.force_metadata_update()
        raise AssertionError

    async def _ask(self, topic: str, partition: int, offset: int) -> Any:
        tp = TopicPartition(topic, partition)
        # Not by the topic's name: a broker may make a topic that one asks for.
        leader = self._client.cluster.leader_for_partition(tp)
        if leader is None:
            await self._client.force_metadata_update()
            leader = self._client.cluster.leader_for_partition(tp)
        if leader is None or leader == -1:
            raise KafkaError(f"{topic}[{partition}] has no leader")
        answer = await self._client.send(
            leader,
            FetchRequest(
                500,
                1,
                2 * FETCH_BYTES,
                READ_COMMITTED,
                [(topic, [(partition, offset, FETCH_BYTES)])],
            ),
        )
        [(_, [found])] = answer.topics
        error = for_code(found[1])
        if error.__name__ == "OffsetOutOfRangeError":
            raise LogMoved(offset)
        if error.errno:
            raise error(f"{topic}[{partition}]")
        # The producers of aborted transactions by their first offsets, and the log.
        aborted = found[-3] if len(found) == 8 else found[-2]  # as from version 11 on
        return bytes(found[-1] or b""), list(aborted or ())


def parts_of(fetched: Any, at: int, end: int) -> Iterator[Part]:
    """What a fetch at the offset `at` holds below `end`, every offset of it."""
    data, aborted = fetched
    begun = sorted(aborted or (), key=lambda each: each[1])
    open_ones: set[int] = set()
    position = 0
    while position + _HEAD.size <= len(data) and at < end:
        head = _HEAD.unpack_from(data, position)
        first, length, _, magic, _, attributes, delta, *_, producer, _, _, count = head
        next_position = position + _COUNTED_FROM + length
        if next_position > len(data):
            break
        body = memoryview(data)[position + _HEAD.size : next_position]
        position = next_position
        if magic != 2:
            # In older formats, where the first is the last offset of what it holds.
            yield Part(at, max(at + 1, min(end, first + 1)), unreadable="old format")
            at = max(at + 1, first + 1)
            continue
        stop = first + delta + 1
        while begun and begun[0][1] < stop:
            open_ones.add(begun.pop(0)[0])
        if stop <= at:
            continue
        before = max(at, first)
        if before > at:
            yield Part(at, min(end, before))
        until = min(end, stop)
        if before < until:
            is_aborted = attributes & _TRANSACTIONAL and producer in open_ones
            if attributes & _CONTROL or is_aborted:
                yield Part(before, until, transactions=until - before)
            else:
                yield _part(before, until, first, attributes, count, body)
        if attributes & _CONTROL:
            open_ones.discard(producer)
        at = stop


def _part(
    begin: int, end: int, first: int, attributes: int, count: int, body: memoryview
) -> Part:
    try:
        records = [
            record
            for record in _records(first, count, _expanded(attributes & _CODEC, body))
            if begin <= record.offset < end
        ]
    except Exception as error:  # noqa: BLE001 (whatever a damaged one makes of it)
        why = str(error) if isinstance(error, Unreadable) else "damaged"
        return Part(begin, end, unreadable=why)
    return Part(begin, end, records)


def _records(first: int, count: int, data: memoryview) -> Iterator[Record]:
    at = 0
    for _ in range(count):
        length, at = _varint(data, at)
        end = at + length
        if length < 0 or end > len(data):
            raise Unreadable("damaged")
        _, at = _varint(data, at + 1)  # behind the attributes, the timestamp
        delta, at = _varint(data, at)
        key, at = _varint(data, at)
        at += max(0, key)
        size, at = _varint(data, at)
        if at + max(0, size) > end:
            raise Unreadable("damaged")
        is_large = length > MOST_VALUE_BYTES
        value = None if size < 0 or is_large else bytes(data[at : at + size])
        yield Record(first + delta, value, is_large)
        at = end


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in the form of Kafka's records, and where the next one begins."""
    found = shift = 0
    while True:
        byte = data[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at
        shift += 7


def _expanded(codec: int, body: memoryview) -> memoryview:
    """What was compressed, at most MOST_BYTES of it."""
    if codec == 0:
        return body
    if codec == _GZIP:
        inflater = zlib.decompressobj(31)
        found = inflater.decompress(body, MOST_BYTES)
        if not inflater.eof:
            raise Unreadable("too large" if inflater.unconsumed_tail else "damaged")
        return memoryview(found)
    if codec == _SNAPPY:
        return memoryview(b"".join(_blocks(bytes(body))))
    if codec in (_LZ4, _ZSTD):
        library: Any = cramjam.lz4 if codec == _LZ4 else cramjam.zstd
        room = 16 * len(body) + 65_536
        while True:
            into = bytearray(min(room, MOST_BYTES))
            try:
                size = library.decompress_into(bytes(body), into)
            except cramjam.DecompressionError as error:
                if "whole buffer" not in str(error):
                    raise
                if room >= MOST_BYTES:
                    raise Unreadable("too large") from error
                room *= 16
            else:
                return memoryview(into)[:size]
    raise Unreadable("unknown codec")


def _blocks(body: bytes) -> Iterator[bytes]:
    blocks = [body]
    if body.startswith(_FRAMED_SNAPPY):
        blocks, at = [], 16
        while at + 4 <= len(body):
            (length,) = struct.unpack_from(">i", body, at)
            blocks.append(body[at + 4 : at + 4 + length])
            at += 4 + length
    library: Any = cramjam.snappy
    if sum(library.decompress_raw_len(block) for block in blocks) > MOST_BYTES:
        raise Unreadable("too large")
    for block in blocks:
        yield bytes(library.decompress_raw(block))
