"""What came in, by minute of arrival: one upsert a batch; hours added up from that."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, func, select, text

from heartbeat_app.storage.db.prepared import Bound, Prepared
from heartbeat_app.storage.db.tables import (
    DELAY_BOUNDS_SECONDS,
    FIRST_DELAY_BUCKETS,
    WIDER_DELAY_BUCKETS,
    ingest_hour,
    ingest_minute,
)
from heartbeat_app.storage.rollup.marks import HOUR

# An hour is added up when it has been over for so long: batches that began in it are
# committed by then, and workers' clocks differ by less.
SETTLED = timedelta(minutes=5)
# With each new hour, so many before it are added up again, for what came later still.
AGAIN = timedelta(hours=2)
# At a time, on the way from nothing; of a thousand partitions that takes a few seconds.
STEP = timedelta(hours=6)
# A pass ends after about so long.
PASS_SECONDS = 10.0


COUNTED = ("consumed", "stored", "duplicate", "dead")


# One row a batch; their histograms come as text, since unnest takes arrays apart.
ADD = Prepared(
    "ingest_add",
    (
        "TIMESTAMPTZ", "DOUBLE PRECISION", "TEXT[]", "INTEGER[]",
        *["BIGINT[]"] * len(COUNTED), *["DOUBLE PRECISION[]"] * 3, "TEXT[]",
    ),
    """
    INSERT INTO ingest_minute AS old (
        topic_id, partition, minute, batches, consumed, stored, duplicate, dead,
        delay_sum_seconds, delay_max_seconds, delay_min_seconds, delay_histogram,
        write_seconds)
    SELECT topic_id, partition, $1, 1, consumed, stored, duplicate, dead,
           delay_sum, delay_max, delay_min, CAST(histogram AS BIGINT[]), $2
    FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12) AS new (
        topic_id, partition, consumed, stored, duplicate, dead,
        delay_sum, delay_max, delay_min, histogram)
    ON CONFLICT (topic_id, partition, minute) DO UPDATE SET
        batches = old.batches + 1,
        consumed = old.consumed + excluded.consumed,
        stored = old.stored + excluded.stored,
        duplicate = old.duplicate + excluded.duplicate,
        dead = old.dead + excluded.dead,
        delay_sum_seconds = old.delay_sum_seconds + excluded.delay_sum_seconds,
        delay_max_seconds = GREATEST(old.delay_max_seconds, excluded.delay_max_seconds),
        delay_min_seconds = LEAST(old.delay_min_seconds, excluded.delay_min_seconds),
        delay_histogram = histogram_add(old.delay_histogram, excluded.delay_histogram),
        write_seconds = old.write_seconds + excluded.write_seconds
    """,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delays:
    """How long beats took to their rows, in seconds; see DELAY_BOUNDS_SECONDS.

    Attributes:
        shortest: None where there are none.
    """

    total: float
    longest: float
    histogram: Sequence[int]
    shortest: float | None = None

    @classmethod
    def of(cls, timestamps: Collection[datetime], now: datetime) -> Delays:
        """The delays of beats stored at `now`; one in the future counts as 0."""
        if not timestamps:
            return NO_DELAYS
        histogram = [0] * (len(DELAY_BOUNDS_SECONDS) + 1)
        latest = max(timestamps)
        if latest > now:
            latest = now
            timestamps = [min(now, timestamp) for timestamp in timestamps]
        delays = [now - timestamp for timestamp in timestamps]
        longest = max(delays).total_seconds()
        shortest = (now - latest).total_seconds()
        lowest = bisect_left(DELAY_BOUNDS_SECONDS, shortest)
        if lowest == bisect_left(DELAY_BOUNDS_SECONDS, longest):
            histogram[lowest] = len(delays)  # a backlog: all in one bucket
        else:
            for delay in delays:
                histogram[bisect_left(DELAY_BOUNDS_SECONDS, delay.total_seconds())] += 1
        total = sum(delays, timedelta()).total_seconds()
        return cls(total, longest, histogram, shortest)


NO_DELAYS = Delays(0.0, 0.0, [0] * (len(DELAY_BOUNDS_SECONDS) + 1))


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came in by one batch.

    Attributes:
        counts: consumed, stored, duplicate and dead.
    """

    topic_id: str
    partition: int
    counts: Mapping[str, int]
    delays: Delays


