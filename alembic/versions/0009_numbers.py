"""How late beats were, to the value; and how high the rate was in each minute of hours.

The histograms of delays go on beyond an hour, in finer buckets, and the shortest delay
is kept beside the longest, so that a quantile stays within what there was. Of each
customer's hour the averages of its minutes are kept, in order of their height: an hour
with a beat in it is not an hour of beats.

Columns are added without a value, which changes no row. What is not known of hours
before, the roll-ups' job works out from their minutes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Who waits for a table holds up all who come after, such as workers behind a pg_dump.
LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"
NO_LOCK_TIMEOUT = "SET LOCAL lock_timeout = DEFAULT"

# Buckets by place, counted from 1: 1 to 13 as ever; 14 to 18 hold what was counted
# before this migration, or by a worker of a version before; 19 and more are finer.
# DELAY_BOUNDS_SECONDS in heartbeat_app.storage.db.tables are the bounds of what is
# written. They stand in the order of their upper bounds.
#
# Between the bounds of a bucket it is a guess, linear; at both ends the shortest and
# the longest delay are bounds, where they are known and lie in the bucket. Of what lies
# beyond the last bound, with no longest one known, the bound is given. A bucket of
# before may lie over finer ones; it then begins where the one below it ends.
DELAY_QUANTILE = """
CREATE FUNCTION delay_quantile(
    histogram BIGINT[], q DOUBLE PRECISION,
    shortest DOUBLE PRECISION, longest DOUBLE PRECISION
)
RETURNS DOUBLE PRECISION
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    places CONSTANT INTEGER[] := '{
        1,2,3,4,5,6,7,8,9,10,11,12,13,19,14,20,21,15,22,23,24,25,26,16,27,28,29,
        30,31,32,33,17,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,18,50
    }'::INTEGER[];
    lowers CONSTANT DOUBLE PRECISION[] := '{
        0,0.001,0.002,0.005,0.01,0.02,0.05,0.1,0.2,0.5,1,2,5,10,10,20,30,30,45,
        60,90,120,180,60,240,300,450,600,900,1200,1800,300,2700,3600,5400,7200,
        10800,14400,21600,28800,43200,86400,172800,345600,604800,1209600,
        2592000,7776000,3600,31536000
    }'::DOUBLE PRECISION[];
    uppers CONSTANT DOUBLE PRECISION[] := '{
        0.001,0.002,0.005,0.01,0.02,0.05,0.1,0.2,0.5,1,2,5,10,20,30,30,45,60,60,
        90,120,180,240,300,300,450,600,900,1200,1800,2700,3600,3600,5400,7200,
        10800,14400,21600,28800,43200,86400,172800,345600,604800,1209600,
        2592000,7776000,31536000,infinity,infinity
    }'::DOUBLE PRECISION[];
    -- What is divided until nothing is left of it is an error.
    share CONSTANT DOUBLE PRECISION := CASE WHEN abs(q) < 1e-300 THEN 0 ELSE q END;
    total DOUBLE PRECISION := 0;
    running DOUBLE PRECISION := 0;
    counted BIGINT;
    first INTEGER;
    last INTEGER;
    before DOUBLE PRECISION := 0;
    low DOUBLE PRECISION;
    high DOUBLE PRECISION;
BEGIN
    FOR i IN 1..cardinality(places) LOOP
        IF histogram[places[i]] > 0 THEN
            total := total + histogram[places[i]];
            first := coalesce(first, i);
            last := i;
        END IF;
    END LOOP;
    -- Nothing was counted.
    IF first IS NULL THEN
        RETURN NULL;
    END IF;
    FOR i IN first..last LOOP
        counted := histogram[places[i]];
        CONTINUE WHEN counted IS NULL OR counted <= 0;
        running := running + counted;
        IF running >= share * total OR i = last THEN
            low := greatest(lowers[i], before);
            high := uppers[i];
            IF i = first AND shortest > low AND shortest <= high THEN
                low := shortest;
            END IF;
            IF i = last AND longest >= low AND longest < high THEN
                high := longest;
            END IF;
            IF high = 'infinity' THEN
                RETURN low;
            END IF;
            RETURN low + (high - low)
                * ((share * total - (running - counted)) / counted);
        END IF;
        IF uppers[i] < 'infinity' THEN
            before := uppers[i];
        END IF;
    END LOOP;
    RETURN NULL;
