"""Which settings of a topic suit, and what is said of those that do not."""

from __future__ import annotations

import pytest

from heartbeat_app.kafka.policy import DAY_MS, What, faults, limits_size
from heartbeat_app.kafka.topics import CONFIG

SOUND = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * DAY_MS),
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "LogAppendTime",
    "unclean.leader.election.enable": "false",
}


def test_settings_that_suit_are_not_told() -> None:
    assert faults("beats", SOUND) == []
    assert faults("beats", {**SOUND, "retention.ms": str(DAY_MS)}) == []
    assert faults("beats", {**SOUND, "max.message.bytes": "16777216"}) == []
    assert faults("beats", {**SOUND, "retention.ms": "-1"}) == []
    assert faults("beats", {**SOUND, "retention.bytes": str(10**12)}) == []
    assert faults("beats", {}) == []  # nothing is known


def test_a_topic_that_is_made_gets_settings_that_suit() -> None:
    assert faults("beats", {**SOUND, **CONFIG}) == []


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("cleanup.policy", "compact", What.COMPACTED),
        ("cleanup.policy", "compact,delete", What.COMPACTED),
        ("retention.ms", str(DAY_MS - 1), What.RETENTION),
        ("retention.ms", "0", What.RETENTION),
        ("retention.bytes", "1000000", What.RETENTION),
        ("max.message.bytes", "16777217", What.MESSAGE_SIZE),
        ("message.timestamp.type", "CreateTime", What.TIMESTAMP_TYPE),
        ("unclean.leader.election.enable", "true", What.UNCLEAN_ELECTION),
    ],
)
def test_a_setting_that_does_not_suit_is_named_with_what_to_do(
    name: str, value: str, what: What
) -> None:
    (fault,) = faults("beats", {**SOUND, name: value})
    assert fault.what is what
    assert str(fault).startswith(f"Topic beats: {name} is ")
    assert "Set it to " in fault.words


def test_a_size_that_less_than_a_day_fits_into_is_told() -> None:
    config = {**SOUND, "retention.bytes": str(10**9)}
    assert limits_size(config)
    (fault,) = faults("beats", config, holds_less_than_a_day=True)
    assert fault.what is What.RETENTION
    assert not limits_size(SOUND)
    assert not limits_size({**config, "cleanup.policy": "compact"})


def test_what_only_compacts_deletes_nothing_by_age() -> None:
    config = {**SOUND, "cleanup.policy": "compact", "retention.ms": "1000"}
    assert [each.what for each in faults("beats", config)] == [What.COMPACTED]
