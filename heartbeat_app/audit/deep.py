"""The deep audit: each record that Kafka still has, held against what is stored.

It reads Kafka from its log's begin, judges each record by the documents (`reference`)
and looks up its row or its dead letter. What Kafka no longer has is not verifiable, and
never taken for right.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NamedTuple

from aiokafka.errors import KafkaError

from heartbeat_app.audit.log_reader import ATTEMPTS, LogMoved, LogReader, Part, Record
from heartbeat_app.audit.reference import MICROSECOND_OF_2000, Beat, judge
from heartbeat_app.kafka.client import Admin, LogRange, TopicLog
from heartbeat_app.storage.read.books import PartitionBooks, Rows
from heartbeat_app.storage.read.compare import Letter, Lookup

# Records that are held against the database at once.
PAGE = 10_000
PAGE_BYTES = 16 * 1024 * 1024

# A beat may have a dead letter for these, which are not about the record alone.
NOT_OF_THE_RECORD = {
    "conflict",
    "customer_erased",
    "rejected_by_database",
    "timestamp_in_future",
    "timestamp_past_retention",
    "too_large",
    "too_many_days",
}
# Only a valid beat has a dead letter for these.
OF_BEATS = {"conflict", "too_many_days"}

# Of a larger record the worker may say no more than that it is not strict JSON, see
# docs/reference/dead-letters.md.
MOST_EXPLAINED_BYTES = 256 * 1024

LATEST = 253_402_300_799_999_999  # the last microsecond of the year 9999
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How most write it; all else is judged slowly.
_USUAL = re.compile(
    rb'\{"customer_id": ?"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})", ?'
    rb'"timestamp": ?"(20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]'
    rb'(?:\.[0-9]{1,6})?(?:Z|[+-][0-2][0-9]:[0-5][0-9]))", ?'
    rb'"heart_rate": ?([1-9][0-9]?|1[0-9][0-9]|2[0-9][0-9]|300)\}'
)

LOST = "valid beats are neither a row nor a dead letter"
OTHER_RATE = "beats have a row with another heart rate, and no dead letter"
NO_CONFLICT = "beats have a dead letter `conflict`, and no row that they conflict with"
NO_LETTER = "rejected records have no dead letter"
WRONG_LETTER = "valid beats have a dead letter that calls them invalid"
OTHER_REASON = "rejected records have a dead letter with a reason that is not theirs"
OTHER_VALUE = "dead letters hold another value than their records"
STRAY_LETTER = "dead letters are of offsets at which Kafka has no record"
# Where the retention has dropped dead letters, these may have had one.
MAY_BE_DROPPED = (LOST, OTHER_RATE, NO_LETTER)


@dataclass(slots=True)
class Compared:
    """What came of a partition; offsets in numbers.

    Attributes:
        beats, rejected: Records that are valid, and that are not.
        transactions: Offsets of markers and of aborted records.
        not_verifiable: Offsets of the ledger that were not compared: Kafka no longer
            has them, or holds nothing there, or a batch that was not taken apart.
        wrong: How many of each kind of fault, and the first offset.
    """

    books: PartitionBooks
    beats: int = 0
    rejected: int = 0
    transactions: int = 0
    not_verifiable: int = 0
    wrong: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def verified(self) -> int:
        """How many offsets were compared."""
        return self.beats + self.rejected + self.transactions

    @property
    def problems(self) -> Iterator[str]:
        """What is wrong, in words."""
        dropped = self.books.dropped_dead_letters
        for what, (count, first) in sorted(self.wrong.items()):
            excess = count
            if what in MAY_BE_DROPPED:
                excess, dropped = max(0, count - dropped), max(0, dropped - count)
            if excess:
                yield (
                    f"{self.books}: {excess:,} {what}; the first is of offset "
                    f"{first:,}."
                )
        books = self.books
        for what, found, booked in (
            ("records", self.beats + self.rejected, books.consumed),
            ("offsets of transactions", self.transactions, books.gap),
        ):
            # What is not verifiable may be either.
            if not found <= booked <= found + self.not_verifiable:
                yield (
                    f"{books}: Kafka holds {found:,} {what}, and of "
                    f"{self.not_verifiable:,} offsets it cannot be told, but the "
                    f"ledger has {booked:,}."
                )

    def note(self, what: str, offset: int) -> None:
        """Note a fault."""
        count, first = self.wrong.get(what, (0, offset))
        self.wrong[what] = count + 1, first


@dataclass(slots=True)
class DeepAudit:
    """What came of all partitions.

    Attributes:
        rows: How many rows the records explain.
    """

    partitions: list[Compared] = field(default_factory=list)
    rows: int = 0

    @property
    def verified(self) -> int:
        """How many offsets were compared."""
        return sum(each.verified for each in self.partitions)

    @property
    def not_verifiable(self) -> int:
        """How many were not."""
        return sum(each.not_verifiable for each in self.partitions)

    def problems(self, rows: Rows | None) -> Iterator[str]:
        """What is wrong, in words; `rows` as they were counted."""
        for each in self.partitions:
            yield from each.problems
        if rows is None:
            return
        unexplained = rows.counted - self.rows
        if unexplained > self.not_verifiable:
            yield (
                f"heartbeats has {unexplained:,} rows that no record in Kafka "
                f"explains, and only {self.not_verifiable:,} offsets are not "
                "verifiable."
            )


class Comparer:
    """Compares; its `result` is complete when `run` returns.

    Arguments:
        reader: Opened.
        admin: Of the same brokers.
        progress: Told after each page: offsets done, and of how many.
    """

    def __init__(
        self,
        reader: LogReader,
        admin: Admin,
        progress: Callable[[int, int], None],
    ) -> None:
        self._reader = reader
        self._admin = admin
        self._progress = progress
        self._done = self._total = 0
        self._seen = SeenRows()
        # Of the partition at hand: what the worker could not take apart.
        self._given_up: Sequence[tuple[int, int]] = ()
        self.result = DeepAudit()

    def run(self, lookup: Lookup, partitions: Sequence[PartitionBooks]) -> None:
        """Compare all partitions of the ledger."""
        logs = self._admin.topic_logs({each.topic for each in partitions})
        self._total = sum(each.next_offset - each.first_offset for each in partitions)
        for books in partitions:
            compared = Compared(books)
            self.result.partitions.append(compared)
            self._run_one(lookup, compared, logs.get(books.topic))
        self.result.rows = len(self._seen)

    def _run_one(
        self, lookup: Lookup, compared: Compared, log: TopicLog | None
    ) -> None:
        books = compared.books
        self._given_up = lookup.unreadable(books.topic_id, books.partition)
        at, end = books.first_offset, books.next_offset
        for _ in range(ATTEMPTS):
            held = _held(books, log)
            if held is None or held.begin >= end:
                break
            begin = max(at, held.begin)
            compared.not_verifiable += begin - at
            self._done += begin - at
            at = begin
            if at >= min(end, held.end):
                break
            try:
                parts = self._reader.read(
                    books.topic, books.partition, at, min(end, held.end)
                )
                for page in pages(parts):
                    # Kafka is asked by the name, which may be another topic's by now.
                    # What came before this answer is of the topic that it names.
                    if not self._is_there(books):
                        break
                    self._compare(lookup, compared, page)
                    self._done += page[-1].end - at
                    at = page[-1].end
                    self._progress(self._done, self._total)
            except LogMoved:  # Kafka has deleted them meanwhile
                log = self._admin.topic_logs([books.topic]).get(books.topic)
            except KafkaError:
                if self._is_there(books):
                    raise
                break
            else:
                break
        compared.not_verifiable += end - at
        self._done += end - at
        self._progress(self._done, self._total)

    def _is_there(self, books: PartitionBooks) -> bool:
        return self._admin.topic_ids([books.topic]).get(books.topic) == books.topic_id

    def _compare(
        self, lookup: Lookup, compared: Compared, page: Sequence[Part]
    ) -> None:
        books = compared.books
        letters = lookup.letters(
            books.topic_id, books.partition, page[0].first, page[-1].end
        )
        beats: list[tuple[int, Beat]] = []
        for part in page:
            compared.transactions += part.transactions
            if part.unreadable is not None:
                compared.not_verifiable += part.end - part.first
            # Compacted away, or lost: nobody knows what was there.
            compared.not_verifiable += part.holes
            for record in part.records:
                letter = letters.get(record.offset)
                judgement = judged(record)
                if self._is_given_up(record.offset) or not (
                    judgement.is_sure or letter
                ):
                    compared.not_verifiable += 1
                    continue
                if letter is not None and _is_other_value(lookup, letter, record):
                    compared.note(OTHER_VALUE, record.offset)
                if judgement.beat is not None:
                    beats.append((record.offset, judgement.beat))
                    continue
                compared.rejected += 1
                if letter is None:
                    compared.note(NO_LETTER, record.offset)
                elif judgement.is_sure and letter.reason not in judgement.allowed:
                    compared.note(OTHER_REASON, record.offset)
        compared.beats += len(beats)
        self._look_up(lookup, compared, beats, letters)
        for offset in _strays(page, letters):
            compared.note(STRAY_LETTER, offset)

    def _is_given_up(self, offset: int) -> bool:
        before = bisect_right(self._given_up, (offset, math.inf)) - 1
        return before >= 0 and offset <= self._given_up[before][1]

    def _look_up(
        self,
        lookup: Lookup,
        compared: Compared,
        beats: Sequence[tuple[int, Beat]],
        letters: Mapping[int, Letter],
    ) -> None:
        keys = [
            (beat.customer_id, _EPOCH + timedelta(microseconds=beat.instant))
            for _, beat in beats
        ]
        rows = lookup.rows(keys)
        absent: list[int] = []
        for index, (offset, beat) in enumerate(beats):
            row, letter = rows.get(index), letters.get(offset)
            day = keys[index][1].date()
            if letter is not None and letter.reason not in NOT_OF_THE_RECORD:
                compared.note(WRONG_LETTER, offset)
            if row is not None:
                self._seen.add(row.table, row.place)
                if row.heart_rate != beat.heart_rate and letter is None:
                    compared.note(OTHER_RATE, offset)
            elif day not in lookup.dropped_days and (
                letter is None or letter.reason == "conflict"
            ):
                absent.append(index)
        erased = lookup.erased_among({keys[index][0] for index in absent})
        for index in absent:
            offset = beats[index][0]
            if keys[index][0] not in erased:
                compared.note(NO_CONFLICT if offset in letters else LOST, offset)


class SeenRows:
    """A set of rows, a bit each, by their places in their tables.

    Not by their ids: those of several rows are equal where the sequence was set back.
    """

    def __init__(self) -> None:
        self._tables: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, table: int, place: int) -> None:
        """Add one."""
        bits = self._tables[table]
        where, mask = place >> 3, 1 << (place & 7)
        if where >= len(bits):
            bits.extend(bytes(where + 1 - len(bits)))
        if not bits[where] & mask:
            bits[where] |= mask
            self._count += 1


def pages(parts: Iterator[Part]) -> Iterator[list[Part]]:
    """Parts that are compared at once: bounded in all they hold, never empty."""
    page: list[Part] = []
    records = size = 0
    for part in parts:
        for some in range(0, max(1, len(part.records)), PAGE):
            piece = _piece(part, some)
            page.append(piece)
            records += len(piece.records)
            size += sum(len(each.value or b"") for each in piece.records)
            if max(len(page), records) >= PAGE or size >= PAGE_BYTES:
                yield page
                page, records, size = [], 0, 0
    if page:
        yield page


def _piece(part: Part, some: int) -> Part:
    """The part's records from that index on, at most PAGE, with their offsets."""
    if len(part.records) <= PAGE:
        return part
    rest = part.records[some : some + PAGE]
    first = part.first if some == 0 else rest[0].offset
    after = part.records[some + PAGE : some + PAGE + 1]
    return Part(first, after[0].offset if after else part.end, rest)


