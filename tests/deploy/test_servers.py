"""PostgreSQL and Kafka work with what docker-compose.yml gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic

from tests.deploy.containers import HERE, ComposeKafka, ComposePostgresql

pytestmark = pytest.mark.integration


def test_postgresql_is_healthy_once_it_takes_connections(
    compose_postgresql: ComposePostgresql,
) -> None:
    assert compose_postgresql.is_healthy()


def test_postgresql_is_not_healthy_before_it_starts(tmp_path: Path) -> None:
    assert not ComposePostgresql(tmp_path).is_healthy()


def test_kafka_is_not_healthy_before_it_starts(tmp_path: Path) -> None:
    assert not ComposeKafka(tmp_path).is_healthy()


def test_kafka_works_as_soon_as_it_is_healthy_and_keeps_its_data(
    tmp_path: Path,
) -> None:
    """`start` waits for the health check alone, so the first call must do."""
    kafka = ComposeKafka(tmp_path)

    def make_topic() -> None:
        admin = AdminClient({"bootstrap.servers": f"{HERE}:{kafka.inner_port}"})
        (made,) = admin.create_topics([NewTopic("heartbeats", 4, 1)]).values()
        made.result(timeout=10)

    with kafka:
        make_topic()
    with kafka, pytest.raises(KafkaException, match="already exists"):
        make_topic()


@pytest.mark.parametrize("listener", ["port", "inner_port"])
def test_kafka_sends_a_client_back_to_the_listener_it_came_by(
    compose_kafka: ComposeKafka, listener: str
) -> None:
    port = getattr(compose_kafka, listener)
    metadata = AdminClient({"bootstrap.servers": f"{HERE}:{port}"}).list_topics(
        timeout=10
    )
    (broker,) = metadata.brokers.values()
    assert f"{broker.host}:{broker.port}" == f"{HERE}:{port}"


def test_kafka_has_the_settings_of_the_compose_file(
    compose_kafka: ComposeKafka,
) -> None:
    admin = AdminClient({"bootstrap.servers": f"{HERE}:{compose_kafka.port}"})
    resource = ConfigResource(ConfigResource.Type.BROKER, "1")
    (answer,) = admin.describe_configs([resource]).values()
    found = {name: entry.value for name, entry in answer.result(timeout=10).items()}
    assert found["auto.create.topics.enable"] == "false"
    assert found["offsets.topic.replication.factor"] == "1"
    assert found["log.retention.hours"] == "168"
    assert found["log.dirs"] == str(compose_kafka.data_dir / "data")
