"""A batch: what a chunk of records turned out to be, beats and refusals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from heartbeat_app.domain import models
from heartbeat_app.domain.models import Heartbeat, Record
from heartbeat_app.domain.validation import Reason, Refusal, Rules, check


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is no beat, and why."""

    record: Record
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A batch of Kafka's, or its rest, that cannot be taken apart.

    Attributes:
        first, last: Its offsets; the last one belongs to it.
        why: What is wrong with it, in words.
    """

    first: int
    last: int
    why: str

    @property
    def offsets(self) -> int:
        """How many offsets it has."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Accounts for every offset from `asked` up to, not including, `position`.

    Attributes:
        topic, topic_id, partition: Where it comes from.
        asked, position: The range of offsets.
        missing: Offsets from `asked` on that fell out of the log unread.
        end_offset: End of the log, as far as known when the batch was read.
        beats: The valid records, ascending by offset.
        sources: The record that each beat was, at the same index.
        refused: The other records.
        unexplained: Offsets without a record that no transaction explains; of a part
            of a batch at most so many.
        unreadable: What of the range cannot be read, ascending.
    """

    topic: str
    topic_id: str
    partition: int
    asked: int
    position: int
    missing: int
    end_offset: int
    beats: Sequence[Heartbeat]
    sources: Sequence[Record]
    refused: Sequence[Refused]
    unexplained: int = 0
    unreadable: Sequence[Unreadable] = ()

    @property
    def records(self) -> int:
        """How many records it holds."""
        return len(self.beats) + len(self.refused)

    @property
    def gap(self) -> int:
        """How many of its offsets hold no record, and are not missing either."""
        unreadable = sum(each.offsets for each in self.unreadable)
        return self.position - self.asked - self.records - self.missing - unreadable

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.asked}-{self.position - 1}"

    def since(self, offset: int) -> Batch:
        """The part of the batch from that offset on (asked <= offset < position)."""
        if offset == self.asked:
            return self
        keep = [i for i, source in enumerate(self.sources) if source.offset >= offset]
        first = keep[0] if keep else len(self.sources)
        return replace(
            self,
            asked=offset,
            missing=max(0, self.asked + self.missing - offset),
            beats=self.beats[first:],
            sources=self.sources[first:],
            refused=[r for r in self.refused if r.record.offset >= offset],
            unreadable=[
                replace(each, first=max(each.first, offset))
                for each in self.unreadable
                if each.last >= offset
            ],
        )

    def first(self, records: int) -> Batch:
        """The part of the batch up to its record of that number (at least 1)."""
        if records >= self.records:
            return self
        offsets = [
            *(source.offset for source in self.sources),
            *(each.record.offset for each in self.refused),
        ]
        return self.before(sorted(offsets)[records])

    def before(self, end: int) -> Batch:
        """The part of the batch up to, not including, that offset (> asked)."""
        if end >= self.position:
            return self
        keep = sum(source.offset < end for source in self.sources)
        return replace(
            self,
            position=end,
            beats=self.beats[:keep],
            sources=self.sources[:keep],
            refused=[r for r in self.refused if r.record.offset < end],
            # None has a record's offset, so that none is cut in two.
            unreadable=[each for each in self.unreadable if each.last < end],
        )


def decode_records(
    records: Sequence[Record], rules: Rules
) -> tuple[list[Heartbeat], Sequence[Record], list[Refused]]:
    """Split records into beats, the record of each beat, and refusals."""
    beats = _decode_all(records, rules)
    if beats is not None:
        return beats, records, []
    beats, sources, refused = [], [], []
    for record in records:
        found = check(record.value, rules)
        if isinstance(found, Refusal):
            refused.append(Refused(record, found))
        else:
            beats.append(found)
            sources.append(record)
    return beats, sources, refused


def _decode_all(records: Sequence[Record], rules: Rules) -> list[Heartbeat] | None:
    """All beats, or None if any record is refused: the common case, mostly in C."""
    values: Any = [record.value for record in records]
    try:
        beats = [models.decode(value) for value in values]
        # The decoder does not look into fields that it ignores.
        _ = [value.decode() for value in values if not value.isascii()]
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return None
    if not beats:
        return beats
    timestamps = [beat.timestamp for beat in beats]
    if min(timestamps) < rules.earliest or max(timestamps) > rules.latest:
        return None
    if "\x00" in "".join([beat.customer_id for beat in beats]):
        return None
    return beats


def refuse_beats(
    batch: Batch, wrong: Sequence[int], reason: Reason, detail: str
) -> Batch:
    """The batch with the beats of these indexes refused."""
    if not wrong:
        return batch
    indexes = set(wrong)
    keep = [i for i in range(len(batch.beats)) if i not in indexes]
    return replace(
        batch,
        beats=[batch.beats[i] for i in keep],
        sources=[batch.sources[i] for i in keep],
        refused=[
            *batch.refused,
            *(Refused(batch.sources[i], Refusal(reason, detail)) for i in wrong),
        ],
    )
