"""Nothing lost, nothing twice, whatever is killed: on real servers, with an oracle."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine, text

from heartbeat_app.embedded.kafka import KafkaServer
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.storage.read.books import read_books
from testkit.oracle import RETENTION_DAYS, Oracle
from testkit.servers import (
    PROJECT,
    Servers,
    Topic,
    Worker,
    alembic,
    engine_of,
    free_port,
    run,
    wait_until,
)

pytestmark = pytest.mark.acceptance


def send(topic: Topic, records: Iterator[tuple[int, bytes, bytes | None]]) -> None:
    """Send an oracle's records to their partitions, in order."""
    producer = Producer({**topic.config, "linger.ms": 20, "enable.idempotence": True})
    for partition, key, value in records:
        while True:
            try:
                producer.produce(topic.name, value, key, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def consumed(engine: Engine) -> int:
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT sum(consumed) FROM partition_ledger"))
        return int(found or 0)


def dead(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM dead_letters")) or 0)


def balanced(environ: dict[str, str]) -> None:
    """The application says itself that its books balance, rows counted."""
    run(environ, "heartbeat_app", "books", "--deep", seconds=400)


def test_two_workers_killed_ten_times(
    topic: Topic,
    engine: Engine,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    records = 200_000
    oracle = Oracle(seed=3, partitions=4)
    topic.make(partitions=4)
    send(topic, oracle.make(records, bad=0.02, repeated=0.02))
    workers = [make_worker(RETENTION_DAYS=RETENTION_DAYS).start() for _ in range(2)]
    choice = random.Random(3)
    done = 0
    for kill in range(1, 11):
        # Somewhere in the stream, so that most kills meet a batch in hand.
        goal = min(done + choice.randint(1, records // 20), records)

        def reached(goal: int = goal) -> bool:
            return consumed(engine) >= goal

        wait_until(reached, f"{goal:,} records before kill {kill}", seconds=60)
        victim = choice.choice(workers)
        victim.kill()
        done = consumed(engine)
        victim.start()
    wait_until(lambda: consumed(engine) == records, "all is read", seconds=120)
    # The one killed last may still be importing what takes signals.
    wait_until(
        lambda: all(worker.get("/health/live")[0] == 200 for worker in workers),
        "both have begun",
    )
    for worker in workers:
        assert worker.stop() == 0
    oracle.check(engine)
    balanced(environ)


def test_the_database_is_away_for_half_a_minute(
    tmp_path: Path,
    topic: Topic,
    servers: Servers,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    with Database(tmp_path, environ) as database:
        topic.make(partitions=4)
        worker = make_worker(**database.environ, SYNTHETIC_CUSTOMERS="200").start()
        worker.wait_until(lambda: consumed(database.engine) >= 400, "beats are stored")
        pid = worker.pid

        database.server.stop()
        before = time.monotonic()
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 503, "not ready")
        assert worker.get("/health/live")[0] == 200
        worker.wait_until(lambda: time.monotonic() - before > 30, "half a minute")

        database.server.start()
        # From the moment that it answers again.
        back = consumed(database.engine)
        worker.wait_until(
            lambda: consumed(database.engine) > back, "it goes on", seconds=5
        )
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
        assert (worker.pid, worker.is_running()) == (pid, True)

        database.server.stop()
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 503, "not ready")
        assert worker.stop(seconds=10) == 0
        database.server.start()

        reader = make_worker(**database.environ).start()
        in_topic = topic.count()
        reader.wait_until(
            lambda: consumed(database.engine) == in_topic, "all that was sent"
        )
        assert dead(database.engine) == 0
        balanced(database.environ)


def test_a_database_that_hangs_is_not_ready(
    tmp_path: Path,
    topic: Topic,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    """It neither answers nor closes: nothing but our own limit ends the wait."""
    with Database(tmp_path, environ) as database:
        topic.make(partitions=4)
        worker = make_worker(**database.environ, SYNTHETIC_CUSTOMERS="200").start()
        worker.wait_until(lambda: consumed(database.engine) >= 400, "beats are stored")
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")

        database.server.pause()
        worker.wait_until(
            lambda: worker.get("/health/ready")[0] == 503, "not ready", seconds=30
        )
        assert worker.get("/health/live")[0] == 200

        database.server.resume()
        back = consumed(database.engine)
        worker.wait_until(lambda: consumed(database.engine) > back, "it goes on")
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")

        database.server.pause()
        assert worker.stop(seconds=12) == 0, worker.log()[-6_000:]
        database.server.resume()
        balanced(database.environ)


def test_a_stop_ends_while_kafka_is_away(
    tmp_path: Path,
    engine: Engine,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    """Faust's producer would wait for Kafka for ever."""
    with KafkaServer(tmp_path / "kafka", port=free_port()) as kafka:
        worker = make_worker(
            KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap_servers, SYNTHETIC_CUSTOMERS="100"
        ).start()
        worker.wait_until(lambda: consumed(engine) >= 100, "beats are stored")
        kafka.kill()
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 503, "not ready")
        worker.stop(seconds=10)
    assert read_books(engine).balanced


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_the_database_is_restored_from_a_backup(
    running: bool,
    tmp_path: Path,
    topic: Topic,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    oracle = Oracle(seed=5, partitions=4)
    topic.make(partitions=4)
    with Database(tmp_path, environ) as database:
        worker = make_worker(**database.environ, RETENTION_DAYS=RETENTION_DAYS).start()
        send(topic, oracle.make(20_000, bad=0.002, repeated=0.01))
        worker.wait_until(
            lambda: consumed(database.engine) >= 1, "the stream has begun"
        )
        database.backup()
        send(topic, oracle.make(20_000, bad=0.002, repeated=0.01))
        worker.wait_until(lambda: consumed(database.engine) == 40_000, "all is read")
        if not running:
            assert worker.stop() == 0
        database.restore()
        assert consumed(database.engine) < 40_000
        if not running:
            worker.start()
        send(topic, oracle.make(10_000, bad=0.002, repeated=0.01))
        worker.wait_until(lambda: consumed(database.engine) == 50_000, "it is refilled")
        assert worker.stop() == 0
        oracle.check(database.engine)
        balanced(database.environ)


@pytest.mark.parametrize("count", [1_000, 3_000, 5_000], ids=["fewer", "same", "more"])
@pytest.mark.parametrize("worker_is", ["stopped", "busy", "frozen"])
def test_the_topic_is_deleted_and_made_again(
    worker_is: str,
    count: int,
    topic: Topic,
    engine: Engine,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    """A frozen worker never sees that the topic was away: only its id tells."""
    oracle = Oracle(seed=7, partitions=2)
    topic.make(partitions=2)
    send(topic, oracle.make(3_000))
    worker = make_worker().start()
    worker.wait_until(lambda: stored(engine) == 3_000, "the first topic is stored")
    if worker_is == "stopped":
        assert worker.stop() == 0
    elif worker_is == "frozen":
        worker.pause()
    topic.delete()
    topic.make(partitions=2)
    send(topic, oracle.make(count))
    if worker_is == "stopped":
        worker.start()
    elif worker_is == "frozen":
        worker.resume()
    worker.wait_until(
        lambda: stored(engine) == 3_000 + count, "the second topic is stored"
    )
    assert worker.stop() == 0
    with engine.connect() as connection:
        rows = connection.execute(
            text('SELECT customer_id, "timestamp", heart_rate FROM heartbeats')
        ).all()
    assert {(row[0], row[1]): row[2] for row in rows} == oracle.rows
    balanced(environ)


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM heartbeats")) or 0)


class Database:
    """A server of the test's own, to stop, back up and restore."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.server = PostgresServer(
            folder / "database",
            port=free_port(),
            username=environ["POSTGRESQL_OWNER_USERNAME"],
            password=environ["POSTGRESQL_OWNER_PASSWORD"],
            database="heartbeat_db",
        )
        self.environ = {
            **environ,
            "POSTGRESQL_PORT": str(self.server.port),
            "POSTGRESQL_DATABASE": "heartbeat_db",
        }
        self._dump = folder / "backup"

    def __enter__(self) -> Database:
        from heartbeat_app.config import load_settings

        self.server.start()
        alembic(self.environ, "upgrade", "head")
        settings = load_settings(self.environ, Path("/nonexistent"))
        # The server goes away again and again under it.
        self.engine = engine_of(settings, pool_pre_ping=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.dispose()
        self.server.stop()

    def backup(self) -> None:
        """Take a backup, whoever writes meanwhile."""
        self._run("pg_dump", "-Fc", "-f", str(self._dump), "heartbeat_db")

    def restore(self) -> None:
        """Put the backup in the place of the database, whoever is connected.

        Beside it first: `pg_restore --clean` cannot drop what partitions inherit, and
        a worker must not see a ledger that has no rows yet.
        """
        self._psql("CREATE DATABASE restored")
        self._run("pg_restore", "-d", "restored", str(self._dump))
        self._psql("DROP DATABASE heartbeat_db WITH (FORCE)")
        self._psql("ALTER DATABASE restored RENAME TO heartbeat_db")

    def _psql(self, statement: str) -> None:
        self._run("psql", "-v", "ON_ERROR_STOP=1", "-c", statement, "postgres")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.server.psql.with_name(program), *arguments],
            cwd=PROJECT,
            env={
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.server.port),
                "PGUSER": self.server.username,
                "PGPASSWORD": self.server.password,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
