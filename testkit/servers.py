"""The real Kafka and PostgreSQL that the tests share, and what they do with them."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, create_engine, text

from heartbeat_app.config import Settings, load_settings
from heartbeat_app.embedded.kafka import KafkaServer
from heartbeat_app.embedded.ports import pick_port
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.embedded.postgres_home import empty_folder, system_user

PROJECT = Path(__file__).resolve().parent.parent
TEMPLATE = "heartbeat_template"
# To make and drop a database, hundreds of files, for each test took 0.7 s on a disk,
# longer than most tests; in memory it takes 0.05 s.
IN_MEMORY = "in_memory"
MEMORY = Path("/dev/shm")
MEMORY_FREE_BYTES = 4 * 1024**3
OWNER = ("POSTGRESQL_OWNER_USERNAME", "POSTGRESQL_OWNER_PASSWORD")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    return pick_port("127.0.0.1")


def folder_in_memory() -> Path | None:
    """A new folder for the server's databases that is no disk's; None without room.

    Also removes those of runs that were killed.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_FREE_BYTES:
        return None
    for folder in MEMORY.glob("heartbeat_tests.*"):
        if not psutil.pid_exists(int(folder.suffix[1:])):
            shutil.rmtree(folder, ignore_errors=True)
    folder = MEMORY / f"heartbeat_tests.{os.getpid()}"
    empty_folder(folder, owner=system_user())
    return folder


def wait_until(
    condition: Callable[[], Any],
    what: str,
    *,
    seconds: float = 60.0,
    pause: float = 0.05,
) -> Any:
    """Wait for a condition; its value, or a failure that says what did not happen.

    Arguments:
        pause: Seconds until it is asked again.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"Not within {seconds:g} s: {what}")


class Postgres(Protocol):
    """A PostgreSQL of the tests."""

    port: int
    username: str
    password: str

    @property
    def log_path(self) -> Path: ...
    def stop(self) -> None: ...
    def remove_data(self) -> None: ...


@dataclass
class Servers:
    """Both servers, started once for all tests."""

    postgres: Postgres
    kafka: KafkaServer
    # Of the role that the applications connect as; the server's own user owns.
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    # Where the tests' databases are, if they are in memory.
    memory: Path | None = None
    # Further brokers of Kafka's cluster.
    others: Sequence[KafkaServer] = ()

    @property
    def bootstrap_servers(self) -> str:
        """All of Kafka's brokers."""
        return ",".join(each.bootstrap_servers for each in (self.kafka, *self.others))

    @classmethod
    def start(cls, folder: Path) -> Servers:
        """Start both at once."""
        postgres = PostgresServer(
            folder / "postgresql",
            port=free_port(),
            username="owner",
            password=secrets.token_hex(8),
            database="heartbeat_db",
            # The machine's own crash is nothing that these tests are about.
            config={"fsync": "off"},
        )
        kafka = KafkaServer(folder / "kafka", port=free_port())
        # Launched from here, since the kernel ends a server with its starting thread.
        postgres.launch()
        kafka.launch()
        postgres.wait_until_ready()
        kafka.wait_until_ready()
        servers = cls(postgres, kafka, memory=folder_in_memory())
        if servers.memory:
            servers.administer(
                f"CREATE TABLESPACE {IN_MEMORY} LOCATION '{servers.memory}'"
            )
        return servers

    def stop(self) -> None:
        """Stop both."""
        self.kafka.stop()
        self.postgres.stop()
        self.kafka.remove_data()
        self.postgres.remove_data()
        if self.memory:
            shutil.rmtree(self.memory)

    def environ(self, database: str, name: str, **more: str) -> dict[str, str]:
        """The settings of an application of its own on these servers."""
        return {
            "POSTGRESQL_HOST": "127.0.0.1",
            "POSTGRESQL_PORT": str(self.postgres.port),
            "POSTGRESQL_USERNAME": "worker",
            "POSTGRESQL_PASSWORD": self.password,
            "POSTGRESQL_OWNER_USERNAME": self.postgres.username,
            "POSTGRESQL_OWNER_PASSWORD": self.postgres.password,
            "POSTGRESQL_DATABASE": database,
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "KAFKA_GROUP_ID": name,
            "HEARTBEATS_TOPIC": name,
            "WEB_PORT": str(free_port()),
            **more,
        }

    def admin_engine(self) -> Engine:
        """An engine that is not inside a transaction, for CREATE DATABASE."""
        settings = load_settings(self.environ("postgres", "none"), Path("/nonexistent"))
        return engine_of(settings, isolation_level="AUTOCOMMIT")

    def administer(self, statement: str) -> None:
        """Run a statement around which there may be no transaction."""
        engine = self.admin_engine()
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def make_database(self, name: str, template: str | None = None) -> None:
        """Make a database, a copy of the migrated template unless told otherwise."""
        copied = f' TEMPLATE "{template}"' if template else ""
        where = f" TABLESPACE {IN_MEMORY}" if self.memory else ""
        self.administer(f'CREATE DATABASE "{name}"{copied}{where}')

    def drop_database(self, name: str) -> None:
        """Drop a database, and whoever is connected to it."""
        self.administer(f'DROP DATABASE "{name}" WITH (FORCE)')


