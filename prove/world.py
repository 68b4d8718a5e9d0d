"""A scenario's own world: servers, workers, what is sent, what was seen."""

from __future__ import annotations

import random
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.config import load_settings
from heartbeat_app.embedded.kafka import KafkaServer
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.embedded.server import EmbeddedServer
from prove.feed import Feed
from testkit.cluster import make_brokers
from testkit.oracle import RETENTION_DAYS, Oracle, Verdict
from testkit.servers import (
    OWNER,
    PROJECT,
    Servers,
    Topic,
    Worker,
    child_environ,
    engine_of,
    free_port,
    wait_until,
)

TOPIC = "heartbeats"
DATABASE = "heartbeat_db"
PARTITIONS = 4
# Where the logs of workers are kept that ended by themselves.
LOGS = Path(__file__).parent / "logs"
LAST_LINES = 60
# Seconds from a beat to its roll-ups, as docs/explanation/storage.md promises.
ROLLED_UP_WITHIN = 60.0
# What a worker does at its next pass, and goes on with while there is more.
ROLL_UP = """
from heartbeat_app.config import load_settings
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.rollup.rollup import Job

job = Job(make_engine(load_settings(), application_name="heartbeat_app maintenance"))
while not job.run_pass():
    pass
"""


@dataclass(slots=True)
class Outcome:
    """What a scenario's run gave.

    Attributes:
        did: How often what was done, by words.
        standstill: The longest time in seconds in which nothing was read although
            something waited; what the fault itself took is part of it.
        memory: The most that one worker held, MB resident.
        notes: Further figures, by words.
        complaints: What was wrong, in words.
        skipped: Why it was not run here; empty if it was.
    """

    name: str
    seed: int
    seconds: float = 0.0
    did: dict[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None
    standstill: float = 0.0
    memory: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.complaints


class World:
    """Real servers of the scenario's own, workers, and an oracle's records.

    Arguments:
        source: Where the application's code is; a copy of it when a guard is taken
            out.
        kafka: Further lines of its server's configuration.
        cluster: Whether it is a cluster of three brokers.
        workers_roll_up: See the attribute.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        seed: int = 1,
        source: Path = PROJECT,
        kafka: Mapping[str, str] | None = None,
        cluster: bool = False,
        workers_roll_up: bool = True,
    ) -> None:
        self.folder = folder
        self.source = source
        self.choice = random.Random(seed)
        self.oracle = Oracle(seed, PARTITIONS)
        self.outcome = Outcome(name, seed)
        self.workers: list[Worker] = []
        self._told_to_stop: set[Worker] = set()
        # Those of which the scenario wants that they end by themselves.
        self.may_end: set[Worker] = set()
        self._ends: dict[Worker, int] = {}  # how many were complained of
        # How the tables are judged; scenarios say where something else is right.
        self.exact = True
        self.missing = 0
        self.settled_within = 120.0
        # Whether workers that run to the end have to roll up the last beats, by their
        # own clock: up to 20 s more. Otherwise their code does it afterwards.
        self.workers_roll_up = workers_roll_up
        # Whether the ledger may be behind what Kafka was told, as after a restore.
        self.ledger_went_back = False
        self.postgres = PostgresServer(
            folder / "postgresql",
            port=free_port(),
            username="owner",
            password=secrets.token_hex(8),
            database=DATABASE,
        )
        # All of Kafka's brokers; `kafka` is the first.
        self.brokers = (
            make_brokers(folder, kafka)
            if cluster
            else [KafkaServer(folder / "kafka", port=free_port(), config=kafka)]
        )
        self.kafka, *others = self.brokers
        self.servers = Servers(self.postgres, self.kafka, others=others)
        self.environ = {
            **self.servers.environ(DATABASE, TOPIC),
            "RETENTION_DAYS": RETENTION_DAYS,
        }
        self._exit = ExitStack()
        self._topic: Topic | None = None
        self._asking: Consumer | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            # Launched from here, since the kernel ends a server with its starting
            # thread; all at once.
            servers: list[EmbeddedServer] = [self.postgres, *self.brokers]
            for server in servers:
                undo.callback(self._remove, server)
                server.launch()
            for server in servers:
                server.wait_until_ready()
            self.run_alembic("upgrade", "head")
            settings = load_settings(self.environ, Path("/nonexistent"))
            # The server goes away again and again under it.
            self.engine: Engine = engine_of(settings, pool_pre_ping=True)
            undo.callback(self.engine.dispose)
            self.topic.make(PARTITIONS)
            undo.callback(self._close_asking)
            undo.callback(self._end_workers)
            # Asks, never joins.
            self._group = Consumer(
                {**self.topic.config, "group.id": self.environ["KAFKA_GROUP_ID"]}
            )
            undo.callback(self._group.close)
            self._observer = undo.enter_context(Observer(self))
            self._exit = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    @staticmethod
    def _remove(server: EmbeddedServer) -> None:
        server.kill()
        server.remove_data()

    def _end_workers(self) -> None:
        for worker in self.workers:
            if worker.is_running():
                worker.resume()
            worker.end()

    # What scenarios do

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call this when the world ends, while its servers are still there."""
        self._exit.callback(callback)

    @property
    def topic(self) -> Topic:
        """The topic of the beats."""
        if self._topic is None:
            self._topic = Topic(self.servers, TOPIC)
        return self._topic

    def run_alembic(self, *arguments: str) -> None:
        """Run Alembic on the world's database, from the world's source."""
        done = subprocess.run(
            ["alembic", *arguments],
            cwd=self.source,
            env=child_environ(self.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start_worker(self, **environ: str) -> Worker:
        """Start one more worker."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = Worker({**self.environ, **environ}, log, source=self.source)
        self.workers.append(worker)
        return worker.start()

    def start_command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `heartbeat_app …` as the owner, from the world's source."""
        return subprocess.Popen(
            ["heartbeat_app", *arguments],
            cwd=self.source,
            env={**child_environ(self.environ), "PYTHONPATH": str(self.source)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def feed(self, rate: float | None = None, compression: str = "none") -> Feed:
        """Something that sends the oracle's records."""
        servers = self.servers.bootstrap_servers
        return Feed(self.oracle, servers, TOPIC, rate=rate, compression=compression)

    def stream(self, *, workers: int = 2, rate: float = 2_000) -> Feed:
        """Start workers and send; returns when the first records are stored."""
        for _ in range(workers):
            self.start_worker()
        feed = self.feed(rate=rate)
        feed.start()
        self.wait_until(self.consumed, "the stream has begun")
        return feed

    def stop_worker(self, worker: Worker) -> None:
        """SIGTERM; complains when the worker does not end within 12 s with status 0."""
        # Before it has begun, SIGTERM ends it as it ends any program.
        begun = worker.get("/health/live")[0] == 200
        self._told_to_stop.add(worker)
        status = worker.stop(seconds=12)
        if status != 0 and begun:
            self.outcome.complaints += [
                f"SIGTERM of a worker: status {status}",
                f"{worker.log_path.name}:\n{worker.log()[-20_000:]}",
            ]

    def ports_of(self, worker: Worker) -> list[int]:
        """The ports from which a worker is connected to PostgreSQL."""
        return [
            each.laddr.port
            for each in psutil.Process(worker.pid).net_connections("tcp")
            if each.raddr and each.raddr.port == self.postgres.port
        ]

    def did(self, what: str, times: int = 1) -> None:
        """Count what was done."""
        did = self.outcome.did
        did[what] = did.get(what, 0) + times

    def note(self, what: str, value: str) -> None:
        """Add a figure to the report."""
        self.outcome.notes[what] = value

    def require(self, holds: object, complaint: str) -> None:
        """Complain unless it holds."""
        if not holds:
            self.outcome.complaints.append(complaint)

    def pause(self, low: float, high: float) -> None:
        """Let things happen for a random time, seconds."""
        time.sleep(self.choice.uniform(low, high))

    def scalar(self, statement: str, **parameters: Any) -> Any:
        """One value of the database."""
        with self.engine.connect() as connection:
            return connection.scalar(text(statement), parameters)

    def consumed(self) -> int:
        """How many records are in the books; 0 while the database is away."""
        try:
            return int(
                self.scalar("SELECT coalesce(sum(consumed), 0) FROM partition_ledger")
            )
        except SQLAlchemyError:
            return 0

    def watermarks(self) -> dict[int, tuple[int, int]]:
        """Where the log of each partition begins and ends, asked of Kafka."""
        consumer = self._asking or Consumer({**self.topic.config, "group.id": "none"})
        self._asking = consumer
        try:
            known = consumer.list_topics(TOPIC, timeout=5).topics[TOPIC].partitions
            return {
                partition: consumer.get_watermark_offsets(
                    TopicPartition(TOPIC, partition), timeout=5
                )
                for partition in known
            }
        except KafkaException:
            self._close_asking()
            raise

    def _close_asking(self) -> None:
        """Ask with a new client; one that lost sight of Kafka may be blind for long."""
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def begins(self) -> dict[int, int]:
        """Where the log of each partition begins."""
        return {each: begin for each, (begin, _) in self.watermarks().items()}

    def ends(self) -> dict[int, int]:
        """Where the log of each partition ends."""
        return {each: end for each, (_, end) in self.watermarks().items()}

    def next_offsets(self, topic_id: str | None = None) -> dict[int, int]:
        """What the ledger has reached of a topic; without an id of it as it is now."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT partition, next_offset FROM partition_ledger"
                    " WHERE topic_id = :topic_id"
                ),
                {"topic_id": topic_id or self.topic_id()},
            ).all()
        return {row[0]: row[1] for row in rows}

    def committed(self) -> dict[int, int]:
        """What the workers' group has committed to Kafka."""
        wanted = [TopicPartition(TOPIC, each) for each in range(self.oracle.partitions)]
        found = self._group.committed(wanted, timeout=2)
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def members(self) -> dict[str, list[int]]:
        """The members of the workers' group, and the partitions of each."""
        group = self.environ["KAFKA_GROUP_ID"]
        found = self.topic.admin.describe_consumer_groups([group])[group].result(10)
        return {
            each.member_id: sorted(
                tp.partition for tp in each.assignment.topic_partitions
            )
            for each in found.members
        }

    def lag(self) -> int | None:
        """Offsets that the ledger of the topic as it is has not reached."""
        try:
            ends, reached = self.ends(), self.next_offsets()
        except (KafkaException, SQLAlchemyError, TimeoutError):
            return None
        return sum(end - reached.get(each, 0) for each, end in ends.items())

    def topic_id(self) -> str:
        """Kafka's id of the topic, as the ledger tells it."""
        futures = self.topic.admin.describe_topics(TopicCollection([TOPIC]))
        found = str(futures[TOPIC].result(timeout=5).topic_id)
        # Kafka's own form; this client says "+" and "/".
        return found.translate(str.maketrans("+/", "-_"))

    def wait_until(
        self, condition: Callable[[], Any], what: str, *, seconds: float = 120.0
    ) -> Any:
        """Wait for a condition; workers that end meanwhile are started again."""

        def holds() -> Any:
            found = condition()
            if not found:
                self.supervise()
            return found

        # Often enough; what is asked for costs Kafka and PostgreSQL something, too.
        return wait_until(holds, what, seconds=seconds, pause=0.2)

    def wait_until_read(self, *, seconds: float = 120.0) -> None:
        """Wait until the workers have read all that was sent."""
        self.wait_until(
            lambda: self.lag() == 0, "all that was sent is read", seconds=seconds
        )

    def wait_for_more(self, what: str) -> None:
        """Wait until more is read than now."""
        before = self.consumed()
        self.wait_until(lambda: self.consumed() > before, what)

    def supervise(self) -> None:
        """Start workers again that ended, as a supervisor does."""
        self._look_at_ends()
        for worker in self.workers:
            if worker.is_running():
                self._told_to_stop.discard(worker)
            elif worker.process is not None and worker not in self._told_to_stop:
                self.did("worker started again by its supervisor")
                worker.start()

    def _look_at_ends(self) -> None:
        """Complain of each worker that ended by itself, and keep its log.

        But for those of which the scenario wants it.
        """
        for worker in self.workers:
            worker.look()
            known = self._ends.get(worker, 0)
            ends = worker.own_ends[known:]
            if not ends:
                continue
            self._ends[worker] = known + len(ends)
            if worker in self.may_end:
                continue
            log = (
                LOGS / f"{self.outcome.name}-{self.outcome.seed}-{worker.log_path.name}"
            )
            LOGS.mkdir(exist_ok=True)
            log.write_text(worker.log())
            self.outcome.complaints.append(
                f"a worker ended by itself, which nobody had caused (exit status "
                f"{', '.join(map(str, ends))}); its log is {log}, which ends with:\n"
                + "\n".join(worker.log().splitlines()[-LAST_LINES:])
            )

    def last_words(self) -> str:
        """The ends of the workers' logs."""
        return "\n".join(
            f"{worker.log_path.name}:\n{worker.log()[-6000:]}"
            for worker in self.workers
        )

    def settle(self) -> None:
        """Wait until all that was sent is read, stop the workers, and judge."""
        try:
            self.wait_until_read(seconds=self.settled_within)
        except AssertionError as error:
            self.outcome.complaints += [
                f"{error}; {self.lag()} are left",
                self.last_words(),
            ]
        else:
            if self.workers_roll_up and any(each.is_running() for each in self.workers):
                self._wait_for_rollups()
        for worker in self.workers:
            if worker.is_running():
                self.stop_worker(worker)
        self._look_at_ends()
        self._roll_up()
        self._observer.stop()
        verdict = self.oracle.judge(self.engine, exact=self.exact, rolled_up=True)
        self.outcome.verdict = verdict
        self.outcome.complaints += verdict.complaints
        if verdict.missing != self.missing:
            self.outcome.complaints.append(
                f"the books say {verdict.missing} missing, not {self.missing}"
            )
        books = self.start_command("books", "--deep")
        said, _ = books.communicate()
        if books.returncode != 0:
            self.outcome.complaints.append(f"books --deep: {said[-500:]}")

    def _wait_for_rollups(self) -> None:
        """Wait as long as a worker that runs may take to roll up the last beat."""
        try:
            self.wait_until(
                lambda: not self.marks(),
                "all is rolled up",
                seconds=ROLLED_UP_WITHIN,
            )
        except AssertionError as error:
            self.outcome.complaints.append(f"{error}; {self.marks()} marks are left")

    def _roll_up(self) -> None:
        """Do what the workers' next pass would, which comes in 20 s only.

        Whether the roll-ups are right then, the oracle says: it does not ask for marks.
        """
        done = self._run_worker_code(ROLL_UP)
        if done.returncode != 0:
            self.outcome.complaints.append(f"the roll-ups: {done.stderr[-500:]}")
        elif left := self.marks():
            self.outcome.complaints.append(f"{left} marks are left")

    def _run_worker_code(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run Python on the world's source, with a worker's settings and rights."""
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=self.source,
            env={
                **child_environ({**self.environ, **dict.fromkeys(OWNER, "")}),
                "PYTHONPATH": str(self.source),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def marks(self) -> int:
        """How many marks wait for the roll-ups' job."""
        return int(self.scalar("SELECT count(*) FROM rollup_marks"))


class Observer:
    """Looks at the world now and then: standstill, memory, what Kafka believes."""

    EVERY_SECONDS = 0.25

    def __init__(self, world: World) -> None:
        self._world = world
        self._believed = False  # said once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 (nobody would know that it ended)
            self._world.outcome.complaints.append(f"the observer ended: {error!r}")

    def _look(self) -> None:
        outcome = self._world.outcome
        before, moved = -1, time.monotonic()
        while not self._stop.wait(self.EVERY_SECONDS):
            done = self._world.consumed()
            # After the answer, for which a database that hangs lets us wait.
            now = time.monotonic()
            idle = done >= self._world.oracle.records or not self._world.workers
            if not idle:
                outcome.standstill = max(outcome.standstill, now - moved)
            if idle or done != before:
                before, moved = done, now
            self._look_at_group()
            for worker in list(self._world.workers):
                if worker.is_running():
                    outcome.memory = max(outcome.memory, peak_memory(worker.pid))

    def _look_at_group(self) -> None:
        """What is committed to Kafka has to be stored: others rely on its lag."""
        try:
            # In this order, since both grow.
            committed = self._world.committed()
            stored = self._world.next_offsets()
        except (KafkaException, SQLAlchemyError, TimeoutError):
            return
        if self._world.ledger_went_back:
            return
        for partition, offset in committed.items():
            if offset > stored.get(partition, offset) and not self._believed:
                complaint = (
                    f"Kafka was told {offset} of partition {partition}, stored was "
                    f"{stored[partition]}"
                )
                self._world.outcome.complaints.append(complaint)
                self._believed = True


def peak_memory(pid: int) -> int:
    """The most that a process has held, MB resident."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    # One that has just died has no memory any more.
    found = re.search(r"VmHWM:\s*(\d+)", status)
    return int(found[1]) // 1024 if found else 0
