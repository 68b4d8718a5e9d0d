"""The Faust app with a lane."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import faust
from faust import streams
from faust.transport import conductor
from faust.types import TransportT
from mode import ServiceT

from heartbeat_app.exceptions import LaneError
from heartbeat_app.lane.lane import Lane
from heartbeat_app.lane.monitor import LaneMonitor
from heartbeat_app.lane.recovery import LaneTableManager
from heartbeat_app.lane.transport import LaneTransport
from heartbeat_app.lane.watch import TopicWatch

# What the lane's promises rest on; each is the guard against a trap of Faust.
LANE_SETTINGS: dict[str, Any] = {
    # Waiting for the stream to be empty hangs stop and rebalance for as long as the
    # agent retries; the lane needs no such wait.
    "stream_wait_empty": False,
    # Two fast paths of Faust are off without it.
    "cython_optimizations": True,
    # A worker that waits for the database fetches nothing; aiokafka would leave the
    # group after this time and not join again while nothing is fetched.
    "broker_max_poll_interval": 7 * 86_400.0,
    # So long is a killed worker's partition without a reader (60 s by default).
    "broker_session_timeout": 12.0,
    "broker_heartbeat_interval": 3.0,
    # So long an answer of a broker is waited for that holds its connections open and
    # says nothing. Within the time after which the watchdog ends the worker, several
    # have to fit: for metadata, for a fetch, for the coordinator (90 s by default).
    "broker_request_timeout": 15.0,
    # So long a rebalance waits for a member that lives but does not join (60 s).
    "broker_rebalance_timeout": 30.0,
    # A hint only: what was not committed is skipped by the ledger.
    "broker_commit_interval": 1.0,
    # A deleted and remade topic, or a new partition, is seen within so many ms.
    "consumer_metadata_max_age_ms": 5_000,
    # Of a partition, in an answer of Kafka's: as quick as 4 MiB, with less memory.
    "consumer_max_fetch_size": 2 * 1024 * 1024,
    "consumer_auto_offset_reset": "earliest",
}


class LaneApp(faust.App):
    """A Faust app in which the topics of `lane` are read in chunks.

    Raises:
        LaneError: Faust's compiled modules are not in use. The pure Python twin
            acknowledges messages of an older generation, and is much slower.
    """

    def __init__(self, id: str, *, lane: Lane, **options: Any) -> None:
        compiled: list[Any] = [
            vars(streams)["_CStreamIterator"],
            vars(conductor)["ConductorHandler"],
        ]
        if None in compiled:
            raise LaneError(
                "Faust runs without its compiled modules (NO_CYTHON is set, or its "
                "wheel was built without them). Unset NO_CYTHON or install the wheel."
            )
        self.lane = lane
        options.setdefault("Monitor", LaneMonitor)
        # Faust reads some 80 variables, such as BROKER_URL and APP_VERSION, which would
        # win over what is said here. Others of the machine have variables so named.
        own = {"TableManager": LaneTableManager, "env": {}}
        super().__init__(id, **{**own, **LANE_SETTINGS, **options})

    def on_init_dependencies(self) -> Iterable[ServiceT]:
        """Faust's own services, and the watch over the topics' ids."""
        watch = TopicWatch(self, self.lane, loop=self.loop, beacon=self.beacon)
        return [*super().on_init_dependencies(), watch]

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:
        await super()._consumer_wait_empty(consumer, logger)
        if self.should_stop:
            await consumer.finish_others()
            consumer.end_others()

    def _create_directories(self) -> None:
        # They hold the files of tables; without tables they are litter, and a
        # read-only file system is in order.
        if self.tables.data:
            super()._create_directories()

    def _new_transport(self) -> TransportT:
        return LaneTransport(self.conf.broker_consumer, self)
