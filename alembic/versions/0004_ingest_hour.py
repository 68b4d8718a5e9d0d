"""What came in by hour, so that a look at a year need not read half a million minutes.

Like the roll-ups it is written by a function with the owner's rights (SECURITY
DEFINER): the worker's role may not write an hour that the minutes do not have.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# False: another session is at it. The lock, 0x696e6765, keeps what an older look at
# the minutes gave from being written over what a newer one did; it is not that of the
# roll-ups, which may be held for long. Each change of a minute counts a batch, so what
# is equal in these columns is equal in all, and is not written.
ROLL_UP_INGEST = """
CREATE FUNCTION roll_up_ingest(since TIMESTAMPTZ, until TIMESTAMPTZ) RETURNS BOOLEAN
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

# For dashboards. Where the step is an hour or more, the whole hours of the span that
# are added up take the place of their minutes; the rest of it, at both ends, is read by
# the minute. Neither SET nor SECURITY DEFINER: so PostgreSQL puts it into the query
# that asks, with its bounds.
INGEST_BETWEEN = """
CREATE FUNCTION ingest_between(since TIMESTAMPTZ, until TIMESTAMPTZ, step INTERVAL)
RETURNS SETOF ingest_minute
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH whole AS (
        SELECT date_trunc('hour', since + INTERVAL '59:59.999999', 'UTC') AS first,
               least(date_trunc('hour', until, 'UTC'), added_up) AS until
        FROM (
            SELECT coalesce(max(hour) + INTERVAL '1 hour', '-infinity') AS added_up
            FROM public.ingest_hour
        ) AS newest
        WHERE step >= INTERVAL '1 hour'
    )
    SELECT * FROM public.ingest_hour
    WHERE hour >= (SELECT first FROM whole) AND hour < (SELECT until FROM whole)
    UNION ALL
    SELECT * FROM public.ingest_minute
    WHERE minute >= since AND minute < least((SELECT first FROM whole), until)
      AND step >= INTERVAL '1 hour'
    UNION ALL
    SELECT * FROM public.ingest_minute
    WHERE minute >= greatest(since, (SELECT greatest(first, until) FROM whole))
      AND minute < until
$$
"""


def upgrade() -> None:
    """Make the table, which the workers fill; who may use it, roles says."""
    instant = sa.DateTime(timezone=True)

    def count(name: str) -> sa.Column[int]:
        return sa.Column(
            name, sa.BigInteger, nullable=False, server_default=sa.text("0")
        )

    op.create_table(
        "ingest_hour",
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("hour", instant, nullable=False),
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
            "topic_id", "partition", "hour", name="ingest_hour_pkey"
        ),
    )
    op.create_index("idx_ingest_hour_hour", "ingest_hour", ["hour"])
    op.execute(ROLL_UP_INGEST)
    op.execute(
        "REVOKE EXECUTE ON FUNCTION roll_up_ingest(TIMESTAMPTZ, TIMESTAMPTZ)"
        " FROM PUBLIC"
    )
    op.execute(INGEST_BETWEEN)


def downgrade() -> None:
    """Drop it; the minutes stay."""
    op.execute("DROP FUNCTION ingest_between(TIMESTAMPTZ, TIMESTAMPTZ, INTERVAL)")
    op.execute("DROP FUNCTION roll_up_ingest(TIMESTAMPTZ, TIMESTAMPTZ)")
    op.drop_table("ingest_hour")
