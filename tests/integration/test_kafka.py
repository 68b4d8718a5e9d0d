"""What Kafka is asked: ids of topics, and what a read_committed reader can read."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition

from heartbeat_app.config import Settings, load_settings
from heartbeat_app.exceptions import CommandError, ConfigurationError
from heartbeat_app.kafka.client import Admin, LogRange, explained
from heartbeat_app.kafka.topics import ensure_topic
from testkit.servers import Topic, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def admin(settings: Settings) -> Admin:
    return Admin(settings)


def ready(topic: Topic) -> None:
    """Wait until all partitions of a new topic have leaders."""
    wait_until(lambda: topic.produce([b"x"]), "the topic takes records")


def test_a_topic_made_again_has_another_id(admin: Admin, topic: Topic) -> None:
    assert admin.topic_ids([topic.name]) == {}
    topic.make()
    first = admin.topic_ids([topic.name])[topic.name]
    assert admin.topic_ids([topic.name, "nowhere"]) == {topic.name: first}
    topic.delete()
    wait_until(lambda: not admin.topic_ids([topic.name]), "the topic is gone")
    topic.make()
    assert admin.topic_ids([topic.name])[topic.name] != first


def test_asking_makes_no_topic(admin: Admin, topic: Topic) -> None:
    assert admin.topic_logs([topic.name]) == {}
    assert admin.topic_logs([]) == {}
    assert topic.name not in topic.admin.list_topics(timeout=10).topics


def test_a_topic_that_can_never_be_made_is_not_waited_for(
    environ: dict[str, str], topic: Topic
) -> None:
    """To Kafka `_` and `.` are the same where two names differ in nothing else."""
    topic.make()
    other = {**environ, "HEARTBEATS_TOPIC": topic.name.replace("_", ".", 1)}
    with pytest.raises(ConfigurationError, match=r"cannot be made: .* collides"):
        ensure_topic(load_settings(other, Path("/nonexistent")))


def test_the_log_ends_where_an_open_transaction_begins(
    admin: Admin, topic: Topic
) -> None:
    topic.make(partitions=2)
    ready(topic)
    before = admin.topic_logs([topic.name])[topic.name].partitions
    topic.produce([b"x"] * 5, partition=1)
    producer = Producer({**topic.config, "transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, b"open", partition=1)
    assert producer.flush(30) == 0

    held = admin.topic_logs([topic.name])[topic.name].partitions
    assert held[0] == before[0]
    assert held[1] == LogRange(0, before[1].end + 5)
    producer.commit_transaction(30)
    # The record and the marker.
    wait_until(
        lambda: (
            admin.topic_logs([topic.name])[topic.name].partitions[1].end
            == before[1].end + 7
        ),
        "the transaction is over",
    )


def test_the_log_begins_after_what_was_deleted(admin: Admin, topic: Topic) -> None:
    topic.make(partitions=1)
    ready(topic)
    topic.produce([b"x"] * 9)
    deleted = topic.admin.delete_records([TopicPartition(topic.name, 0, 4)])
    for future in deleted.values():
        future.result()
    assert admin.topic_logs([topic.name])[topic.name].partitions == {0: LogRange(4, 10)}


def test_says_why_a_broker_does_not_let_us_in(environ: dict[str, str]) -> None:
    """The broker speaks no TLS: that is told, and not only that time ran out."""
    environ = {**environ, "KAFKA_SECURITY_PROTOCOL": "SSL"}
    settings = load_settings(environ, Path("/nonexistent"))
    admin = Admin(settings)
    with (
        pytest.raises(CommandError, match=r"(?i)does not answer: .*ssl"),
        explained(settings, admin),
    ):
        admin.topic_ids(["beats"])
