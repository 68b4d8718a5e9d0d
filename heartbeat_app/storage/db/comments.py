"""What each table and column means, as comments in the database.

They are no part of a migration: each `alembic upgrade` to the head writes what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg2.sql import SQL, Composable, Identifier, Literal
from sqlalchemy import Connection, text

_PLACE = {
    "topic": "Name of the Kafka topic.",
    "topic_id": "Id of the topic: another one where it was deleted and made again.",
    "partition": "Number of the topic's partition.",
}
_COUNTED = {
    "consumed": "Records: stored + duplicate + dead.",
    "stored": "Records that became rows of heartbeats.",
    "duplicate": "Records whose beat was there already.",
    "dead": "Records that became dead letters.",
}
_ARRIVED = {
    **_COUNTED,
    "topic_id": _PLACE["topic_id"],
    "partition": _PLACE["partition"],
    "batches": "Transactions.",
    "delay_sum_seconds": "Seconds from timestamp to row, of all stored beats together.",
    "delay_max_seconds": "The longest of them.",
    "delay_min_seconds": "The shortest of them; empty where it is not known.",
    "delay_histogram": "Stored beats by that time; delay_quantile() knows the bounds.",
    "write_seconds": "Seconds that the transactions took before their commit.",
}
_RATES = {
    "count": "How many beats.",
    "sum": "Sum of their heart rates.",
    "min": "Lowest heart rate, in beats per minute.",
    "max": "Highest heart rate, in beats per minute.",
}
_OF_ONE = {
    **_RATES,
    "customer_id": "Whose beats.",
    "first": "Heart rate of the first beat.",
    "last": "Heart rate of the last beat.",
}
_OF_ALL = {
    **_RATES,
    "customers": "How many customers have a beat.",
    "histogram": "Element n: how many beats have the heart rate n.",
}

# Of each table: what it is, and what its columns are.
TABLES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "heartbeats": (
        "One row per beat, partitioned by UTC day.",
        {
            "id": "Order of insertion, by the sequence; not without holes.",
            "customer_id": "Whose beat; 1 to 255 characters, ordered by bytes.",
            "timestamp": "When the heart beat, as the device says.",
            "heart_rate": "Beats per minute, 1 to 300.",
        },
    ),
    "partition_ledger": (
        "Which offsets of which partition are accounted for; only goes forward.",
        {
            **_PLACE,
            **_COUNTED,
            "first_offset": "The offset that the books begin at.",
            "next_offset": "The offset that the worker goes on at: first_offset + "
            "consumed + missing + gap + unreadable.",
            "end_offset": "End of the partition in Kafka, when the row was written.",
            "missing": "Offsets that Kafka had deleted before they were read.",
            "gap": "Offsets without a record: transaction markers and compaction.",
            "unreadable": "Offsets of batches that could not be taken apart.",
            "updated_at": "When the row was written last.",
        },
    ),
    "dead_letters": (
        "Records that were rejected, as they were received, with the reason.",
        {
            **_PLACE,
            "id": "Order of insertion, by the sequence.",
            "offset": "The record's offset; of an unreadable batch its first one.",
            "key": "The record's key, or the beginning of it.",
            "value": "The record's value, or the beginning of it.",
            "headers": "The record's headers: pairs of name and value.",
            "reason": "Why it was rejected, in one word.",
            "detail": "Why it was rejected, in a sentence.",
            "first_seen": "When it was rejected.",
            "replayed_at": "When a replay looked at it last.",
            "replay_outcome": "What the last replay made of it.",
            "record_size": "Bytes of the record, where it is not kept whole.",
            "record_sha256": "SHA-256 of the record, where it is not kept whole.",
            "customer_ids": "Customers that a record names that is not kept whole.",
            "last_offset": "Last offset of an unreadable batch.",
        },
    ),
    "erased_customers": (
        "Customers that were erased, by a keyed digest, so that they stay away.",
        {
            "id": "Order of the erasures.",
            "key": "Random key of the digest.",
            "digest": "BLAKE2b of the customer's id with the key.",
            "beats": "Rows of heartbeats that were deleted.",
            "rollups": "Rows of roll-ups that were deleted.",
            "letters": "Dead letters that were emptied.",
            "begun_at": "From when on nothing of the customer is stored.",
            "finished_at": "When all was deleted; empty until then.",
        },
    ),
    "ingest_minute": (
        "What came in, by partition and minute of arrival.",
        {**_ARRIVED, "minute": "Begin of the minute of arrival."},
    ),
    "ingest_hour": (
        "What came in, by partition and hour of arrival; the sum of ingest_minute.",
        {**_ARRIVED, "hour": "Begin of the hour of arrival."},
    ),
    "heartbeats_minute": (
        "Beats of each customer by minute, partitioned by UTC month.",
        {**_OF_ONE, "minute": "Begin of the minute."},
    ),
    "heartbeats_hour": (
        "Beats of each customer by hour, partitioned by UTC month.",
        {
            **_OF_ONE,
            "hour": "Begin of the hour.",
            "minute_rates": "The average of each minute that has beats, in hundredths "
            "of a beat per minute, ascending; empty where it is not known.",
        },
    ),
    "heartbeats_minute_all": (
        "Beats of all customers together by minute.",
        {**_OF_ALL, "minute": "Begin of the minute."},
    ),
    "heartbeats_hour_all": (
        "Beats of all customers together by hour.",
        {**_OF_ALL, "hour": "Begin of the hour."},
    ),
    "rollup_marks": (
        "Minutes whose roll-ups are to be worked out again.",
        {
            "id": "Order of insertion, by the sequence.",
            "since": "The first minute.",
            "until": "The minute after the last one.",
            "marked_at": "When the mark was made.",
        },
    ),
    "dropped_days": (
        "Days that the retention took out of heartbeats; they stay away.",
        {
            "day": "The UTC day.",
            "rows": "How many beats it had.",
            "detached_at": "When it was taken out of the table.",
            "dropped_at": "When it was dropped; empty until then.",
        },
    ),
    "retention": (
        "For how many days what is kept; without a row for ever. The owner's settings.",
        {"table_name": "What is kept.", "days": "For how many days."},
    ),
    "dropped_dead_letters": (
        "How many dead letters the retention deleted.",
        {
            "topic_id": _PLACE["topic_id"],
            "partition": _PLACE["partition"],
            "letters": "Dead letters of single records.",
            "replayed": "How many of them a replay had stored.",
            "unreadable": "Offsets that the letters of unreadable batches were about.",
        },
    ),
    "partitions_lock": ("Locked by who makes a day or a month.", {}),
    "rollups_lock": ("Locked by who works on the roll-ups.", {}),
    "ingest_lock": ("Locked by who adds up hours of what came in.", {}),
    "retention_lock": ("Locked by who drops what is old.", {}),
}

# Names are a contract, so a comment says what they hide.
INDEXES = {
    "idx_customer_id": "Unique, on two columns: (customer_id, timestamp) is the key of "
    "a beat, which is so stored once.",
    "idx_timestamp": "On timestamp alone, for what is asked of all customers.",
}

FOUND = text(
    """
SELECT relname, attname, description
FROM pg_description
JOIN pg_class ON pg_class.oid = objoid AND relnamespace = 'public'::REGNAMESPACE
LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid AND objsubid > 0
WHERE classoid = 'pg_class'::REGCLASS
"""
)


def write(connection: Connection) -> None:
    """Write the comments that differ; for the owner, all tables have to be there."""
    found = {(row[0], row[1]): row[2] for row in connection.execute(FOUND)}
    wanted: dict[tuple[str, str | None], tuple[Composable, str]] = {}
    for table, (about, columns) in TABLES.items():
        name = Identifier("public", table)
        wanted[table, None] = SQL("TABLE {}").format(name), about
        for column, means in columns.items():
            name = Identifier("public", table, column)
            wanted[table, column] = SQL("COLUMN {}").format(name), means
    for index, about in INDEXES.items():
        wanted[index, None] = SQL("INDEX {}").format(Identifier("public", index)), about
    raw: Any = connection.connection.dbapi_connection
    with raw.cursor() as cursor:
        for key, (what, comment) in wanted.items():
            if found.get(key) != comment:
                cursor.execute(
                    SQL("COMMENT ON {} IS {}").format(what, Literal(comment))
                )
