"""The beats, the ledger of what was read, the dead letters, what came in by minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("heartbeats", "partition_ledger", "dead_letters", "ingest_minute")

# The bounds are those of heartbeat_app.storage.db.tables.DELAY_BOUNDS_SECONDS.
# Linear between a bucket's bounds; what lies beyond the last bound is given as it.
DELAY_QUANTILE = """
CREATE FUNCTION delay_quantile(histogram BIGINT[], q DOUBLE PRECISION)
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

HISTOGRAM_ADD = """
CREATE FUNCTION histogram_add(BIGINT[], BIGINT[]) RETURNS BIGINT[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT array_agg(coalesce(a, 0) + coalesce(b, 0) ORDER BY bucket)
    FROM unnest($1, $2) WITH ORDINALITY AS pairs(a, b, bucket)
$$
"""

HISTOGRAM_SUM = """
CREATE AGGREGATE histogram_sum(BIGINT[]) (
    SFUNC = histogram_add, STYPE = BIGINT[], INITCOND = '{}', PARALLEL = SAFE,
    COMBINEFUNC = histogram_add
)
"""

# Days come while workers run, and those may make no tables: this makes a day's
# partition for them, with the owner's rights, and nothing else.
# The advisory lock, 0x68656172, is one that all take who make days. CREATE and then
# ATTACH, since CREATE … PARTITION OF waits for open writers and blocks readers.
# The table may be there: a day that somebody detached comes back with its rows.
# "timestamp" lies in the years 2000 to 9999, and is sorted by UTC.
MAKE_DAY = """
CREATE FUNCTION make_day(day DATE) RETURNS BOOLEAN
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    partition TEXT;
BEGIN
    IF day IS NULL OR NOT day BETWEEN DATE '2000-01-01' AND DATE '9999-12-31' THEN
        RAISE EXCEPTION 'make_day: % is no day from 2000-01-01 to 9999-12-31', day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    partition := 'heartbeats_' || to_char(day, 'YYYY_MM_DD');
    PERFORM pg_advisory_xact_lock(1751474546);
    IF EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'public.heartbeats'::regclass AND relname = partition
    ) THEN
        RETURN false;
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


def upgrade() -> None:
    """Make everything; who may use it, heartbeat_app.storage.db.roles says."""
    if not context.is_offline_mode():
        require_utf8(op.get_bind())
    instant = sa.DateTime(timezone=True)

    def count(name: str) -> sa.Column[int]:
        return sa.Column(
            name, sa.BigInteger, nullable=False, server_default=sa.text("0")
        )

    op.create_table(
        "heartbeats",
        sa.Column("id", sa.BigInteger, autoincrement=True, nullable=False),
        sa.Column("customer_id", sa.String(255), nullable=False),
        sa.Column("timestamp", instant, nullable=False),
        sa.Column("heart_rate", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", "timestamp", name="heartbeats_pkey"),
        sa.CheckConstraint("heart_rate BETWEEN 1 AND 300", name="heart_rate_range"),
        postgresql_partition_by='RANGE ("timestamp")',
    )
    op.create_index(
        "idx_customer_id", "heartbeats", ["customer_id", "timestamp"], unique=True
    )
    op.create_index("idx_timestamp", "heartbeats", ["timestamp"])

    op.create_table(
        "partition_ledger",
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        count("consumed"),
        count("stored"),
        count("duplicate"),
        count("dead"),
        count("missing"),
        count("gap"),
        sa.Column("updated_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("topic_id", "partition", name="partition_ledger_pkey"),
        sa.CheckConstraint(
            "consumed = stored + duplicate + dead", name="ledger_balances"
        ),
        sa.CheckConstraint(
            "next_offset - first_offset = consumed + missing + gap",
            name="ledger_accounts_for_every_offset",
        ),
    )

    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary),
        sa.Column("headers", postgresql.JSONB, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("first_seen", instant, nullable=False),
        sa.Column("replayed_at", instant),
        sa.Column("replay_outcome", sa.Text),
        sa.UniqueConstraint(
            "topic_id", "partition", "offset", name="dead_letters_offset_key"
        ),
    )
    op.create_index("idx_dead_letters_first_seen", "dead_letters", ["first_seen"])

    op.create_table(
        "ingest_minute",
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("minute", instant, nullable=False),
        count("batches"),
        count("consumed"),
        count("stored"),
        count("duplicate"),
        count("dead"),
        sa.Column("delay_sum_seconds", sa.Double, nullable=False),
        sa.Column("delay_max_seconds", sa.Double, nullable=False),
        sa.Column("delay_histogram", postgresql.ARRAY(sa.BigInteger), nullable=False),
        sa.Column("write_seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint(
            "topic_id", "partition", "minute", name="ingest_minute_pkey"
        ),
    )
    op.create_index("idx_ingest_minute_minute", "ingest_minute", ["minute"])

    op.execute(DELAY_QUANTILE)
    op.execute(HISTOGRAM_ADD)
    op.execute(HISTOGRAM_SUM)
    op.execute(MAKE_DAY)
    op.execute("REVOKE EXECUTE ON FUNCTION make_day(DATE) FROM PUBLIC")


def require_utf8(connection: sa.Connection) -> None:
    """Refuse a database that cannot hold every customer_id."""
    encoding = connection.scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise CommandError(
            f"The database is encoded in {encoding}, which cannot hold every "
            "customer_id. Make it with ENCODING 'UTF8' TEMPLATE template0."
        )


def downgrade() -> None:
    """Drop everything but the roles, which others may use."""
    op.execute("DROP FUNCTION make_day(DATE)")
    op.execute("DROP AGGREGATE histogram_sum(BIGINT[])")
    op.execute("DROP FUNCTION histogram_add(BIGINT[], BIGINT[])")
    op.execute("DROP FUNCTION delay_quantile(BIGINT[], DOUBLE PRECISION)")
    for table in reversed(TABLES):
        op.drop_table(table)
