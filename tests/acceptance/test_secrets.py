"""No secret is in anything that a whole run prints, shows or is started with."""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, text

from heartbeat_app.config import variables
from heartbeat_app.demo.env_file import ensure_env_file
from heartbeat_app.env_file import read_env_file
from testkit.servers import PROJECT, Crowd, Worker
from tests.acceptance.test_demo import Copy
from tests.secured import Secured, secured
from tests.typed import HEARTBEAT_APP, typed

pytestmark = pytest.mark.acceptance

RECORDING = PROJECT / "tests" / "recordings" / "rec-nni-short.csv"

PAGES = (
    "/", "/stats/", "/assignment/", "/graph/", "/health/live", "/health/ready",
    "/login", "/nowhere", "/metrics", "/live/", "/live/customer?id=nobody",
    "/api/customers", "/api/latest?format=csv", "/api/summary", "/api/nowhere",
)  # fmt: skip

# What somebody who hunts a fault prints.
EVERYTHING = """
from heartbeat_app.worker.application import app
from heartbeat_app.kafka.client import Admin
things = [
    app, app.settings, app.settings.owner, app.conf, app.conf.broker_credentials,
    app.writer, app.reads, app.reads.url, app.admin, app.web, app.transport,
]
for thing in things:
    print(repr(thing), str(thing), f"{thing}")
print(app.conf.asdict() if hasattr(app.conf, "asdict") else "")
"""


class CommandLines(Crowd):
    """What all processes of the machine were started with, while it lasts."""

    def __init__(self) -> None:
        super().__init__(self._look, 0.2)
        self.seen: set[str] = set()

    def _look(self) -> None:
        for process in psutil.process_iter():
            try:
                self.seen.add("\0".join(process.cmdline()))
            except psutil.Error:
                continue


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(tmp_path_factory.mktemp("secured")) as servers:
        yield servers


def secret() -> str:
    """Found by a search for it and by nothing else; long enough for a token."""
    return f"secret{secrets.token_hex(12)}"


def page(
    worker: Worker, path: str, data: Mapping[str, str] | None = None, **headers: str
) -> str:
    """A page with its headers, whatever its status."""
    body = None if data is None else urllib.parse.urlencode(data).encode()
    url = f"http://127.0.0.1:{worker.environ['WEB_PORT']}{path}"
    request = urllib.request.Request(url, body, headers)
    opener = urllib.request.build_opener(NoRedirect)
    try:
        answer = opener.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return f"{answer.status} {answer.headers}\n{answer.read().decode()}"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        return None


