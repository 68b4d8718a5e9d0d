"""Customer ids are ordered by their bytes, whatever language the database speaks.

In the order of a language PostgreSQL needed a quarter more of its processor to store a
beat, for beats in the order of their time half as much again. Such an order also
changes with the system's libraries, and a unique index that was built by the old one
may then let a beat in twice. The worker sorts by the bytes, too.

The indexes are built anew, and the tables are locked for as long as that takes. Ids of
topics stay as they are: Kafka makes them, of ASCII, and they are few; and the ledger
cannot be locked behind the beats, since workers hold its rows when they come to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The roll-ups' job first, see 0002: it reads the first of these tables again while it
# holds the others. Then all three at once, not one after the other's indexes.
LOCK_ROLLUPS = "SELECT pg_advisory_xact_lock(x'726f6c6c'::INTEGER)"
LOCK_TABLES = "LOCK TABLE heartbeats, heartbeats_minute, heartbeats_hour"

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
          AND relname ~ '^heartbeats_(minute_|hour_)?[0-9]{4}_[0-9]{2}(_[0-9]{2})?$'
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
    heartbeats_hour (customer_id)
"""


def upgrade() -> None:
    """By bytes."""
    collate("C")


def downgrade() -> None:
    """In the database's own order."""
    collate("default")


def collate(collation: str) -> None:
    """Order the ids by that collation, in all there is of them."""
    # A day that is half detached would be passed over.
    op.execute("SELECT finish_detaching()")
    op.execute(LOCK_ROLLUPS)
    op.execute(LOCK_TABLES)
    for table in ("heartbeats", "heartbeats_minute", "heartbeats_hour"):
        op.alter_column(table, "customer_id", type_=sa.String(255, collation=collation))
    op.execute(DETACHED)
    op.execute(ANALYZE)
