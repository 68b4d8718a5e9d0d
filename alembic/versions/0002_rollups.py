"""Roll-ups by minute and hour, the marks that keep them exact, and the retention.

What needs the owner's rights is done by functions (SECURITY DEFINER): the worker's
role may neither delete beats nor write a roll-up that the beats do not have.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = (
    "heartbeats_minute",
    "heartbeats_hour",
    "heartbeats_minute_all",
    "heartbeats_hour_all",
    "rollup_marks",
    "dropped_days",
    "dropped_dead_letters",
    "retention",
)

# Heart rates are whole numbers, so a histogram with a bucket for each is exact: this
# is percentile_disc() over the beats themselves. A loop takes a tenth of the time of a
# query over unnest(), and a dashboard asks for a year of hours.
RATE_QUANTILE = """
CREATE FUNCTION rate_quantile(histogram BIGINT[], q DOUBLE PRECISION)
RETURNS INTEGER
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    count BIGINT;
    total BIGINT := 0;
    running BIGINT := 0;
BEGIN
    FOREACH count IN ARRAY histogram LOOP
        total := total + count;
    END LOOP;
    FOR rate IN 1..cardinality(histogram) LOOP
        running := running + histogram[rate];
        IF histogram[rate] > 0 AND running >= q * total THEN
            RETURN rate;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$
"""

# Names are of constants and dates. 0x68656172 is the lock of all that make
# partitions, 0x726f6c6c that of the roll-ups: whoever changes what they are made of,
# or them, holds it until the end of the transaction, so that nobody writes what an
# older look at the beats gave over what a newer one did.
MAKE_ROLLUP_MONTH = """
CREATE FUNCTION make_rollup_month(month DATE) RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    parent TEXT;
    partition TEXT;
    -- Not through "timestamp with time zone", whose months depend on the time zone.
    begin_day DATE := date_trunc('month', month::TIMESTAMP)::DATE;
    end_day DATE := (date_trunc('month', month::TIMESTAMP) + INTERVAL '1 month')::DATE;
BEGIN
    IF month IS NULL OR NOT month BETWEEN DATE '2000-01-01' AND DATE '9999-12-31' THEN
        RAISE EXCEPTION 'make_rollup_month: % lies not in the years 2000 to 9999', month
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH parent IN ARRAY ARRAY['heartbeats_minute', 'heartbeats_hour'] LOOP
        partition := parent || to_char(begin_day, '_YYYY_MM');
        CONTINUE WHEN (SELECT relispartition FROM pg_class
                       WHERE oid = to_regclass('public.' || partition));
        PERFORM pg_advisory_xact_lock(x'68656172'::INTEGER);
        -- CREATE and then ATTACH: PARTITION OF would wait for readers.
        -- The rows of the present are written again with each pass, so a month is not
        -- to wait until a fifth of it is dead rows.
        EXECUTE format(
            'CREATE TABLE IF NOT EXISTS public.%I (LIKE public.%I)'
            ' WITH (autovacuum_vacuum_scale_factor = 0.05)', partition, parent
        );
        IF NOT (SELECT relispartition FROM pg_class
                WHERE oid = to_regclass('public.' || partition)) THEN
            EXECUTE format(
                'ALTER TABLE public.%I ATTACH PARTITION public.%I'
                ' FOR VALUES FROM (%L) TO (%L)',
                parent, partition,
                begin_day || ' 00:00:00+00', end_day || ' 00:00:00+00'
            );
        END IF;
    END LOOP;
