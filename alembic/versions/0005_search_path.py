"""make_day() looks for its functions in pg_catalog only.

Where others may create functions in `public`, as in databases that come from before
PostgreSQL 15, one of theirs could have been taken for PostgreSQL's own, and run with
the owner's rights.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What it uses of `public` it names with its schema."""
    op.execute("ALTER FUNCTION make_day(DATE) SET search_path = pg_catalog, pg_temp")


def downgrade() -> None:
    """As it was."""
    op.execute(
        "ALTER FUNCTION make_day(DATE) SET search_path = pg_catalog, public, pg_temp"
    )
