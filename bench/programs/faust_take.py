"""Stock Faust: `take()` and a multi-row INSERT through asyncpg."""

import os
from datetime import datetime
from typing import Any

import asyncpg
import faust

INSERT = (
    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
    " SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::int[])"
    ' ON CONFLICT (customer_id, "timestamp") DO NOTHING'
)
BATCH = int(os.environ["BENCH_BATCH"])
WITHIN_SECONDS = float(os.environ["BENCH_LINGER_SECONDS"])

app = faust.App(
    os.environ["BENCH_GROUP"],
    broker=f"kafka://{os.environ['BENCH_BOOTSTRAP_SERVERS']}",
    datadir=os.environ["BENCH_FOLDER"],
    web_enabled=False,
    topic_disable_leader=True,
    stream_buffer_maxsize=16384,
    broker_max_poll_records=5000,
    consumer_max_fetch_size=4 * 1024 * 1024,
)


class Heartbeat(faust.Record, serializer="json"):
    """The record."""

    customer_id: str
    timestamp: str
    heart_rate: int


topic = app.topic(os.environ["BENCH_TOPIC"], value_type=Heartbeat)


@app.agent(topic)
async def store(beats: Any) -> None:
    """Write what came, a batch in one statement."""
    connection = await asyncpg.connect()
    async for batch in beats.take(BATCH, within=WITHIN_SECONDS):
        await connection.execute(
            INSERT,
            [beat.customer_id for beat in batch],
            [datetime.fromisoformat(beat.timestamp) for beat in batch],
            [beat.heart_rate for beat in batch],
        )


if __name__ == "__main__":
    app.main()
