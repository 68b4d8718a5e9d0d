"""A worker, from topic to table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from tests.servers import Topic, Worker

pytestmark = pytest.mark.integration


def beats(count: int, *, start: int = 0) -> list[bytes]:
    return [
        b'{"customer_id": "c%d", "timestamp": "2026-01-01T00:%02d:%02d.%03d+00:00",'
        b' "heart_rate": %d}'
        % (n % 50, n // 60000 % 60, n // 1000 % 60, n % 1000, 60 + n % 40)
        for n in range(start, start + count)
    ]


def count(engine: Engine, what: str = "heartbeats") -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {what}")) or 0)


def test_what_is_sent_is_stored(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=2)
    topic.produce(beats(5_000))
    worker = make_worker().start()
    worker.wait_until(lambda: count(engine) == 5_000, "5,000 rows", seconds=30)
    assert worker.stop() == 0