END
$$
"""

# Each statement of the function sees what was committed when it began, and so all
# beats whose marks the caller has seen. What is equal already is not written.
# at_rate: microseconds in the minute, and the rate in the lowest 9 bits; its least
# and its greatest give the first and the last rate at a quarter of a sort's price.
ROLL_UP_MINUTES = """
CREATE FUNCTION roll_up_minutes(since TIMESTAMPTZ, until TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
-- With the bounds known, one day is planned for and locked instead of all.
SET plan_cache_mode = force_custom_plan
-- Estimates for a new partition are wild, and a loop over two sets takes for ever.
SET enable_nestloop = off
SET jit = off
SET work_mem = '64MB'
AS $$
DECLARE
    day DATE := since::DATE;
BEGIN
    IF NOT pg_try_advisory_xact_lock(x'726f6c6c'::INTEGER) THEN
        RAISE EXCEPTION 'Another session works on the roll-ups'
            USING ERRCODE = 'lock_not_available';
    END IF;
    IF since <> date_trunc('minute', since) OR until <> date_trunc('minute', until)
       OR until > since::DATE + 1 THEN
        RAISE EXCEPTION 'roll_up_minutes: % to % are no whole minutes of one UTC day',
            since, until USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- What was dropped is not there to be counted: its minutes stay as they are.
    IF EXISTS (SELECT FROM public.dropped_days AS dropped
               WHERE dropped.day = since::DATE) OR NOT EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'public.heartbeats'::REGCLASS AND NOT inhdetachpending
          AND relname = to_char(day, '"heartbeats_"YYYY_MM_DD')
    ) THEN
        RETURN;
    END IF;
    PERFORM public.make_rollup_month(day);
    WITH beats AS (
        SELECT customer_id, heart_rate,
               date_bin('1 minute', "timestamp", '2000-01-01 00:00:00+00') AS minute,
               date_part('microseconds', "timestamp")::BIGINT * 512 + heart_rate
                   AS at_rate
        FROM public.heartbeats
        WHERE "timestamp" >= since AND "timestamp" < until
        OFFSET 0  -- so that at_rate is worked out once
    ), fresh AS MATERIALIZED (
        SELECT minute, customer_id, heart_rate, grouping(customer_id) AS of_all,
               count(*) AS count, sum(heart_rate) AS sum,
               min(heart_rate) AS min, max(heart_rate) AS max,
               min(at_rate) & 511 AS first, max(at_rate) & 511 AS last
        FROM beats
        GROUP BY GROUPING SETS ((minute, customer_id), (minute, heart_rate))
    ), gone AS (
        DELETE FROM public.heartbeats_minute AS old
        WHERE old.minute >= since AND old.minute < until AND NOT EXISTS (
            SELECT FROM fresh
            WHERE of_all = 0 AND fresh.customer_id = old.customer_id
              AND fresh.minute = old.minute
        )
    ), changed AS (
        INSERT INTO public.heartbeats_minute
        SELECT customer_id, minute, fresh.count, fresh.sum, fresh.min, fresh.max,
               fresh.first, fresh.last
        FROM (SELECT * FROM fresh WHERE of_all = 0) AS fresh
        LEFT JOIN (
            SELECT * FROM public.heartbeats_minute
            WHERE minute >= since AND minute < until
        ) AS old USING (customer_id, minute)
        WHERE (old.count, old.sum, old.min, old.max, old.first, old.last)
            IS DISTINCT FROM
            (fresh.count, fresh.sum, fresh.min, fresh.max, fresh.first, fresh.last)
        ON CONFLICT (customer_id, minute) DO UPDATE SET
            count = excluded.count, sum = excluded.sum, min = excluded.min,
            max = excluded.max, first = excluded.first, last = excluded.last
    ), totals AS (
        SELECT minute, count(*) FILTER (WHERE of_all = 0) AS customers,
               sum(count) FILTER (WHERE of_all = 1) AS count,
               sum(sum) FILTER (WHERE of_all = 1) AS sum,
               min(min) AS min, max(max) AS max
        FROM fresh GROUP BY minute
    ), histograms AS (
        SELECT minute, array_agg(coalesce(fresh.count, 0) ORDER BY heart_rate)
                   AS histogram
        FROM (
            SELECT minute, generate_series(1, max) AS heart_rate FROM totals
        ) AS rates
        LEFT JOIN (SELECT * FROM fresh WHERE of_all = 1) AS fresh
            USING (minute, heart_rate)
        GROUP BY minute
    ), gone_of_all AS (
        DELETE FROM public.heartbeats_minute_all AS old
        WHERE old.minute >= since AND old.minute < until
          AND NOT EXISTS (SELECT FROM totals WHERE totals.minute = old.minute)
    )
    INSERT INTO public.heartbeats_minute_all
    SELECT minute, customers, count, sum, min, max, histogram
    FROM totals JOIN histograms USING (minute)
    ON CONFLICT (minute) DO UPDATE SET
        customers = excluded.customers, count = excluded.count, sum = excluded.sum,
        min = excluded.min, max = excluded.max, histogram = excluded.histogram;
END
$$
"""

ROLL_UP_HOUR = """
CREATE FUNCTION roll_up_hour(since TIMESTAMPTZ) RETURNS VOID
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

