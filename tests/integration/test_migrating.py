"""Migrations at the same time, and what stops one, as `alembic` tells it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from heartbeat_app.config import load_settings
from testkit.servers import (
    PROJECT,
    Servers,
    child_environ,
    engine_of,
    free_port,
    run,
    wait_until,
)

pytestmark = pytest.mark.integration

WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'heartbeat_app alembic' AND wait_event_type = 'Lock'"
)


@pytest.fixture
def empty(servers: Servers, name: str) -> Iterator[dict[str, str]]:
    """The settings of an application whose database was never migrated."""
    servers.make_database(name)
    yield {**servers.environ(name, name), "POSTGRESQL_READER_PASSWORD": "reads"}
    servers.drop_database(name)


@pytest.fixture
def owner(empty: dict[str, str]) -> Iterator[Engine]:
    """The owner's engine on that database."""
    engine = engine_of(load_settings(empty, Path("/nonexistent")))
    yield engine
    engine.dispose()


def start(environ: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", *(arguments or ("upgrade", "head"))],
        cwd=PROJECT,
        env=child_environ(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


def why(environ: Mapping[str, str]) -> str:
    """Why an upgrade fails, in one sentence and without a trace."""
    printed = run(
        environ, sys.executable, "-m", "alembic", "upgrade", "head", status=255
    )
    assert "Traceback" not in printed
    assert printed.count("\n") <= 6
    return printed


def test_four_at_once_on_a_new_database_and_at_head(empty: dict[str, str]) -> None:
    for _ in range(2):
        printed = [end(each) for each in [start(empty) for _ in range(4)]]
    assert all("Running upgrade" not in each for each in printed)


def is_waiting(owner: Engine) -> bool:
    with owner.connect() as connection:
        return bool(connection.scalar(WAITING))


@pytest.mark.parametrize("words", ["upgrade head", "current"])
def test_ctrl_c_ends_a_statement_and_says_what_was_kept(
    empty: dict[str, str], owner: Engine, words: str
) -> None:
    """While it waits for its turn, and inside of a statement without a limit."""
    with owner.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
    with owner.connect() as connection:
        connection.execute(text("LOCK TABLE alembic_version"))
        process = start(empty, *words.split())
        wait_until(lambda: is_waiting(owner), f"{words} waits", seconds=20)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=20)
        assert process.returncode == 130, printed
        assert printed.splitlines()[-1] == "Interrupted. Nothing was changed."
        assert "Traceback" not in printed
        wait_until(lambda: not is_waiting(owner), "its session ends", seconds=20)


def test_databases_of_one_server_change_the_same_roles(
    servers: Servers, empty: dict[str, str], owner: Engine, name: str
) -> None:
    end(start(empty))
    other = f"{name}-other"
    servers.make_database(other, name)
    second = {**empty, "POSTGRESQL_DATABASE": other}
    try:
        for each in [start(environ) for environ in (empty, second) * 2]:
            end(each)
    finally:
        servers.drop_database(other)


def test_one_that_waits_says_for_whom(empty: dict[str, str], owner: Engine) -> None:
    end(start(empty))
    with owner.connect() as first, first.begin():
        first.execute(text("LOCK TABLE alembic_version IN SHARE UPDATE EXCLUSIVE MODE"))
        pid = first.scalar(text("SELECT pg_backend_pid()"))
        second = start(empty)
        assert second.stdout is not None
        lines = iter(second.stdout.readline, "")
        said = next(line for line in lines if "Waiting" in line)
        assert f"process {pid}, role {owner.url.username}" in said
        assert "(head)" in end(start(empty, "current"))  # who looks is not held up
    end(second)


def test_a_database_without_the_schema_public(
    empty: dict[str, str], owner: Engine
) -> None:
    with owner.begin() as connection:
        connection.execute(text("DROP SCHEMA public"))
    assert "has no schema public" in why(empty)


def test_a_schema_of_the_owners_own_changes_nothing(
    empty: dict[str, str], owner: Engine
) -> None:
    with owner.begin() as connection:
        connection.execute(text(f'CREATE SCHEMA "{owner.url.username}"'))
    end(start(empty))
    with owner.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('public.heartbeats')"))


def test_a_role_that_may_not_make_tables(empty: dict[str, str]) -> None:
    end(start({**empty, "POSTGRESQL_DATABASE": empty["POSTGRESQL_DATABASE"]}))
    worker = {
        **empty,
        "POSTGRESQL_OWNER_USERNAME": "",
        "POSTGRESQL_OWNER_PASSWORD": "",
    }
    assert "does not let worker do that" in why(worker)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"POSTGRESQL_PORT": "{port}"}, "does not answer: "),
        ({"POSTGRESQL_OWNER_PASSWORD": "wrong"}, "password authentication failed"),
        ({"POSTGRESQL_DATABASE": "nowhere"}, 'database "nowhere" does not exist'),
        ({"POSTGRESQL_PORT": "x"}, "POSTGRESQL_PORT is 'x'; allowed is"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    empty: dict[str, str], more: dict[str, str], words: str
) -> None:
    port = str(free_port())
    assert words in why({**empty, **{k: v.format(port=port) for k, v in more.items()}})
