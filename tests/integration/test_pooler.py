"""Behind a real PgBouncer: with session pooling all works, else it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from heartbeat_app.config import Settings, load_settings
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from testkit.servers import PROJECT, Servers, Topic, Worker, child_environ
from tests.pgbouncer import PgBouncer, why_not
from tests.storing import START, TOPIC, TOPIC_ID, Kept, batch_of, beat
from tests.typed import typed

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

REFUSED = "behind a pooler that does not keep a session for each client"
IGNORING = {"ignore_startup_parameters": "options,extra_float_digits"}


def settings_of(pooler: PgBouncer) -> Settings:
    return load_settings(pooler.environ, Path("/nonexistent"))


def worker_ends(environ: dict[str, str], seconds: float = 40) -> tuple[int, str]:
    """Start a worker that ends by itself: its exit status and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "heartbeat_app", "worker", "-l", "info"],
        cwd=PROJECT,
        env=child_environ(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def migrate(environ: dict[str, str]) -> tuple[int, str]:
    """`alembic upgrade head`: its exit status and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=PROJECT,
        env=child_environ(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode()


@pytest.mark.parametrize("options", [{}, IGNORING], ids=["usual", "ignoring"])
def test_with_session_pooling_a_session_has_what_it_asks_for(
    environ: dict[str, str], options: dict[str, str]
) -> None:
    with PgBouncer(environ, pool_mode="session", **options) as pooler:
        for _ in range(2):  # the second engine gets sessions that the first has left
            engine = make_engine(
                settings_of(pooler), application_name="pooled", pool_size=2
            )
            with engine.connect() as connection, engine.connect() as other:
                for each in (connection, other):
                    assert each.execute(
                        text(
                            "SELECT current_setting('timezone'),"
                            " current_setting('statement_timeout'),"
                            " current_setting('lock_timeout'),"
                            " current_setting('idle_in_transaction_session_timeout'),"
                            " current_setting('transaction_isolation')"
                        )
                    ).one() == ("UTC", "35s", "5s", "15s", "read committed")
            engine.dispose()


def test_what_the_pooler_s_last_client_left_is_gone(environ: dict[str, str]) -> None:
    """Without a server_reset_query it hands a session on as it is."""
    options = {"pool_mode": "session", "server_reset_query": ""}
    with PgBouncer(environ, default_pool_size="1", **options) as pooler:
        last = pooler.connect()
        with last.cursor() as cursor:
            cursor.execute(
                "PREPARE ledger_lock AS SELECT 1; SET client_encoding = LATIN1;"
                " SET timezone = 'Asia/Tokyo'; CREATE TEMP TABLE heartbeats (n INT)"
            )
        last.commit()
        last.close()
        engine = make_engine(settings_of(pooler), application_name="next")
        with engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT current_setting('client_encoding'),"
                    " current_setting('timezone'), to_regclass('pg_temp.heartbeats'),"
                    " (SELECT count(*) FROM pg_prepared_statements), 'zoë'"
                )
            ).one()
        engine.dispose()
    assert found == ("UTF8", "UTC", None, 0, "zoë")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize(
    "options",
    [{}, {**IGNORING, "server_round_robin": "1", "min_pool_size": "5"}],
    ids=["usual", "round-robin"],
)
def test_a_pooler_that_shares_sessions_is_refused(
    environ: dict[str, str], mode: str, options: dict[str, str]
) -> None:
    with PgBouncer(environ, pool_mode=mode, **options) as pooler:
        engine = make_engine(settings_of(pooler), application_name="pooled")
        with pytest.raises(OperationalError, match=REFUSED):
            engine.connect()
        engine.dispose()


def test_worker_commands_and_alembic_are_refused_in_words(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make(partitions=1)
    with PgBouncer(environ, pool_mode="transaction") as pooler:
        for status, words in (worker_ends(pooler.environ), migrate(pooler.environ)):
            assert status != 0
            assert (REFUSED in words, "Traceback" in words) == (True, False), words
        for command in (
            ("dead-letters", "list"),
            ("erase", "anna", "--yes"),
            ("export", str(tmp_path / "beats.csv")),
        ):
            done = typed(pooler.environ, *command)
            assert (done.status, done.out) == (1, "")
            assert REFUSED in done.err
            assert "Traceback" not in done.err


def test_a_pooler_that_changes_under_a_running_worker_is_recognised(
    environ: dict[str, str], kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first prepared statement that is missing, or there already."""
    from heartbeat_app.storage.db import sessions

    monkeypatch.setattr(sessions.Sessions, "_require_own", lambda *_: None)
    with PgBouncer(environ, pool_mode="transaction") as pooler:
        engine = make_engine(
            settings_of(pooler), application_name="pooled", pool_size=2
        )
        PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0})
        writer = Writer(engine)
        with pooler.connect() as other, other.cursor() as cursor:
            cursor.execute("PREPARE ledger_lock AS SELECT 1")
        with pytest.raises(OperationalError, match=REFUSED):
            writer.write(batch_of([beat("anna", at=START)], asked=0))
        engine.dispose()
    assert kept.beats() == []