END
$$
"""

# For what asks as ever: workers of a version before, and queries of one's own.
DELAY_QUANTILE_AS_EVER = """
CREATE OR REPLACE FUNCTION delay_quantile(histogram BIGINT[], q DOUBLE PRECISION)
RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT public.delay_quantile(histogram, q, NULL, NULL) $$
"""

# As in 0004, with the shortest delay.
ROLL_UP_INGEST = """
CREATE OR REPLACE FUNCTION roll_up_ingest(since TIMESTAMPTZ, until TIMESTAMPTZ)
RETURNS BOOLEAN
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(x'696e6765'::INTEGER) THEN
        RETURN false;
    END IF;
    IF (since = date_trunc('hour', since) AND until = date_trunc('hour', until)
        AND until <= now()) IS NOT TRUE THEN
        RAISE EXCEPTION 'roll_up_ingest: % to % are no whole hours that are over',
            since, until USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO public.ingest_hour AS old (
        topic_id, partition, hour, batches, consumed, stored, duplicate, dead,
        delay_sum_seconds, delay_max_seconds, delay_histogram, write_seconds,
        delay_min_seconds
    )
    SELECT topic_id, partition, date_trunc('hour', minute),
           sum(batches), sum(consumed), sum(stored), sum(duplicate), sum(dead),
           sum(delay_sum_seconds), max(delay_max_seconds),
           public.histogram_sum(delay_histogram), sum(write_seconds),
           min(delay_min_seconds)
    FROM public.ingest_minute
    WHERE minute >= since AND minute < until
    GROUP BY 1, 2, 3
    ON CONFLICT (topic_id, partition, hour) DO UPDATE SET
        batches = excluded.batches, consumed = excluded.consumed,
        stored = excluded.stored, duplicate = excluded.duplicate, dead = excluded.dead,
        delay_sum_seconds = excluded.delay_sum_seconds,
        delay_max_seconds = excluded.delay_max_seconds,
        delay_histogram = excluded.delay_histogram,
        write_seconds = excluded.write_seconds,
        delay_min_seconds = excluded.delay_min_seconds
    WHERE (old.batches, old.consumed, old.stored, old.duplicate, old.dead,
           old.delay_histogram)
        IS DISTINCT FROM
          (excluded.batches, excluded.consumed, excluded.stored, excluded.duplicate,
           excluded.dead, excluded.delay_histogram);
    RETURN true;
