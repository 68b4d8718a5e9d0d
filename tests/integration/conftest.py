"""Writers on the test's own database, and a look at its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine

from heartbeat_app.config import Settings
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from tests.storing import TOPIC, TOPIC_ID, Kept


@pytest.fixture
def kept(engine: Engine) -> Kept:
    """What the tables hold."""
    return Kept(engine)


@pytest.fixture
def make_writer(settings: Settings, kept: Kept) -> Iterator[Callable[..., Writer]]:
    """Makes writers as the application does; the ledger begins at 0."""
    engines: list[Engine] = []

    def make(name: str = "writer", **options: Any) -> Writer:
        engine = make_engine(settings, application_name=name, pool_size=2)
        engines.append(engine)
        PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0, 1: 0})
        return Writer(engine, **options)

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def writer(make_writer: Callable[..., Writer]) -> Writer:
    """The writer of a worker."""
    return make_writer()


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Threads for what waits."""
    with ThreadPoolExecutor(4) as pool:
        yield pool
