"""Quix Streams with its own PostgreSQL sink."""

import os

from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink


def main() -> None:
    """Run the application until SIGTERM."""
    app = Application(
        broker_address=os.environ["BENCH_BOOTSTRAP_SERVERS"],
        consumer_group=os.environ["BENCH_GROUP"],
        auto_offset_reset="earliest",
        commit_every=int(os.environ["BENCH_COMMIT_EVERY"]),
        commit_interval=float(os.environ["BENCH_COMMIT_SECONDS"]),
        auto_create_topics=False,
        state_dir=os.environ["BENCH_FOLDER"],
    )
    sink = PostgreSQLSink(
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        dbname=os.environ["PGDATABASE"],
        user=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        table_name="heartbeats",
        # The table is there, with its key: records sent again are left out.
        schema_auto_update=False,
        on_conflict_do_nothing=True,
        include_metadata=False,
    )
    topic = app.topic(os.environ["BENCH_TOPIC"], value_deserializer="json")
    app.dataframe(topic).sink(sink)
    app.run()


if __name__ == "__main__":
    main()
