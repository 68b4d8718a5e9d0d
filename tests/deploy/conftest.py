"""PostgreSQL and Kafka as docker-compose.yml configures them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.containers import ComposeKafka, ComposePostgresql


@pytest.fixture(scope="module")
def compose_postgresql(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComposePostgresql]:
    with ComposePostgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(scope="package")
def compose_kafka(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComposeKafka]:
    with ComposeKafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server
