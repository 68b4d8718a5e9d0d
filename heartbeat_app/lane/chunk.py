"""A chunk: all records that one fetch returned for one partition."""

from __future__ import annotations

from dataclasses import dataclass

from faust.types import TP

from heartbeat_app.lane.records import Record


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Accounts for every offset from `asked` up to, not including, `position`.

    Attributes:
        topic, topic_id, partition: Where it comes from. A topic that was deleted and
            made again has another id.
        asked: Offset that the reader asked for.
        position: Offset that it will ask for next.
        missing: How many offsets from `asked` on had fallen out of the log before
            they were read.
        end_offset: End of the log for a reader, as far as the fetch knew it.
        records: The records, ascending by offset. Offsets of the range that are
            neither among them nor missing hold no record for a reader (transaction
            markers, aborted records, compaction).
        size: Bytes of all keys and values.
        epoch: Of the seek that the chunk was read after; chunks of an older epoch
            are stale.
        unexplained: How many offsets of the range hold no record although they are
            neither missing nor a transaction's own (markers, aborted records).
    """

    topic: str
    topic_id: str
    partition: int
    asked: int
    position: int
    missing: int
    end_offset: int
    records: list[Record]
    size: int
    epoch: int
    unexplained: int = 0

    @property
    def tp(self) -> TP:
        """The partition that it is of."""
        return TP(self.topic, self.partition)

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.asked}-{self.position - 1}"


class Chunks(list[Chunk]):
    """What the lane hands to an agent as one message: a topic's chunks of one fetch.

    Of each partition one at most. A message for each would cost Faust more time, while
    records come one by one, than all else.
    """
