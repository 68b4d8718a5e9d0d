"""Stock Faust as its tutorial has it: an agent, and an INSERT for each record."""

import os
from datetime import datetime
from typing import Any

import asyncpg
import faust

INSERT = (
    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
    " VALUES ($1, $2, $3)"
    ' ON CONFLICT (customer_id, "timestamp") DO NOTHING'
)

app = faust.App(
    os.environ["BENCH_GROUP"],
    broker=f"kafka://{os.environ['BENCH_BOOTSTRAP_SERVERS']}",
    datadir=os.environ["BENCH_FOLDER"],
    web_enabled=False,
    topic_disable_leader=True,
)


class Heartbeat(faust.Record, serializer="json"):
    """The record."""

    customer_id: str
    timestamp: str
    heart_rate: int


topic = app.topic(os.environ["BENCH_TOPIC"], value_type=Heartbeat)


@app.agent(topic)
async def store(beats: Any) -> None:
    """Write each record by itself."""
    connection = await asyncpg.connect()
    async for beat in beats:
        await connection.execute(
            INSERT,
            beat.customer_id,
            datetime.fromisoformat(beat.timestamp),
            beat.heart_rate,
        )


if __name__ == "__main__":
    app.main()
