"""Runs what a service of docker-compose.yml runs, without its container.

The command, the environment and the working folder are the container's; only hosts,
ports and folders, which a container has to itself, are other ones.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import psycopg2
from psycopg2.extensions import connection as Connection

from heartbeat_app.embedded.kafka_jars import java_program, kafka_jars
from heartbeat_app.embedded.ports import pick_port
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.embedded.postgres_home import installed_programs
from heartbeat_app.embedded.server import EmbeddedServer, run_to_end
from heartbeat_app.exceptions import EmbeddedServerError
from tests.deploy import composefile

HERE = "127.0.0.1"
# Where the volume is mounted.
TOKEN_FOLDER = "/run/web-token"
PASSWORD_FOLDERS = ("/run/owner-password", "/run/reader-password")

DOT_ENV: Mapping[str, str] = {
    "POSTGRESQL_USERNAME": "admin",
    "POSTGRESQL_PASSWORD": "pa$$ word",
    "POSTGRESQL_DATABASE": "heartbeat_db",
    "POSTGRESQL_OWNER_PASSWORD": "owner's own",
    "POSTGRESQL_READER_PASSWORD": "reader's own",
}


def service(name: str) -> dict[str, object]:
    found = composefile.load(DOT_ENV)["services"][name]
    assert isinstance(found, dict)
    return found


def environment(name: str) -> dict[str, str]:
    found = service(name)["environment"]
    assert isinstance(found, dict)
    return found


def command(name: str) -> list[str]:
    found = service(name)["command"]
    assert isinstance(found, list)
    return found


def command_here(name: str) -> list[str]:
    """What the container runs, with the program of this Python environment."""
    program, *words = command(name)
    return [str(Path(sys.executable).parent / program), *words]


def token_in(folder: Path, words: Sequence[str]) -> list[str]:
    """The words of a command that looks for the token there, not on its volume."""
    assert any(TOKEN_FOLDER in word for word in words)
    return [word.replace(TOKEN_FOLDER, shlex.quote(str(folder))) for word in words]


def make_token(folder: Path) -> str:
    """Do what the service `web-token` does, once; what lies on its volume then."""
    subprocess.run(
        token_in(folder, command_here("web-token")),
        env=image_environment(),
        check=True,
        timeout=60,
    )
    (token,) = folder.iterdir()
    assert token.name == "token"
    return token.read_text().strip()


def make_passwords(folder: Path) -> dict[str, str]:
    """Do what the service `passwords` does, once; what lies on each volume then."""
    words = passwords_in(folder, command_here("passwords"))
    subprocess.run(words, env=image_environment(), check=True, timeout=60)
    found = {}
    for path in PASSWORD_FOLDERS:
        (password,) = (folder / Path(path).name).iterdir()
        assert password.name == "password"
        found[path] = password.read_text().strip()
    return found


def passwords_in(folder: Path, words: Sequence[str]) -> list[str]:
    """The words of a command that finds the passwords there, not on their volumes."""
    for path in PASSWORD_FOLDERS:
        here = folder / Path(path).name
        here.mkdir(exist_ok=True)
        words = [word.replace(path, shlex.quote(str(here))) for word in words]
    return list(words)


def health_check(name: str) -> list[str]:
    """The service's health check as the words of a command."""
    check = service(name)["healthcheck"]
    assert isinstance(check, dict)
    kind, *words = check["test"]
    return words if kind == "CMD" else ["/bin/sh", "-c", *words]


def environment_here(
    name: str, *, postgresql: int, kafka: int = 0, web: int = 0
) -> dict[str, str]:
    """That of migrate or worker, with the ports given instead of compose's."""
    variables = environment(name)
    for variable, inside, here in (
        ("POSTGRESQL_HOST", "postgresql", HERE),
        ("POSTGRESQL_PORT", "5432", str(postgresql)),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka:29092", f"{HERE}:{kafka}"),
        ("WEB_BIND", "0.0.0.0", HERE),
        ("WEB_PORT", "6066", str(web)),
    ):
        if variable in variables:
            assert variables[variable] == inside
            variables[variable] = here
    return variables


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets, for a process outside of the image."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "PYTHONUNBUFFERED": "1",
    }


def app_folder(folder: Path) -> Path:
    """As the image's /app: what the migration needs, and no `.env`."""
    for name in ("alembic", "alembic.ini"):
        (folder / name).symlink_to(composefile.PROJECT / name)
    return folder