def engine_of(settings: Settings, **options: Any) -> Engine:
    """The owner's plain engine, without the application's rights and limits."""
    from heartbeat_app.storage.db.engine import database_url

    return create_engine(database_url(settings.owner), pool_size=2, **options)


def alembic(environ: Mapping[str, str], *arguments: str) -> str:
    """Run Alembic as a user does; what it printed."""
    return run(environ, sys.executable, "-m", "alembic", *arguments)


def run(
    environ: Mapping[str, str],
    *command: str,
    status: int = 0,
    stdin: str = "",
    seconds: float = 120,
) -> str:
    """Run a command in the project's folder; what it printed, errors included."""
    child = child_environ(environ)
    done = subprocess.run(
        # Looked up in the child's PATH, not in ours.
        [shutil.which(command[0], path=child["PATH"]) or command[0], *command[1:]],
        cwd=PROJECT,
        env=child,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n" + (
        done.stdout
    )
    return done.stdout


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: ours without the developer's own settings."""
    from heartbeat_app.config import variables

    clean = {k: v for k, v in os.environ.items() if k not in variables()}
    # Neither is a .env of the project's folder to be read: an empty setting is unset,
    # but a variable that is there wins over the file.
    return {
        **clean,
        **dict.fromkeys(variables(), ""),
        "COLUMNS": "200",
        # As in an activated virtual environment: the commands as a user types them.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **environ,
    }