def _held(books: PartitionBooks, log: TopicLog | None) -> LogRange | None:
    if log is None or log.topic_id != books.topic_id:
        return None
    return log.partitions.get(books.partition)


class Judgement(NamedTuple):
    """What a record is.

    Attributes:
        beat: The heartbeat, if it is one.
        reasons: Why it is none; all that may be told.
        is_sure: Whether that is sure.
    """

    beat: Beat | None
    reasons: Set[str] = frozenset()
    is_sure: bool = True

    @property
    def allowed(self) -> Set[str]:
        """Which reasons the dead letter of a record that is no beat may have."""
        return self.reasons | (NOT_OF_THE_RECORD - OF_BEATS)


def judged(record: Record) -> Judgement:
    """What the record is, by the documents."""
    if record.is_large:
        return Judgement(None, is_sure=False)
    usual = _USUAL.fullmatch(record.value or b"")
    if usual:
        customer, timestamp, rate = (each.decode() for each in usual.groups())
        with suppress(ValueError):
            instant = datetime.fromisoformat(timestamp)
            microseconds = (instant - _EPOCH) // timedelta(microseconds=1)
            if microseconds >= MICROSECOND_OF_2000:
                return Judgement(Beat(customer, microseconds, int(rate)))
    beat, reasons = judge(record.value, earliest=MICROSECOND_OF_2000, latest=LATEST)
    if beat is None and len(record.value or b"") > MOST_EXPLAINED_BYTES:
        reasons = {*reasons, "not_json"}
    # How deep is too deep is for whoever reads it to say.
    is_sure = beat is not None or "nested_too_deeply" not in reasons
    return Judgement(beat, reasons, is_sure)


def _is_other_value(lookup: Lookup, letter: Letter, record: Record) -> bool:
    """Whether a dead letter that is whole holds another value than Kafka has.

    One that is empty may have been emptied, where a customer was erased.
    """
    if letter.is_excerpt or record.is_large:
        return False
    if letter.sha256 is None and lookup.has_erasures:
        return False
    value = record.value
    return letter.sha256 != (None if value is None else sha256(value).digest())


def _strays(page: Sequence[Part], letters: Mapping[int, Letter]) -> Iterator[int]:
    """Offsets of letters at which a transaction has what there is."""
    for part in page:
        if part.transactions:
            for offset in letters:
                if part.first <= offset < part.end:
                    yield offset
