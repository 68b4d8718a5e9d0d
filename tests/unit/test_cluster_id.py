"""The id that a new Kafka gets."""

from __future__ import annotations

import uuid

import pytest

from heartbeat_app.embedded import kafka


def test_it_is_no_option_of_the_tool_that_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One id in 64 would begin with a dash."""
    ids = iter([uuid.UUID(int=0xFB << 120), uuid.UUID(int=1)])
    monkeypatch.setattr("uuid.uuid4", lambda: next(ids))
    assert kafka.make_cluster_id() == "AAAAAAAAAAAAAAAAAAAAAQ"
