"""Makes the topic, where it does not exist yet."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import ConfigurationError
from heartbeat_app.kafka import client_config

log = logging.getLogger(__name__)

# Refused by the broker, now and whenever it is asked again.
FINAL = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    # The name, which is another topic's to Kafka: it takes `.` for `_`.
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_PARTITIONS,
}


def ensure_topic(settings: Settings) -> None:
    """Make the topic with HEARTBEATS_PARTITIONS partitions, unless it is there.

    Raises:
        ConfigurationError: It is not there, and cannot be made.
        KafkaException: Kafka does not answer; ask again.
    """
    name = settings.heartbeats_topic
    admin = AdminClient({**client_config(settings), "log_level": 0})
    if name in admin.list_topics(timeout=5).topics:
        return
    topic = NewTopic(name, num_partitions=settings.heartbeats_partitions)
    try:
        admin.create_topics([topic], request_timeout=5)[name].result()
    except KafkaException as error:
        code = error.args[0].code()
        if code == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        if code in FINAL:
            raise ConfigurationError(
                f"The topic {name} (HEARTBEATS_TOPIC) does not exist and cannot be "
                f"made: {error.args[0].str()}. Make it, allow it, or choose another "
                "name or number of partitions."
            ) from error
        raise
    log.info(
        "Made the topic %s with %d partitions", name, settings.heartbeats_partitions
    )