# What of a mark lies outside of these minutes is marked anew, as old as it was.
SETTLE_MARKS = """
CREATE FUNCTION settle_marks(ids BIGINT[], settled TIMESTAMPTZ, up_to TIMESTAMPTZ)
RETURNS VOID
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH taken AS (
        DELETE FROM public.rollup_marks
        WHERE id = ANY (ids) AND since < up_to AND until > settled
        RETURNING since, until, marked_at
    )
    INSERT INTO public.rollup_marks (since, until, marked_at)
    SELECT since, settled, marked_at FROM taken WHERE since < settled
    UNION ALL
    SELECT up_to, until, marked_at FROM taken WHERE until > up_to
$$
"""

# The worker may call what follows, and its word is not taken for how old a thing is:
# the table `retention` says how long what is kept, and only the owner writes there.
# Without a row: for ever.

# DETACH … CONCURRENTLY cannot be run by a function, and so not by a role that does not
# own the table. This one needs the whole table for an instant; it gives up when it
# does not get it in 50 ms, which is as long as it can make others wait.
DETACH_DAY = """
CREATE FUNCTION detach_day(day DATE, counted BIGINT) RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '50ms'
AS $$
DECLARE
    kept INTEGER := (SELECT days FROM public.retention
                     WHERE table_name = 'heartbeats');
BEGIN
    IF (day + 1 + kept + 1 <= CURRENT_DATE) IS NOT TRUE THEN
        RAISE EXCEPTION 'detach_day: % is to be kept (table retention)', day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(x'726f6c6c'::INTEGER) THEN
        RAISE EXCEPTION 'Another session works on the roll-ups'
            USING ERRCODE = 'lock_not_available';
    END IF;
    IF EXISTS (SELECT FROM public.rollup_marks
               WHERE since < day + 1 AND until > day) THEN
        RAISE EXCEPTION 'detach_day: % is not rolled up yet', day
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    EXECUTE format(
        'ALTER TABLE public.heartbeats DETACH PARTITION public.%I',
        to_char(day, '"heartbeats_"YYYY_MM_DD')
    );
    INSERT INTO public.dropped_days (day, rows, detached_at)
    VALUES (day, counted, clock_timestamp());
END
$$
"""

# Counted when nobody can add to it any more. Where it is not what was counted and
# rolled up before, the day goes back and is rolled up again.
DROP_DAY = """
CREATE FUNCTION drop_day(dropped DATE) RETURNS BOOLEAN
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    partition TEXT := to_char(dropped, '"heartbeats_"YYYY_MM_DD');
    expected BIGINT;
    there RECORD;
    rolled_up RECORD;
BEGIN
    SELECT rows INTO expected FROM public.dropped_days
    WHERE day = dropped AND dropped_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'drop_day: % was not detached by detach_day', dropped
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF to_regclass('public.' || partition) IS NOT NULL THEN
        EXECUTE format(
            'SELECT count(*) AS count, coalesce(sum(heart_rate), 0)::BIGINT AS sum'
            ' FROM public.%I', partition
        ) INTO there;
        SELECT coalesce(sum(count), 0)::BIGINT AS count,
               coalesce(sum(sum), 0)::BIGINT AS sum
        INTO rolled_up
        FROM public.heartbeats_minute
        WHERE minute >= dropped AND minute < dropped + 1;
        IF there <> rolled_up OR there.count <> expected THEN
            EXECUTE format(
                'ALTER TABLE public.heartbeats ATTACH PARTITION public.%I'
                ' FOR VALUES FROM (%L) TO (%L)', partition,
                dropped || ' 00:00:00+00', dropped + 1 || ' 00:00:00+00'
            );
            DELETE FROM public.dropped_days WHERE day = dropped;
            INSERT INTO public.rollup_marks (since, until)
            VALUES (dropped, dropped + 1);
            RETURN false;
        END IF;
        EXECUTE format('DROP TABLE public.%I', partition);
    END IF;
    UPDATE public.dropped_days SET dropped_at = clock_timestamp() WHERE day = dropped;
    RETURN true;
END
$$
"""

