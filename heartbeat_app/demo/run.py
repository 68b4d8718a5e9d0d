"""Starts everything in order, watches it, and stops it in order."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import click
from confluent_kafka import KafkaException
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.config import Settings
from heartbeat_app.demo.figures import FigureReader
from heartbeat_app.demo.preflight import (
    ROOM_TO_RUN_BYTES,
    ROOM_TO_START_BYTES,
    require_files,
    require_local,
    require_room,
)
from heartbeat_app.demo.screen import Part, Screen
from heartbeat_app.demo.signals import StopSignals
from heartbeat_app.demo.worker import Worker
from heartbeat_app.embedded import EmbeddedServer, KafkaServer, PostgresServer
from heartbeat_app.embedded.folder import FolderLock, make_own_folder
from heartbeat_app.embedded.kafka_jars import KAFKA_VERSION
from heartbeat_app.embedded.processes import run_to_end
from heartbeat_app.env_file import read_env_file
from heartbeat_app.exceptions import EmbeddedServerError, HeartbeatError
from heartbeat_app.kafka.topics import ensure_topic
from heartbeat_app.storage.db.engine import make_engine

DATA_FOLDER = ".heartbeat"

SYNTHETIC_CUSTOMERS = "1000"

NOT_FOR_THE_WORKER = (
    "POSTGRESQL_OWNER_USERNAME",
    "POSTGRESQL_OWNER_PASSWORD",
    "POSTGRESQL_READER_PASSWORD",
)

WORKER_STOP_SECONDS = 5.0
KAFKA_STOP_SECONDS = 2.0
POSTGRESQL_STOP_SECONDS = 2.0
"""Ctrl-C takes at most 10 s in all; each takes well below a second as a rule."""

FIRST_BEAT_LIMIT_SECONDS = 60.0
_LOOK_SECONDS = 0.5


def run_demo(
    settings: Settings,
    *,
    seconds: float | None = None,
    fresh: bool = False,
    yes: bool = False,
    project: Path | None = None,
) -> int:
    """Run everything until Ctrl-C, or until `seconds` after the first stored beat.

    Arguments:
        settings: Read after `ensure_env_file`.
        seconds: None: until Ctrl-C.
        fresh: Begin without the data of earlier runs; asks first, unless `yes`.
        yes: Do not ask.
        project: Holds alembic.ini; the working folder unless given.

    Returns the exit status: 0 when all went well and the books balance.
    """
    screen = Screen()
    try:
        require_local(settings)
        require_files()
        with StopSignals() as signals:
            demo = _Demo(settings, project or Path.cwd(), screen, signals)
            return demo.run(seconds=seconds, fresh=fresh, yes=yes)
    except HeartbeatError as exc:
        screen.problem(str(exc))
        return 1
    except KeyboardInterrupt:
        screen.problem("Stopped before everything was up.")
        return 130
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            words = f"The disk is full: {exc}.\nMake room"
        elif exc.filename is not None:
            words = f"{exc.filename}: {exc.strerror}.\nMend that"
        else:
            raise
        screen.problem(f"{words} and start again: what was kept is still there.")
        return 1
    finally:
        screen.end_steps()


class _Demo:
    """The servers, the worker and the order in which they come and go."""

    def __init__(
        self,
        settings: Settings,
        project: Path,
        screen: Screen,
        signals: StopSignals,
    ) -> None:
        self._settings = settings
        self._project = project
        self._screen = screen
        self._signals = signals
        self._data = project / DATA_FOLDER
        port = settings.kafka_bootstrap_servers.rpartition(":")[2]
        self._postgres = PostgresServer(
            self._data / "postgres",
            port=int(settings.postgresql_port),
            username=settings.owner.postgresql_username,
            password=settings.owner.postgresql_password,
            database=settings.postgresql_database,
            progress=screen.step,
        )
        self._kafka = KafkaServer(
            self._data / "kafka", port=int(port), progress=screen.step
        )
        self._worker = Worker(
            self._data / "worker",
            project=project,
            host=settings.web_bind,
            port=settings.web_port,
            environment=_worker_environment(project),
            progress=screen.step,
        )
        self._engine = make_engine(
            settings, application_name="heartbeat_app demo", pool_size=2
        )
        self._reader = FigureReader(settings, self._engine)

    def run(self, *, seconds: float | None, fresh: bool, yes: bool) -> int:
        if not (self._project / "alembic.ini").is_file():
            raise EmbeddedServerError(
                f"There is no alembic.ini in {self._project}.\n"
                "Start the demo from the project's folder."
            )
        make_own_folder(self._data)
        with FolderLock(self._data) as lock:
            if lock.left_by is not None:
                self._screen.tell(
                    f"The last demo (process {lock.left_by}) did not end in order; "
                    "going on with what it kept."
                )
            if fresh and not self._start_anew(yes=yes):
                self._screen.tell("Nothing was deleted, nothing was started.")
                return 1
            require_room(self._folders(), ROOM_TO_START_BYTES)
            problem: EmbeddedServerError | None = None
            try:
                self._start()
                try:
                    self._watch(seconds)
                except KeyboardInterrupt:
                    pass
                except EmbeddedServerError as exc:
                    problem = exc
                self._signals.ignore()
                return self._finish(problem)
            finally:
                self._signals.ignore()
                self._stop_servers()

    # Before

    def _start_anew(self, *, yes: bool) -> bool:
        """Forget earlier runs; False when the person does not want it after all."""
        servers: tuple[EmbeddedServer, ...] = (
            self._worker,
            self._kafka,
            self._postgres,
        )
        if not any(server.data_dir.exists() for server in servers):
            return True
        question = f"Delete all heartbeats kept so far in {self._data}?"
        try:
            if not (yes or click.confirm(question)):
                return False
        except click.Abort:  # nobody there to answer
            return False
        for server in servers:
            self._screen.step(f"Deleting {server.data_dir}")
            server.remove_data()
        self._worker.log_path.unlink(missing_ok=True)
        return True

    def _folders(self) -> set[Path]:
        """Where data is kept: root's PostgreSQL has a place of its own."""
        return {self._data, self._postgres.home}

    def _start(self) -> None:
        # A taken port is told at once, not after a minute of downloads.
        for server in (self._worker, self._kafka, self._postgres):
            server.claim()
        self._kafka.launch()
        self._postgres.start()
        run_to_end(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=self._project,
            environment=os.environ,
            what="Bringing the tables up to date (alembic upgrade head)",
            progress=self._screen.step,
        )
        self._kafka.wait_until_ready()
        self._screen.step(f"Making the topic {self._settings.heartbeats_topic}")
        try:
            ensure_topic(self._settings)
        except KafkaException as exc:
            raise self._kafka.failure(
                f"did not make the topic: {exc.args[0].str()}"
            ) from exc
        self._worker.launch()

    # Meanwhile

    def _watch(self, seconds: float | None) -> None:
        """Show the status until it is time to stop, or until something is wrong."""
        self._screen.end_steps()
        hint = (
            "The password is POSTGRESQL_PASSWORD in .env. "
            f"Ctrl-C stops everything; the data stays in {DATA_FOLDER}/."
        )
        begin = time.monotonic()
        first_beat: float | None = None
        kept_before: int | None = None
        self._reader.start()
        with self._screen.status(self._parts(), hint):
            while True:
                figures = self._reader.latest
                now = time.monotonic()
                if figures is not None:
                    if kept_before is None:
                        kept_before = figures.stored
                    if first_beat is None and figures.stored > kept_before:
                        first_beat = now
                self._screen.show(self._parts(), figures)
                if seconds is not None:
                    if first_beat is not None and now - first_beat >= seconds:
                        return
                    if first_beat is None and now - begin > FIRST_BEAT_LIMIT_SECONDS:
                        raise self._worker.failure(
                            f"stored no beat within {FIRST_BEAT_LIMIT_SECONDS:.0f} s"
                        )
                self._check()
                time.sleep(_LOOK_SECONDS)

    def _check(self) -> None:
        for server in (self._postgres, self._kafka):
            if not server.is_running():
                raise server.failure("ended by itself")
        require_room(self._folders(), ROOM_TO_RUN_BYTES)
        if report := self._worker.keep_running():
            self._screen.problem(report)

    def _parts(self) -> list[Part]:
        settings, worker = self._settings, self._worker
        log = worker.log_path.relative_to(self._project)
        state = f"process {worker.pid}" if worker.is_running() else "not running"
        if worker.restarts:
            state += f", started again {worker.restarts} times"
        return [
            Part(
                "PostgreSQL",
                f"127.0.0.1:{settings.postgresql_port}",
                f"{self._psql()} -h localhost -p {settings.postgresql_port} "
                f"-U {settings.postgresql_username} -d {settings.postgresql_database}",
            ),
            Part(
                f"Kafka {KAFKA_VERSION}",
                self._kafka.bootstrap_servers,
                f"topic {settings.heartbeats_topic}",
            ),
            Part("Worker", state, f"log {log}"),
            Part("Page", f"http://{settings.web_bind}:{settings.web_port}/live/", ""),
        ]

    def _psql(self) -> str:
        """The command that works: not every machine has PostgreSQL's client."""
        if shutil.which("psql"):
            return "psql"
        psql = self._postgres.psql
        if psql.is_relative_to(self._project):
            psql = psql.relative_to(self._project)
        return shlex.quote(str(psql))

    # After

    def _finish(self, problem: EmbeddedServerError | None) -> int:
        """Stop everything, then say what was kept: the last line."""
        self._screen.tell("Stopping the worker")
        self._worker.stop(limit_seconds=WORKER_STOP_SECONDS)
        self._reader.stop()
        balanced, verdict = self._verdict()
        self._stop_servers()
        if problem is not None:
            self._screen.problem(str(problem))
        self._screen.tell(verdict)
        return 0 if balanced and problem is None else 1

    def _stop_servers(self) -> None:
        self._worker.stop(limit_seconds=WORKER_STOP_SECONDS)
        self._engine.dispose()
        for server, limit in (
            (self._kafka, KAFKA_STOP_SECONDS),
            (self._postgres, POSTGRESQL_STOP_SECONDS),
        ):
            if server.is_running():
                self._screen.tell(f"Stopping {server.name}")
            server.stop(limit_seconds=limit)
        self._screen.end_steps()

    def _verdict(self) -> tuple[bool, str]:
        """The last line, and whether all is well."""
        try:
            figures = self._reader.read(kafka_runs=self._kafka.is_running())
        except SQLAlchemyError as exc:
            return False, f"What was kept could not be counted: {exc}"
        kept = f"Kept {figures.stored:,} heartbeats"
        problems = list(figures.audit.problems)
        if not figures.audit.complete:
            problems.append("Kafka did not answer, its log was not checked.")
        if problems:
            return False, f"{kept}, but the books do not balance: {' '.join(problems)}"
        return True, f"{kept}, the books balance."


def _worker_environment(project: Path) -> dict[str, str]:
    """1,000 customers unless the person has said how many, and no other's password."""
    given = dict.fromkeys(NOT_FOR_THE_WORKER, "")  # .env says them: this unsets them
    name = "SYNTHETIC_CUSTOMERS"
    told = {**read_env_file(project / ".env", os.environ), **os.environ}
    if not told.get(name):
        given[name] = SYNTHETIC_CUSTOMERS
    return given
