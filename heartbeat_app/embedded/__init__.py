"""Real Kafka and PostgreSQL from packages, on one machine without Docker.

The demo, the tests and the benchmarks start their servers here. Everything that
comes with the `embedded` extra is imported inside the functions that need it:
Faust imports every module of the application, also where the extra is missing.
"""

from heartbeat_app.embedded.kafka import KafkaServer
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.embedded.processes import Progress
from heartbeat_app.embedded.server import EmbeddedServer

__all__ = ["EmbeddedServer", "KafkaServer", "PostgresServer", "Progress"]
