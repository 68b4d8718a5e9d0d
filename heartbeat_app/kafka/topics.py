"""Makes the topic where it does not exist yet, and watches its settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from mode import Service

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import ConfigurationError
from heartbeat_app.kafka import policy
from heartbeat_app.kafka.client import Admin, client_config
from heartbeat_app.kafka.policy import Fault

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
NOT_ALLOWED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
# What a broker's own defaults may have otherwise. No retention: how long to keep
# records is for the owner of the brokers to say, and too short a time is told.
CONFIG = {
    "cleanup.policy": policy.DELETE,
    "message.timestamp.type": policy.LOG_APPEND_TIME,
}
LOOK_SECONDS = 10.0


def ensure_topic(settings: Settings) -> None:
    """Make the topic with HEARTBEATS_PARTITIONS partitions, unless it is there.

    Raises:
        ConfigurationError: It is not there, and cannot be made; or the login or the
            certificate does not suit.
        KafkaException: Kafka does not answer; ask again.
    """
    name = settings.heartbeats_topic
    why: list[KafkaError] = []
    config = {**client_config(settings), "log_level": 0, "error_cb": why.append}
    admin = AdminClient(config)
    try:
        if name in admin.list_topics(timeout=5).topics:
            return
    except KafkaException:
        admin.poll(0)  # serves error_cb
        for each in why:
            if _is_refused(each):
                raise ConfigurationError(
                    f"Kafka at {settings.kafka_bootstrap_servers} and this worker do "
                    f"not agree: {each.str()}. Put KAFKA_SECURITY_PROTOCOL, "
                    "KAFKA_SASL_… or KAFKA_SSL_… right."
                ) from None
        raise
    topic = NewTopic(name, num_partitions=settings.heartbeats_partitions, config=CONFIG)
    try:
        admin.create_topics([topic], request_timeout=5)[name].result()
    except KafkaException as error:
        code = error.args[0].code()
        if code == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        if code in FINAL:
            raise ConfigurationError(
                f"The topic {name} (HEARTBEATS_TOPIC) does not exist and cannot be "
                f"made: {error.args[0].str().rstrip('.')}. Make it, allow it, or "
                "choose another name or number of partitions."
            ) from error
        raise
    log.info(
        "Made the topic %s with %d partitions", name, settings.heartbeats_partitions
    )


def _is_refused(error: KafkaError) -> bool:
    """Whether a password or a certificate is wrong: to ask again is in vain."""
    return error.code() == KafkaError._AUTHENTICATION or (
        error.code() == KafkaError._SSL and "certificate" in error.str()
    )


def find_faults(admin: Admin, topic: str) -> list[Fault] | None:
    """What of a topic's settings does not suit; None: Kafka does not let us read them.

    Raises KafkaException when Kafka does not answer, or has no such topic.
    """
    try:
        config = admin.topic_config(topic)
    except KafkaException as error:
        if error.args[0].code() in NOT_ALLOWED:
            return None
        raise
    cut = policy.limits_size(config) and admin.has_deleted_since(
        topic, datetime.now(UTC) - timedelta(milliseconds=policy.DAY_MS)
    )
    return policy.faults(topic, config, holds_less_than_a_day=cut)


class TopicPolicies(Service):
    """Asks Kafka for the topics' settings, now and then, and tells what does not suit.

    Attributes:
        faults: What was found last, by topic; none of a topic of which it is not known.
    """

    def __init__(self, app: Any, topics: Collection[str], **kwargs: Any) -> None:
        self.app = app
        self.topics = sorted(topics)
        self.faults: dict[str, tuple[Fault, ...]] = {}
        self._not_allowed: set[str] = set()
        super().__init__(**kwargs)

    @property
    def warnings(self) -> list[str]:
        """All of them in words."""
        return [str(fault) for found in self.faults.values() for fault in found]

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            for topic in self.topics:
                try:
                    await self.look(topic)
                except Exception as error:  # noqa: BLE001 (one that raises ends us)
                    if (
                        isinstance(error, KafkaException)
                        and error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART
                    ):
                        self.faults.pop(topic, None)
                    self.log.debug("Cannot look at topic %s: %r", topic, error)
            await self.sleep(LOOK_SECONDS)

    async def look(self, topic: str) -> None:
        """Look once; says what changed since the last time."""
        found = await asyncio.to_thread(find_faults, self.app.admin, topic)
        before = self.faults.get(topic, ())
        if found is None:
            self.faults.pop(topic, None)
            if topic not in self._not_allowed:
                self._not_allowed.add(topic)
                self.log.info(
                    "Topic %s: Kafka does not let this worker read its settings, so it "
                    "cannot tell whether they suit (ACL: DescribeConfigs).",
                    topic,
                )
            return
        self.faults[topic] = tuple(found)
        for fault in found:
            if fault not in before:
                self.log.warning("%s", fault)
        for what in {fault.what for fault in before} - {fault.what for fault in found}:
            self.log.info("Topic %s: its settings suit again (%s).", topic, what)
