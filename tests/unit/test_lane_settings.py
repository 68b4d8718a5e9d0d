"""What the lane's app is told counts, whatever variables the machine has."""

from __future__ import annotations

from typing import Any

import pytest

from heartbeat_app.lane.app import LANE_SETTINGS, LaneApp
from heartbeat_app.lane.lane import Lane


def make() -> Any:
    lane = Lane({"beats"}, ledger=None, topic_ids=lambda topics: {})  # type: ignore[arg-type]
    return LaneApp("settings", lane=lane, broker="kafka://127.0.0.1:1")


NAMES = sorted(
    {
        each.env_name
        for each in make().conf.SETTINGS.values()
        if each.env_name and not each.deprecated
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_no_variable_of_faust_s_changes_a_setting(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """BROKER_URL would read another cluster, APP_VERSION ended every command."""
    monkeypatch.setenv(name, "1")
    conf, usual = make().conf, make().conf
    for setting in (*LANE_SETTINGS, "version", "broker", "processing_guarantee"):
        assert getattr(conf, setting) == getattr(usual, setting)
    monkeypatch.delenv(name)
    unset = make().conf
    changed = [
        setting
        for setting, param in conf.SETTINGS.items()
        if param.env_name == name and getattr(conf, setting) != getattr(unset, setting)
    ]
    assert not changed
