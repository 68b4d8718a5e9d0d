"""The demo's figures while nobody answers."""

from __future__ import annotations

from pathlib import Path

from heartbeat_app.config import load_settings
from heartbeat_app.demo.figures import FigureReader
from heartbeat_app.storage.db.engine import make_engine

NOBODY = {
    "POSTGRESQL_USERNAME": "nobody",
    "POSTGRESQL_PASSWORD": "x",
    "POSTGRESQL_DATABASE": "nothing",
    "POSTGRESQL_PORT": "1",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
}


def test_a_database_that_does_not_answer_at_first_does_not_end_the_demo() -> None:
    settings = load_settings(NOBODY, Path("/nonexistent"))
    engine = make_engine(settings, application_name="test")
    reader = FigureReader(settings, engine)
    reader.start()
    assert reader.latest is None
    reader.stop()
    reader._thread.join(20)
    assert not reader._thread.is_alive()
    engine.dispose()