def migrate(folder: Path, *, postgresql: int) -> subprocess.CompletedProcess[str]:
    """What the service `migrate` does, once."""
    return subprocess.run(
        command_here("migrate"),
        cwd=folder,
        env={
            **image_environment(),
            **environment_here("migrate", postgresql=postgresql),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


class ComposePostgresql(PostgresServer):
    """PostgreSQL as the compose file asks for it: user, password, database, check."""

    def __init__(self, data_dir: Path) -> None:
        variables = environment("postgresql")
        super().__init__(
            data_dir,
            port=pick_port(HERE),
            username=variables["POSTGRES_USER"],
            password=variables["POSTGRES_PASSWORD"],
            database=variables["POSTGRES_DB"],
            config={"fsync": "off"},
        )

    def connect(
        self, user: str = "", password: str = "", database: str = ""
    ) -> Connection:
        """A connection as the owner, or as another role; commits by itself."""
        connection: Connection = psycopg2.connect(
            host=HERE,
            port=self.port,
            user=user or self.username,
            password=password or self.password,
            dbname=database or self.database,
        )
        connection.autocommit = True
        return connection

    def query(self, sql: str) -> list[tuple[object, ...]]:
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall()

    def is_healthy(self) -> bool:
        words = health_check("postgresql")
        assert " -p 5432 " in words[-1]
        words[-1] = words[-1].replace(" -p 5432 ", f" -p {self.port} ")
        path = f"{installed_programs()}{os.pathsep}{os.defpath}"
        return _succeeds(words, {"PATH": path, **environment("postgresql")})


class ComposeKafka(EmbeddedServer):
    """Kafka, configured by the class with which the image turns variables into it.

    The image's script runs `kafka.docker.KafkaDockerWrapper setup`, which writes
    server.properties from the environment and formats the data, then the broker.
    """

    name: ClassVar[str] = "Kafka"
    port_setting: ClassVar[str] = "KAFKA_BOOTSTRAP_SERVERS"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    # The default of the image, which compose does not change.
    cluster_id: ClassVar[str] = "5L6g3nShT-eMCtK--X86sw"

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, host=HERE, port=pick_port(HERE), progress=None)
        self.inner_port = pick_port(HERE)
        self._variables = environment("kafka") | {"CLUSTER_ID": self.cluster_id}
        for inside, here in (
            ("0.0.0.0:29092", f"{HERE}:{self.inner_port}"),
            ("kafka:29092", f"{HERE}:{self.inner_port}"),
            ("0.0.0.0:9092", f"{HERE}:{self.port}"),
            ("localhost:9092", f"{HERE}:{self.port}"),
            ("localhost:9093", f"{HERE}:{pick_port(HERE)}"),
            ("/var/lib/kafka/data", str(self.data_dir / "data")),
        ):
            assert any(inside in value for value in self._variables.values()), inside
            for name, value in self._variables.items():
                self._variables[name] = value.replace(inside, here)

    def is_healthy(self) -> bool:
        words = health_check("kafka")
        assert "/dev/tcp/kafka/29092" in words[-1]
        words[-1] = words[-1].replace("kafka/29092", f"{HERE}/{self.inner_port}")
        return _succeeds(words, {"PATH": os.defpath})

    def _prepare(self) -> None:
        for folder in ("default", "mounted", "config"):
            (self.home / folder).mkdir(exist_ok=True)
        try:
            run_to_end(
                [
                    *self._java("kafka.docker.KafkaDockerWrapper"),
                    "setup",
                    "--default-configs-dir=default",
                    "--mounted-configs-dir=mounted",
                    "--final-configs-dir=config",
                ],
                cwd=self.home,
                environment=self._variables,
                what="Configuring Kafka",
                progress=self._progress,
            )
        except EmbeddedServerError as exc:
            # So does the image's script, at every start but the first.
            if "already formatted" not in str(exc):
                raise

    def _command(self) -> Sequence[str]:
        return [*self._java("kafka.Kafka"), "config/server.properties"]

    def _environment(self) -> Mapping[str, str]:
        return self._variables

    def _answers(self) -> bool:
        return self.is_healthy()

    def _java(self, main_class: str) -> list[str]:
        jars = os.pathsep.join(str(jar) for jar in kafka_jars(self._progress))
        return [str(java_program()), "-Xmx512m", "-cp", jars, main_class]


def _succeeds(words: Sequence[str], variables: Mapping[str, str]) -> bool:
    done = subprocess.run(words, env=variables, capture_output=True, timeout=10)
    return done.returncode == 0
