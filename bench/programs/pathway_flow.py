"""Pathway with its own PostgreSQL connector, as a snapshot of the table's key."""

import os

import pathway as pw

# How far behind its kept state may be; below that a restart reads again and upserts.
# With 10 ms it stored beats after 1.8 s instead of 10 ms.
SNAPSHOT_MS = 1000


class Beat(pw.Schema):
    """The record; the pair of customer and instant is the key."""

    customer_id: str = pw.column_definition(primary_key=True)
    # Its JSON parser takes no instant that ends with Z, strptime does.
    timestamp: str = pw.column_definition(primary_key=True)
    heart_rate: int


def main() -> None:
    """Run the flow until SIGTERM."""
    beats = pw.io.kafka.read(
        {
            "bootstrap.servers": os.environ["BENCH_BOOTSTRAP_SERVERS"],
            "group.id": os.environ["BENCH_GROUP"],
            "auto.offset.reset": "earliest",
        },
        topic=os.environ["BENCH_TOPIC"],
        format="json",
        schema=Beat,
        autocommit_duration_ms=int(os.environ["BENCH_COMMIT_MS"]),
    )
    beats = beats.with_columns(
        timestamp=beats.timestamp.dt.strptime("%Y-%m-%dT%H:%M:%S%.fZ").dt.to_utc("UTC")
    )
    pw.io.postgres.write(
        beats,
        {
            "host": os.environ["PGHOST"],
            "port": os.environ["PGPORT"],
            "dbname": os.environ["PGDATABASE"],
            "user": os.environ["PGUSER"],
            "password": os.environ["PGPASSWORD"],
        },
        "heartbeats",
        output_table_type="snapshot",
        primary_key=[beats.customer_id, beats.timestamp],
    )
    state = pw.persistence.Backend.filesystem(os.environ["BENCH_FOLDER"])
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=pw.persistence.Config(
            state, snapshot_interval_ms=SNAPSHOT_MS
        ),
    )


if __name__ == "__main__":
    main()
