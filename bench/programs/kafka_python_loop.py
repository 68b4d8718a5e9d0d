"""The usual first design: kafka-python, one INSERT and one COMMIT for each record."""

import json
import os
import signal
import sys

import psycopg2
from kafka import KafkaConsumer

INSERT = (
    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate) VALUES (%s, %s, %s)'
)


def main() -> None:
    """Read and write one by one, for ever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    consumer = KafkaConsumer(
        os.environ["BENCH_TOPIC"],
        bootstrap_servers=os.environ["BENCH_BOOTSTRAP_SERVERS"],
        group_id=os.environ["BENCH_GROUP"],
        auto_offset_reset="earliest",
        enable_auto_commit=True,
        value_deserializer=json.loads,
    )
    connection = psycopg2.connect("")
    cursor = connection.cursor()
    for message in consumer:
        beat = message.value
        cursor.execute(
            INSERT, (beat["customer_id"], beat["timestamp"], beat["heart_rate"])
        )
        connection.commit()


if __name__ == "__main__":
    main()
