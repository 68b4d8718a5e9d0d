"""Records booked as a worker does, without a worker and without Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from heartbeat_app.domain.batches import Batch, decode_records
from heartbeat_app.domain.validation import Rules
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer, Written

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RULES = Rules.at(NOW, max_future_seconds=300, retention_days=None)


@dataclass(frozen=True)
class Received:
    """A record as a consumer gives it."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


def record(
    name: str = "anna", timestamp: str = "2026-01-01T10:00:00Z", rate: int = 72
) -> bytes:
    """The value of a record."""
    return (
        f'{{"customer_id": "{name}", "timestamp": "{timestamp}", "heart_rate": {rate}}}'
    ).encode()


class Shelf:
    """Books records of one partition, one batch after the other, from offset 0 on."""

    def __init__(
        self,
        engine: Engine,
        *,
        topic: str = "beats",
        topic_id: str = "topic-id",
        partition: int = 0,
        rules: Rules = RULES,
    ) -> None:
        self._writer = Writer(engine, clock=lambda: NOW)
        self._topic, self._topic_id, self._partition = topic, topic_id, partition
        self._rules = rules
        self.next_offset = 0
        PostgresLedger(engine).open(topic, topic_id, {partition: 0})

    def book(
        self, *values: bytes | None, gap: int = 0, key: bytes | None = None
    ) -> Written:
        """Book these records, and a hole of so many offsets after them."""
        records = [
            Received(self.next_offset + index, value, key, [("source", b"\xffdevice")])
            for index, value in enumerate(values)
        ]
        beats, sources, refused = decode_records(records, self._rules)
        position = self.next_offset + len(records) + gap
        written = self._writer.write(
            Batch(
                topic=self._topic,
                topic_id=self._topic_id,
                partition=self._partition,
                asked=self.next_offset,
                position=position,
                missing=0,
                end_offset=position,
                beats=beats,
                sources=sources,
                refused=refused,
            )
        )
        self.next_offset = position
        return written


def execute(engine: Engine, statement: str) -> None:
    """Change something behind the application's back."""
    with engine.begin() as connection:
        connection.execute(text(statement))
