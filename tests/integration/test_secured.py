"""The application on servers with TLS and logins, as one has them in production."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping

import pytest
from sqlalchemy import Engine, text

from testkit.servers import PROJECT, Worker, run
from tests import debian_postgres
from tests.secured import Secured, secured
from tests.typed import Done, typed

pytestmark = pytest.mark.integration

RECORDING = PROJECT / "tests" / "recordings" / "rec-nni-short.csv"
BEATS = len(RECORDING.read_text().splitlines()) - 1


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(tmp_path_factory.mktemp("secured")) as servers:
        yield servers


def stored(engine: Engine, customer: str = "rec-%") -> int:
    query = text("SELECT count(*) FROM heartbeats WHERE customer_id LIKE :customer")
    with engine.connect() as connection:
        return int(connection.scalar(query, {"customer": customer}) or 0)


@pytest.mark.parametrize(
    "how", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "certificate"]
)
def test_the_worker_and_the_commands_are_let_in(
    servers: Secured,
    environ: dict[str, str],
    engine: Engine,
    make_worker: Callable[..., Worker],
    how: str,
) -> None:
    if how == "certificate":
        environ.update(servers.with_certificate())
    else:
        environ["KAFKA_SASL_MECHANISM"] = how
    worker = make_worker().start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    sent = typed(environ, "send", str(RECORDING))
    assert sent.status == 0, sent.err
    worker.wait_until(lambda: stored(engine) == BEATS, "all beats are stored")
    balanced = typed(environ, "books", "--deep")
    assert balanced.status == 0, balanced.err
    with engine.connect() as connection:
        lines = connection.execute(
            text(
                "SELECT DISTINCT usename, ssl FROM pg_stat_activity"
                " JOIN pg_stat_ssl USING (pid)"
                " WHERE application_name LIKE 'heartbeat_app%'"
            )
        ).all()
        secrets = connection.scalars(
            text("SELECT rolpassword FROM pg_authid WHERE rolcanlogin")
        ).all()
    assert lines == [("worker", servers.has_tls)]
    assert all(secret.startswith("SCRAM-SHA-256$") for secret in secrets)
    assert worker.stop() == 0, worker.log()[-3000:]


def test_the_worker_invents_beats_with_these_rights(
    environ: dict[str, str], engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    """Its producer is Faust's, another one than that of `send`."""
    worker = make_worker(SYNTHETIC_CUSTOMERS="10").start()
    worker.wait_until(
        lambda: stored(engine, "customer-%") >= 10, "invented beats are stored"
    )


# Who is refused


def refused(environ: Mapping[str, str], *command: str) -> Done:
    done = typed(environ, *command)
    assert done.status == 1
    assert "Traceback" not in done.err
    return done


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"KAFKA_SASL_PASSWORD": "wrong-password"}, "Authentication failed"),
        ({"KAFKA_SASL_USERNAME": "somebody"}, "Authentication failed"),
        ({"KAFKA_SSL_CAFILE": "other-ca.pem"}, "certificate verify failed"),
        ({"KAFKA_SECURITY_PROTOCOL": "SSL"}, ""),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, ""),
        ({"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}, ""),
    ],
)
def test_kafka_refuses_and_the_command_says_so(
    servers: Secured, environ: dict[str, str], wrong: dict[str, str], words: str
) -> None:
    changed = {
        name: str(servers.folder / value) if name.endswith("FILE") else value
        for name, value in wrong.items()
    }
    done = refused({**environ, **changed}, "books")
    assert f"Kafka at {environ['KAFKA_BOOTSTRAP_SERVERS']} does not answer" in done.err
    assert words in done.err
    assert "wrong-password" not in done.err + done.out


def test_kafka_asks_for_a_certificate(
    servers: Secured, environ: dict[str, str]
) -> None:
    without = {
        **environ,
        **servers.with_certificate(),
        "KAFKA_SSL_CERTFILE": "",
        "KAFKA_SSL_KEYFILE": "",
    }
    assert "does not answer" in refused(without, "books").err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"POSTGRESQL_PASSWORD": "wrong-password"}, "password authentication failed"),
        ({"PGSSLROOTCERT": "other-ca.pem"}, "certificate verify failed"),
        ({"POSTGRESQL_HOST": "127.0.0.1"}, 'does not match host name "127.0.0.1"'),
        ({"POSTGRESQL_SSLMODE": "disable"}, "no pg_hba.conf entry"),
    ],
)
def test_postgresql_refuses_and_the_command_says_so(
    servers: Secured, environ: dict[str, str], wrong: dict[str, str], words: str
) -> None:
    if not servers.has_tls:
        pytest.skip(f"PostgreSQL without TLS: {debian_postgres.why_not()}")
    changed = {
        name: str(servers.folder / value) if name == "PGSSLROOTCERT" else value
        for name, value in wrong.items()
    }
    done = refused({**environ, **changed}, "books")
    assert words in done.err
    assert "wrong-password" not in done.err + done.out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"KAFKA_SASL_PASSWORD": "wrong-password"}, "SASL authentication error"),
        ({"KAFKA_GROUP_ID": "somebody-s"}, "does not let this worker go on"),
        ({"POSTGRESQL_PASSWORD": "wrong-password"}, "password authentication failed"),
    ],
)
def test_a_worker_that_is_refused_ends_in_a_sentence(
    servers: Secured, environ: dict[str, str], wrong: dict[str, str], words: str
) -> None:
    done = refused({**environ, **wrong}, "worker", "-l", "warn")
    [told] = [each for each in done.err.splitlines() if "Error: " in each]
    assert words in told
    assert "wrong-password" not in done.err + done.out


def test_a_worker_without_tables_ends_in_a_sentence(
    servers: Secured, environ: dict[str, str], engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE partition_ledger RENAME TO away"))
    done = refused(environ, "worker", "-l", "warn")
    assert 'relation "partition_ledger" does not exist' in done.err
    assert "Run `alembic upgrade head`." in done.err


# Faust's own connection, which comes after that of the commands' client


HANDSHAKE = """
import socket, sys
from heartbeat_app.worker.application import app

_, host, port = sys.argv
context = app.conf.broker_credentials.ssl_context
with socket.create_connection(("127.0.0.1", int(port)), 10) as line:
    context.wrap_socket(line, server_hostname=host).close()
"""


def handshake(
    servers: Secured, environ: Mapping[str, str], host: str, status: int = 0
) -> str:
    port = str(servers.sasl_port)
    command = (sys.executable, "-c", HANDSHAKE, host, port)
    return run(environ, *command, status=status)


def test_faust_trusts_its_ca_only_and_looks_at_the_name(
    servers: Secured, environ: dict[str, str]
) -> None:
    handshake(servers, environ, "localhost")
    told = handshake(servers, environ, "127.0.0.1", status=1)
    assert "IP address mismatch" in told
    other = {**environ, "KAFKA_SSL_CAFILE": servers.other_ca}
    told = handshake(servers, other, "localhost", status=1)
    assert "unable to get local issuer certificate" in told
