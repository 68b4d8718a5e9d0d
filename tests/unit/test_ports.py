"""A port that cannot be had: what is said of it."""

from __future__ import annotations

import socket

import pytest

from heartbeat_app.embedded.ports import require_free_port
from heartbeat_app.exceptions import EmbeddedServerError


def why_not(host: str, port: int) -> str:
    with pytest.raises(EmbeddedServerError) as caught:
        require_free_port(host, port, server="Kafka", setting="SOME_PORT")
    return str(caught.value)


def test_a_port_that_somebody_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = why_not("127.0.0.1", port)
    assert f"Port {port} on 127.0.0.1, which Kafka needs, is taken by" in words
    assert "choose another port with SOME_PORT" in words
    require_free_port("127.0.0.1", port, server="Kafka", setting="SOME_PORT")


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_this_machines_is_not_called_taken(host: str) -> None:
    words = why_not(host, 9092)
    assert f"Kafka cannot listen on port 9092 of {host}: " in words
    assert "taken" not in words