def recording(
    arrivals: Sequence[Arrival], now: datetime, *, write_seconds: float
) -> Bound:
    """What adds batches to their minute, for the transaction that stores them.

    Arguments:
        arrivals: Of different partitions.
        write_seconds: What that transaction took so far.
    """
    delays = [each.delays for each in arrivals]
    return ADD.bind(
        now.replace(second=0, microsecond=0),
        write_seconds,
        [each.topic_id for each in arrivals],
        [each.partition for each in arrivals],
        *([each.counts[name] for each in arrivals] for name in COUNTED),
        [delay.total for delay in delays],
        [delay.longest for delay in delays],
        [delay.shortest for delay in delays],
        [f"{{{','.join(map(str, _in_places(delay.histogram)))}}}" for delay in delays],
    )


def _in_places(histogram: Sequence[int]) -> list[int]:
    """As the column has it."""
    return [
        *histogram[:FIRST_DELAY_BUCKETS],
        *[0] * WIDER_DELAY_BUCKETS,
        *histogram[FIRST_DELAY_BUCKETS:],
    ]


class Hours:
    """Adds the hours up that are over, pass by pass; of one thread.

    Any worker may: a lock in the database lets one at a time. Broken off, the next pass
    goes on where this one was.

    Arguments:
        engine: Of one connection.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._done: datetime | None = None

    def run_pass(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Add up what is due; whether all of it was done, by whomever.

        Arguments:
            stopped: Asked after each step; the rest is left to the next pass.
        """
        enough = time.monotonic() + PASS_SECONDS
        with self._engine.connect() as connection:
            newest = connection.scalar(select(func.max(ingest_hour.c.hour)))
            due = _hour(connection.execute(select(func.now())).scalar_one() - SETTLED)
        if due == self._done:
            return True
        since = None if newest is None else newest - AGAIN
        while True:
            if stopped() or time.monotonic() > enough:
                return False
            with self._engine.begin() as connection:
                # From where there is something: nothing may have come in for months.
                minute = ingest_minute.c.minute
                first = select(func.min(minute)).where(minute < due)
                if since is not None:
                    first = first.where(minute >= since)
                found = connection.scalar(first)
                if found is None:
                    self._done = due
                    return True
                begin = _hour(found)
                since = min(begin + STEP, due)
                if not connection.scalar(select(func.roll_up_ingest(begin, since))):
                    return True  # another worker is at it


def _hour(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


# What is added up again with the next hour may differ. Each change of a minute counts a
# batch; to add up a year of histograms beside the counts would take half a minute.
HOURS_OFF = text(
    """
SELECT count(*), min(hour) FROM (
    SELECT topic_id, partition, date_trunc('hour', minute, 'UTC') AS hour,
           sum(batches) AS batches, sum(consumed) AS consumed, sum(stored) AS stored,
           sum(duplicate) AS duplicate, sum(dead) AS dead
    FROM ingest_minute
    GROUP BY 1, 2, 3
) AS minutes
FULL JOIN ingest_hour AS there USING (topic_id, partition, hour)
WHERE hour < (SELECT max(hour) FROM ingest_hour) - CAST(:again AS INTERVAL)
  AND (minutes.batches, minutes.consumed, minutes.stored, minutes.duplicate,
       minutes.dead)
    IS DISTINCT FROM
      (there.batches, there.consumed, there.stored, there.duplicate, there.dead)
"""
)


def problems(connection: Connection) -> Iterator[str]:
    """What of the hours is not what their minutes give, in words."""
    count, first = connection.execute(HOURS_OFF, {"again": AGAIN}).one()
    if count:
        hour = first.astimezone(UTC)
        yield (
            f"ingest_hour has {count:,} rows that are not what ingest_minute gives, "
            f"the first of {hour:%Y-%m-%d %H:%M} UTC. To have its hour added up again, "
            f"let the owner run SELECT roll_up_ingest('{hour:%Y-%m-%d %H:%M}Z', "
            f"'{hour + HOUR:%Y-%m-%d %H:%M}Z')."
        )
