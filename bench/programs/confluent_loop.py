"""A hand-written loop: confluent-kafka, msgspec, COPY, offsets after the database.

What a good engineer writes in an afternoon. It has none of the guards: a bad record
or one that is sent again ends it, and after a kill -9 it meets its own rows.
"""

import io
import os
import signal
import sys
from datetime import datetime

import msgspec
import psycopg2
from confluent_kafka import Consumer

BATCH = 20_000
COPY = 'COPY heartbeats (customer_id, "timestamp", heart_rate) FROM STDIN'
# Waits at most this long for a batch to fill.
LINGER_SECONDS = float(os.environ.get("BENCH_LINGER_SECONDS", "0.01"))


class Heartbeat(msgspec.Struct, gc=False):
    """The record."""

    customer_id: str
    timestamp: datetime
    heart_rate: int


decode = msgspec.json.Decoder(Heartbeat).decode


def main() -> None:
    """Read, write, commit, for ever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["BENCH_BOOTSTRAP_SERVERS"],
            "group.id": os.environ["BENCH_GROUP"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            # librdkafka fills its queue ahead, so that a batch is there when asked.
            "queued.min.messages": 200_000,
            "fetch.message.max.bytes": 4 * 1024 * 1024,
        }
    )
    consumer.subscribe([os.environ["BENCH_TOPIC"]])
    connection = psycopg2.connect("")
    cursor = connection.cursor()
    while True:
        messages = consumer.consume(BATCH, LINGER_SECONDS)
        if not messages:
            continue
        beats = [decode(message.value() or b"") for message in messages]
        text = "".join(
            [f"{b.customer_id}\t{b.timestamp}\t{b.heart_rate}\n" for b in beats]
        )
        cursor.copy_expert(COPY, io.StringIO(text), size=8 * 1024 * 1024)
        connection.commit()
        consumer.commit(asynchronous=False)


if __name__ == "__main__":
    main()
