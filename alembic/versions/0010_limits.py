"""Limits that the database holds by itself, and locks that only its owner can take.

- An advisory lock can be taken by every role that may log in, for as long as it likes,
  and so by Grafana's: it kept days from being made. In their place stand tables without
  a column, on which nobody but the owner may do anything but SELECT; `take_lock()` and
  the functions that need them lock these for the worker's role.
- make_day() and make_rollup_month() make no more than beats can need.
- The ledger goes forward only, for everybody but its owner.
- No instant is infinite, or before Christ: what reads it cannot hold such a one.
"""

from __future__ import annotations

from alembic import context, op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Who makes partitions, works on the roll-ups, adds up the hours of what came in, or
# drops what is old.
LOCKS = ("partitions_lock", "rollups_lock", "ingest_lock", "retention_lock")

# NOWAIT: another session is at it, and does the work. The lock is held until the end of
# the transaction. SHARE ROW EXCLUSIVE: not beside itself, but beside whoever reads the
# table, as pg_dump does, which is all that others can do.
TAKE_LOCK = """
CREATE FUNCTION take_lock(what TEXT) RETURNS BOOLEAN
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF what IN ('rollups', 'ingest', 'retention') IS NOT TRUE THEN
        RAISE EXCEPTION 'take_lock: there is no lock "%"', what
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('LOCK TABLE public.%I IN SHARE ROW EXCLUSIVE MODE NOWAIT',
                   what || '_lock');
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$
"""

# In the functions of 0002 and 0004, which stay as they are but for this.
TRY_LOCKS = (
    ("pg_try_advisory_xact_lock(x''726f6c6c''::INTEGER)", "rollups"),
    ("pg_try_advisory_xact_lock(x''696e6765''::INTEGER)", "ingest"),
)

# A day more than ALWAYS in heartbeat_app.storage.days.days, since clocks differ.
# MAX_DAYS is that module's, and the future no longer than MAX_FUTURE_SECONDS can be.
# The rest is as in 0001.
MAKE_DAY = """
CREATE OR REPLACE FUNCTION make_day(day DATE) RETURNS BOOLEAN
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partition TEXT;
    today DATE := (now() AT TIME ZONE 'UTC')::DATE;
BEGIN
    IF day IS NULL OR NOT day BETWEEN DATE '2000-01-01' AND DATE '9999-12-31' THEN
        RAISE EXCEPTION 'make_day: % is no day from 2000-01-01 to 9999-12-31', day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    partition := 'heartbeats_' || to_char(day, 'YYYY_MM_DD');
    LOCK TABLE public.partitions_lock IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'public.heartbeats'::regclass AND relname = partition
    ) THEN
        RETURN false;
    END IF;
    IF day > today + 368 THEN
        RAISE EXCEPTION 'make_day: % is more than a year ahead', day
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    IF abs(day - today) > 3 AND 2500 <= (
        SELECT count(*) FROM pg_inherits
        WHERE inhparent = 'public.heartbeats'::regclass
    ) THEN
        RAISE EXCEPTION 'make_day: there are 2500 days, so % is not made', day
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    EXECUTE format(
        'CREATE TABLE IF NOT EXISTS public.%I'
        ' (LIKE public.heartbeats INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
        partition
    );
    EXECUTE format(
        'ALTER TABLE public.heartbeats ATTACH PARTITION public.%I'
        ' FOR VALUES FROM (%L) TO (%L)',
        partition,
        to_char(day, 'YYYY-MM-DD 00:00:00+00'),
        to_char(day + 1, 'YYYY-MM-DD 00:00:00+00')
    );
    RETURN true;
END
$$
"""

