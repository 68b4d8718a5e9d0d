"""Who was erased, in a digest, so that nothing of them is stored again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; who may read it, heartbeat_app.storage.db.roles says."""
    instant = sa.DateTime(timezone=True)

    def count(name: str) -> sa.Column[int]:
        return sa.Column(
            name, sa.BigInteger, nullable=False, server_default=sa.text("0")
        )

    op.create_table(
        "erased_customers",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        count("beats"),
        count("rollups"),
        count("letters"),
        sa.Column("begun_at", instant, nullable=False),
        sa.Column("finished_at", instant),
        sa.UniqueConstraint("digest", name="erased_customers_digest_key"),
    )


def downgrade() -> None:
    """Forget who was erased: what Kafka still holds of them can come back."""
    op.drop_table("erased_customers")
