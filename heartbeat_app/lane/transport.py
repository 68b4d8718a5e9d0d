"""Faust's Kafka transport with the lane's consumer."""

from __future__ import annotations

from typing import Any, ClassVar

import aiokafka
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.transports import ConsumerT, ProducerT

from heartbeat_app.lane.consumer import LaneConsumer
from heartbeat_app.lane.outlast import outlast, outlast_start


class _Producer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # untyped
    """aiokafka's producer, which starts also while brokers are away."""

    async def start(self) -> None:
        await outlast_start("producer", self.client, super().start)


class LaneProducer(driver.Producer):
    """Faust's producer, which also knows the topics that are only read."""

    @property
    def _producer_type(self) -> type[aiokafka.AIOKafkaProducer]:
        return _Producer

    def _new_producer(
        self, transactional_id: str | None = None
    ) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        # Faust's limit, 20 minutes, stays that of a record. A broker that hangs is not
        # waited for as long: another leads its partitions by then.
        limit = self.app.conf.broker_request_timeout
        producer.client._request_timeout_ms = int(limit * 1000)
        return producer

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Make a topic, unless it is there; brokers that are away are waited out."""
        await outlast(
            f"make the topic {topic}",
            lambda: super(LaneProducer, self).create_topic(topic, *args, **kwargs),
        )

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Which partition a key belongs to, as `topic_route` asks.

        Faust asks the producer alone, which raises for a topic that it never sent to.
        """
        app: Any = self.app
        partition = app.consumer.key_partition(topic, key)
        if partition is None:
            return super().key_partition(topic, key)
        return TP(topic, partition)


class LaneTransport(driver.Transport):
    """Faust's transport over aiokafka; the consumer differs, and the producer a bit."""

    Consumer: ClassVar[type[ConsumerT]] = LaneConsumer
    Producer: ClassVar[type[ProducerT]] = LaneProducer
