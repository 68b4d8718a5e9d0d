"""Fixtures: the servers once a session; a database, topic and group for each test."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine

from heartbeat_app.config import Settings, load_settings
from testkit.servers import TEMPLATE, Servers, Topic, Worker, alembic, engine_of

# How long a busy machine takes says nothing about the code.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")

_numbers = itertools.count(1)

# What is collected stays: to search it for garbage, again and again while it grows,
# would be two fifths of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """From now on, but never of what was collected."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real Kafka and PostgreSQL, with a migrated database to copy."""
    servers = Servers.start(tmp_path_factory.mktemp("servers"))
    try:
        servers.make_database(TEMPLATE)
        alembic(servers.environ(TEMPLATE, "none"), "upgrade", "head")
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name of this test's own, for its database, topic and group."""
    return f"t{next(_numbers)}-{request.node.originalname[:40]}".replace("[", "-")


@pytest.fixture
def environ(servers: Servers, name: str) -> Iterator[dict[str, str]]:
    """The settings of the test's own application, its database migrated."""
    servers.make_database(name, TEMPLATE)
    yield servers.environ(name, name)
    servers.drop_database(name)


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    """The same as the application's settings."""
    return load_settings(environ, Path("/nonexistent"))


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """A plain engine on the test's database."""
    engine = engine_of(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def topic(servers: Servers, name: str) -> Topic:
    """The test's topic, not made yet."""
    return Topic(servers, name)


@pytest.fixture
def make_worker(
    environ: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., Worker]]:
    """Makes workers of the test's application; ends them after the test."""
    workers: list[Worker] = []

    def make(**more: str) -> Worker:
        log = tmp_path / f"worker-{len(workers)}.log"
        workers.append(Worker({**environ, **more}, log))
        return workers[-1]

    yield make
    for worker in workers:
        worker.end()
