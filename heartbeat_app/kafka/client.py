"""Kafka's own client: how to reach the brokers, and what a topic's log holds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec  # the public name: untyped

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import CommandError

log = logging.getLogger(__name__)

# A person who waits is to know within 10 s that nobody answers, the start of the
# command included; a broker that was just started needs some seconds.
REQUEST_TIMEOUT_SECONDS = 6.0

_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]

_URL_SAFE = str.maketrans("+/", "-_")

# What brokers that know no topic ids answer in their place.
_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"


@dataclass(frozen=True, slots=True)
class LogRange:
    """The offsets of a partition that a read_committed reader can ask for.

    `begin` is the first that the log still holds, `end` the one after the last.
    """

    begin: int
    end: int

    def unread(self, next_offset: int) -> int:
        """How many offsets whoever reads on there has still to read.

        Without what fell out of the log: it is booked with the first record behind it,
        which may be long in coming.
        """
        return max(0, self.end - max(self.begin, next_offset))


@dataclass(frozen=True, slots=True)
class TopicLog:
    """A topic as it is in Kafka now; made again under its name it has another id."""

    topic: str
    topic_id: str
    partitions: Mapping[int, LogRange]


def client_config(settings: Settings) -> dict[str, Any]:
    """How confluent-kafka's clients reach the brokers: addresses, login, TLS."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "security.protocol": settings.kafka_security_protocol,
        "client.id": "heartbeat_app",
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        config["sasl.mechanism"] = settings.kafka_sasl_mechanism
        config["sasl.username"] = settings.kafka_sasl_username
        config["sasl.password"] = settings.kafka_sasl_password
    if settings.kafka_security_protocol.endswith("SSL"):
        files = {
            "ssl.ca.location": settings.kafka_ssl_cafile,
            "ssl.certificate.location": settings.kafka_ssl_certfile,
            "ssl.key.location": settings.kafka_ssl_keyfile,
        }
        config.update({name: path for name, path in files.items() if path})
    return config


class Admin:
    """Questions to the brokers. Connects when first asked; safe in any thread.

    Raises confluent-kafka's `KafkaException` when nobody answers in time.
    """

    def __init__(self, settings: Settings) -> None:
        self._last_error: KafkaError | None = None
        self._without_ids: set[str] = set()
        self._config: dict[str, Any] = {
            **client_config(settings),
            "error_cb": self._on_error,
            # Errors are raised; its own lines on stderr would only repeat them.
            "log_level": 0,
        }
        self._client = AdminClient(self._config)

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The ids of those of the topics that exist."""
        return {topic: found.topic_id for topic, found in self._describe(topics)}

    def topic_logs(self, topics: Collection[str]) -> dict[str, TopicLog]:
        """What those of the topics that exist hold for a read_committed reader."""
        described = dict(self._describe(topics))
        wanted = [
            TopicPartition(topic, partition)
            for topic, found in described.items()
            for partition in found.partitions
        ]
        begins = self._offsets(wanted, _EARLIEST)
        ends = self._offsets(wanted, _LATEST)
        return {
            topic: TopicLog(
                topic,
                found.topic_id,
                {
                    partition: LogRange(
                        begins[topic, partition], ends[topic, partition]
                    )
                    for partition in found.partitions
                },
            )
            for topic, found in described.items()
        }

    def topic_config(self, topic: str) -> dict[str, str]:
        """The topic's configuration, with what it has from the broker."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        with self._asking() as client:
            future = client.describe_configs(
                [resource], request_timeout=REQUEST_TIMEOUT_SECONDS
            )[resource]
            return {name: entry.value for name, entry in future.result().items()}

    def has_deleted_since(self, topic: str, instant: datetime) -> bool:
        """Whether a partition has lost records that came after the instant (aware).

        As far as the rest tells: records went, and the oldest that is left is younger.
        """
        [log] = self.topic_logs([topic]).values() or [None]
        cut = [
            TopicPartition(topic, partition)
            for partition, held in (log.partitions if log else {}).items()
            if 0 < held.begin < held.end
        ]
        milliseconds = int(instant.timestamp() * 1000)
        spec: OffsetSpec = OffsetSpec.for_timestamp(milliseconds)
        return log is not None and any(
            0 <= offset <= log.partitions[partition].begin
            for (_, partition), offset in self._offsets(cut, spec).items()
        )

    def why(self) -> str:
        """The last thing that went wrong with a connection, after a time-out."""
        self._client.poll(0)  # serves _on_error
        return self._last_error.str() if self._last_error else ""

    @contextmanager
    def _asking(self) -> Iterator[AdminClient]:
        """The client to ask; another from the next question on where it timed out.

        One that was told of no broker, as by brokers that had been frozen, may not look
        for them again before its metadata are old, which takes minutes.
        """
        client = self._client
        try:
            yield client
        except KafkaException as error:
            if error.args[0].code() == KafkaError._TIMED_OUT:
                client.poll(0)  # serves _on_error
                self._client = AdminClient(self._config)
            raise

    def _on_error(self, error: KafkaError) -> None:
        # "All brokers are down" follows the error that says why, and hides it.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self._last_error is None:
            self._last_error = error

    def _describe(self, topics: Collection[str]) -> Iterator[tuple[str, _Described]]:
        if not topics:
            return
        described = {}
        with self._asking() as client:
            futures = client.describe_topics(
                TopicCollection(sorted(topics)), request_timeout=REQUEST_TIMEOUT_SECONDS
            )
            for topic, future in futures.items():
                try:
                    described[topic] = future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
        for topic, found in described.items():
            # Written as Kafka's own tools do: URL-safe.
            topic_id = str(found.topic_id).translate(_URL_SAFE)
            if topic_id == _NO_ID:
                topic_id = topic
                self._tell_once(topic)
            yield topic, _Described(topic_id, [p.id for p in found.partitions])

    def _tell_once(self, topic: str) -> None:
        if topic not in self._without_ids:
            self._without_ids.add(topic)
            log.warning(
                "The broker gives topics no ids: the name %s stands for the id. When "
                "it is deleted and made again, nobody can tell.",
                topic,
            )

    def _offsets(
        self, wanted: list[TopicPartition], which: OffsetSpec
    ) -> dict[tuple[str, int], int]:
        if not wanted:
            return {}
        with self._asking() as client:
            futures = client.list_offsets(
                dict.fromkeys(wanted, which),
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=REQUEST_TIMEOUT_SECONDS,
            )
            return {
                (tp.topic, tp.partition): future.result().offset
                for tp, future in futures.items()
            }


@dataclass(frozen=True, slots=True)
class _Described:
    topic_id: str
    partitions: list[int]


@contextmanager
def explained(settings: Settings, admin: Admin) -> Iterator[None]:
    """Turn a `KafkaException` into a `CommandError` with the address and a way on."""
    try:
        yield
    except KafkaException as error:
        why = admin.why() or error.args[0].str()
        raise CommandError(
            f"Kafka at {settings.kafka_bootstrap_servers} does not answer: {why}. "
            "Does it run, and is KAFKA_BOOTSTRAP_SERVERS right?"
        ) from error
