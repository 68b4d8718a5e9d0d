"""A cluster of three brokers of which one has just died."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heartbeat_app.embedded.kafka import KafkaServer
from testkit.cluster import View, make_brokers, node_of, servers_of
from testkit.servers import Servers, Topic, Worker

pytestmark = pytest.mark.integration

# Of this the order depends in which a client knows the brokers.
HASHES = {"PYTHONHASHSEED": "0"}
FIRST_ASKED = """
import asyncio, sys
from aiokafka.client import AIOKafkaClient

async def main():
    client = AIOKafkaClient(bootstrap_servers=sys.argv[1])
    await client.bootstrap()
    print([broker.nodeId for broker in client.cluster.brokers()][0])
    await client.close()

asyncio.run(main())
"""


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[KafkaServer]]:
    """All three, ready."""
    brokers = make_brokers(tmp_path)
    try:
        for broker in brokers:
            broker.launch()
        for broker in brokers:
            broker.wait_until_ready()
        View(brokers).wait_until_whole()
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()


def test_a_worker_starts_while_the_broker_that_it_asks_first_has_just_died(
    servers: Servers,
    brokers: list[KafkaServer],
    name: str,
    make_worker: Callable[..., Worker],
) -> None:
    bootstrap = servers_of(brokers)
    topic = Topic(Servers(servers.postgres, brokers[0], others=brokers[1:]), name)
    topic.make(3)
    asked = subprocess.run(
        [sys.executable, "-c", FIRST_ASKED, bootstrap],
        env=HASHES,
        capture_output=True,
        text=True,
        check=True,
    )
    [victim] = [each for each in brokers if node_of(each) == int(asked.stdout)]
    # The others name it for some seconds more.
    victim.kill()
    worker = make_worker(KAFKA_BOOTSTRAP_SERVERS=bootstrap, **HASHES).start()
    topic.produce(
        [b'{"customer_id": "a", "timestamp": "2026-01-01T00:00:00Z", "heart_rate": 70}']
    )
    worker.wait_for_log("Stored 1 heartbeat")
    assert "Traceback" not in worker.log()
