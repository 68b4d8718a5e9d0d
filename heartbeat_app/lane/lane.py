"""The lane's state: which topics use it, where their partitions stand."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from faust.types import TP

from heartbeat_app.lane.fetched import Damage, NotAllowed
from heartbeat_app.lane.records import Large, LargeRecord
from heartbeat_app.lane.unpack import Unpacker

# What may wait for the agent, so that memory is bounded in bytes: two chunks keep it
# busy (one being written, one ready), and the sum over all partitions has a limit.
MAX_WAITING_CHUNKS = 2
MAX_WAITING_BYTES = 16 * 1024 * 1024
# The last one let in may be as large as a fetch of usual records: chunks that fill up
# what is left are many small transactions. Beyond that only partitions of which nothing
# waits have chunks let through, which end after the batch that brings them to so many
# bytes; and none at all beyond this.
LEAST_CHUNK_BYTES = 256 * 1024
MOST_WAITING_BYTES = 21 * 1024 * 1024
# Nothing is read while the topics' ids were not looked up for so long: a process that
# was frozen would take the records of a topic that was made again for the old one's.
MAX_ID_AGE_SECONDS = 2.0


class Ledger(Protocol):
    """Where the lane resumes from. Calls may block; they are made in threads."""

    def next_offsets(
        self, topic_id: str, partitions: Collection[int]
    ) -> Mapping[int, int]:
        """The offset to go on at, for the partitions that the ledger knows."""
        ...

    def open(self, topic: str, topic_id: str, beginnings: Mapping[int, int]) -> None:
        """Begin the books of partitions of which nothing was ever kept.

        A partition that another worker began meanwhile stays as it is.
        """
        ...


@dataclass(slots=True, eq=False)
class Partition:
    """One assigned partition of a lane topic.

    The consumer's thread writes it. The main thread notes in `waiting` and `done` what
    was acknowledged, and in `reported` that a truncated log was told.
    """

    topic_id: str
    epoch: int
    expected: int  # the offset after the last chunk handed out
    done: int  # the offset after the last chunk acknowledged
    waiting: dict[int, int] = field(default_factory=dict)  # chunk's position: bytes
    # An offset of the last batch that was taken, and its first bytes: a log that still
    # has it has lost nothing that was read before.
    last_batch: tuple[int, bytes] | None = None
    # How often in a row the log seemed to end before what was read, or, while it is
    # truncated, the last batch was looked for.
    looks: int = 0
    # The log turned out shorter than what was read from it: nothing is read until it
    # has the last batch again, the topic's id changes or a person decides.
    truncated: bool = False
    truncated_at: float = 0.0  # by time.monotonic()
    reported: bool = False
    # Why what comes next cannot be read, and when that was told.
    damage: Damage | NotAllowed | None = None
    damage_told: float = -math.inf
    # Nothing is fetched before that moment, by time.monotonic().
    fetched_again: float = -math.inf
    # How often a batch went on being taken apart: a sign of life while none of its
    # records is ready.
    steps: int = 0
    served: float = 0.0  # when it had its turn to be unpacked, by time.monotonic()


class Lane:
    """Which topics use the lane, and how far each assigned partition is.

    Arguments:
        topics: Names of the topics whose agents get chunks.
        ledger: Where to resume from.
        topic_ids: Looks up the ids of topics by name; may block, is called in a
            thread; leaves out topics that do not exist.
        max_record_bytes: Of a record's key, value and headers together (each header
            counts 64 bytes more). One that has more is never held whole.
        large: Makes what takes its place in a chunk.
    """

    def __init__(
        self,
        topics: Iterable[str],
        ledger: Ledger,
        topic_ids: Callable[[Collection[str]], Mapping[str, str]],
        *,
        max_record_bytes: int = 1024 * 1024,
        large: Callable[[], Large] = LargeRecord,
    ) -> None:
        self.topics = frozenset(topics)
        self.ledger = ledger
        self.topic_ids = topic_ids
        self.unpacker = Unpacker(max_record_bytes, large)
        self.partitions: dict[TP, Partition] = {}
        # When one had to wait for others, since they hold all that may be held.
        self.crowded = -math.inf
        # What the last chunks took their agent.
        self.seconds_to_store = 0.0
        self._epochs = itertools.count(1)
        self._ids_asked = -math.inf

    def of(self, tps: Iterable[TP]) -> set[TP]:
        """Those of the partitions that belong to the lane."""
        return {tp for tp in tps if tp.topic in self.topics}

    def in_turn(self, tps: Iterable[TP]) -> list[TP]:
        """Those that are read, who had their turn last at the end."""
        partitions = dict(self.partitions)  # the main thread may forget some
        return sorted(
            (tp for tp in tps if tp in partitions),
            key=lambda tp: partitions[tp].served,
        )

    def start(self, tp: TP, topic_id: str, offset: int, *, end: int) -> None:
        """Begin (again) at an offset; what was handed out before becomes stale.

        `end` is where the log ends; one that ends before the offset was truncated.
        """
        before = self.partitions.get(tp)
        now = time.monotonic()
        partition = self.partitions[tp] = Partition(
            topic_id,
            epoch=next(self._epochs),
            expected=offset,
            done=offset,
            truncated=end < offset,
            truncated_at=now,
            served=now,
        )
        if before is not None and before.topic_id == topic_id:
            partition.last_batch = before.last_batch
            if before.truncated:
                # Once seen it stays: a log that has grown past the offset again would
                # hide that its records there are others.
                partition.truncated = True
                partition.truncated_at = before.truncated_at
                partition.reported = before.reported

    def ids_are_right(self, asked: float) -> None:
        """The ids were as they are here when that was asked, by time.monotonic()."""
        self._ids_asked = asked

    def forget(self, tps: Iterable[TP]) -> None:
        """Drop partitions that were taken away; their chunks become stale."""
        for tp in tps:
            self.partitions.pop(tp, None)

    def has_room(self, tp: TP, waiting_bytes: int) -> bool:
        """Whether one more chunk of the partition may be handed out.

        Arguments:
            waiting_bytes: What is waiting; to count it takes a while.
        """
        partition = self.partitions.get(tp)
        if partition is None or partition.truncated:
            return False
        if time.monotonic() - self._ids_asked > MAX_ID_AGE_SECONDS:
            return False
        limit = MAX_WAITING_BYTES if partition.waiting else MOST_WAITING_BYTES
        return len(partition.waiting) < MAX_WAITING_CHUNKS and waiting_bytes < limit

    def is_crowded(self) -> bool:
        """Whether partitions of which nothing is read may be waiting for the others."""
        return time.monotonic() - max(self.crowded, self.unpacker.crowded) < 2.0

    def is_full(self) -> bool:
        """Whether no partition may have a chunk more."""
        return self.waiting_bytes() >= MOST_WAITING_BYTES

    def is_idle(self) -> bool:
        """Whether no chunk waits for the agent or is with it."""
        return not any(
            partition.waiting for partition in list(self.partitions.values())
        )

    def waiting_bytes(self) -> int:
        """Bytes of all chunks that wait for the agent or are with it."""
        return sum(
            size
            for partition in list(self.partitions.values())
            for size in list(partition.waiting.values())
        )

    def is_current(self, tp: TP, epoch: int) -> bool:
        """Whether a chunk of that epoch may still be processed."""
        partition = self.partitions.get(tp)
        return partition is not None and partition.epoch == epoch

    def release(self, tp: TP, position: int) -> None:
        """Make room: the chunk that ends at `position` was processed."""
        partition = self.partitions.get(tp)
        if partition is not None:
            partition.waiting.pop(position, None)
            partition.done = position
