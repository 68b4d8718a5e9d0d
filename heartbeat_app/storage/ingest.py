"""What came in, by minute of arrival: one upsert a batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func
from sqlalchemy.dialects.postgresql import insert

from heartbeat_app.storage.tables import DELAY_BOUNDS_SECONDS, ingest_minute


@dataclass(frozen=True, slots=True)
class Delays:
    """How long beats took to their rows, in seconds; see DELAY_BOUNDS_SECONDS."""

    total: float
    longest: float
    histogram: Sequence[int]

    @classmethod
    def of(cls, timestamps: Collection[datetime], now: datetime) -> Delays:
        """The delays of beats stored at `now`; one in the future counts as 0."""
        histogram = [0] * (len(DELAY_BOUNDS_SECONDS) + 1)
        if not timestamps:
            return cls(0.0, 0.0, histogram)
        latest = max(timestamps)
        if latest > now:
            latest = now
            timestamps = [min(now, timestamp) for timestamp in timestamps]
        delays = [now - timestamp for timestamp in timestamps]
        longest = max(delays).total_seconds()
        lowest = bisect_left(DELAY_BOUNDS_SECONDS, (now - latest).total_seconds())
        if lowest == bisect_left(DELAY_BOUNDS_SECONDS, longest):
            histogram[lowest] = len(delays)  # a backlog: all in one bucket
        else:
            for delay in delays:
                histogram[bisect_left(DELAY_BOUNDS_SECONDS, delay.total_seconds())] += 1
        return cls(sum(delays, timedelta()).total_seconds(), longest, histogram)


def record(
    connection: Connection,
    topic_id: str,
    partition: int,
    now: datetime,
    *,
    counts: Mapping[str, int],
    delays: Delays,
    write_seconds: float,
) -> None:
    """Add a batch to its minute.

    Arguments:
        counts: consumed, stored, duplicate and dead.
    """
    table = ingest_minute
    statement = insert(table).values(
        topic_id=topic_id,
        partition=partition,
        minute=now.replace(second=0, microsecond=0),
        batches=1,
        **{name: counts[name] for name in ("consumed", "stored", "duplicate", "dead")},
        delay_sum_seconds=delays.total,
        delay_max_seconds=delays.longest,
        delay_histogram=delays.histogram,
        write_seconds=write_seconds,
    )
    new = statement.excluded
    added = ("batches", "consumed", "stored", "duplicate", "dead")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.topic_id, table.c.partition, table.c.minute],
            set_={
                **{name: table.c[name] + new[name] for name in added},
                "delay_sum_seconds": table.c.delay_sum_seconds + new.delay_sum_seconds,
                "delay_max_seconds": func.greatest(
                    table.c.delay_max_seconds, new.delay_max_seconds
                ),
                "delay_histogram": func.histogram_add(
                    table.c.delay_histogram, new.delay_histogram
                ),
                "write_seconds": table.c.write_seconds + new.write_seconds,
            },
        )
    )
