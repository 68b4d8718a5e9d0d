"""How confluent-kafka's clients are told to reach the brokers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, Uuid

from heartbeat_app.cli.sending import PRODUCER_CONFIG
from heartbeat_app.config import load_settings
from heartbeat_app.exceptions import CommandError
from heartbeat_app.kafka import client as kafka
from heartbeat_app.kafka.client import Admin, client_config, explained

REQUIRED = {
    "POSTGRESQL_USERNAME": "admin",
    "POSTGRESQL_PASSWORD": "secret",
    "POSTGRESQL_DATABASE": "db",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
}
LOGIN = {"KAFKA_SASL_USERNAME": "anna", "KAFKA_SASL_PASSWORD": "secret"}


def config(environ: Mapping[str, str]) -> dict[str, Any]:
    return client_config(load_settings({**REQUIRED, **environ}, Path("/nonexistent")))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The settings of three files that are there."""
    found = {}
    for name in ("cafile", "certfile", "keyfile"):
        path = tmp_path / name
        path.touch()
        found[f"KAFKA_SSL_{name.upper()}"] = str(path)
    return found


def test_without_protection_neither_login_nor_files_are_given(
    files: dict[str, str],
) -> None:
    assert config({**LOGIN, **files}) == {
        "bootstrap.servers": "127.0.0.1:1",
        "security.protocol": "PLAINTEXT",
        "client.id": "heartbeat_app",
    }


def test_tls_takes_the_files(files: dict[str, str]) -> None:
    found = config({"KAFKA_SECURITY_PROTOCOL": "SSL", **files, **LOGIN})
    assert found["ssl.ca.location"] == files["KAFKA_SSL_CAFILE"]
    assert found["ssl.certificate.location"] == files["KAFKA_SSL_CERTFILE"]
    assert found["ssl.key.location"] == files["KAFKA_SSL_KEYFILE"]
    assert "sasl.username" not in found
    # Unset: the library looks for the system's own.
    assert "ssl.ca.location" not in config({"KAFKA_SECURITY_PROTOCOL": "SSL"})


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_login_is_known_to_the_library(protocol: str, mechanism: str) -> None:
    found = config(
        {
            "KAFKA_SECURITY_PROTOCOL": protocol,
            "KAFKA_SASL_MECHANISM": mechanism,
            **LOGIN,
        }
    )
    assert found["sasl.mechanism"] == mechanism
    assert (found["sasl.username"], found["sasl.password"]) == ("anna", "secret")
    Producer({**found, **PRODUCER_CONFIG, "log_level": 0})  # refuses what it knows not


def make_admin(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Admin:
    """An admin whose broker describes each topic so."""
    admin = Admin(load_settings(REQUIRED, Path("/nonexistent")))

    def describe(topics: Any, **options: Any) -> dict[str, Any]:
        def result() -> Any:
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(topic_id=answer, partitions=[])

        return {"beats": SimpleNamespace(result=result)}

    monkeypatch.setattr(
        admin, "_client", SimpleNamespace(describe_topics=describe, poll=lambda s: 0)
    )
    return admin


def test_ids_are_written_as_kafkas_own_tools_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = make_admin(monkeypatch, Uuid(-1, -4))
    assert admin.topic_ids(["beats"]) == {"beats": "_" * 21 + "A"}


def test_who_found_nobody_asks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lost sight of all brokers may be blind for minutes."""
    monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_SECONDS", 0.2)
    admin = Admin(load_settings(REQUIRED, Path("/nonexistent")))
    before = admin._client
    with pytest.raises(KafkaException, match="_TIMED_OUT"):
        admin.topic_ids(["beats"])
    assert admin._client is not before
    assert "127.0.0.1:1" in admin.why()


def test_where_there_are_no_ids_the_name_stands_for_it_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    admin = make_admin(monkeypatch, Uuid(0, 0))
    for _ in range(3):
        assert admin.topic_ids(["beats"]) == {"beats": "beats"}
    assert len(caplog.records) == 1
    assert "no ids" in caplog.text


def test_a_topic_that_is_not_there_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    assert make_admin(monkeypatch, unknown).topic_ids(["beats"]) == {}


def test_other_errors_are_raised_and_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    admin = make_admin(monkeypatch, refused)
    with pytest.raises(KafkaException):
        admin.topic_ids(["beats"])
    settings = load_settings(REQUIRED, Path("/nonexistent"))
    with (
        pytest.raises(CommandError, match=r"Kafka at 127\.0\.0\.1:1 .*authorization"),
        explained(settings, admin),
    ):
        admin.topic_ids(["beats"])
