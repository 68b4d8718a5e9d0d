"""Batches to store, as a chunk would make them, and what the tables hold then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import psycopg2
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.domain.batches import Batch, Refused
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Reason, Refusal
from heartbeat_app.storage.write.writer import Writer, Written
from testkit.servers import wait_until

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOPIC = "beats"
TOPIC_ID = "topic-id-1"
REFUSAL = Refusal(Reason.NOT_JSON, "The value is not JSON.")


@dataclass(frozen=True)
class Received:
    """A record as the consumer gives it."""

    offset: int
    value: bytes | None = b"as received"
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


def beat(
    customer: str = "c",
    second: float = 0.0,
    rate: int = 70,
    *,
    at: datetime | None = None,
) -> Heartbeat:
    """A beat, so many seconds after noon of the first day; not checked."""
    return Heartbeat(customer, at or START + timedelta(seconds=second), rate)


def beats(count: int, *, first: int = 0, customer: str = "c") -> list[Heartbeat]:
    """Beats of one customer, a millisecond apart."""
    return [beat(customer, n / 1000, 60 + n % 100) for n in range(first, first + count)]


def batch_of(
    items: Sequence[Heartbeat | None],
    *,
    asked: int = 0,
    offsets: Sequence[int] | None = None,
    position: int | None = None,
    missing: int = 0,
    end_offset: int | None = None,
    topic_id: str = TOPIC_ID,
    partition: int = 0,
) -> Batch:
    """A batch of beats and refused records (None), at these offsets."""
    if offsets is None:
        offsets = range(asked + missing, asked + missing + len(items))
    if position is None:
        position = offsets[-1] + 1 if offsets else asked
    found = [
        (Received(offset), item) for offset, item in zip(offsets, items, strict=True)
    ]
    return Batch(
        topic=TOPIC,
        topic_id=topic_id,
        partition=partition,
        asked=asked,
        position=position,
        missing=missing,
        end_offset=position if end_offset is None else end_offset,
        beats=[item for _, item in found if item is not None],
        sources=[record for record, item in found if item is not None],
        refused=[Refused(record, REFUSAL) for record, item in found if item is None],
    )


def store(writer: Writer, batch: Batch, attempts: int = 5) -> Written:
    """Write a batch as the agent does, but without its pauses; what it was in all.

    Arguments:
        attempts: How many writes may raise, until one does.
    """
    parts: list[Written] = []
    rest: Batch | None = batch
    while rest is not None:
        try:
            parts.append(writer.write(rest))
            rest = parts[-1].rest
        except (DBAPIError, psycopg2.Error, ValueError):
            attempts -= 1
            if not attempts:
                raise
            rest = batch
    counts = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("consumed", "stored", "duplicate", "dead")
    }
    return Written(
        **counts, reasons=sum((Counter(p.reasons) for p in parts), Counter())
    )


def day_table(day: date) -> str:
    """Name of the day's partition."""
    return f"heartbeats_{day:%Y_%m_%d}"


class Book(NamedTuple):
    """What the ledger says of a partition."""

    next_offset: int
    end_offset: int
    consumed: int
    stored: int
    duplicate: int
    dead: int
    missing: int
    gap: int


class Kept:
    """Looks at the tables with SQL of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def all(self, query: str, **values: Any) -> Sequence[Any]:
        """All rows."""
        with self._engine.connect() as connection:
            return connection.execute(text(query), values).all()

    def do(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own, as an outsider would."""
        with self._engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        ) as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def beats(self) -> list[tuple[str, datetime, int]]:
        """The rows of heartbeats."""
        found = self.all(
            'SELECT customer_id, "timestamp", heart_rate FROM heartbeats'
            ' ORDER BY customer_id COLLATE "C", "timestamp"'
        )
        return [(row[0], row[1], row[2]) for row in found]

    def letters(self) -> list[tuple[int, str]]:
        """Offset and reason of the dead letters."""
        found = self.all(
            'SELECT "offset", reason FROM dead_letters'
            ' ORDER BY topic_id, partition, "offset"'
        )
        return [(row[0], row[1]) for row in found]

    def book(self, partition: int = 0, topic_id: str = TOPIC_ID) -> Book:
        """The partition's row of the ledger."""
        [row] = self.all(
            "SELECT next_offset, end_offset, consumed, stored, duplicate, dead,"
            " missing, gap FROM partition_ledger"
            " WHERE topic_id = :topic_id AND partition = :partition",
            topic_id=topic_id,
            partition=partition,
        )
        return Book(*row)

    def minutes(self) -> int:
        """How many batches came in."""
        return int(
            self.all("SELECT coalesce(sum(batches), 0) FROM ingest_minute")[0][0]
        )

    def everything(self) -> tuple[object, ...]:
        """All that a batch may change."""
        return self.beats(), self.letters(), self.book(), self.minutes()

    def waits(self, application_name: str) -> int:
        """Wait until a session of that application waits for a lock; its pid."""

        def pid() -> int | None:
            found = self.all(
                "SELECT pid FROM pg_stat_activity WHERE application_name = :name"
                " AND datname = current_database() AND wait_event_type = 'Lock'",
                name=application_name,
            )
            return found[0][0] if found else None

        waiting: int = wait_until(pid, f"{application_name} waits", seconds=20)
        return waiting


def rows_of(beats: Sequence[Heartbeat]) -> list[tuple[str, datetime, int]]:
    """The rows that beats become, in the order of `Kept.beats`."""
    rows = [(b.customer_id, b.timestamp.astimezone(UTC), b.heart_rate) for b in beats]
    return sorted(rows, key=lambda row: (row[0].encode(), row[1]))


def cut_short(engine: Engine, partition: str) -> None:
    """A DETACH CONCURRENTLY that was broken off while it waited for a reader."""
    with engine.begin() as reader:
        reader.execute(text("SELECT count(*) FROM heartbeats"))
        url = engine.url
        other = psycopg2.connect(
            host=url.host, port=url.port, user=url.username, password=url.password,
            dbname=url.database,
        )  # fmt: skip
        other.autocommit = True
        with other.cursor() as cursor:
            cursor.execute("SET lock_timeout = '100ms'")
            with suppress(psycopg2.errors.LockNotAvailable):
                cursor.execute(
                    f"ALTER TABLE heartbeats DETACH PARTITION {partition} CONCURRENTLY"
                )
        other.close()
