"""Kafka Connect with Debezium's JDBC sink: idempotent upserts, by its documentation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.connect.jars import ensure_jars
from bench.contender import Started, Task
from bench.environments import FOLDER
from bench.formats import Format
from bench.process import Program
from bench.progress import Progress
from heartbeat_app.embedded.kafka_jars import java_program
from testkit.servers import free_port

# Those of Kafka's own connect-standalone.sh and kafka-run-class.sh.
JAVA_OPTIONS = (
    "-Xms256M",
    "-Xmx2G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
)

LOG4J = """\
status = error
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.stdout.ref = STDOUT
"""

SINK: Mapping[str, str] = {
    "name": "heartbeats",
    "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
    "insert.mode": "upsert",
    "primary.key.mode": "record_value",
    "primary.key.fields": "customer_id,timestamp",
    "collection.name.format": "heartbeats",
    # The table is there.
    "schema.evolution": "none",
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter.schemas.enable": "true",
    "consumer.override.auto.offset.reset": "earliest",
}
BEST: Mapping[str, str] = {
    "tasks.max": "4",
    "batch.size": "3000",
    "consumer.override.max.poll.records": "3000",
    "dialect.postgres.unnest.insert.enabled": "true",
}


class Debezium(Started):
    """Kafka Connect, standalone, with one connector."""

    format = Format.JSON_WITH_SCHEMA
    is_limit = False
    is_consumer = True
    can_stream = True
    table_sql: str | None = None

    def __init__(
        self,
        name: str,
        title: str,
        settings: str,
        config: Mapping[str, str],
        *,
        most_records: int | None,
    ) -> None:
        self.name = name
        self.title = title
        self.settings = settings
        self.most_records = most_records
        self._config = config
        self._class_path = ""

    def prepare(self, progress: Progress) -> None:
        jars = ensure_jars("runtime", progress)
        self._class_path = os.pathsep.join(map(str, jars))
        # Connect loads a plugin from a folder of its own.
        plugin = plugins() / "debezium"
        plugin.mkdir(parents=True, exist_ok=True)
        for link in plugin.iterdir():
            link.unlink()
        for jar in ensure_jars("sink", progress):
            (plugin / jar.name).symlink_to(jar)

    def start(self, task: Task) -> None:
        home = task.stage.folder / task.group
        home.mkdir(mode=0o700)
        (home / "log4j2.properties").write_text(LOG4J)
        write_properties(
            home / "worker.properties",
            {
                "bootstrap.servers": task.stage.bootstrap_servers,
                "plugin.path": str(plugins()),
                "plugin.discovery": "service_load",
                "listeners": f"http://127.0.0.1:{free_port()}",
                "offset.storage.file.filename": str(home / "offsets"),
                "key.converter": SINK["key.converter"],
                "value.converter": SINK["value.converter"],
            },
        )
        postgres = task.stage.servers.postgres
        write_properties(
            home / "sink.properties",
            {
                **SINK,
                **self._config,
                "topics": task.topic,
                "consumer.override.group.id": task.group,
                "connection.url": f"jdbc:postgresql://127.0.0.1:{postgres.port}/"
                f"{task.database}",
                "connection.username": postgres.username,
                "connection.password": postgres.password,
            },
        )
        self._running = Program(
            [
                str(java_program()),
                *JAVA_OPTIONS,
                f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}",
                "org.apache.kafka.connect.cli.ConnectStandalone",
                str(home / "worker.properties"),
                str(home / "sink.properties"),
            ],
            {"CLASSPATH": self._class_path},
            task.log(),
        )


def debezium_default() -> Debezium:
    """With the settings that it comes with."""
    return Debezium(
        "debezium-default",
        "Debezium JDBC sink, default",
        "Kafka Connect standalone, `insert.mode` upsert on the natural key, all else "
        "as it comes.",
        {},
        most_records=300_000,
    )


def debezium_best() -> Debezium:
    """With the settings that made it fastest when they were tried."""
    return Debezium(
        "debezium",
        "Debezium JDBC sink, best",
        "the same with "
        + ", ".join(f"`{name}` {value}" for name, value in BEST.items())
        + ".",
        BEST,
        most_records=None,
    )


def plugins() -> Path:
    """The folder of Connect's plugins."""
    return FOLDER / "connect-plugins"


def write_properties(path: Path, values: Mapping[str, str]) -> None:
    """Write a file that its owner alone may read: a password is in one of them."""
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
