"""Where it runs: real servers, a database a run, topics that are loaded once."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from sqlalchemy import Engine, text

from bench.beats import DAY, make_beats
from bench.formats import WRITERS, Format
from bench.progress import Progress
from heartbeat_app.config import load_settings
from heartbeat_app.embedded.kafka import KafkaServer
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.storage.days.days import ensure_days
from testkit.servers import Servers, Topic, alembic, engine_of, free_port

TEMPLATE = "bench_template"
PARTITIONS = 4

# Told to Kafka's producer when topics are loaded. Keyed as the product's own records:
# all beats of a customer in one partition.
LOADING = {"linger.ms": 50, "acks": "all", "partitioner": "murmur2_random"}


@dataclass
class Stage:
    """The servers, and what was loaded into them so far."""

    servers: Servers
    folder: Path
    progress: Progress
    _loaded: set[str] = field(default_factory=set)
    _number: int = 0

    @classmethod
    def start(cls, progress: Progress) -> Stage:
        """Start both servers, in a new folder, with nothing but the tables."""
        folder = Path(tempfile.mkdtemp(prefix="heartbeat-bench-"))
        progress.tell("Starting Kafka and PostgreSQL")
        postgres = PostgresServer(
            folder / "postgresql",
            port=free_port(),
            username="owner",
            password=secrets.token_hex(8),
            database="heartbeat_db",
            # The end of a run is read from the rows themselves.
            config={"track_commit_timestamp": "on"},
        )
        servers = Servers(postgres, KafkaServer(folder / "kafka", port=free_port()))
        try:
            postgres.start()
            servers.kafka.start()
            servers.make_database(TEMPLATE)
            environ = servers.environ(TEMPLATE, "none")
            alembic(environ, "upgrade", "head")
            stage = cls(servers, folder, progress)
            engine = stage.engine(TEMPLATE)
            ensure_days(engine, [DAY])
            engine.dispose()
        except BaseException:
            servers.stop()
            raise
        return stage

    def stop(self) -> None:
        """Stop both, and remove their data; logs of failed programs stay."""
        self.servers.stop()
        with suppress(OSError):  # not empty: somebody's log is in it
            self.folder.rmdir()

    def keep_nothing(self) -> None:
        """Remove the logs, too."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_name(self, what: str) -> str:
        """A name that no database, group or topic has yet."""
        self._number += 1
        return f"{what}-{self._number}"

    def new_database(self, name: str, *, days: Iterable[date] = ()) -> Engine:
        """An engine on a new database with empty tables, the day already made.

        The server begins with nothing left to do: what was written before is on the
        disk.
        """
        with self.admin() as connection:
            connection.execute(text("CHECKPOINT"))
        self.servers.make_database(name, TEMPLATE)
        engine = self.engine(name)
        ensure_days(engine, days)
        return engine

    def drop_database(self, engine: Engine) -> None:
        """Drop the engine's database."""
        name = engine.url.database
        assert name is not None
        engine.dispose()
        self.servers.drop_database(name)

    def engine(self, name: str) -> Engine:
        """A plain engine on the database."""
        environ = self.servers.environ(name, "none")
        return engine_of(load_settings(environ, Path("/nonexistent")))

    def admin(self) -> Any:
        """A connection for what belongs to the whole server."""
        return self.servers.admin_engine().connect()

    @property
    def bootstrap_servers(self) -> str:
        """Where Kafka is."""
        return self.servers.kafka.bootstrap_servers

    def libpq(self, database: str) -> dict[str, str]:
        """The variables that every client of PostgreSQL knows."""
        postgres = self.servers.postgres
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgres.port),
            "PGUSER": postgres.username,
            "PGPASSWORD": postgres.password,
            "PGDATABASE": database,
        }

    def topic(self, count: int, format: Format) -> str:
        """The topic with the first `count` records, loaded at the first call."""
        name = f"{format.value}-{count}"
        write = WRITERS[format]
        self.load(name, (write(beat) for beat in make_beats(count)), count)
        return name

    def load(
        self, name: str, records: Iterable[tuple[bytes, bytes]], count: int
    ) -> None:
        """Load key and value of records into a new topic, unless that was done."""
        if name in self._loaded:
            return
        Topic(self.servers, name).make(PARTITIONS)
        with self.progress.task(f"Loading {name}", count) as advance:
            send(self.producer(), name, records, advance)
        self._loaded.add(name)

    def producer(self, **config: Any) -> Producer:
        """A producer that keeps a customer's beats in one partition."""
        return Producer(
            {"bootstrap.servers": self.bootstrap_servers, **LOADING, **config}
        )


def send(
    producer: Producer,
    topic: str,
    records: Iterable[tuple[bytes, bytes]],
    advance: Any = lambda count: None,
) -> None:
    """Send all, and wait until Kafka has them.

    Raises:
        RuntimeError: Kafka did not take them.
    """
    failed: list[Any] = []

    def report(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(error)

    for number, (key, value) in enumerate(records, 1):
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=report)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1000 == 0:
            producer.poll(0)
            advance(1000)
    if producer.flush(120) or failed:
        raise RuntimeError(f"Kafka did not take all records of {topic}: {failed[:3]}")


@contextmanager
def stage_for_tests() -> Iterator[Stage]:
    """A stage of which nothing stays, its logs neither."""
    with Progress() as progress:
        stage = Stage.start(progress)
        try:
            yield stage
        finally:
            stage.stop()
            stage.keep_nothing()
