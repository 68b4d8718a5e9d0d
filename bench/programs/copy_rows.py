"""Raw COPY (psycopg2), the rows ready in memory, a commit a batch.

Not a consumer: it makes the same beats that the topic holds, and then only copies.
"""

import io
import os
import time
from datetime import datetime
from itertools import islice

import psycopg2

from bench.beats import COPY, Window, copy_line, make_beats
from heartbeat_app.storage.db.copy import COPY_BLOCK, beats_rows
from heartbeat_app.storage.write.beats import COPY_BEATS


def main() -> None:
    """Make the text, copy it, and wait to be measured."""
    count = int(os.environ["BENCH_COUNT"])
    size = int(os.environ["BENCH_BATCH"])
    window = Window(
        datetime.fromisoformat(os.environ["BENCH_SINCE"]),
        datetime.fromisoformat(os.environ["BENCH_UNTIL"]),
    )
    binary = "BENCH_BINARY" in os.environ
    beats = make_beats(count, window)
    batches = []
    while some := list(islice(beats, size)):
        rows = beats_rows(some) if binary else "".join(map(copy_line, some)).encode()
        batches.append(rows)
    connection = psycopg2.connect("")
    with connection.cursor() as cursor:
        for batch in batches:
            cursor.copy_expert(
                COPY_BEATS if binary else COPY, io.BytesIO(batch), size=COPY_BLOCK
            )
            connection.commit()
    time.sleep(3600)


if __name__ == "__main__":
    main()