DROP_ROLLUP_MONTH = """
CREATE FUNCTION drop_rollup_month(parent TEXT, month DATE) RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '50ms'
AS $$
DECLARE
    begin_day DATE := date_trunc('month', month::TIMESTAMP)::DATE;
    end_day DATE := (date_trunc('month', month::TIMESTAMP) + INTERVAL '1 month')::DATE;
    suffix TEXT := to_char(begin_day, 'YYYY_MM');
    made_of TEXT := CASE parent
        WHEN 'heartbeats_minute' THEN '^heartbeats_' || suffix || '_[0-9][0-9]$'
        WHEN 'heartbeats_hour' THEN '^heartbeats_minute_' || suffix || '$'
    END;
    kept INTEGER := (SELECT days FROM public.retention WHERE table_name = parent);
BEGIN
    IF made_of IS NULL OR (end_day + kept + 1 <= CURRENT_DATE) IS NOT TRUE THEN
        RAISE EXCEPTION 'drop_rollup_month: % of % is to be kept (table retention)',
            month, parent USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(x'726f6c6c'::INTEGER) THEN
        RAISE EXCEPTION 'Another session works on the roll-ups'
            USING ERRCODE = 'lock_not_available';
    END IF;
    IF EXISTS (SELECT FROM pg_class WHERE relname ~ made_of AND relispartition
               AND relnamespace = 'public'::REGNAMESPACE AND relkind = 'r')
       OR EXISTS (SELECT FROM public.dropped_days
                  WHERE day >= begin_day AND day < end_day AND dropped_at IS NULL)
    THEN
        RAISE EXCEPTION 'drop_rollup_month: what % of % is made of is still there',
            parent, month USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF parent = 'heartbeats_minute' THEN
        DELETE FROM public.heartbeats_minute_all
        WHERE minute >= begin_day AND minute < end_day;
    ELSE
        DELETE FROM public.heartbeats_hour_all
        WHERE hour >= begin_day AND hour < end_day;
    END IF;
    EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I',
                   parent, parent || '_' || suffix);
    EXECUTE format('DROP TABLE public.%I', parent || '_' || suffix);
END
$$
"""

# A DETACH … CONCURRENTLY of somebody's that was cut short: its day is neither there
# nor gone, and no beat of it can be stored.
FINISH_DETACHING = """
CREATE FUNCTION finish_detaching() RETURNS SETOF TEXT
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pending RECORD;
BEGIN
    FOR pending IN
        SELECT inhparent::REGCLASS AS parent, inhrelid::REGCLASS AS partition
        FROM pg_inherits
        WHERE inhdetachpending AND inhparent IN (
            'public.heartbeats'::REGCLASS, 'public.heartbeats_minute'::REGCLASS,
            'public.heartbeats_hour'::REGCLASS
        )
    LOOP
        EXECUTE format('ALTER TABLE %s DETACH PARTITION %s FINALIZE',
                       pending.parent, pending.partition);
        RETURN NEXT pending.partition::TEXT;
    END LOOP;
END
$$
"""

DROP_DEAD_LETTERS = """
CREATE FUNCTION drop_dead_letters(before TIMESTAMPTZ, at_most INTEGER)
RETURNS BIGINT
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (
        DELETE FROM public.dead_letters WHERE id IN (
            SELECT id FROM public.dead_letters
            WHERE first_seen < (
                SELECT least(before, now() - make_interval(days => days))
                FROM public.retention WHERE table_name = 'dead_letters'
            )
            ORDER BY first_seen LIMIT at_most FOR UPDATE SKIP LOCKED
        )
        RETURNING topic_id, partition, replay_outcome
    ), noted AS (
        INSERT INTO public.dropped_dead_letters AS old
        SELECT topic_id, partition, count(*),
               count(*) FILTER (WHERE replay_outcome = 'stored')
        FROM gone GROUP BY topic_id, partition
        ON CONFLICT (topic_id, partition) DO UPDATE SET
            letters = old.letters + excluded.letters,
            replayed = old.replayed + excluded.replayed
    )
    SELECT count(*) FROM gone
$$
"""

FUNCTIONS = (
    RATE_QUANTILE,
    MAKE_ROLLUP_MONTH,
    ROLL_UP_MINUTES,
    ROLL_UP_HOUR,
    SETTLE_MARKS,
    DETACH_DAY,
    DROP_DAY,
    DROP_ROLLUP_MONTH,
    FINISH_DETACHING,
    DROP_DEAD_LETTERS,
)

# heartbeat_app.storage.db.roles says who may call them.
REVOKE_FUNCTIONS = """
REVOKE EXECUTE ON FUNCTION
    make_rollup_month(DATE), roll_up_minutes(TIMESTAMPTZ, TIMESTAMPTZ),
    roll_up_hour(TIMESTAMPTZ), settle_marks(BIGINT[], TIMESTAMPTZ, TIMESTAMPTZ),
    detach_day(DATE, BIGINT), drop_day(DATE), drop_rollup_month(TEXT, DATE),
    finish_detaching(), drop_dead_letters(TIMESTAMPTZ, INTEGER)
FROM PUBLIC
"""

