"""The tables, as the migrations make them; names and columns are a contract."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()

# A beat's journey from its timestamp to its row, in seconds: the upper bounds of the
# buckets of ingest_minute.delay_histogram; one more bucket holds all that is slower.
# The database's delay_quantile() knows the same bounds.
DELAY_BOUNDS_SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
    1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0,
)  # fmt: skip


def _instant(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


# Partitioned by UTC day. BIGSERIAL, since identity columns fail on partitions in
# PostgreSQL 15. No default partition: it would have to be scanned for each new day.
heartbeats = Table(
    "heartbeats",
    metadata,
    Column("id", BigInteger, autoincrement=True, nullable=False),
    Column("customer_id", String(255), nullable=False),
    _instant("timestamp"),
    Column("heart_rate", Integer, nullable=False),
    PrimaryKeyConstraint("id", "timestamp", name="heartbeats_pkey"),
    CheckConstraint("heart_rate BETWEEN 1 AND 300", name="heart_rate_range"),
    # The natural key: what is sent again is a duplicate instead of an error.
    Index("idx_customer_id", "customer_id", "timestamp", unique=True),
    Index("idx_timestamp", "timestamp"),
    postgresql_partition_by='RANGE ("timestamp")',
)

# The truth about what was read: Kafka's committed offsets are only a hint.
partition_ledger = Table(
    "partition_ledger",
    metadata,
    Column("topic", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("first_offset", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("end_offset", BigInteger, nullable=False),
    _count("consumed"),
    _count("stored"),
    _count("duplicate"),
    _count("dead"),
    _count("missing"),
    _count("gap"),
    _instant("updated_at"),
    PrimaryKeyConstraint("topic_id", "partition", name="partition_ledger_pkey"),
    CheckConstraint("consumed = stored + duplicate + dead", name="ledger_balances"),
    CheckConstraint(
        "next_offset - first_offset = consumed + missing + gap",
        name="ledger_accounts_for_every_offset",
    ),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("topic", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column("headers", JSONB, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    _instant("first_seen"),
    _instant("replayed_at", nullable=True),
    Column("replay_outcome", Text),
    UniqueConstraint("topic_id", "partition", "offset", name="dead_letters_offset_key"),
    Index("idx_dead_letters_first_seen", "first_seen"),
)

# What came in, by minute of arrival.
ingest_minute = Table(
    "ingest_minute",
    metadata,
    Column("topic_id", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    _instant("minute"),
    _count("batches"),
    _count("consumed"),
    _count("stored"),
    _count("duplicate"),
    _count("dead"),
    Column("delay_sum_seconds", Double, nullable=False),
    Column("delay_max_seconds", Double, nullable=False),
    Column("delay_histogram", ARRAY(BigInteger), nullable=False),
    Column("write_seconds", Double, nullable=False),
    PrimaryKeyConstraint("topic_id", "partition", "minute", name="ingest_minute_pkey"),
    Index("idx_ingest_minute_minute", "minute"),
)
