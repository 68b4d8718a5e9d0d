"""Text in keys is ordered by its bytes, whatever language the database speaks.

In the order of a language PostgreSQL took half as long again to store a beat. Such an
order also changes with the system's libraries, and a unique index that was built by
the old one may then let a beat in twice. The worker sorts by the bytes, too.

The indexes are built anew, and the tables are locked for as long as that takes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

CUSTOMER_IDS = ("heartbeats", "heartbeats_minute", "heartbeats_hour")
OTHERS = (
    ("partition_ledger", "topic_id"),
    ("dead_letters", "topic_id"),
    ("ingest_minute", "topic_id"),
    ("ingest_hour", "topic_id"),
    ("dropped_dead_letters", "topic_id"),
    ("retention", "table_name"),
)

# Days and months that somebody detached become what the others are: to be attached
# again they have to be alike.
DETACHED = """
DO $$
DECLARE
    detached TEXT;
    wanted TEXT := (
        SELECT collname FROM pg_catalog.pg_attribute
        JOIN pg_catalog.pg_collation ON pg_collation.oid = attcollation
        WHERE attrelid = 'public.heartbeats'::REGCLASS AND attname = 'customer_id'
    );
BEGIN
    FOR detached IN
        SELECT relname FROM pg_catalog.pg_class
        WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r'
          AND NOT relispartition
          AND relname ~ '^heartbeats_(minute_|hour_)?\\d{4}_\\d\\d(_\\d\\d)?$'
    LOOP
        EXECUTE format(
            'ALTER TABLE public.%I ALTER customer_id TYPE VARCHAR(255) COLLATE %I',
            detached, wanted
        );
    END LOOP;
END
$$
"""

# What PostgreSQL knew of the columns is gone, and of tables that do not change any more
# it would not look again by itself.
ANALYZE = """
ANALYZE heartbeats (customer_id), heartbeats_minute (customer_id),
    heartbeats_hour (customer_id), dead_letters (topic_id), ingest_minute (topic_id),
    ingest_hour (topic_id)
"""


def upgrade() -> None:
    """By bytes."""
    collate("C")


def downgrade() -> None:
    """In the database's own order."""
    collate("default")


def collate(collation: str) -> None:
    """Give all text in keys that collation."""
    # A day that is half detached would be passed over.
    op.execute("SELECT finish_detaching()")
    for table in CUSTOMER_IDS:
        op.alter_column(table, "customer_id", type_=sa.String(255, collation=collation))
    for table, column in OTHERS:
        op.alter_column(table, column, type_=sa.Text(collation=collation))
    op.execute(DETACHED)
    op.execute(ANALYZE)
