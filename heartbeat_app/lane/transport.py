"""Faust's Kafka transport with the lane's consumer."""

from __future__ import annotations

from typing import ClassVar

from faust.transport.drivers import aiokafka as driver
from faust.types.transports import ConsumerT

from heartbeat_app.lane.consumer import LaneConsumer


class LaneTransport(driver.Transport):
    """Faust's transport over aiokafka; only the consumer differs."""

    Consumer: ClassVar[type[ConsumerT]] = LaneConsumer