def test_all_works_through_session_pooling(
    servers: Servers,
    environ: dict[str, str],
    name: str,
    topic: Topic,
    kept: Kept,
    make_worker: Callable[..., Worker],
) -> None:
    """Migrations into an empty database, a worker, and a command."""
    topic.make(partitions=2)
    value = {
        "customer_id": "zoë",
        "timestamp": START.isoformat(),
        "heart_rate": 70,
    }
    topic.produce([json.dumps(value).encode(), b"{"], partition=0)
    servers.drop_database(name)
    servers.make_database(name)
    with PgBouncer(environ, pool_mode="session") as pooler:
        status, words = migrate(pooler.environ)
        assert status == 0, words
        worker = make_worker(POSTGRESQL_PORT=str(pooler.port)).start()
        worker.wait_until(lambda: len(kept.letters()) == 1, "all is stored")
        assert [customer for customer, _, _ in kept.beats()] == ["zoë"]
        assert typed(pooler.environ, "erase", "zoë", "--yes").status == 0
        assert kept.beats() == []
        assert worker.stop() == 0


@pytest.mark.parametrize(
    "options", [{}, {"ignore_startup_parameters": "options"}], ids=["usual", "ignoring"]
)
def test_a_default_that_the_pooler_lets_nobody_change_is_refused(
    servers: Servers, environ: dict[str, str], options: dict[str, str]
) -> None:
    """To set it later would break what psycopg2 writes."""
    servers.administer(
        f'ALTER DATABASE "{environ["POSTGRESQL_DATABASE"]}"'
        " SET standard_conforming_strings = off"
    )
    with PgBouncer(environ, pool_mode="session", **options) as pooler:
        done = typed(pooler.environ, "dead-letters", "list")
    assert (done.status, done.out) == (1, "")
    assert "ALTER ROLE … SET standard_conforming_strings = on" in done.err


def test_it_costs_one_round_trip_to_connect(settings: Settings, engine: Engine) -> None:
    """What SQLAlchemy asks for at the first connection of an engine aside."""
    own = make_engine(settings, application_name="counted", pool_size=2)
    with own.connect():
        pass
    sent: list[str] = []

    with own.connect(), own.connect() as second:
        raw = second.connection.dbapi_connection
        assert raw is not None
        event.listen(own, "before_cursor_execute", lambda *a: sent.append(a[2]))
        with engine.connect() as looking:
            last = looking.execute(
                text("SELECT query FROM pg_stat_activity WHERE pid = :pid"),
                {"pid": raw.info.backend_pid},
            ).scalar_one()
    own.dispose()
    assert sent == []
    assert last.lstrip().startswith("SET statement_timeout")


def test_what_a_pooler_keeps_of_a_server_that_took_writes_does_not_count(
    environ: dict[str, str], servers: Servers
) -> None:
    """It tells new clients the parameters of the first server that it met."""
    database = environ["POSTGRESQL_DATABASE"]
    with PgBouncer(environ, pool_mode="session") as pooler:
        engine = make_engine(settings_of(pooler), application_name="pooled")
        with engine.connect():
            pass
        engine.dispose()
        servers.administer(
            f'ALTER DATABASE "{database}" SET default_transaction_read_only = on'
        )
        servers.administer(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{database}'"
        )
        with pytest.raises(OperationalError, match="is read-only"):
            engine.connect()
        engine.dispose()
