"""The oracle objects to whatever is wrong with the tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from testkit.oracle import RETENTION_DAYS, Oracle
from testkit.servers import Topic, Worker
from tests.acceptance.test_faults import send

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
    "a customer's minute has another sum": (
        "UPDATE heartbeats_minute SET sum = sum + 1"
        " WHERE (customer_id, minute) ="
        " (SELECT customer_id, minute FROM heartbeats_minute LIMIT 1)",
        "1 rows of heartbeats_minute are not what the beats give",
    ),
    "an hour begins with another rate": (
        "UPDATE heartbeats_hour SET first = first + 1 WHERE (customer_id, hour) ="
        " (SELECT customer_id, hour FROM heartbeats_hour LIMIT 1)",
        "1 rows of heartbeats_hour are not what the beats give",
    ),
    "an hour is missing": (
        "DELETE FROM heartbeats_hour WHERE (customer_id, hour) ="
        " (SELECT customer_id, hour FROM heartbeats_hour LIMIT 1)",
        "1 rows of heartbeats_hour are not what the beats give",
    ),
    "a minute is too much": (
        "INSERT INTO heartbeats_minute_all SELECT minute - INTERVAL '9 years',"
        " 1, 1, 1, 1, 1, ARRAY[1] FROM heartbeats_minute_all LIMIT 1",
        "1 rows of heartbeats_minute_all are not what the beats give",
    ),
    "a histogram is another": (
        "UPDATE heartbeats_hour_all SET histogram[max] = histogram[max] + 1"
        " WHERE hour = (SELECT min(hour) FROM heartbeats_hour_all)",
        "1 rows of heartbeats_hour_all are not what the beats give",
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
    worker.wait_until(
        lambda: not oracle.judge(engine, rolled_up=True).complaints,
        "all is stored and rolled up",
        seconds=90,
    )
    assert worker.stop() == 0
    oracle.check(engine)
    verdict = oracle.judge(engine, rolled_up=True)
    assert (verdict.lost, verdict.doubled, verdict.missing) == (0, 0, 0)

    for fault, (statements, complaint) in FAULTS.items():
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(text(statements))
            found = oracle.judge(connection, rolled_up=True).complaints
            transaction.rollback()
        assert any(complaint in each for each in found), f"{fault}: {found}"
