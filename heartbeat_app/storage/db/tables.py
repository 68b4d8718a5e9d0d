"""The tables, as the migrations make them; names and columns are a contract."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()

# A beat's journey from its timestamp to its row, in seconds: the upper bounds of the
# buckets that are counted; one more bucket holds all that is slower. The database's
# delay_quantile() knows the same bounds.
DELAY_BOUNDS_SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0,
    1200.0, 1800.0, 2700.0, 3600.0, 5400.0, 7200.0, 10800.0, 14400.0, 21600.0, 28800.0,
    43200.0, 86400.0, 172800.0, 345600.0, 604800.0, 1209600.0, 2592000.0, 7776000.0,
    31536000.0,
)  # fmt: skip
# In ingest_minute.delay_histogram places between the first of them and the others hold
# what was counted in wider buckets, before migration 0009.
FIRST_DELAY_BUCKETS = 13
WIDER_DELAY_BUCKETS = 5


def _customer_id() -> Column[str]:
    # Ordered by its bytes: that is quicker than a language's order, the same on every
    # system for ever, and Python's own.
    return Column("customer_id", String(255, collation="C"), nullable=False)


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
    _customer_id(),
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
    # Offsets of batches that could not be taken apart; a dead letter has each batch.
    _count("unreadable"),
    PrimaryKeyConstraint("topic_id", "partition", name="partition_ledger_pkey"),
    CheckConstraint("consumed = stored + duplicate + dead", name="ledger_balances"),
    CheckConstraint(
        "next_offset - first_offset = consumed + missing + gap + unreadable",
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
    # Only where the record was not kept whole (heartbeat_app.domain.excerpts): what it
    # was.
    Column("record_size", BigInteger),
    Column("record_sha256", LargeBinary),
    Column("customer_ids", JSONB),
    # Only of a batch that could not be taken apart: `offset` is its first one.
    Column("last_offset", BigInteger),
    UniqueConstraint("topic_id", "partition", "offset", name="dead_letters_offset_key"),
    Index("idx_dead_letters_first_seen", "first_seen"),
)

# Who was erased, not by name; heartbeat_app.storage.write.erasures has what it means.
# The counts are of what was removed.
erased_customers = Table(
    "erased_customers",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("key", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    _count("beats"),
    _count("rollups"),
    _count("letters"),
    _instant("begun_at"),
    _instant("finished_at", nullable=True),
    UniqueConstraint("digest", name="erased_customers_digest_key"),
)


def _ingest(name: str, begin: str) -> Table:
    """What came in of each partition, by minute, or hour, of arrival."""
    return Table(
        name,
        metadata,
        Column("topic_id", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        _instant(begin),
        _count("batches"),
        _count("consumed"),
        _count("stored"),
        _count("duplicate"),
        _count("dead"),
        Column("delay_sum_seconds", Double, nullable=False),
        Column("delay_max_seconds", Double, nullable=False),
        Column("delay_histogram", ARRAY(BigInteger), nullable=False),
        Column("write_seconds", Double, nullable=False),
        # None where no beat was stored, and of what came in before migration 0009.
        Column("delay_min_seconds", Double),
        PrimaryKeyConstraint("topic_id", "partition", begin, name=f"{name}_pkey"),
        Index(f"idx_{name}_{begin}", begin),
    )


ingest_minute = _ingest("ingest_minute", "minute")
# Added up from it by roll_up_ingest() of migration 0004.
ingest_hour = _ingest("ingest_hour", "hour")


def _rollup(name: str, begin: str, *more: Column[Any]) -> Table:
    """What one customer's beats were in each minute, or hour."""
    return Table(
        name,
        metadata,
        _customer_id(),
        _instant(begin),
        Column("count", BigInteger, nullable=False),
        Column("sum", BigInteger, nullable=False),
        # Heart rates; the first and the last are those of the timestamps.
        Column("min", SmallInteger, nullable=False),
        Column("max", SmallInteger, nullable=False),
        Column("first", SmallInteger, nullable=False),
        Column("last", SmallInteger, nullable=False),
        *more,
        PrimaryKeyConstraint("customer_id", begin, name=f"{name}_pkey"),
        Index(f"idx_{name}_{begin}", begin),
        postgresql_partition_by=f"RANGE ({begin})",
    )


def _rollup_of_all(name: str, begin: str) -> Table:
    """What the beats of all customers were in each minute, or hour."""
    return Table(
        name,
        metadata,
        _instant(begin),
        Column("customers", BigInteger, nullable=False),
        Column("count", BigInteger, nullable=False),
        Column("sum", BigInteger, nullable=False),
        Column("min", SmallInteger, nullable=False),
        Column("max", SmallInteger, nullable=False),
        # Element n: how many beats had the heart rate n; as long as `max`.
        Column("histogram", ARRAY(BigInteger), nullable=False),
        PrimaryKeyConstraint(begin, name=f"{name}_pkey"),
    )


# The roll-ups, partitioned by UTC month; the functions of migration 0002 write them.
heartbeats_minute = _rollup("heartbeats_minute", "minute")
heartbeats_hour = _rollup(
    "heartbeats_hour",
    "hour",
    # The average of each minute that has beats, in hundredths, rounded down, ascending;
    # None of hours whose minutes were dropped before migration 0009.
    Column("minute_rates", ARRAY(SmallInteger)),
)
heartbeats_minute_all = _rollup_of_all("heartbeats_minute_all", "minute")
heartbeats_hour_all = _rollup_of_all("heartbeats_hour_all", "hour")

# Minutes to work out again, from `since` up to, not including, `until`. Only added to
# and taken from: with a unique key a mark that is made while the job takes its equal
# would be lost, and two workers would wait for each other.
rollup_marks = Table(
    "rollup_marks",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    _instant("since"),
    _instant("until"),
    Column(
        "marked_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=text("now()"),
    ),
)

# Days that the retention took out of `heartbeats`; they never come back by themselves.
dropped_days = Table(
    "dropped_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("rows", BigInteger, nullable=False),
    _instant("detached_at"),
    _instant("dropped_at", nullable=True),
)

# For how many days what is kept; without a row: for ever. `alembic upgrade` writes it,
# and the functions that drop go by it: the worker's role may only read it.
retention = Table(
    "retention",
    metadata,
    Column("table_name", Text, primary_key=True),
    Column("days", Integer, nullable=False),
    CheckConstraint("days >= 1", name="retention_days_positive"),
)

# How many dead letters the retention deleted, and how many of them a replay stored;
# and how many offsets the letters of unreadable batches were about, which `letters`
# does not count.
dropped_dead_letters = Table(
    "dropped_dead_letters",
    metadata,
    Column("topic_id", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    _count("letters"),
    _count("replayed"),
    _count("unreadable"),
    PrimaryKeyConstraint("topic_id", "partition", name="dropped_dead_letters_pkey"),
)

# Locks: without a column, since only LOCK TABLE is for them. Whoever makes partitions,
# works on the roll-ups, adds up hours of what came in, or drops what is old, has one
# until its transaction ends. Advisory locks would be anybody's who can log in.
LOCKS = ("partitions_lock", "rollups_lock", "ingest_lock", "retention_lock")
for _lock in LOCKS:
    Table(_lock, metadata)
