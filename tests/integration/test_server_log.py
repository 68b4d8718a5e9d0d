"""No failing statement writes records into PostgreSQL's log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.batches import Refused
from heartbeat_app.domain.validation import Reason, Refusal, Rules
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.write.writer import Writer
from testkit.servers import Servers
from tests.storing import START, Kept, Received, batch_of, beat, store

pytestmark = pytest.mark.integration

ID = "zaphod-beeblebrox"
BYTES = b"some bytes of a record"
TRACES = (ID, BYTES.decode(), BYTES.hex())

RAISE = (
    "CREATE OR REPLACE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'made up'; END $$"
)
FAULTS = {
    "a trigger on beats": [
        "CREATE TRIGGER theirs BEFORE INSERT ON heartbeats FOR EACH ROW"
        " EXECUTE FUNCTION theirs()"
    ],
    "a trigger on dead letters": [
        "CREATE TRIGGER theirs BEFORE INSERT ON dead_letters FOR EACH ROW"
        " EXECUTE FUNCTION theirs()"
    ],
    "a check of beats": ["ALTER TABLE heartbeats ADD CHECK (heart_rate = 1) NOT VALID"],
    "a check of dead letters": [
        "ALTER TABLE dead_letters ADD CHECK (reason = 'none') NOT VALID"
    ],
    "a unique index": ["CREATE UNIQUE INDEX ON dead_letters (topic)"],
    "a column": ["ALTER TABLE dead_letters ADD COLUMN more TEXT NOT NULL DEFAULT NULL"],
    "no right": ["REVOKE INSERT ON dead_letters FROM worker"],
    "a missing table": ["ALTER TABLE rollup_marks RENAME TO elsewhere"],
    "a foreign key": [
        "CREATE TABLE customers (id TEXT PRIMARY KEY)",
        "ALTER TABLE heartbeats ADD FOREIGN KEY (customer_id) REFERENCES customers",
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_leaves_no_record_in_the_servers_log(
    servers: Servers, writer: Writer, kept: Kept, engine: Engine, fault: str
) -> None:
    one = beat(ID)
    letter = Received(2, BYTES + b'{"customer_id": "%s"}' % ID.encode(), ID.encode())
    refusal = Refusal(Reason.NOT_JSON, f"Not {ID}.")
    more = batch_of([one, beat(ID, rate=99)], asked=1, offsets=[1, 3], position=4)
    more = dataclasses.replace(more, refused=[Refused(letter, refusal)])
    writer.write(batch_of([one]))
    log = servers.postgres.log_path
    before = log.stat().st_size
    with suppress(psycopg2.Error, DBAPIError):
        # A duplicate, a conflict, a dead letter; then in every way once more.
        kept.do(RAISE, *FAULTS[fault])
    for batch in (more, batch_of([one, beat(ID, 5.0), None], asked=1)):
        with suppress(psycopg2.Error, DBAPIError):
            store(writer, batch, attempts=5)
    rules = Rules.at(
        START + timedelta(days=1), max_future_seconds=1, retention_days=None
    )
    with suppress(psycopg2.Error, DBAPIError):
        replay(engine, rules, START)
    with engine.connect() as connection, suppress(DBAPIError):
        connection.execute(
            text(
                'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                " VALUES (:id, :at, 9000)"
            ),
            {"id": ID, "at": START},
        )
    said = log.read_bytes()[before:].decode(errors="replace")
    assert "ERROR" in said
    for trace in TRACES:
        assert trace not in said


def test_a_worker_may_not_set_that_for_itself(
    settings: Settings, make_writer: Callable[..., Writer]
) -> None:
    """Which is why the server does, or an administrator."""
    with make_writer()._engine.connect() as connection:
        for setting in (
            "log_min_error_statement = panic",
            "log_error_verbosity = terse",
        ):
            with pytest.raises(DBAPIError, match="permission denied"):
                connection.execute(text(f"SET {setting}"))
            connection.rollback()