def test_no_secret_is_told_anywhere(
    servers: Secured,
    environ: dict[str, str],
    engine: Engine,
    make_worker: Callable[..., Worker],
) -> None:
    environ["POSTGRESQL_READER_PASSWORD"] = secret()
    environ["WEB_TOKEN"] = secret()
    wrong = {
        name: secret()
        for name in (
            "POSTGRESQL_PASSWORD", "POSTGRESQL_OWNER_PASSWORD", "KAFKA_SASL_PASSWORD",
            "WEB_TOKEN",
        )
    }  # fmt: skip
    told: dict[str, str] = {}

    def tell(what: str, *command: str, program: str = "", **more: str) -> None:
        called = (program,) if program else HEARTBEAT_APP
        done = typed({**environ, **more}, *command, program=called)
        told[f"{what}: {' '.join(command)}"] = f"{done.status}\n{done.out}{done.err}"

    def run_worker(name: str, until: Callable[[Worker], None], **more: str) -> None:
        worker = make_worker(**more).start(
            sys.executable, "-m", "heartbeat_app", "--debug", "worker", "-l", "debug",
        )  # fmt: skip
        until(worker)
        for path in PAGES:
            told[f"{name}: {path}"] = page(worker, path)
            told[f"{name}: {path}, let in"] = page(
                worker, path, Authorization=f"Bearer {environ['WEB_TOKEN']}"
            )
        for what, token in (
            ("login", environ["WEB_TOKEN"]),
            ("no login", wrong["WEB_TOKEN"]),
        ):
            told[f"{name}: {what}"] = page(worker, "/login", {"token": token})
        worker.stop()
        told[name] = worker.log()

    def until_stored(worker: Worker) -> None:
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
        tell("send", "send", str(RECORDING))
        worker.wait_until(lambda: count(engine) >= 337, "beats are stored")

    def run_refused(name: str, **refused: str) -> None:
        worker = make_worker(**refused)
        command = [*HEARTBEAT_APP, "--debug", "worker", "-l", "debug"]
        done = typed(worker.environ, *command[1:], program=(command[0],))
        assert done.status == 1
        told[name] = f"{done.out}{done.err}"

    with CommandLines() as lines:
        for arguments in ("upgrade head", "check", "current", "upgrade head --sql"):
            tell("alembic", *arguments.split(), program="alembic")
            refused = {"POSTGRESQL_OWNER_PASSWORD": wrong["POSTGRESQL_OWNER_PASSWORD"]}
            tell("alembic refused", *arguments.split(), program="alembic", **refused)
        run_worker("worker", until_stored)
        run_worker("worker with PLAIN", until_stored, KAFKA_SASL_MECHANISM="PLAIN")
        for server, variable in (
            ("PostgreSQL", "POSTGRESQL_PASSWORD"), ("Kafka", "KAFKA_SASL_PASSWORD"),
        ):  # fmt: skip
            run_refused(f"worker refused by {server}", **{variable: wrong[variable]})
        for arguments in (
            "dead-letters replay", "partitions", "export -", "erase nobody --yes",
        ):  # fmt: skip
            tell("command", *arguments.split())
        for arguments in ("books", "dead-letters list", "agents", "--debug books"):
            tell("command", *arguments.split())
            for name in ("POSTGRESQL_PASSWORD", "KAFKA_SASL_PASSWORD"):
                tell(f"wrong {name}", *arguments.split(), **{name: wrong[name]})
        unusable = f"{wrong['WEB_TOKEN']} blank"
        tell("wrong settings", "books", WEB_PORT="many", WEB_TOKEN=unusable)
        tell("everything", "-c", EVERYTHING, program=sys.executable)
    told["command lines"] = "\n".join(lines.seen)
    told["PostgreSQL's log"] = servers.postgres.log_path.read_text(errors="replace")
    told["Kafka's log"] = servers.kafka.log_path.read_text(errors="replace")

    # The run was one: it printed, was refused, was let in.
    assert "heartbeat_app --debug worker".replace(" ", "\0") in told["command lines"]
    assert "Stored 337 heartbeats" in told["worker"]
    assert "Authentication failed" in told["wrong KAFKA_SASL_PASSWORD: books"]
    assert "password authentication failed" in told["alembic refused: current"]
    assert "customer_id,timestamp,heart_rate" in told["command: export -"]
    assert told["command: erase nobody --yes"].startswith("0\n")
    assert "WEB_TOKEN is (hidden)" in told["wrong settings: books"]
    assert "ALTER ROLE" in told["PostgreSQL's log"]
    assert told["worker: login"].startswith("303")
    assert told["worker: no login"].startswith("403")

    secret_names = {n for n, s in variables().items() if s.metadata["secret"]}
    assert secret_names <= environ.keys()
    hidden = {name: environ[name] for name in secret_names}
    hidden |= {f"wrong {name}": value for name, value in wrong.items()}
    found = [
        f"{name} in {where}: {line[:300]}"
        for where, words in told.items()
        for name, value in hidden.items()
        if value in words
        for line in words.splitlines()
        if value in line
    ]
    assert found == []


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM heartbeats")) or 0)


def test_the_demo_tells_none_either(tmp_path: Path) -> None:
    """Its passwords are made by itself; its worker is given its own only."""
    copy = Copy(tmp_path / "project")
    ensure_env_file(copy.folder)
    made = read_env_file(copy.folder / ".env", {})
    hidden = {n: v for n, v in made.items() if n.endswith("PASSWORD") and v}
    assert len(set(hidden.values())) == 3
    with CommandLines() as lines:
        demo = copy.start_with_our_python()
        demo.wait_for_more_beats()
        worker = next(p for p in copy.processes() if "worker" in p.cmdline())
        environ = worker.environ()
        demo.signal(signal.SIGINT)
        assert demo.end() == 0, demo.output
    data = copy.folder / ".heartbeat"
    told = [demo.output, *lines.seen]
    logs = ("worker.log", "kafka/server.log", "postgres/home/server.log",
            "postgres/server.log")  # fmt: skip
    told += [(data / log).read_text() for log in logs if (data / log).exists()]
    if (home := data / "postgres" / "home").is_symlink():  # root's, of PostgreSQL
        shutil.rmtree(home.readlink())
    assert len(told) > 10
    for name, value in hidden.items():
        assert not [words for words in told if value in words], name
    for name in hidden.keys() - {"POSTGRESQL_PASSWORD"}:
        assert environ[name] == "", name
