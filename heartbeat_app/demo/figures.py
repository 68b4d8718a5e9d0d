"""The figures of the demo's status: from PostgreSQL, and the lag from Kafka as well."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta

from confluent_kafka import KafkaException
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.config import Settings
from heartbeat_app.kafka import Admin
from heartbeat_app.storage.tables import ingest_minute, partition_ledger

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Figures:
    """One look at what was done so far, over all runs on this data."""

    stored: int
    duplicate: int
    refused: int
    lag: int | None
    """Records in Kafka that are not in the database yet; None: Kafka is silent."""
    delay_p50_seconds: float | None
    delay_p95_seconds: float | None
    """From a beat's timestamp to its row, of what came in the last minute or two."""


class FigureReader:
    """Looks twice a second, in a thread of its own.

    A database or a broker that hangs must not freeze the status: then the last look
    is simply None.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._admin = Admin(settings)
        self._topic = settings.heartbeats_topic
        self._stop = threading.Event()
        self._latest: Figures | None = None
        # A daemon: at the end nobody waits for a question that hangs.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._latest = self.read()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    @property
    def latest(self) -> Figures | None:
        """None: PostgreSQL has not answered the last question."""
        return self._latest

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._latest = self.read()
            except SQLAlchemyError:
                self._latest = None
            self._stop.wait(_LOOK_SECONDS)

    def read(self) -> Figures:
        """Ask now; raises SQLAlchemyError when PostgreSQL does not answer."""
        ledger, minutes = partition_ledger.c, ingest_minute.c
        lately = func.date_trunc("minute", func.now() - timedelta(minutes=1))
        histogram = select(
            func.histogram_sum(minutes.delay_histogram).label("delays")
        ).where(minutes.minute >= lately)
        delays = histogram.subquery().c.delays
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(partition_ledger).where(ledger.topic == self._topic)
            ).all()
            p50, p95 = connection.execute(
                select(
                    func.delay_quantile(delays, 0.5), func.delay_quantile(delays, 0.95)
                )
            ).one()
        return Figures(
            stored=sum(row.stored for row in rows),
            duplicate=sum(row.duplicate for row in rows),
            refused=sum(row.dead for row in rows),
            lag=self._lag(
                {(row.topic_id, row.partition): row.next_offset for row in rows}
            ),
            delay_p50_seconds=p50,
            delay_p95_seconds=p95,
        )

    def _lag(self, read_up_to: dict[tuple[str, int], int]) -> int | None:
        try:
            log = self._admin.topic_logs([self._topic]).get(self._topic)
        except KafkaException:
            return None
        if log is None:
            return None
        return sum(
            max(0, held.end - read_up_to.get((log.topic_id, partition), held.begin))
            for partition, held in log.partitions.items()
        )
