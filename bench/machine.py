"""What it was measured on: the machine and the versions."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from sqlalchemy import text

from bench.connect.lock import DEBEZIUM_VERSION
from bench.environments import REQUIREMENTS
from bench.stage import Stage
from heartbeat_app.embedded.kafka_jars import KAFKA_VERSION
from testkit.commit import commit

# The packages that a contender's speed hangs on.
OWN = ("faust-streaming", "aiokafka", "confluent-kafka", "msgspec", "psycopg2-binary")
PEERS = {
    "quixstreams": "quix",
    "bytewax": "bytewax",
    "pathway": "pathway",
    "asyncpg": "faust",
    "kafka-python": "kafka-python",
}


def describe(stage: Stage) -> dict[str, object]:
    """Machine, versions, commit and time."""
    with stage.admin() as connection:
        postgres = connection.scalar(text("SHOW server_version"))
    return {
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9),
            "system": platform.platform(),
        },
        "versions": {
            "Python": platform.python_version(),
            "PostgreSQL": str(postgres).split()[0],
            "Kafka and Kafka Connect": KAFKA_VERSION,
            "Debezium": DEBEZIUM_VERSION,
            **{name: version(name) for name in OWN},
            **{name: pinned(name, peer) for name, peer in PEERS.items()},
        },
    }


def processor() -> str:
    """Its name, as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def pinned(name: str, peer: str) -> str:
    """The version of a package in a peer's requirements."""
    for line in (REQUIREMENTS / f"{peer}.txt").read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.partition("==")[2]
    raise LookupError(f"bench/requirements/{peer}.txt does not pin {name}")