class Topic:
    """A topic of a test, and a producer for it."""

    def __init__(self, servers: Servers, name: str) -> None:
        self.name = name
        config: dict[str, Any] = {
            "bootstrap.servers": servers.bootstrap_servers,
            "log_level": 0,  # what fails raises; servers come and go
        }
        self.admin = AdminClient(config)
        self.config = config

    def make(self, partitions: int = 4, **config: str) -> None:
        """Make it."""
        topic = NewTopic(self.name, num_partitions=partitions, config=config)
        wait_until(lambda: self._made(topic), f"topic {self.name} is made")
        wait_until(self._has_leaders, f"topic {self.name} has leaders")

    def _has_leaders(self) -> bool:
        found = self.admin.list_topics(self.name, timeout=10).topics[self.name]
        return bool(found.partitions) and all(
            partition.leader >= 0 for partition in found.partitions.values()
        )

    def _made(self, topic: NewTopic) -> bool:
        try:
            self.admin.create_topics([topic], request_timeout=5)[self.name].result()
        except Exception as error:
            if "waiting for controller" in str(error):
                # Nothing was asked yet. A client that met Kafka while it had none,
                # just after a test that stopped it, does not look for it again.
                self.admin = AdminClient(self.config)
                return False
            if "being deleted" in str(error) or "already exists" in str(error):
                return False
            raise
        return True

    def count(self) -> int:
        """How many offsets all its partitions hold."""
        consumer = Consumer({**self.config, "group.id": "none"})
        partitions = consumer.list_topics(self.name).topics[self.name].partitions
        marks = [
            consumer.get_watermark_offsets(TopicPartition(self.name, partition))
            for partition in partitions
        ]
        consumer.close()
        return sum(end - begin for begin, end in marks)

    def end(self) -> int:
        """The sum of its partitions' ends."""
        consumer = Consumer({**self.config, "group.id": "none"})
        partitions = consumer.list_topics(self.name).topics[self.name].partitions
        ends = [
            consumer.get_watermark_offsets(TopicPartition(self.name, partition))[1]
            for partition in partitions
        ]
        consumer.close()
        return sum(ends)

    def configure(self, config: Mapping[str, str]) -> None:
        """Change its configuration."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in config.items()
        ]
        resource = ConfigResource(
            ConfigResource.Type.TOPIC, self.name, incremental_configs=entries
        )
        self.admin.incremental_alter_configs([resource])[resource].result()

    def delete(self) -> None:
        """Delete it."""
        self.admin.delete_topics([self.name])[self.name].result()

    def produce(
        self,
        values: Iterable[bytes | None],
        *,
        partition: int | None = None,
        key: Callable[[bytes | None], bytes | None] = lambda value: None,
        config: Mapping[str, Any] | None = None,
    ) -> int:
        """Send records and wait until Kafka has them; how many."""
        producer = Producer(
            {**self.config, "linger.ms": 5, "acks": "all", **(config or {})},
        )
        failed: list[Any] = []
        sent = 0
        where: dict[str, Any] = {} if partition is None else {"partition": partition}

        def report(error: Any, message: Any) -> None:
            if error is not None:
                failed.append(error)

        for value in values:
            while True:
                try:
                    producer.produce(
                        self.name, value, key(value), on_delivery=report, **where
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            sent += 1
            if sent % 1000 == 0:
                producer.poll(0)
        assert producer.flush(60) == 0, "Kafka did not take all records"
        assert not failed, failed[:3]
        return sent

    def produce_with_header(self, value: bytes, name: bytes, *, partition: int) -> None:
        """Send one record with a header whose name may be any bytes."""

        class Name(str):
            def encode(self, *args: Any, **kwargs: Any) -> bytes:
                return name

        async def send() -> None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self.config["bootstrap.servers"]
            )
            await producer.start()
            batch = producer.create_batch()
            # The parser in Python asks the name for its bytes, the one in C does not.
            batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 10_000)
            batch.append(
                timestamp=None, key=None, value=value, headers=[(Name(), b"\x80")]
            )
            sent = await producer.send_batch(batch, self.name, partition=partition)
            await sent
            await producer.stop()

        asyncio.run(send())


class Worker:
    """A worker as a user starts it, its log in a file."""

    def __init__(
        self, environ: Mapping[str, str], log: Path, *, source: Path = PROJECT
    ) -> None:
        self.source = source
        # Each worker of a test needs a port of its own, and no owner's password.
        self.environ = {
            **environ,
            **dict.fromkeys(OWNER, ""),
            "WEB_PORT": str(free_port()),
        }
        self.log_path = log
        self.process: subprocess.Popen[bytes] | None = None
        # The exit statuses with which it ended although nobody told it to.
        self.own_ends: list[int] = []
        self._told_to_end = False

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def start(self, *command: str) -> Worker:
        """Start it, without waiting for it."""
        self.look()
        self._told_to_end = False
        arguments = command or (
            sys.executable, "-m", "heartbeat_app", "worker", "-l", "info",
        )  # fmt: skip
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                arguments,
                cwd=self.source,
                env=child_environ(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def is_running(self) -> bool:
        """Whether it lives."""
        return self.process is not None and self.process.poll() is None

    def look(self) -> None:
        """Note whether it has ended by itself."""
        if self.process is not None and not self._told_to_end:
            status = self.process.poll()
            if status is not None:
                self.own_ends.append(status)
                self._told_to_end = True  # noted once

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.look()
        self._told_to_end = True
        self.process.kill()
        self.process.wait()

    def stop(self, *, seconds: float = 15.0) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.look()
        self._told_to_end = True
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"The worker did not stop within {seconds:g} s:\n{self.log()[-4000:]}"
            ) from None

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Make sure that it is gone, however the test ended."""
        if self.is_running():
            self.kill()

    def log(self) -> str:
        """All that it printed."""
        return self.log_path.read_text(errors="replace")

    def wait_until(
        self, condition: Callable[[], Any], what: str, *, seconds: float = 60.0
    ) -> Any:
        """Wait for a condition while the worker lives."""

        def holds() -> Any:
            assert self.is_running(), f"The worker ended:\n{self.log()[-4000:]}"
            return condition()

        try:
            return wait_until(holds, what, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-6000:]}") from None

    def wait_for_log(self, words: str, *, seconds: float = 60.0) -> None:
        """Wait until its log holds the words."""
        self.wait_until(lambda: words in self.log(), f"log {words!r}", seconds=seconds)

    def answer(
        self, path: str, *, seconds: float = 10.0, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body of one of its pages; status 0 when it does not answer."""
        url = f"http://127.0.0.1:{self.environ['WEB_PORT']}{path}"
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except (urllib.error.URLError, OSError):
            return 0, b""

    def get(
        self, path: str, *, seconds: float = 10.0, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of one of its pages; status 0 when it does not answer."""
        status, body = self.answer(path, seconds=seconds, **headers)
        return status, json.loads(body) if status else None

    def page(self, path: str, **headers: str) -> str:
        """One of its pages as it is sent."""
        url = f"http://127.0.0.1:{self.environ['WEB_PORT']}{path}"
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def metrics(self, **headers: str) -> dict[tuple[str, ...], float]:
        """Its metrics: by name and the labels' values, in the order of their names."""
        parse: Any = text_string_to_metric_families
        families = parse(self.page("/metrics", **headers))
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): (
                sample.value
            )
            for family in families
            for sample in family.samples
        }


class Crowd:
    """Calls a function again and again in a thread, until it is told to stop."""

    def __init__(self, work: Callable[[], None], every_seconds: float) -> None:
        self._work = work
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._work()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