# The months that days of beats lie in, and those around the present.
# The rest is as in 0002.
MAKE_ROLLUP_MONTH = """
CREATE OR REPLACE FUNCTION make_rollup_month(month DATE) RETURNS VOID
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
    IF abs(month - CURRENT_DATE) > 31 AND NOT EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'public.heartbeats'::REGCLASS
          AND starts_with(relname, to_char(begin_day, '"heartbeats_"YYYY_MM_'))
    ) THEN
        RAISE EXCEPTION 'make_rollup_month: % has no day of beats', month
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    FOREACH parent IN ARRAY ARRAY['heartbeats_minute', 'heartbeats_hour'] LOOP
        partition := parent || to_char(begin_day, '_YYYY_MM');
        CONTINUE WHEN (SELECT relispartition FROM pg_class
                       WHERE oid = to_regclass('public.' || partition));
        LOCK TABLE public.partitions_lock IN SHARE ROW EXCLUSIVE MODE;
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

# The owner may set it back, to have a partition read again, see
# docs/how-to/deployment.md. The condition costs a hundredth of a millisecond a
# transaction, less than a function.
LEDGER_GOES_FORWARD = """
CREATE FUNCTION ledger_goes_forward() RETURNS TRIGGER
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_has_role(
        current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE'
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'partition_ledger: % [%] goes forward only',
        OLD.topic, OLD.partition USING ERRCODE = 'insufficient_privilege';
END
$$
"""
TRIGGER = """
CREATE TRIGGER ledger_goes_forward BEFORE UPDATE ON partition_ledger FOR EACH ROW
WHEN (NEW.next_offset < OLD.next_offset
    OR NEW.consumed < OLD.consumed
    OR NEW.stored < OLD.stored
    OR NEW.duplicate < OLD.duplicate
    OR NEW.dead < OLD.dead
    OR NEW.missing < OLD.missing
    OR NEW.gap < OLD.gap
    OR NEW.unreadable < OLD.unreadable)
EXECUTE FUNCTION ledger_goes_forward();
-- Also where session_replication_role says otherwise.
ALTER TABLE partition_ledger ENABLE ALWAYS TRIGGER ledger_goes_forward
"""

# Marks are few. Of the other tables what is there already is not read: NOT VALID.
MARKS_WITHIN_BOUNDS = """
DELETE FROM rollup_marks WHERE until <= since;
UPDATE rollup_marks SET since = greatest(since, '2000-01-01Z'::TIMESTAMPTZ),
    until = least(until, '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ)
WHERE since < '2000-01-01Z'::TIMESTAMPTZ AND until > '2000-01-01Z'::TIMESTAMPTZ
    OR until > '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ
        AND since < '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ;
DELETE FROM rollup_marks WHERE since < '2000-01-01Z'::TIMESTAMPTZ
    OR until > '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ;
UPDATE rollup_marks SET since = date_bin('1 minute', since, '2000-01-01Z'::TIMESTAMPTZ),
    until = CASE WHEN until = '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ THEN until ELSE
        date_bin('1 minute', until + INTERVAL '59.999999 s',
                 '2000-01-01Z'::TIMESTAMPTZ) END
WHERE date_bin('1 minute', since, '2000-01-01Z'::TIMESTAMPTZ) <> since
   OR date_bin('1 minute', until, '2000-01-01Z'::TIMESTAMPTZ) <> until;
ALTER TABLE rollup_marks ADD CONSTRAINT rollup_marks_bounds
    CHECK (since >= '2000-01-01Z'::TIMESTAMPTZ AND since < until
        AND until <= '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ
           AND date_bin('1 minute', since, '2000-01-01Z'::TIMESTAMPTZ) = since
           AND (date_bin('1 minute', until, '2000-01-01Z'::TIMESTAMPTZ) = until
               OR until = '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ))
"""
# By the indexes on these columns.
INSTANTS_WITHIN_BOUNDS = """
DELETE FROM ingest_minute WHERE minute < '2000-01-01Z'::TIMESTAMPTZ
    OR minute > '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ;
ALTER TABLE ingest_minute ADD CONSTRAINT ingest_minute_bounds
    CHECK (minute BETWEEN '2000-01-01Z'::TIMESTAMPTZ
        AND '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ) NOT VALID;
UPDATE dead_letters SET first_seen = now()
WHERE first_seen < '2000-01-01Z'::TIMESTAMPTZ
    OR first_seen > '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ;
UPDATE dead_letters SET replayed_at = now()
WHERE replayed_at < '2000-01-01Z'::TIMESTAMPTZ
    OR replayed_at > '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ;
ALTER TABLE dead_letters ADD CONSTRAINT dead_letters_bounds
    CHECK (first_seen BETWEEN '2000-01-01Z'::TIMESTAMPTZ
        AND '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ
           AND replayed_at BETWEEN '2000-01-01Z'::TIMESTAMPTZ
               AND '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ) NOT VALID;
ALTER TABLE partition_ledger ADD CONSTRAINT ledger_bounds
    CHECK (updated_at BETWEEN '2000-01-01Z'::TIMESTAMPTZ
        AND '9999-12-31T23:59:59.999999Z'::TIMESTAMPTZ) NOT VALID
"""
BOUNDS = (
    ("rollup_marks", "rollup_marks_bounds"),
    ("ingest_minute", "ingest_minute_bounds"),
    ("dead_letters", "dead_letters_bounds"),
    ("partition_ledger", "ledger_bounds"),
)

REPLACE_IN_FUNCTIONS = """
DO $do$
DECLARE
    definition TEXT;
BEGIN
    FOR definition IN
        SELECT pg_catalog.pg_get_functiondef(oid) FROM pg_catalog.pg_proc
        WHERE pronamespace = 'public'::REGNAMESPACE AND prokind = 'f'
          AND position('{before}' IN prosrc) > 0
    LOOP
        EXECUTE replace(definition, '{before}', '{after}');
    END LOOP;
END
$do$
"""


def upgrade() -> None:
    """Make the locks and have the functions use them; set the limits."""
    for lock in LOCKS:
        op.create_table(lock)
    op.execute(TAKE_LOCK)
    op.execute("REVOKE EXECUTE ON FUNCTION take_lock(TEXT) FROM PUBLIC")
    for before, what in TRY_LOCKS:
        replace_in_functions(before, f"public.take_lock(''{what}'')")
    op.execute(MAKE_DAY)
    op.execute(MAKE_ROLLUP_MONTH)
    # The ledger first, as writers do.
    op.execute(LEDGER_GOES_FORWARD)
    op.execute(TRIGGER)
    op.execute(INSTANTS_WITHIN_BOUNDS)
    op.execute(MARKS_WITHIN_BOUNDS)


def downgrade() -> None:
    """Advisory locks, and no limits."""
    for table, name in reversed(BOUNDS):
        op.drop_constraint(name, table)
    op.execute("DROP TRIGGER ledger_goes_forward ON partition_ledger")
    op.execute("DROP FUNCTION ledger_goes_forward()")
    for revision, name in (("0001", "MAKE_DAY"), ("0002", "MAKE_ROLLUP_MONTH")):
        made = getattr(context.script.get_revision(revision).module, name)
        op.execute(made.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    # As 0005 has it.
    op.execute("ALTER FUNCTION make_day(DATE) SET search_path = pg_catalog, pg_temp")
    for before, what in TRY_LOCKS:
        replace_in_functions(f"public.take_lock(''{what}'')", before)
    op.execute("DROP FUNCTION take_lock(TEXT)")
    for lock in reversed(LOCKS):
        op.drop_table(lock)


def replace_in_functions(before: str, after: str) -> None:
    """In the functions of this schema; both as they stand in a literal."""
    op.execute(REPLACE_IN_FUNCTIONS.format(before=before, after=after))
