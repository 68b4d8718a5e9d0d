"""The deep audit: what Kafka has, held against what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition
from sqlalchemy import Engine, text

from heartbeat_app.audit import deep, log_reader
from heartbeat_app.audit.deep import Comparer, DeepAudit
from heartbeat_app.audit.log_reader import LogReader
from heartbeat_app.config import Settings
from heartbeat_app.kafka.client import Admin
from heartbeat_app.storage.operator.erase import erase
from heartbeat_app.storage.read.books import Books, read_books
from heartbeat_app.storage.read.compare import Lookup
from testkit.oracle import Oracle
from testkit.servers import Topic, Worker, run
from tests.booked import execute, record

pytestmark = pytest.mark.integration


def compare(
    engine: Engine,
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Books, DeepAudit, list[str]]:
    """What the audit finds; as the command does it."""
    servers = settings.kafka_bootstrap_servers.split(",")
    with LogReader({"bootstrap_servers": servers}) as reader:
        comparer = Comparer(reader, Admin(settings), progress)
        books = read_books(
            engine,
            deep=True,
            compare=lambda name, ledger: comparer.run(Lookup(engine, name), ledger),
        )
    result = comparer.result
    return books, result, [*books.problems, *result.problems(books.rows)]


@pytest.fixture
def stored(topic: Topic, make_worker: Callable[..., Worker], engine: Engine) -> Oracle:
    """Records of every kind in two partitions, read by a worker that has ended."""
    topic.make(partitions=2, **{"message.timestamp.type": "LogAppendTime"})
    oracle = Oracle(seed=3, partitions=2)
    producer = Producer({**topic.config, "linger.ms": 5})
    for partition, key, value in oracle.make(1_000, bad=0.01, repeated=0.05):
        producer.produce(topic.name, value, key, partition=partition)
    # Behind its day there is no other.
    late = record("late", "9999-12-31T23:59:59.999999Z")
    producer.produce(topic.name, late, partition=0)
    assert producer.flush(30) == 0
    for how in ("abort", "commit"):
        producer = Producer({**topic.config, "transactional.id": f"{topic.name}-{how}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        for second in range(5):
            value = record(how, f"2026-01-01T10:00:{second:02}Z")
            producer.produce(topic.name, value, partition=0)
        assert producer.flush(30) == 0
        getattr(producer, f"{how}_transaction")(30)
    read_all(make_worker, topic, engine)
    return oracle


def read_all(make_worker: Callable[..., Worker], topic: Topic, engine: Engine) -> None:
    """Have a worker read all that is there, and end."""
    worker = make_worker(RETENTION_DAYS="3650").start()

    def is_read() -> bool:
        with engine.connect() as connection:
            found = connection.scalar(
                text("SELECT sum(next_offset) FROM partition_ledger WHERE topic = :t"),
                {"t": topic.name},
            )
        return bool(found == topic.end())

    worker.wait_until(is_read, "all is read")
    assert worker.stop() == 0


def test_what_a_worker_stored_is_what_kafka_has(
    stored: Oracle, topic: Topic, engine: Engine, settings: Settings
) -> None:
    books, found, problems = compare(engine, settings)
    assert problems == []
    assert found.not_verifiable == 0
    assert books.rows is not None
    assert found.rows == books.rows.counted
    assert sum(each.rejected for each in found.partitions) > 100
    # 5 aborted ones, and both markers.
    assert sum(each.transactions for each in found.partitions) == 5 + 2

    # What is gone on purpose is not missed.
    erase(engine, "commit", lambda so_far: None, lambda: None)
    _, found, problems = compare(engine, settings)
    assert (problems, found.not_verifiable) == ([], 0)

    # What Kafka no longer has is not verifiable,
    deleted = topic.admin.delete_records([TopicPartition(topic.name, 0, 200)])
    for future in deleted.values():
        future.result()
    _, found, problems = compare(engine, settings)
    assert problems == []
    first, second = sorted(found.partitions, key=lambda each: each.books.partition)
    assert (first.not_verifiable, second.not_verifiable) == (200, 0)

    # and neither is that of a topic that is gone.
    execute(engine, "UPDATE partition_ledger SET topic_id = 'gone' WHERE partition = 1")
    execute(engine, "UPDATE dead_letters SET topic_id = 'gone' WHERE partition = 1")
    _, found, problems = compare(engine, settings)
    assert problems == []
    assert found.not_verifiable == 200 + second.verified


# Nothing of it is against the ledger's own constraints.
CHANGES = [
    "DELETE FROM heartbeats WHERE customer_id = 'commit'"
    " AND timestamp < '2026-01-01T10:00:02Z'",
    "UPDATE heartbeats SET heart_rate = 299 WHERE customer_id = 'commit'",
    "DELETE FROM dead_letters WHERE reason = 'not_json'",
    "UPDATE dead_letters SET reason = 'empty' WHERE reason = 'conflict'",
    "UPDATE dead_letters SET reason = 'wrong_type' WHERE reason = 'missing_field'",
    "UPDATE dead_letters SET value = value || ' ' WHERE reason = 'wrong_type'",
    "INSERT INTO heartbeats (customer_id, timestamp, heart_rate)"
    " VALUES ('nobody', '2026-01-01T10:00:00Z', 70)",
    "UPDATE partition_ledger SET stored = stored + 1, duplicate = duplicate - 2,"
    " gap = gap + 1, consumed = consumed - 1 WHERE partition = 0",
]
FOUND = [
    "2 valid beats are neither a row nor a dead letter",
    "3 beats have a row with another heart rate, and no dead letter",
    "rejected records have no dead letter",
    "valid beats have a dead letter that calls them invalid",
    "rejected records have a dead letter with a reason that is not theirs",
    "dead letters hold another value than their records",
    "heartbeats has 1 rows that no record in Kafka explains",
    "7 offsets of transactions, and of 0 offsets it cannot be told, but the ledger "
    "has 8",
]


def test_what_was_changed_is_found(
    stored: Oracle, engine: Engine, settings: Settings
) -> None:
    for statement in CHANGES:
        execute(engine, statement)
    _, _, problems = compare(engine, settings)
    for words in FOUND:
        assert [each for each in problems if words in each], (words, problems)


def test_records_that_the_ledger_was_made_to_skip_are_found(
    topic: Topic,
    engine: Engine,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    """The books balance all the same; who may change the ledger is another matter."""
    topic.make(partitions=1)
    topic.produce([record("anna", f"2026-01-01T10:00:{n:02}Z") for n in range(50)])
    read_all(make_worker, topic, engine)
    topic.produce([record("bert", f"2026-01-01T10:00:{n:02}Z") for n in range(50)])
    execute(
        engine, "UPDATE partition_ledger SET next_offset = next_offset + 50, gap = 50"
    )
    assert "The books balance" in run(environ, "heartbeat_app", "books")
    printed = run(environ, "heartbeat_app", "books", "--deep", status=1)
    assert "50 valid beats are neither a row nor a dead letter" in printed
    assert "the first is of offset 50" in printed
    assert "Kafka holds 100 records" in printed
    told = run(environ, "heartbeat_app", "books", "--deep", "--json", status=1)
    found = json.loads(told[told.index("{") :])
    assert found["balanced"] is False
    assert found["compared"]["partitions"][0]["beats"] == 100


def test_rows_that_share_an_id_are_each_explained(
    topic: Topic,
    engine: Engine,
    settings: Settings,
    make_worker: Callable[..., Worker],
) -> None:
    """The sequence was set back; the ids are a key with the instants only."""
    topic.make(partitions=1)
    for hour in (10, 11):
        execute(engine, "SELECT setval('heartbeats_id_seq', 1, false)")
        topic.produce(
            record("anna", f"2026-01-0{day}T{hour}:00:{n:02}Z")
            for day in (1, 2)
            for n in range(50)
        )
        read_all(make_worker, topic, engine)
    books, found, problems = compare(engine, settings)
    assert problems == []
    assert books.rows is not None
    assert found.rows == books.rows.counted == 200

    # Neither are they taken for one another.
    execute(
        engine,
        "INSERT INTO heartbeats (id, customer_id, timestamp, heart_rate)"
        " VALUES (1, 'nobody', '2026-01-02T12:00:00Z', 70)",
    )
    _, _, problems = compare(engine, settings)
    assert "heartbeats has 1 rows that no record in Kafka explains" in problems[-1]


@pytest.mark.parametrize("again", [True, False])
def test_a_topic_that_goes_meanwhile_is_not_verifiable(
    stored: Oracle,
    topic: Topic,
    engine: Engine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    again: bool,
) -> None:
    """Not even if there is another one of its name: it has other records."""
    monkeypatch.setattr(deep, "PAGE", 100)
    # One batch a request.
    monkeypatch.setattr(log_reader, "FETCH_BYTES", 1)
    deleted = False

    def delete(done: int, total: int) -> None:
        nonlocal deleted
        if deleted:
            return
        deleted = True
        topic.delete()
        if again:
            topic.make(partitions=2)
            for partition in range(2):
                topic.produce(
                    (
                        record("other", f"2026-01-01T11:{n // 60:02}:{n % 60:02}Z")
                        for n in range(900)
                    ),
                    partition=partition,
                )

    _, found, problems = compare(engine, settings, delete)
    assert problems == []
    assert 100 <= found.verified < 200
    offsets = sum(p.books.next_offset - p.books.first_offset for p in found.partitions)
    assert found.verified + found.not_verifiable == offsets
