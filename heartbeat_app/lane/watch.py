"""Watches the ids of the lane's topics, whether their logs lost their ends, and whether
the ledger went back."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.types import TP
from mode import Service

from heartbeat_app.lane.lane import Lane, Partition

# A topic made again is read from its beginning at most so much later. Until then its
# first records may be booked under the old id, which the natural key absorbs.
INTERVAL_SECONDS = 1.0
# For so long a log may seem to have lost its end, such as to a broker that was frozen.
CERTAIN_SECONDS = 5.0
# What a promoted standby lacks is read again so much later at most.
LEDGER_SECONDS = 2.0


class TopicWatch(Service):
    """Starts a topic anew when it was deleted and made again."""

    def __init__(self, app: Any, lane: Lane, **kwargs: Any) -> None:
        self.app = app
        self.lane = lane
        super().__init__(**kwargs)

    @Service.timer(INTERVAL_SECONDS)
    async def _watch(self) -> None:
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001 (Kafka away: the next look tells)
            self.log.debug("Cannot look up the topics' ids: %r", error)

    async def look(self) -> None:
        """Compare the ids once, and restart what changed."""
        if self.app.rebalancing or not self.lane.partitions:
            return
        # Before the ids: what is still truncated with the same id afterwards is so.
        truncated = {
            tp: partition
            for tp, partition in self.lane.partitions.items()
            if partition.truncated
            and not partition.reported
            and (
                partition.last_batch is None
                or time.monotonic() - partition.truncated_at >= CERTAIN_SECONDS
            )
        }
        asked = time.monotonic()
        ids = await asyncio.to_thread(self.lane.topic_ids, self.lane.topics)
        for topic, topic_id in ids.items():
            changed = {
                tp
                for tp, partition in list(self.lane.partitions.items())
                if tp.topic == topic and partition.topic_id != topic_id
            }
            if changed:
                self.log.warning(
                    "The topic %s was deleted and made again: reading the new one "
                    "from its beginning.",
                    topic,
                )
                await self._restart(changed)
        # One that is away right now may be another when it is back.
        if ids.keys() >= {tp.topic for tp in self.lane.partitions}:
            self.lane.ids_are_right(asked)
            self.app.consumer.wake()
        for tp, partition in truncated.items():
            if partition.truncated and self.lane.is_current(tp, partition.epoch):
                partition.reported = True
                self.log.critical(
                    "%s[%d]: the log ends before offset %d, which was already read "
                    "and stored, and the topic is the same. Kafka lost records (an "
                    "unclean election, a restored broker?). Nothing is read from it "
                    "until the records are back or a person decides; see "
                    "docs/how-to/troubleshooting.md.",
                    tp.topic,
                    tp.partition,
                    partition.expected,
                )

    @Service.timer(LEDGER_SECONDS)
    async def _watch_ledger(self) -> None:
        try:
            await self.look_at_ledger()
        except Exception as error:  # noqa: BLE001 (away: the next look tells)
            self.log.debug("Cannot look at the ledger: %r", error)

    async def look_at_ledger(self) -> None:
        """Compare with the ledger once, and go back where it did.

        A batch that is stored notices it, too. But where the last records of a
        partition were lost, with a primary whose standby had not got them yet, the next
        one may come late or never.
        """
        if self.app.rebalancing:
            return
        by_id: defaultdict[str, dict[TP, Partition]] = defaultdict(dict)
        for tp, partition in self.lane.partitions.items():
            if not partition.truncated:
                by_id[partition.topic_id][tp] = partition
        for topic_id, partitions in by_id.items():
            # Before the answer, which may be older.
            done = {tp: each.done for tp, each in partitions.items()}
            found = await asyncio.to_thread(
                self.lane.ledger.next_offsets, topic_id, [tp.partition for tp in done]
            )
            behind = {
                tp
                for tp, each in partitions.items()
                if found.get(tp.partition, -1) < done[tp]
                and self.lane.is_current(tp, each.epoch)
            }
            if behind:
                self.log.warning(
                    "The ledger went back (a promoted standby, a restored backup?): "
                    "reading again from its offsets: %s",
                    ", ".join(
                        f"{tp.topic}[{tp.partition}]: {done[tp]}, the ledger "
                        f"{found.get(tp.partition)}"
                        for tp in sorted(behind)
                    ),
                )
                await self._restart(behind)

    async def _restart(self, tps: set[Any]) -> None:
        try:
            await self.app.consumer.restart_at_ledger(tps)
        except IllegalStateError:
            self.log.info("Taken away meanwhile; the rebalance starts them anew.")
