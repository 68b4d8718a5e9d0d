"""No pattern in the database depends on how a session reads a backslash.

With standard_conforming_strings off, as a database's, a role's or a server's default,
PostgreSQL takes a backslash out of an ordinary literal: patterns of the names of days
then found no day. drop_rollup_month() saw no beats of a month that was to be kept,
0002 marked no day to be rolled up, and 0006 passed over the days that were detached.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# As 0002 makes it now; who may call it stays.
DROP_ROLLUP_MONTH = """
CREATE OR REPLACE FUNCTION drop_rollup_month(parent TEXT, month DATE) RETURNS VOID
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

# Days that were there before 0002 and were never rolled up: those of which no minute
# is there; and all where the default is off, since a late beat's minute may be.
MARK_FORGOTTEN_DAYS = """
INSERT INTO rollup_marks (since, until)
SELECT (day || ' 00:00:00+00')::TIMESTAMPTZ, (day + 1 || ' 00:00:00+00')::TIMESTAMPTZ
FROM (
    SELECT to_date(right(relname, 10), 'YYYY_MM_DD') AS day
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'heartbeats'::REGCLASS
      AND relname ~ '^heartbeats_[0-9]{4}_[0-9]{2}_[0-9]{2}$'
) AS days
WHERE EXISTS (
    SELECT FROM pg_settings
    WHERE name = 'standard_conforming_strings' AND reset_val = 'off'
) OR NOT EXISTS (
    SELECT FROM heartbeats_minute_all
    WHERE minute >= (day || ' 00:00:00+00')::TIMESTAMPTZ
      AND minute < (day + 1 || ' 00:00:00+00')::TIMESTAMPTZ
)
"""

# Days and months that somebody detached before 0006: to be attached again they have to
# be like the others. Nobody reads them meanwhile.
DETACHED = """
DO $$
DECLARE
    detached TEXT;
BEGIN
    FOR detached IN
        SELECT relname FROM pg_catalog.pg_class
        JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid
            AND attname = 'customer_id'
        WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r'
          AND NOT relispartition
          AND attcollation <> '"C"'::REGCOLLATION
          AND relname ~ '^heartbeats_(minute_|hour_)?[0-9]{4}_[0-9]{2}(_[0-9]{2})?$'
    LOOP
        EXECUTE format(
            'ALTER TABLE public.%I ALTER customer_id TYPE VARCHAR(255) COLLATE "C"',
            detached
        );
    END LOOP;
END
$$
"""


def upgrade() -> None:
    """Write the patterns without backslashes, and do what they had missed."""
    op.execute(DROP_ROLLUP_MONTH)
    op.execute(MARK_FORGOTTEN_DAYS)
    op.execute(DETACHED)


def downgrade() -> None:
    """Leave it: what is there now is what 0002 and 0006 mean."""
