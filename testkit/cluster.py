"""A cluster of three Kafka brokers that keep every record twice at least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from heartbeat_app.embedded.kafka import KafkaServer, make_cluster_id
from testkit.servers import free_port, wait_until

BROKERS = 3
# What a cluster for production has: each record at three brokers, acknowledged by two.
_COPIES = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    # Kafka's own, which decide how long a partition is without a leader.
    "broker.session.timeout.ms": "9000",
    "broker.heartbeat.interval.ms": "2000",
}


def make_brokers(
    folder: Path, config: Mapping[str, str] | None = None
) -> list[KafkaServer]:
    """Three brokers, each a controller too; start all of them, one alone cannot begin.

    `config` are further lines of each server.properties.
    """
    controllers = [free_port() for _ in range(BROKERS)]
    voters = ",".join(
        f"{node}@127.0.0.1:{port}" for node, port in enumerate(controllers, start=1)
    )
    cluster_id = make_cluster_id()
    return [
        KafkaServer(
            folder / f"kafka-{node}",
            port=free_port(),
            controller_port=port,
            heap="256m",
            config={
                **_COPIES,
                "node.id": str(node),
                "controller.quorum.voters": voters,
                **(config or {}),
            },
            new_cluster_id=cluster_id,
        )
        for node, port in enumerate(controllers, start=1)
    ]


def servers_of(brokers: Iterable[KafkaServer]) -> str:
    """All of them as KAFKA_BOOTSTRAP_SERVERS names them."""
    return ",".join(broker.bootstrap_servers for broker in brokers)


def node_of(broker: KafkaServer) -> int:
    """The broker's id in the cluster."""
    return int(broker.config["node.id"])


class View:
    """What the brokers that live say of the cluster, asked of any of them."""

    def __init__(self, brokers: list[KafkaServer]) -> None:
        self.brokers = brokers
        self._config: dict[str, Any] = {
            "bootstrap.servers": servers_of(brokers),
            "log_level": 0,
        }

    def leaders(self, topic: str) -> dict[int, int]:
        """The node that leads each partition of a topic; -1: none."""
        found = AdminClient(self._config).list_topics(topic, timeout=10).topics[topic]
        return {number: each.leader for number, each in found.partitions.items()}

    def leader(self, topic: str, partition: int = 0) -> KafkaServer | None:
        """The broker that leads a partition; None while there is none."""
        return self._broker(self.leaders(topic).get(partition, -1))

    def coordinator(self, group: str) -> KafkaServer | None:
        """The broker that coordinates a group; None while there is none."""
        admin = AdminClient(self._config)
        found = admin.describe_consumer_groups([group], request_timeout=10)
        try:
            return self._broker(found[group].result().coordinator.id)
        except KafkaException:
            return None

    def _broker(self, node: int) -> KafkaServer | None:
        return next((each for each in self.brokers if node_of(each) == node), None)

    def is_whole(self) -> bool:
        """Whether every broker is in, and has all that it keeps copies of."""
        admin = AdminClient(self._config)
        try:
            found = admin.list_topics(timeout=10)
        except KafkaException:
            return False
        return len(found.brokers) == len(self.brokers) and all(
            len(partition.isrs) == len(partition.replicas) and partition.leader >= 0
            for topic in found.topics.values()
            for partition in topic.partitions.values()
        )

    def wait_until_whole(self, *, seconds: float = 60.0) -> None:
        """Wait for it."""
        wait_until(self.is_whole, "the cluster is whole", seconds=seconds, pause=0.2)