DROP_FUNCTIONS = """
DROP FUNCTION
    rate_quantile(BIGINT[], DOUBLE PRECISION),
    make_rollup_month(DATE), roll_up_minutes(TIMESTAMPTZ, TIMESTAMPTZ),
    roll_up_hour(TIMESTAMPTZ), settle_marks(BIGINT[], TIMESTAMPTZ, TIMESTAMPTZ),
    detach_day(DATE, BIGINT), drop_day(DATE), drop_rollup_month(TEXT, DATE),
    finish_detaching(), drop_dead_letters(TIMESTAMPTZ, INTEGER)
"""

# Days that are there already are rolled up, too.
MARK_ALL_DAYS = """
INSERT INTO rollup_marks (since, until)
SELECT (day || ' 00:00:00+00')::TIMESTAMPTZ, (day + 1 || ' 00:00:00+00')::TIMESTAMPTZ
FROM (
    SELECT to_date(right(relname, 10), 'YYYY_MM_DD') AS day
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'heartbeats'::REGCLASS
      AND relname ~ '^heartbeats_[0-9]{4}_[0-9]{2}_[0-9]{2}$'
) AS days
"""


def upgrade() -> None:
    """Make everything, and mark the days that are there to be rolled up."""
    instant = sa.DateTime(timezone=True)
    for name, begin in (("heartbeats_minute", "minute"), ("heartbeats_hour", "hour")):
        op.create_table(
            name,
            sa.Column("customer_id", sa.String(255), nullable=False),
            sa.Column(begin, instant, nullable=False),
            sa.Column("count", sa.BigInteger, nullable=False),
            sa.Column("sum", sa.BigInteger, nullable=False),
            sa.Column("min", sa.SmallInteger, nullable=False),
            sa.Column("max", sa.SmallInteger, nullable=False),
            sa.Column("first", sa.SmallInteger, nullable=False),
            sa.Column("last", sa.SmallInteger, nullable=False),
            sa.PrimaryKeyConstraint("customer_id", begin, name=f"{name}_pkey"),
            postgresql_partition_by=f"RANGE ({begin})",
        )
        op.create_index(f"idx_{name}_{begin}", name, [begin])
        op.create_table(
            f"{name}_all",
            sa.Column(begin, instant, nullable=False),
            sa.Column("customers", sa.BigInteger, nullable=False),
            sa.Column("count", sa.BigInteger, nullable=False),
            sa.Column("sum", sa.BigInteger, nullable=False),
            sa.Column("min", sa.SmallInteger, nullable=False),
            sa.Column("max", sa.SmallInteger, nullable=False),
            sa.Column("histogram", postgresql.ARRAY(sa.BigInteger), nullable=False),
            sa.PrimaryKeyConstraint(begin, name=f"{name}_all_pkey"),
        )
    op.create_table(
        "rollup_marks",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("since", instant, nullable=False),
        sa.Column("until", instant, nullable=False),
        sa.Column(
            "marked_at", instant, nullable=False, server_default=sa.text("now()")
        ),
    )
    op.create_table(
        "dropped_days",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("detached_at", instant, nullable=False),
        sa.Column("dropped_at", instant),
    )
    zero = sa.text("0")
    op.create_table(
        "dropped_dead_letters",
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("letters", sa.BigInteger, nullable=False, server_default=zero),
        sa.Column("replayed", sa.BigInteger, nullable=False, server_default=zero),
        sa.PrimaryKeyConstraint(
            "topic_id", "partition", name="dropped_dead_letters_pkey"
        ),
    )
    op.create_table(
        "retention",
        sa.Column("table_name", sa.Text, primary_key=True),
        sa.Column("days", sa.Integer, nullable=False),
        sa.CheckConstraint("days >= 1", name="retention_days_positive"),
    )
    for function in FUNCTIONS:
        op.execute(function)
    op.execute(REVOKE_FUNCTIONS)
    op.execute(MARK_ALL_DAYS)


def downgrade() -> None:
    """Drop all of it; the beats stay."""
    op.execute(DROP_FUNCTIONS)
    for table in reversed(TABLES):
        op.drop_table(table)
