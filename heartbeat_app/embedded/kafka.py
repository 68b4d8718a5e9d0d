"""Apache Kafka 4 on one machine: one KRaft node, its data kept on disk."""

import os
import signal
import socket
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from heartbeat_app.embedded.kafka_jars import java_program, kafka_jars
from heartbeat_app.embedded.ports import pick_port
from heartbeat_app.embedded.processes import Progress, run_to_end
from heartbeat_app.embedded.server import EmbeddedServer

_CONFIG: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    # A misspelt topic is an error, not a new topic.
    "auto.create.topics.enable": "false",
    # One node can hold one copy.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # After a kill -9 the controller lets the broker in again only when the session
    # of the killed one has run out: 12 s with the default of 9 s.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Nobody else is about to join: the first worker starts at once.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "6000",
}

_JAVA_OPTIONS = (
    # Ready in half the time, with half the memory: no second collector threads and
    # no second compiler, which pay off on a server that runs for days.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
    # Compression libraries are native; Java 25 would warn about each.
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.configurationFile=log4j2.properties",
)

# Without a hook of its own the log goes on until Kafka's own stop is complete.
_LOG4J = """\
status = error
shutdownHook = disable
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.stdout.ref = STDOUT
"""


class KafkaServer(EmbeddedServer):
    """One Kafka node, broker and controller at once, reachable on `host` only.

    `config` are further lines of server.properties, `heap` is Java's -Xmx. The
    controller's port is nobody's business but its own: None takes a free one. New data
    get the id `new_cluster_id`, which the nodes of a cluster share: None takes a
    random one.
    """

    name: ClassVar[str] = "Kafka"
    port_setting: ClassVar[str] = "KAFKA_BOOTSTRAP_SERVERS"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        controller_port: int | None = None,
        host: str = "127.0.0.1",
        heap: str = "512m",
        config: Mapping[str, str] | None = None,
        new_cluster_id: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(data_dir, host=host, port=port, progress=progress)
        self.controller_port = controller_port
        self.new_cluster_id = new_cluster_id
        self.heap = heap
        self.config = dict(config or {})
        self._java = Path()
        self._class_path = ""

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def cluster_id(self) -> str | None:
        """The id that `format` gave the data; None before the first start."""
        try:
            lines = (self.home / "data" / "meta.properties").read_text().splitlines()
        except FileNotFoundError:
            return None
        return next(
            (line[11:] for line in lines if line.startswith("cluster.id=")), None
        )

    def _prepare(self) -> None:
        self._java = java_program()
        jars = kafka_jars(self._progress)
        self._class_path = os.pathsep.join(str(jar) for jar in jars)
        (self.home / "log4j2.properties").write_text(_LOG4J)
        if self.cluster_id is None:
            self._format()
        self._write_config("server.properties", log_dir="data")

    def _format(self) -> None:
        """Format a folder beside, so that an interrupted one leaves nothing."""
        self._write_config("format.properties", log_dir="data.new")
        run_to_end(
            [
                *self._java_command("kafka.tools.StorageTool"),
                "format",
                "--ignore-formatted",
                "--cluster-id",
                self.new_cluster_id or make_cluster_id(),
                "--config",
                "format.properties",
            ],
            cwd=self.home,
            environment=self._environment(),
            what=f"Making the data files of {self.name}",
            progress=self._progress,
        )
        (self.home / "format.properties").unlink()
        (self.home / "data.new").rename(self.home / "data")

    def _write_config(self, name: str, *, log_dir: str) -> None:
        controller = f"{self.host}:{self.controller_port or pick_port(self.host)}"
        settings = {
            **_CONFIG,
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},"
            f"CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.quorum.voters": f"1@{controller}",
            # Relative to the working folder: Kafka would split a path at a comma.
            "log.dirs": log_dir,
            **self.config,
        }
        (self.home / name).write_text(
            "".join(f"{key}={value}\n" for key, value in settings.items())
        )

    def _java_command(self, main_class: str) -> list[str]:
        return [str(self._java), f"-Xmx{self.heap}", *_JAVA_OPTIONS, main_class]

    def _command(self) -> Sequence[str]:
        return [*self._java_command("kafka.Kafka"), "server.properties"]

    def _environment(self) -> Mapping[str, str]:
        return {"CLASSPATH": self._class_path}

    def _answers(self) -> bool:
        """Kafka's port opens before it can serve, and could be another's."""
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient(
            {"bootstrap.servers": self.bootstrap_servers, "log_level": 0}
        )
        try:
            cluster = admin.list_topics(timeout=2)
        except KafkaException:
            return False
        return bool(cluster.brokers) and cluster.cluster_id == self.cluster_id


def make_cluster_id() -> str:
    """One that begins with "-" would be read as an option; Kafka makes none either."""
    while True:
        found = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not found.startswith("-"):
            return found
