"""The oracle objects to whatever is wrong with the tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from tests.acceptance.test_faults import send
from tests.oracle import RETENTION_DAYS, Oracle
from tests.servers import Topic, Worker

pytestmark = pytest.mark.integration

FAULTS = {
    "a beat is lost": (
        "DELETE FROM heartbeats WHERE id = (SELECT min(id) FROM heartbeats)",
        "1 beats are lost",
    ),
    "a row was never sent": (
        "INSERT INTO heartbeats (customer_id, timestamp, heart_rate)"
        " SELECT 'nobody', timestamp, 60 FROM heartbeats LIMIT 1",
        "1 rows were never sent",
    ),
    "a row is doubled": (
        "DROP INDEX idx_customer_id;"
        "INSERT INTO heartbeats (customer_id, timestamp, heart_rate)"
        " SELECT customer_id, timestamp, heart_rate FROM heartbeats LIMIT 1",
        "1 rows are doubled",
    ),
    "a rate is another": (
        "UPDATE heartbeats SET heart_rate = heart_rate % 300 + 1"
        " WHERE id = (SELECT min(id) FROM heartbeats)",
        "1 rows have another rate",
    ),
    "a dead letter is lost": (
        "DELETE FROM dead_letters WHERE id = (SELECT min(id) FROM dead_letters)",
        "dead letters (expected, found)",
    ),
    "a reason is another": (
        "UPDATE dead_letters SET reason = 'not_yet_known'"
        " WHERE id = (SELECT min(id) FROM dead_letters)",
        "not_yet_known",
    ),
    "the books say more": (
        "UPDATE partition_ledger SET consumed = consumed + 1, stored = stored + 1,"
        " next_offset = next_offset + 1 WHERE partition = 0",
        "the books say",
    ),
}


def test_it_objects_to_each_fault_and_to_nothing_else(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    oracle = Oracle(seed=11, partitions=2)
    topic.make(partitions=2)
    send(topic, oracle.make(2_000, bad=0.005, repeated=0.01))
    send(topic, oracle.recordings())
    worker = make_worker(RETENTION_DAYS=RETENTION_DAYS).start()
    worker.wait_until(lambda: not oracle.judge(engine).complaints, "all is stored")
    assert worker.stop() == 0
    oracle.check(engine)
    verdict = oracle.judge(engine)
    assert (verdict.lost, verdict.doubled, verdict.missing) == (0, 0, 0)

    for fault, (statements, complaint) in FAULTS.items():
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(text(statements))
            found = oracle.judge(connection).complaints
            transaction.rollback()
        assert any(complaint in each for each in found), f"{fault}: {found}"
