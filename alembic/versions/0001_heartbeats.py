"""The beats, the ledger of what was read, the dead letters, what came in by minute."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from psycopg2.extensions import encrypt_password
from sqlalchemy.dialects import postgresql

from heartbeat_app.config import load_settings

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

log = logging.getLogger("alembic.runtime.migration")

READER = "heartbeat_reader"
TABLES = ("heartbeats", "partition_ledger", "dead_letters", "ingest_minute")

# The bounds are those of heartbeat_app.storage.tables.DELAY_BOUNDS_SECONDS.
# Linear between a bucket's bounds; what lies beyond the last bound is given as it.
DELAY_QUANTILE = """
CREATE FUNCTION delay_quantile(histogram BIGINT[], q DOUBLE PRECISION)
RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    WITH bounds AS (
        SELECT ARRAY[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                     1, 2, 5, 10, 30, 60, 300, 3600]::DOUBLE PRECISION[] AS upper
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
             * ((q * total - (running - count)) / count)::DOUBLE PRECISION
        END
    FROM buckets, bounds
    WHERE count > 0 AND running >= q * total
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


def upgrade() -> None:
    """Make everything, and the reader's role where that is asked for and allowed."""
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

    if context.is_offline_mode():
        log.info("Offline: no role %s is made.", READER)
    else:
        make_reader(op.get_bind())


def require_utf8(connection: sa.Connection) -> None:
    """Refuse a database that cannot hold every customer_id."""
    encoding = connection.scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise CommandError(
            f"The database is encoded in {encoding}, which cannot hold every "
            "customer_id. Make it with ENCODING 'UTF8' TEMPLATE template0."
        )


def make_reader(connection: sa.Connection) -> None:
    """Make the SELECT-only role, or say why not."""
    password = load_settings().postgresql_reader_password
    if password is None:
        log.info("POSTGRESQL_READER_PASSWORD is not set: no role %s is made.", READER)
        return
    may_create = connection.scalar(
        sa.text(
            "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname=current_user"
        )
    )
    if not may_create:
        log.warning(
            "The owner may not create roles: no role %s is made. Grafana needs a role "
            "with SELECT on %s; let an administrator make it.",
            READER,
            ", ".join(TABLES),
        )
        return
    exists = connection.scalar(
        sa.text("SELECT true FROM pg_roles WHERE rolname = :name"), {"name": READER}
    )
    # Only the verifier travels, so that no log of the server holds the password.
    verifier = encrypt_password(
        password, READER, connection.connection.dbapi_connection, "scram-sha-256"
    )
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(
                f"{'ALTER' if exists else 'CREATE'} ROLE {READER} LOGIN PASSWORD %s",
                (verifier,),
            )
    except sa.exc.ProgrammingError as error:
        if not exists or getattr(error.orig, "pgcode", None) != "42501":
            raise
        log.warning(
            "The role %s was made by another owner: it may read this database, too, "
            "but keeps its password.",
            READER,
        )
    connection.execute(
        sa.text(
            f"GRANT USAGE ON SCHEMA public TO {READER};"
            f"GRANT SELECT ON {', '.join(TABLES)} TO {READER}"
        )
    )


def downgrade() -> None:
    """Drop everything but the reader's role, which others may use: only revoke."""
    op.execute(
        f"""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{READER}') THEN
                REVOKE ALL ON {", ".join(TABLES)} FROM {READER};
                REVOKE ALL ON SCHEMA public FROM {READER};
            END IF;
        END $$
        """  # noqa: S608 (constants only)
    )
    op.execute("DROP AGGREGATE histogram_sum(BIGINT[])")
    op.execute("DROP FUNCTION histogram_add(BIGINT[], BIGINT[])")
    op.execute("DROP FUNCTION delay_quantile(BIGINT[], DOUBLE PRECISION)")
    for table in reversed(TABLES):
        op.drop_table(table)
