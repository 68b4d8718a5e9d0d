"""Faust's Kafka transport with the lane's consumer."""

from __future__ import annotations

from typing import Any, ClassVar

from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.transports import ConsumerT, ProducerT

from heartbeat_app.lane.consumer import LaneConsumer


class LaneProducer(driver.Producer):
    """Faust's producer, which also knows the topics that are only read."""

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
