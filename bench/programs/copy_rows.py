"""The limit: raw COPY (psycopg2), the text ready in memory, a commit a batch.

Not a consumer: it makes the same beats that the topic holds, and then only copies.
"""

import io
import os
import time
from datetime import datetime

import psycopg2

from bench.beats import Window, copy_line, make_beats
from heartbeat_app.storage.copy import COPY_BLOCK

COPY = 'COPY heartbeats (customer_id, "timestamp", heart_rate) FROM STDIN'


def main() -> None:
    """Make the text, copy it, and wait to be measured."""
    count = int(os.environ["BENCH_COUNT"])
    size = int(os.environ["BENCH_BATCH"])
    window = Window(
        datetime.fromisoformat(os.environ["BENCH_SINCE"]),
        datetime.fromisoformat(os.environ["BENCH_UNTIL"]),
    )
    lines = [copy_line(beat) for beat in make_beats(count, window)]
    batches = ["".join(lines[i : i + size]) for i in range(0, len(lines), size)]
    del lines
    connection = psycopg2.connect("")
    with connection.cursor() as cursor:
        for batch in batches:
            cursor.copy_expert(COPY, io.StringIO(batch), size=COPY_BLOCK)
            connection.commit()
    time.sleep(3600)


if __name__ == "__main__":
    main()
