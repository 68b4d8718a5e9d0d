"""The figures of the demo's status: the books, Kafka's log and the delays."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from confluent_kafka import KafkaException
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.audit.findings import Audit, audit
from heartbeat_app.config import Settings
from heartbeat_app.kafka.client import Admin, TopicLog
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.read.reads import Recent, read_recent

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Figures:
    """One look at what was done so far, over all runs on this data."""

    audit: Audit
    recent: Recent

    @property
    def stored(self) -> int:
        return self.audit.books.total.stored


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
        self._look()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    @property
    def latest(self) -> Figures | None:
        """None: PostgreSQL has not answered the last question."""
        return self._latest

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(_LOOK_SECONDS)

    def _look(self) -> None:
        try:
            self._latest = self.read()
        except SQLAlchemyError:
            self._latest = None

    def read(self, *, kafka_runs: bool = True) -> Figures:
        """Ask now; raises SQLAlchemyError when PostgreSQL does not answer."""
        before = self._logs({self._topic}) if kafka_runs else None
        books = read_books(self._engine)
        topics = {self._topic} | {each.topic for each in books.partitions}
        logs = self._logs(topics) if kafka_runs else None
        return Figures(
            audit(books, self._topic, logs, before=before), read_recent(self._engine)
        )

    def _logs(self, topics: set[str]) -> dict[str, TopicLog] | None:
        try:
            return self._admin.topic_logs(topics)
        except KafkaException:
            return None
