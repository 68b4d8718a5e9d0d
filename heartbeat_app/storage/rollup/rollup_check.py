"""Whether the roll-ups are what they should be.

That is worked out in another way than the functions of the database do it: first and
last by sorting. The full joins find also what is there and should not be. What is
marked may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date

from sqlalchemy import Connection, func, select, text

from heartbeat_app.storage.db.tables import heartbeats_hour_all
from heartbeat_app.storage.rollup.marks import DAY, HOUR, day_span

MINUTES_OFF = text(
    """
SELECT count(*), min(minute) FROM (
    SELECT customer_id, date_trunc('minute', "timestamp", 'UTC') AS minute,
           count(*) AS count, sum(heart_rate) AS sum,
           min(heart_rate) AS min, max(heart_rate) AS max,
           (array_agg(heart_rate ORDER BY "timestamp"))[1] AS first,
           (array_agg(heart_rate ORDER BY "timestamp" DESC))[1] AS last
    FROM heartbeats
    WHERE "timestamp" >= :since AND "timestamp" < :until
    GROUP BY 1, 2
) AS beats
FULL JOIN (
    SELECT * FROM heartbeats_minute WHERE minute >= :since AND minute < :until
) AS there USING (customer_id, minute)
WHERE (beats.count, beats.sum, beats.min, beats.max, beats.first, beats.last)
    IS DISTINCT FROM
    (there.count, there.sum, there.min, there.max, there.first, there.last)
AND NOT EXISTS (
    SELECT FROM rollup_marks AS mark
    WHERE mark.since <= minute AND mark.until > minute
)
"""
)
HOURS_OFF = text(
    """
SELECT count(*), min(hour) FROM (
    SELECT customer_id, date_trunc('hour', minute, 'UTC') AS hour,
           sum(count) AS count, sum(sum) AS sum, min(min) AS min, max(max) AS max,
           (array_agg(first ORDER BY minute))[1] AS first,
           (array_agg(last ORDER BY minute DESC))[1] AS last,
           array_agg(floor(sum::NUMERIC * 100 / count)::SMALLINT
                     ORDER BY sum::NUMERIC / count) AS minute_rates
    FROM heartbeats_minute
    WHERE minute >= :since AND minute < :until
    GROUP BY 1, 2
) AS minutes
FULL JOIN (
    SELECT * FROM heartbeats_hour WHERE hour >= :since AND hour < :until
) AS there USING (customer_id, hour)
WHERE (minutes.count, minutes.sum, minutes.min, minutes.max, minutes.first,
       minutes.last)
    IS DISTINCT FROM
    (there.count, there.sum, there.min, there.max, there.first, there.last)
   -- Of an hour from before migration 0009 they may not be known yet.
   OR minutes.minute_rates <> there.minute_rates
"""
)
MINUTES_OF_ALL_OFF = text(
    """
SELECT count(*), min(minute) FROM (
    SELECT minute, sum(count) AS count, sum(sum) AS sum, min(min) AS min,
           max(max) AS max, count(*) AS customers
    FROM heartbeats_minute
    WHERE minute >= :since AND minute < :until
    GROUP BY minute
) AS minutes
FULL JOIN (
    SELECT * FROM heartbeats_minute_all WHERE minute >= :since AND minute < :until
) AS there USING (minute)
WHERE (minutes.count, minutes.sum, minutes.min, minutes.max, minutes.customers)
    IS DISTINCT FROM
    (there.count, there.sum, there.min, there.max, there.customers)
AND NOT EXISTS (
    SELECT FROM rollup_marks AS mark
    WHERE mark.since <= minute AND mark.until > minute
)
"""
)
# Bucket by bucket.
HISTOGRAMS_OFF = text(
    """
SELECT count(DISTINCT minute), min(minute) FROM (
    SELECT date_trunc('minute', "timestamp", 'UTC') AS minute, heart_rate,
           count(*) AS beats
    FROM heartbeats
    WHERE "timestamp" >= :since AND "timestamp" < :until
    GROUP BY 1, 2
) AS beats
FULL JOIN (
    SELECT minute, heart_rate, counted
    FROM heartbeats_minute_all,
         unnest(histogram) WITH ORDINALITY AS buckets(counted, heart_rate)
    WHERE minute >= :since AND minute < :until AND counted <> 0
) AS there USING (minute, heart_rate)
WHERE beats.beats IS DISTINCT FROM there.counted
AND NOT EXISTS (
    SELECT FROM rollup_marks AS mark
    WHERE mark.since <= minute AND mark.until > minute
)
"""
)
HOURS_OF_ALL_OFF = text(
    """
SELECT count(*), min(hour) FROM (
    SELECT date_trunc('hour', minute, 'UTC') AS hour, sum(count) AS count,
           sum(sum) AS sum, min(min) AS min, max(max) AS max,
           histogram_sum(histogram) AS histogram
    FROM heartbeats_minute_all
    WHERE minute >= :since AND minute < :until
    GROUP BY 1
) AS minutes
FULL JOIN (
    SELECT hour, count(*) AS customers FROM heartbeats_hour
    WHERE hour >= :since AND hour < :until
    GROUP BY 1
) AS hours USING (hour)
FULL JOIN (
    SELECT * FROM heartbeats_hour_all WHERE hour >= :since AND hour < :until
) AS there USING (hour)
WHERE (minutes.count, minutes.sum, minutes.min, minutes.max, minutes.histogram,
       hours.customers)
    IS DISTINCT FROM
    (there.count, there.sum, there.min, there.max, there.histogram, there.customers)
AND NOT EXISTS (
    SELECT FROM rollup_marks AS mark
    WHERE mark.since < hour + INTERVAL '1 hour' AND mark.until > hour
)
"""
)
# By table: what it does not equal, and what it is made of.
OFF = (
    ("heartbeats_minute", MINUTES_OFF, "heartbeats"),
    ("heartbeats_hour", HOURS_OFF, "heartbeats_minute"),
    ("heartbeats_minute_all", MINUTES_OF_ALL_OFF, "heartbeats_minute"),
    ("heartbeats_minute_all", HISTOGRAMS_OFF, "heartbeats"),
    ("heartbeats_hour_all", HOURS_OF_ALL_OFF, "heartbeats_minute_all"),
)


# More are compared hour by hour, so that no statement sorts for minutes.
COMPARED_AT_ONCE = 5_000_000


def problems(connection: Connection, day: date) -> Iterator[str]:
    """What of the roll-ups of a day does not equal what it is made of, in words.

    What is marked, and so not worked out yet, is left out. Reads all beats of the day.
    """
    since, until = day_span(day)
    step = DAY if count_rolled_up(connection, day) <= COMPARED_AT_ONCE else HOUR
    while since < until:
        for name, query, made_of in OFF:
            bounds = {"since": since, "until": since + step}
            count, first = connection.execute(query, bounds).one()
            if count:
                yield (
                    f"{name} has {count:,} rows of {day} that are not what {made_of} "
                    f"gives, the first of {first.astimezone(UTC):%H:%M} UTC."
                )
        since += step


def count_rolled_up(connection: Connection, day: date) -> int:
    """How many beats of a day the roll-ups hold."""
    since, until = day_span(day)
    hours = heartbeats_hour_all.c
    counted = connection.scalar(
        select(func.sum(hours["count"])).where(hours.hour >= since, hours.hour < until)
    )
    return int(counted or 0)
