"""What `migrate` and `worker` run, with the environment that compose gives them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import time
from datetime import date, timedelta
from pathlib import Path

import psycopg2
import pytest

from heartbeat_app.embedded.postgres_home import installed_programs
from testkit.servers import free_port, wait_until
from tests.deploy import containers, dockerfile
from tests.deploy.composefile import PROJECT
from tests.deploy.containers import ComposeKafka, ComposePostgresql

pytestmark = pytest.mark.integration

# The file that Prometheus takes the token from.
READ = "/tmp/web_token"


def test_migrate_makes_the_tables_and_may_run_again(
    compose_postgresql: ComposePostgresql, tmp_path: Path
) -> None:
    folder = containers.app_folder(tmp_path)
    for _ in range(2):
        done = containers.migrate(folder, postgresql=compose_postgresql.port)
        assert done.returncode == 0, done.stderr
    assert "Running upgrade" not in done.stderr
    tables = compose_postgresql.query(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace = 'public'::regnamespace"
    )
    assert {"heartbeats", "partition_ledger", "dead_letters", "ingest_minute"} <= {
        name for (name,) in tables
    }


def test_passwords_are_made_once_and_no_two_are_the_same(tmp_path: Path) -> None:
    first = containers.make_passwords(tmp_path)
    assert len({*first.values()}) == 2
    assert min(map(len, first.values())) >= 32
    assert containers.make_passwords(tmp_path) == first
    (tmp_path / "reader-password" / "password").write_text("")  # a full disk
    again = containers.make_passwords(tmp_path)
    assert again["/run/owner-password"] == first["/run/owner-password"]
    assert again["/run/reader-password"] not in ("", first["/run/reader-password"])


@pytest.mark.parametrize(
    ("service", "key", "program", "variables"),
    [
        ("postgresql", "entrypoint", 'docker-entrypoint.sh "$0" "$@"',
         {"POSTGRES_PASSWORD": "owner"}),
        ("grafana", "entrypoint", "/run.sh",
         {"POSTGRESQL_READER_PASSWORD": "reader"}),
        ("migrate", "command", "alembic upgrade head",
         {"POSTGRESQL_OWNER_PASSWORD": "owner",
          "POSTGRESQL_READER_PASSWORD": "reader"}),
    ],
)  # fmt: skip
def test_a_service_takes_its_password_from_env_or_from_its_volume(
    tmp_path: Path, service: str, key: str, program: str, variables: dict[str, str]
) -> None:
    made = containers.make_passwords(tmp_path)
    words = containers.service(service)[key]
    assert isinstance(words, list)
    *shell, script = containers.passwords_in(tmp_path, words)
    assert f"exec {program}\n" in script
    script = script.replace(
        f"exec {program}", f"env | grep -e {' -e '.join(variables)}"
    )
    for given in ("", "it's $own"):
        environ = {"PATH": os.defpath, **dict.fromkeys(variables, given)}
        done = subprocess.run(
            [*shell, script], env=environ, check=True, capture_output=True, text=True
        )
        assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == {
            name: given or made[f"/run/{whose}-password"]
            for name, whose in variables.items()
        }


def test_migrate_fails_when_there_is_no_database(tmp_path: Path) -> None:
    """The worker must not start then: it waits for a completed migration."""
    folder = containers.app_folder(tmp_path)
    assert containers.migrate(folder, postgresql=free_port()).returncode != 0


def test_no_role_keeps_anything_in_another_database(
    compose_postgresql: ComposePostgresql, tmp_path: Path
) -> None:
    """Everybody may by default, and neither limit nor right of ours holds there."""
    folder = containers.app_folder(tmp_path)
    containers.migrate(folder, postgresql=compose_postgresql.port)
    for role, password in (
        ("heartbeat_reader", containers.DOT_ENV["POSTGRESQL_READER_PASSWORD"]),
        ("admin", containers.DOT_ENV["POSTGRESQL_PASSWORD"]),
    ):
        for database in ("postgres", "template1"):
            with pytest.raises(psycopg2.OperationalError, match="permission denied"):
                compose_postgresql.connect(role, password, database)
        compose_postgresql.connect(role, password).close()


def test_the_documented_backup_comes_back(
    compose_postgresql: ComposePostgresql, tmp_path: Path
) -> None:
    """With a day that came after it, which has a partition that the backup lacks."""
    folder = containers.app_folder(tmp_path)
    containers.migrate(folder, postgresql=compose_postgresql.port)
    documentation = (PROJECT / "docs" / "how-to" / "deployment.md").read_text()
    prefix = "docker-compose exec -T postgresql "
    dump, *restore = (
        line.removeprefix(prefix)
        for line in documentation.splitlines()
        if line.startswith(prefix)
    )

    def run(command: str) -> None:
        subprocess.run(
            ["sh", "-e", "-c", command],
            cwd=folder,
            check=True,
            env={
                "PATH": f"{installed_programs()}{os.pathsep}{os.defpath}",
                "PGHOST": containers.HERE,
                "PGPORT": str(compose_postgresql.port),
                "PGPASSWORD": compose_postgresql.password,
            },
        )

    def keep_a_beat(day: date) -> None:
        with contextlib.closing(compose_postgresql.connect()) as connection:
            connection.cursor().execute(
                f"CREATE TABLE heartbeats_{day:%Y_%m_%d} PARTITION OF heartbeats"
                f" FOR VALUES FROM ('{day}Z') TO ('{day + timedelta(1)}Z');"
                ' INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                f" VALUES ('somebody', '{day}Z', 70)"
            )

    keep_a_beat(date(2026, 1, 1))
    run(dump)
    keep_a_beat(date(2026, 1, 2))
    for command in restore:
        run(command)
    assert compose_postgresql.query('SELECT "timestamp"::date FROM heartbeats') == [
        (date(2026, 1, 1),)
    ]
    reader = compose_postgresql.connect(
        user="heartbeat_reader",
        password=containers.DOT_ENV["POSTGRESQL_READER_PASSWORD"],
    )
    with contextlib.closing(reader):
        reader.cursor().execute("SELECT count(*) FROM heartbeats")


def status(port: int, page: str, token: str) -> int:
    """What the worker answers to whoever sends that token."""
    connection = http.client.HTTPConnection(containers.HERE, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", page, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status


def test_a_token_is_made_once(tmp_path: Path) -> None:
    first = containers.make_token(tmp_path)
    assert re.fullmatch(r"[\w-]{43}", first)
    assert containers.make_token(tmp_path) == first
    (tmp_path / "token").write_text("")  # as a full disk leaves it
    (tmp_path / "new").write_text("half of o")
    assert containers.make_token(tmp_path) not in ("", first)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o644, (
        "Prometheus' user reads"
    )


@pytest.mark.parametrize("given", [None, "the-one-of-dot-env"])
def test_prometheus_has_the_token_of_the_worker(
    given: str | None, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    made = containers.make_token(volume)
    shown = tmp_path / "shown"
    shell = containers.service("prometheus")["entrypoint"]
    assert isinstance(shell, list)
    words = [
        word.replace("/bin/prometheus", "/bin/echo").replace(READ, str(shown))
        for word in containers.token_in(volume, shell)
    ]
    done = subprocess.run(
        [*words, *containers.command("prometheus")],
        env={"PATH": os.defpath} | ({"WEB_TOKEN": given} if given else {}),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == containers.command("prometheus")
    assert shown.read_text() == (given or made)
    assert shown.stat().st_mode & 0o777 == 0o600
    configuration = (PROJECT / "prometheus" / "prometheus.yml").read_text()
    assert f"credentials_file: {READ} " in configuration


def test_the_worker_keeps_beats_says_that_it_does_and_stops_in_time(
    compose_postgresql: ComposePostgresql, compose_kafka: ComposeKafka, tmp_path: Path
) -> None:
    folder = containers.app_folder(tmp_path)
    done = containers.migrate(folder, postgresql=compose_postgresql.port)
    assert done.returncode == 0, done.stderr
    web = free_port()
    environ = containers.image_environment() | containers.environment_here(
        "worker",
        postgresql=compose_postgresql.port,
        kafka=compose_kafka.inner_port,
        web=web,
    )
    volume = tmp_path / "token's volume"
    volume.mkdir()
    token = containers.make_token(volume)
    log_path = tmp_path / "worker.log"
    with log_path.open("wb") as log:
        worker = subprocess.Popen(
            containers.token_in(volume, containers.command_here("worker")),
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def is_healthy() -> bool:
        check = subprocess.run(
            dockerfile.health_check(), env=environ, capture_output=True, timeout=10
        )
        return check.returncode == 0

    def kept() -> int:
        assert worker.poll() is None, log_path.read_text()
        ((count,),) = compose_postgresql.query("SELECT count(*) FROM heartbeats")
        assert isinstance(count, int)
        return count

    try:
        assert not is_healthy(), "it cannot be before it has started"
        wait_until(lambda: kept() >= 3000, "three rounds of 1,000 customers")
        wait_until(is_healthy, "the health check of the image succeeds")
        ((customers,),) = compose_postgresql.query(
            "SELECT count(DISTINCT customer_id) FROM heartbeats"
            " WHERE \"timestamp\" > now() - interval '1 hour'"
        )
        assert customers == 1000
        assert status(web, "/api/latest", token) == 200
        assert status(web, "/api/latest", "not the token that was made") == 401
        begin = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert time.monotonic() - begin < 10
    finally:
        worker.kill()
        worker.wait()
    ((open_books,),) = compose_postgresql.query(
        "SELECT count(*) FROM partition_ledger"
        " WHERE consumed <> stored + duplicate + dead"
    )
    assert open_books == 0
