"""A dead letter may hold an excerpt of its record, or stand for a whole batch.

New columns only, which are empty in what is there: nothing is read or written anew, and
the tables are locked for a moment.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ACCOUNTS = "ledger_accounts_for_every_offset"

# As 0002 has it, and with the offsets of unreadable batches.
DROP_DEAD_LETTERS = """
CREATE OR REPLACE FUNCTION drop_dead_letters(before TIMESTAMPTZ, at_most INTEGER)
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
        RETURNING topic_id, partition, replay_outcome, last_offset,
                  last_offset - "offset" + 1 AS offsets
    ), noted AS (
        INSERT INTO public.dropped_dead_letters AS old (
            topic_id, partition, letters, replayed, unreadable)
        SELECT topic_id, partition, count(*) - count(last_offset),
               count(*) FILTER (WHERE replay_outcome = 'stored'),
               COALESCE(sum(offsets), 0)
        FROM gone GROUP BY topic_id, partition
        ON CONFLICT (topic_id, partition) DO UPDATE SET
            letters = old.letters + excluded.letters,
            replayed = old.replayed + excluded.replayed,
            unreadable = old.unreadable + excluded.unreadable
    )
    SELECT count(*) FROM gone
$$
"""

DROP_DEAD_LETTERS_BEFORE = """
CREATE OR REPLACE FUNCTION drop_dead_letters(before TIMESTAMPTZ, at_most INTEGER)
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


def upgrade() -> None:
    """Add the columns, and count what is dropped of them."""
    # Who waits for a table holds up all who come after, such as workers behind a
    # pg_dump. The roll-ups' job first, whose lock 0009 needs; then the ledger, as
    # writers do.
    op.execute("SET LOCAL lock_timeout = '10s'")
    op.execute("SELECT pg_advisory_xact_lock(x'726f6c6c'::INTEGER)")
    op.execute(
        "LOCK TABLE partition_ledger, dead_letters, dropped_dead_letters"
        " IN ACCESS EXCLUSIVE MODE"
    )
    op.add_column("dead_letters", sa.Column("record_size", sa.BigInteger))
    op.add_column("dead_letters", sa.Column("record_sha256", sa.LargeBinary))
    op.add_column("dead_letters", sa.Column("customer_ids", postgresql.JSONB))
    op.add_column("dead_letters", sa.Column("last_offset", sa.BigInteger))
    for table in ("dropped_dead_letters", "partition_ledger"):
        op.add_column(
            table,
            sa.Column(
                "unreadable", sa.BigInteger, nullable=False, server_default=sa.text("0")
            ),
        )
    op.drop_constraint(ACCOUNTS, "partition_ledger")
    op.create_check_constraint(
        ACCOUNTS,
        "partition_ledger",
        "next_offset - first_offset = consumed + missing + gap + unreadable",
    )
    op.execute(DROP_DEAD_LETTERS)
    op.execute("SET LOCAL lock_timeout = DEFAULT")


def downgrade() -> None:
    """Forget the excerpts' sizes, and count what was unreadable as holes."""
    op.execute(DROP_DEAD_LETTERS_BEFORE)
    # What stands for a batch has no place in the books of before.
    op.execute("DELETE FROM dead_letters WHERE last_offset IS NOT NULL")
    op.drop_constraint(ACCOUNTS, "partition_ledger")
    op.execute(
        "UPDATE partition_ledger SET gap = gap + unreadable WHERE unreadable > 0"
    )
    for table in ("dropped_dead_letters", "partition_ledger"):
        op.drop_column(table, "unreadable")
    op.create_check_constraint(
        ACCOUNTS,
        "partition_ledger",
        "next_offset - first_offset = consumed + missing + gap",
    )
    for column in ("last_offset", "customer_ids", "record_sha256", "record_size"):
        op.drop_column("dead_letters", column)
