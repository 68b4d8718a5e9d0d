"""Several hosts for one database: a real primary, and a standby that follows it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from heartbeat_app.config import load_settings
from heartbeat_app.domain.batches import Batch
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from prove.scenarios.postgres import demote
from prove.standby import Standby
from testkit.servers import Servers, alembic, free_port, run, wait_until
from tests.storing import TOPIC, TOPIC_ID, batch_of, beat
from tests.typed import typed

pytestmark = pytest.mark.integration


@dataclass
class Pair:
    """Both servers, and the settings that name them."""

    primary: PostgresServer
    standby: Standby
    environ: dict[str, str]

    def naming(self, *ports: int) -> dict[str, str]:
        """The settings with candidates at these ports of 127.0.0.1."""
        hosts = ",".join(["127.0.0.1"] * len(ports))
        numbers = ",".join(map(str, ports))
        return {
            **self.environ, "POSTGRESQL_HOST": hosts, "POSTGRESQL_PORT": numbers,
        }  # fmt: skip

    def engine(self, *ports: int) -> Engine:
        """As a worker makes it."""
        settings = load_settings(self.naming(*ports), Path("/nonexistent"))
        return make_engine(settings, application_name="pair", pool_size=2)


@pytest.fixture
def pair(tmp_path: Path, servers: Servers, name: str) -> Iterator[Pair]:
    """The first one migrated, with a role for the worker."""
    primary = PostgresServer(
        tmp_path / "primary",
        port=free_port(),
        username="owner",
        password="secret",
        database="beats",
        config={"fsync": "off"},
    )
    standby = Standby(tmp_path / "standby", primary)
    try:
        primary.start()
        standby.start()
        environ = {
            **servers.environ("beats", name),
            "POSTGRESQL_OWNER_USERNAME": "owner",
            "POSTGRESQL_OWNER_PASSWORD": "secret",
        }
        yield Pair(primary, standby, environ)
    finally:
        for server in (standby, primary):
            server.kill()
            server.remove_data()


def port_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT current_setting('port')")))


def test_a_standby_takes_the_primary_s_place(pair: Pair) -> None:
    """One after the other: what to start takes longer than what is looked at."""
    primary, standby = pair.primary, pair.standby
    away = free_port()
    candidates = away, standby.port, primary.port
    environ = pair.naming(*candidates)

    # Alembic, commands and workers pass over what is away or takes no writes.
    alembic(environ, "upgrade", "head")
    for command in ("books", "partitions", "dead-letters list", "export -"):
        done = typed(environ, *command.split())
        assert "PostgreSQL" not in done.err, done.err
    assert typed(environ, "erase", "--yes", "anna").status == 0
    engine = pair.engine(*candidates)
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0})
    writer = Writer(engine)
    assert writer.write(batch_of([beat()])).stored == 1
    reads = pair.engine(*candidates)
    assert port_of(reads) == primary.port

    # A primary that is demoted while sessions to it are open.
    demote(primary)
    for command in ("books", "erase --yes anna", "export -"):
        done = typed(environ, *command.split())
        assert done.status == 1
        assert (
            f"PostgreSQL at 127.0.0.1:{away}, 127.0.0.1:{standby.port}, "
            f"127.0.0.1:{primary.port}, database beats, has no server that takes "
            "writes: " in done.err
        )
        for each in candidates:  # what each of them said
            assert f'"127.0.0.1", port {each} failed: ' in done.err
        assert "Traceback" not in done.err
    words = run(environ, "alembic", "upgrade", "head", status=255)
    assert "has no server that takes writes" in words
    assert "Traceback" not in words
    with pytest.raises(OperationalError, match="read-only"):
        wait_until(lambda: port_of(reads) != primary.port, "its sessions are left")

    standby.promote()
    assert port_of(reads) == standby.port
    batch = batch_of([beat(second=1)], asked=1)
    wait_until(lambda: try_to_write(writer, batch), "the writer goes on there")
    with reads.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM heartbeats")) == 2
    engine.dispose()
    reads.dispose()


def try_to_write(writer: Writer, batch: Batch) -> bool:
    try:
        return writer.write(batch).stored == 1
    except DBAPIError:
        return False


def test_a_candidate_that_is_silent_holds_nobody_up_for_long(
    servers: Servers, environ: dict[str, str]
) -> None:
    """It takes connections and never answers, as a frozen machine may."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        ports = f"{silent.getsockname()[1]},{servers.postgres.port}"
        settings = load_settings(
            {
                **environ,
                "POSTGRESQL_HOST": "127.0.0.1,127.0.0.1",
                "POSTGRESQL_PORT": ports,
            },
            Path("/nonexistent"),
        )
        engine = make_engine(settings, application_name="patient")
        began = time.monotonic()
        assert port_of(engine) == servers.postgres.port
        assert time.monotonic() - began < 6.0
        engine.dispose()


def test_what_libpq_s_variables_say_changes_no_candidate(
    servers: Servers, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = {**environ, "POSTGRESQL_HOST": "127.0.0.1,localhost"}
    settings = load_settings(hosts, Path("/nonexistent"))
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.9")
    monkeypatch.setenv("PGLOADBALANCEHOSTS", "random")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    for _ in range(10):
        engine = make_engine(settings, application_name="pinned")
        with engine.connect() as connection:
            line: Any = connection.connection.dbapi_connection
            assert line.info.host == "127.0.0.1"
        engine.dispose()
