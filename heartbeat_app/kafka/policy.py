"""What a topic's settings must be so that every record is kept exactly once. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

DAY_MS = 86_400_000
# What one customer's beats of a day take, one a second, each in a batch of its own.
LEAST_RETENTION_BYTES = 16 * 1024 * 1024
# What a worker fetches at once counts before its own bounds on memory do.
MOST_MESSAGE_BYTES = 16 * 1024 * 1024
DELETE = "delete"
LOG_APPEND_TIME = "LogAppendTime"


class What(enum.StrEnum):
    """Stable codes of what may be wrong; labels of a metric."""

    COMPACTED = "compacted"
    RETENTION = "retention"
    MESSAGE_SIZE = "message_size"
    TIMESTAMP_TYPE = "timestamp_type"
    UNCLEAN_ELECTION = "unclean_election"


@dataclass(frozen=True, slots=True)
class Fault:
    """A setting of a topic that does not suit, and what to set it to."""

    topic: str
    what: What
    words: str

    def __str__(self) -> str:
        return f"Topic {self.topic}: {self.words}"


def limits_size(config: Mapping[str, str | None]) -> bool:
    """Whether the topic's log is cut where it grows beyond some size."""
    return _deletes(config) and _number(config, "retention.bytes") >= 0


def faults(
    topic: str, config: Mapping[str, str | None], *, holds_less_than_a_day: bool = False
) -> list[Fault]:
    """What of a topic's settings does not suit.

    Arguments:
        config: By name, as Kafka describes it; what a broker does not know is left out.
        holds_less_than_a_day: Whether Kafka has deleted records of the last day.
    """
    return [
        Fault(topic, what, words)
        for what, words in _wrong(config, holds_less_than_a_day)
    ]


def _wrong(
    config: Mapping[str, str | None], holds_less_than_a_day: bool
) -> Iterator[tuple[What, str]]:
    cleanup = config.get("cleanup.policy") or DELETE
    if "compact" in cleanup:
        yield (
            What.COMPACTED,
            f"cleanup.policy is {cleanup}, so Kafka deletes records that no worker has "
            "read yet. Set it to delete.",
        )
    if retention := _short_retention(config, holds_less_than_a_day):
        yield What.RETENTION, retention
    size = _number(config, "max.message.bytes")
    if size > MOST_MESSAGE_BYTES:
        yield (
            What.MESSAGE_SIZE,
            f"max.message.bytes is {size:,}, so one message may cost a worker more "
            f"memory than its bounds allow. Set it to {MOST_MESSAGE_BYTES} or less.",
        )
    times = config.get("message.timestamp.type")
    if times is not None and times != LOG_APPEND_TIME:
        yield (
            What.TIMESTAMP_TYPE,
            f"message.timestamp.type is {times}, so Kafka deletes by the clocks of "
            "those who send, and a record with an old timestamp goes before it is "
            f"read. Set it to {LOG_APPEND_TIME}.",
        )
    if config.get("unclean.leader.election.enable") == "true":
        yield (
            What.UNCLEAN_ELECTION,
            "unclean.leader.election.enable is true, so Kafka may drop records that "
            "it has acknowledged. Set it to false.",
        )


def _short_retention(
    config: Mapping[str, str | None], holds_less_than_a_day: bool
) -> str | None:
    if not _deletes(config):
        return None
    age = _number(config, "retention.ms")
    if 0 <= age < DAY_MS:
        return (
            f"retention.ms is {age:,}, less than a day, so records are lost when "
            f"workers are away for longer. Set it to {DAY_MS} or more."
        )
    size = _number(config, "retention.bytes")
    if 0 <= size < LEAST_RETENTION_BYTES or (size >= 0 and holds_less_than_a_day):
        return (
            f"retention.bytes is {size:,}, which is less than comes in a day, so "
            "records are lost when workers are away for longer. Set it to more, or to "
            "-1."
        )
    return None


def _deletes(config: Mapping[str, str | None]) -> bool:
    return DELETE in (config.get("cleanup.policy") or DELETE)


def _number(config: Mapping[str, str | None], name: str) -> int:
    """Kafka's number; -1, no limit, where it does not tell."""
    value = config.get(name)
    return -1 if value is None else int(value)
