"""Kafka without Docker: what the demo and all other tests stand on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from heartbeat_app.embedded import KafkaServer, kafka_jars
from heartbeat_app.exceptions import EmbeddedServerError
from testkit.servers import free_port

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    # A folder that needs care: Kafka splits paths at commas.
    folder = tmp_path_factory.mktemp("it's a, 'ö' 100%")
    server = KafkaServer(folder / "kafka", port=free_port(), heap="256m")
    yield server
    server.stop()


@pytest.fixture
def server(shared: KafkaServer) -> KafkaServer:
    """A running one."""
    shared.start()
    return shared


@pytest.fixture
def make_server() -> Iterator[Callable[..., KafkaServer]]:
    """Makes servers that are ended after the test."""
    made: list[KafkaServer] = []

    def make(data_dir: Path, **options: Any) -> KafkaServer:
        options = {"port": free_port(), "heap": "256m", **options}
        made.append(KafkaServer(data_dir, **options))
        return made[-1]

    yield make
    for server in made:
        server.kill()


def admin_of(server: KafkaServer) -> AdminClient:
    return AdminClient({"bootstrap.servers": server.bootstrap_servers, "log_level": 0})


def send(server: KafkaServer, topic: str, *values: bytes) -> None:
    admin = admin_of(server)
    admin.create_topics([NewTopic(topic, 1)])[topic].result()
    producer = Producer({"bootstrap.servers": server.bootstrap_servers})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(10) == 0


def read(server: KafkaServer, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer(
        {"bootstrap.servers": server.bootstrap_servers, "group.id": topic}
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [message.value() for message in consumer.consume(count, timeout=15)]
    finally:
        consumer.close()


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_keeps_what_was_sent_over_a_kill_9(server: KafkaServer) -> None:
    send(server, "kept", b"one", b"two")
    process, cluster_id = psutil.Process(server.pid), server.cluster_id
    server.kill()
    assert not lives(process)
    server.start()
    assert server.cluster_id == cluster_id
    assert read(server, "kept", 2) == [b"one", b"two"]


def test_makes_no_topic_of_a_misspelt_name(server: KafkaServer) -> None:
    admin_of(server).list_topics("hartbeats", timeout=5)
    assert "hartbeats" not in admin_of(server).list_topics(timeout=5).topics


def test_a_paused_one_answers_again_after_resume(server: KafkaServer) -> None:
    server.pause()
    with pytest.raises(KafkaException):
        admin_of(server).list_topics(timeout=1)
    server.resume()
    assert admin_of(server).list_topics(timeout=10).brokers


def test_listens_on_its_address_only(server: KafkaServer) -> None:
    listening = {
        connection.laddr[0].removeprefix("::ffff:")
        for connection in psutil.Process(server.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_taken_port_is_named_with_its_holder_and_a_way_on(
    server: KafkaServer, make_server: Callable[..., KafkaServer], tmp_path: Path
) -> None:
    with pytest.raises(EmbeddedServerError) as caught:
        make_server(tmp_path / "other", port=server.port).start()
    assert f"Port {server.port}" in str(caught.value)
    assert f"java (process {server.pid})" in str(caught.value)
    assert "KAFKA_BOOTSTRAP_SERVERS" in str(caught.value)


def test_a_failed_start_shows_the_end_of_the_log(
    server: KafkaServer, make_server: Callable[..., KafkaServer]
) -> None:
    server.stop()
    broken = make_server(server.data_dir, config={"num.io.threads": "many"})
    with pytest.raises(EmbeddedServerError) as caught:
        broken.start()
    assert "Kafka ended while starting (exit status 1)" in str(caught.value)
    assert str(broken.log_path) in str(caught.value)
    assert "num.io.threads" in str(caught.value)


def test_a_failed_start_shows_why_above_the_end_of_the_log(
    make_server: Callable[..., KafkaServer], tmp_path: Path
) -> None:
    """What Kafka writes of its end alone would fill what is shown."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broken = make_server(tmp_path / "kafka", controller_port=port)
        with pytest.raises(EmbeddedServerError, match="Address already in use"):
            broken.start()


def test_stops_in_order_within_seconds(server: KafkaServer) -> None:
    process = psutil.Process(server.pid)
    server.stop(limit_seconds=5)
    assert not lives(process)
    told = server.log_path.read_text()
    assert "shut down completed (kafka.server.BrokerServer)" in told


def test_one_that_was_left_behind_is_found_and_ended(server: KafkaServer) -> None:
    server.stop()
    program = f"""
import os, signal, threading
from pathlib import Path
from heartbeat_app.embedded import KafkaServer
server = KafkaServer(Path({str(server.data_dir)!r}), port={server.port})
thread = threading.Thread(target=server.launch)
thread.start()
thread.join()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGKILL
    process = psutil.Process(int(done.stdout))
    assert lives(process)
    server.start()
    assert not lives(process)


# The program files. A small Maven Central of our own stands in for the real one.


@pytest.fixture
def central(
    server: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Serves three of Kafka's files, which are missing in the cache."""
    from jgo.maven import _core

    cached = kafka_jars.kafka_jars(print)
    lines = kafka_jars.lock_lines()[:3]
    repository = tmp_path / "central"
    cache = kafka_jars.cache_folder()
    for jar in cached[:3]:
        target = repository / jar.relative_to(cache)
        target.parent.mkdir(parents=True)
        shutil.copy(jar, target)
    handler = partial(_Quiet, directory=str(repository))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{http.server_address[1]}"
        monkeypatch.setattr(_core, "DEFAULT_REMOTE_REPOS", {"central": url})
        monkeypatch.setattr(kafka_jars, "lock_lines", lambda: lines)
        monkeypatch.setenv("M2_REPO", str(tmp_path / "cache"))
        yield repository
        http.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No lines on stderr."""


def test_missing_files_are_downloaded_and_told(central: Path) -> None:
    told: list[str] = []
    jars = kafka_jars.kafka_jars(told.append)
    assert [jar.is_file() for jar in jars] == [True] * 3
    assert "3 of 3 files" in told[-1]
    told.clear()
    assert kafka_jars.kafka_jars(told.append) == jars
    assert told == []  # the second time nothing is downloaded


def test_a_torn_file_in_the_cache_is_replaced(central: Path) -> None:
    jar = kafka_jars.kafka_jars(print)[0]
    whole = jar.read_bytes()
    jar.write_bytes(whole[:100])
    assert kafka_jars.kafka_jars(print)[0].read_bytes() == whole


def test_another_file_than_the_locked_one_is_not_used(central: Path) -> None:
    served = next(central.rglob("*.jar"))
    served.write_bytes(b"something else")
    with pytest.raises(EmbeddedServerError, match="SHA-256"):
        kafka_jars.kafka_jars(print)
    assert not list(kafka_jars.cache_folder().rglob(served.name))


def test_no_network_at_the_first_start_is_explained(
    central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jgo.maven import _core

    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(_core, "DEFAULT_REMOTE_REPOS", {"central": nobody})
    with pytest.raises(EmbeddedServerError, match="needs the network"):
        kafka_jars.kafka_jars(print)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written_is_explained(
    central: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EmbeddedServerError, match="M2_REPO"):
        kafka_jars.kafka_jars(print)


def test_the_lock_names_each_file_once() -> None:
    names = [line.split()[1] for line in kafka_jars.lock_lines()]
    assert len(set(names)) == len(names) > 40
    assert f"org.apache.kafka:kafka_2.13:{kafka_jars.KAFKA_VERSION}" in names