END
$$
"""

# As in 0002, with the averages of the minutes: hundredths, rounded down, ascending.
# 0x726f6c6c is the lock of the roll-ups.
ROLL_UP_HOUR = """
CREATE OR REPLACE FUNCTION roll_up_hour(since TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET plan_cache_mode = force_custom_plan
SET enable_nestloop = off
SET jit = off
SET work_mem = '64MB'
AS $$
DECLARE
    until TIMESTAMPTZ := since + INTERVAL '1 hour';
BEGIN
    IF NOT pg_try_advisory_xact_lock(x'726f6c6c'::INTEGER) THEN
        RAISE EXCEPTION 'Another session works on the roll-ups'
            USING ERRCODE = 'lock_not_available';
    END IF;
    IF since <> date_trunc('hour', since) THEN
        RAISE EXCEPTION 'roll_up_hour: % is no whole hour', since
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Minutes that were dropped, or were never there: the hour stays as it is.
    IF to_regclass('public.' || to_char(since, '"heartbeats_minute_"YYYY_MM')) IS NULL
    THEN
        RETURN;
    END IF;
    -- So does one of a dropped day: nothing of it was marked when it was detached.
    -- What was not known when it was rolled up is added.
    IF EXISTS (SELECT FROM public.dropped_days WHERE day = since::DATE) THEN
        UPDATE public.heartbeats_hour AS old SET minute_rates = fresh.minute_rates
        FROM (
            SELECT customer_id, array_agg((sum * 100 / count)::SMALLINT
                                          ORDER BY sum * 100 / count) AS minute_rates
            FROM public.heartbeats_minute
            WHERE minute >= since AND minute < until
            GROUP BY customer_id
        ) AS fresh
        WHERE old.hour = since AND old.minute_rates IS NULL
          AND old.customer_id = fresh.customer_id;
        RETURN;
    END IF;
    WITH minutes AS (
        SELECT *, date_part('minute', minute)::INTEGER * 512 AS at,
               (sum * 100 / count)::SMALLINT AS rate
        FROM public.heartbeats_minute
        WHERE minute >= since AND minute < until
    ), fresh AS MATERIALIZED (
        SELECT customer_id, sum(count)::BIGINT AS count, sum(sum)::BIGINT AS sum,
               min(min) AS min, max(max) AS max,
               (min(at + first) & 511)::SMALLINT AS first,
               (max(at + last) & 511)::SMALLINT AS last,
               array_agg(rate ORDER BY rate) AS minute_rates
        FROM minutes
        GROUP BY customer_id
    ), gone AS (
        DELETE FROM public.heartbeats_hour AS old
        WHERE old.hour = since
          AND NOT EXISTS (SELECT FROM fresh WHERE fresh.customer_id = old.customer_id)
    ), changed AS (
        INSERT INTO public.heartbeats_hour (
            customer_id, hour, count, sum, min, max, first, last, minute_rates
        )
        SELECT customer_id, since, fresh.count, fresh.sum, fresh.min, fresh.max,
               fresh.first, fresh.last, fresh.minute_rates
        FROM fresh
        LEFT JOIN (SELECT * FROM public.heartbeats_hour WHERE hour = since) AS old
            USING (customer_id)
        WHERE (old.count, old.sum, old.min, old.max, old.first, old.last,
               old.minute_rates)
            IS DISTINCT FROM
            (fresh.count, fresh.sum, fresh.min, fresh.max, fresh.first, fresh.last,
             fresh.minute_rates)
        ON CONFLICT (customer_id, hour) DO UPDATE SET
            count = excluded.count, sum = excluded.sum, min = excluded.min,
            max = excluded.max, first = excluded.first, last = excluded.last,
            minute_rates = excluded.minute_rates
    ), gone_of_all AS (
        DELETE FROM public.heartbeats_hour_all AS old
        WHERE old.hour = since AND NOT EXISTS (SELECT FROM fresh)
    ), histogram AS (
        SELECT array_agg(count ORDER BY heart_rate) AS histogram
        FROM (
            SELECT heart_rate, sum(h.count)::BIGINT AS count
            FROM public.heartbeats_minute_all,
                 unnest(histogram) WITH ORDINALITY AS h(count, heart_rate)
            WHERE minute >= since AND minute < until
            GROUP BY heart_rate
        ) AS rates
    )
    INSERT INTO public.heartbeats_hour_all
    SELECT since, count(*), sum(count), sum(sum), min(min), max(max),
           (SELECT histogram FROM histogram)
    FROM fresh HAVING count(*) > 0
    ON CONFLICT (hour) DO UPDATE SET
        customers = excluded.customers, count = excluded.count, sum = excluded.sum,
        min = excluded.min, max = excluded.max, histogram = excluded.histogram;
END
$$
"""

# The roll-ups' job first, see 0002 and 0006.
LOCK_ROLLUPS = "SELECT pg_advisory_xact_lock(x'726f6c6c'::INTEGER)"

# Months that somebody detached stay like the others: to be attached again they must be.
DETACHED_ADD = """
DO $$
DECLARE
    detached TEXT;
BEGIN
    FOR detached IN
        SELECT relname FROM pg_catalog.pg_class
        WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r'
          AND NOT relispartition
          AND relname ~ '^heartbeats_hour_[0-9]{4}_[0-9]{2}$'
    LOOP
        EXECUTE format(
            'ALTER TABLE public.%I ADD COLUMN minute_rates SMALLINT[]', detached
        );
    END LOOP;
END
$$
"""
DETACHED_DROP = """
DO $$
DECLARE
    detached TEXT;
BEGIN
    FOR detached IN
        SELECT relname FROM pg_catalog.pg_class
        WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r'
          AND NOT relispartition
          AND relname ~ '^heartbeats_hour_[0-9]{4}_[0-9]{2}$'
    LOOP
        EXECUTE format('ALTER TABLE public.%I DROP COLUMN minute_rates', detached);
    END LOOP;
END
$$
"""

# As they were.
DELAY_QUANTILE_BEFORE = """
CREATE OR REPLACE FUNCTION delay_quantile(histogram BIGINT[], q DOUBLE PRECISION)
RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    WITH bounds AS (
        SELECT ARRAY[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                     1, 2, 5, 10, 30, 60, 300, 3600]::DOUBLE PRECISION[] AS upper,
               -- What is divided until nothing is left of it is an error.
               CASE WHEN abs(q) < 1e-300 THEN 0 ELSE q END AS share
    ), buckets AS (
        SELECT ordinality AS bucket,
               count,
               sum(count) OVER (ORDER BY ordinality) AS running,
               sum(count) OVER () AS total
        FROM unnest(histogram) WITH ORDINALITY AS h(count, ordinality)
    )
    SELECT CASE
        WHEN bucket > cardinality(upper) THEN upper[cardinality(upper)]
        ELSE coalesce(upper[bucket - 1], 0)
             + (upper[bucket] - coalesce(upper[bucket - 1], 0))
             * ((share * total - (running - count)) / count)::DOUBLE PRECISION
        END
    FROM buckets, bounds
    WHERE count > 0 AND running >= share * total
    ORDER BY bucket
    LIMIT 1
$$
"""
ROLL_UP_HOUR_BEFORE = """
CREATE OR REPLACE FUNCTION roll_up_hour(since TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET plan_cache_mode = force_custom_plan
SET enable_nestloop = off
SET jit = off
SET work_mem = '64MB'
AS $$
DECLARE
    until TIMESTAMPTZ := since + INTERVAL '1 hour';
BEGIN
    IF NOT pg_try_advisory_xact_lock(x'726f6c6c'::INTEGER) THEN
        RAISE EXCEPTION 'Another session works on the roll-ups'
            USING ERRCODE = 'lock_not_available';
    END IF;
    IF since <> date_trunc('hour', since) THEN
        RAISE EXCEPTION 'roll_up_hour: % is no whole hour', since
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Minutes that were dropped, or were never there: the hour stays as it is. So does
    -- one of a dropped day: nothing of it was marked when it was detached.
    IF to_regclass('public.' || to_char(since, '"heartbeats_minute_"YYYY_MM')) IS NULL
       OR EXISTS (SELECT FROM public.dropped_days WHERE day = since::DATE)
    THEN
        RETURN;
    END IF;
    WITH minutes AS (
        SELECT *, date_part('minute', minute)::INTEGER * 512 AS at
        FROM public.heartbeats_minute
        WHERE minute >= since AND minute < until
    ), fresh AS MATERIALIZED (
        SELECT customer_id, sum(count)::BIGINT AS count, sum(sum)::BIGINT AS sum,
               min(min) AS min, max(max) AS max,
               (min(at + first) & 511)::SMALLINT AS first,
               (max(at + last) & 511)::SMALLINT AS last
        FROM minutes
        GROUP BY customer_id
    ), gone AS (
        DELETE FROM public.heartbeats_hour AS old
        WHERE old.hour = since
          AND NOT EXISTS (SELECT FROM fresh WHERE fresh.customer_id = old.customer_id)
    ), changed AS (
        INSERT INTO public.heartbeats_hour
        SELECT customer_id, since, fresh.count, fresh.sum, fresh.min, fresh.max,
               fresh.first, fresh.last
        FROM fresh
        LEFT JOIN (SELECT * FROM public.heartbeats_hour WHERE hour = since) AS old
            USING (customer_id)
        WHERE (old.count, old.sum, old.min, old.max, old.first, old.last)
            IS DISTINCT FROM
            (fresh.count, fresh.sum, fresh.min, fresh.max, fresh.first, fresh.last)
        ON CONFLICT (customer_id, hour) DO UPDATE SET
            count = excluded.count, sum = excluded.sum, min = excluded.min,
            max = excluded.max, first = excluded.first, last = excluded.last
    ), gone_of_all AS (
        DELETE FROM public.heartbeats_hour_all AS old
        WHERE old.hour = since AND NOT EXISTS (SELECT FROM fresh)
    ), histogram AS (
        SELECT array_agg(count ORDER BY heart_rate) AS histogram
        FROM (
            SELECT heart_rate, sum(h.count)::BIGINT AS count
            FROM public.heartbeats_minute_all,
                 unnest(histogram) WITH ORDINALITY AS h(count, heart_rate)
            WHERE minute >= since AND minute < until
            GROUP BY heart_rate
        ) AS rates
    )
    INSERT INTO public.heartbeats_hour_all
    SELECT since, count(*), sum(count), sum(sum), min(min), max(max),
           (SELECT histogram FROM histogram)
    FROM fresh HAVING count(*) > 0
    ON CONFLICT (hour) DO UPDATE SET
        customers = excluded.customers, count = excluded.count, sum = excluded.sum,
        min = excluded.min, max = excluded.max, histogram = excluded.histogram;
END
$$
"""
ROLL_UP_INGEST_BEFORE = """
CREATE OR REPLACE FUNCTION roll_up_ingest(since TIMESTAMPTZ, until TIMESTAMPTZ)
RETURNS BOOLEAN
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(x'696e6765'::INTEGER) THEN
        RETURN false;
    END IF;
    IF (since = date_trunc('hour', since) AND until = date_trunc('hour', until)
        AND until <= now()) IS NOT TRUE THEN
        RAISE EXCEPTION 'roll_up_ingest: % to % are no whole hours that are over',
            since, until USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO public.ingest_hour AS old
    SELECT topic_id, partition, date_trunc('hour', minute),
           sum(batches), sum(consumed), sum(stored), sum(duplicate), sum(dead),
           sum(delay_sum_seconds), max(delay_max_seconds),
           public.histogram_sum(delay_histogram), sum(write_seconds)
    FROM public.ingest_minute
    WHERE minute >= since AND minute < until
    GROUP BY 1, 2, 3
    ON CONFLICT (topic_id, partition, hour) DO UPDATE SET
        batches = excluded.batches, consumed = excluded.consumed,
        stored = excluded.stored, duplicate = excluded.duplicate, dead = excluded.dead,
        delay_sum_seconds = excluded.delay_sum_seconds,
        delay_max_seconds = excluded.delay_max_seconds,
        delay_histogram = excluded.delay_histogram,
        write_seconds = excluded.write_seconds
    WHERE (old.batches, old.consumed, old.stored, old.duplicate, old.dead,
           old.delay_histogram)
        IS DISTINCT FROM
          (excluded.batches, excluded.consumed, excluded.stored, excluded.duplicate,
           excluded.dead, excluded.delay_histogram);
    RETURN true;
END
$$
"""


def upgrade() -> None:
    """Add the columns, and replace what fills and reads them."""
    op.execute(LOCK_TIMEOUT)
    op.execute(LOCK_ROLLUPS)
    for table in ("ingest_minute", "ingest_hour"):
        op.add_column(table, sa.Column("delay_min_seconds", sa.Double))
    op.add_column(
        "heartbeats_hour",
        sa.Column("minute_rates", postgresql.ARRAY(sa.SmallInteger)),
    )
    op.execute(DETACHED_ADD)
    op.execute(NO_LOCK_TIMEOUT)
    op.execute(DELAY_QUANTILE)
    op.execute(DELAY_QUANTILE_AS_EVER)
    op.execute(ROLL_UP_INGEST)
    op.execute(ROLL_UP_HOUR)


def downgrade() -> None:
    """As it was; delays in finer buckets are not shown any more."""
    op.execute(LOCK_ROLLUPS)
    op.execute(DELAY_QUANTILE_BEFORE)
    op.execute(ROLL_UP_HOUR_BEFORE)
    op.execute(ROLL_UP_INGEST_BEFORE)
    op.execute(
        "DROP FUNCTION delay_quantile("
        "BIGINT[], DOUBLE PRECISION, DOUBLE PRECISION, DOUBLE PRECISION)"
    )
    op.execute(DETACHED_DROP)
    op.drop_column("heartbeats_hour", "minute_rates")
    for table in ("ingest_hour", "ingest_minute"):
        op.drop_column(table, "delay_min_seconds")
