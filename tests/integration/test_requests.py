"""A whole worker under fire: health checks are answered, and beats are stored."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import psutil
import pytest
from sqlalchemy import Engine, text

from heartbeat_app.domain.models import Heartbeat, encode
from testkit.servers import Crowd, Topic, Worker

pytestmark = pytest.mark.integration

SECONDS = 4.0
ANSWERED_SECONDS = 1.0
A_SECOND = 200
HALF = 1_100
Fire = Callable[[int, threading.Event], None]


def bomb(megabytes: int = 1_000) -> bytes:
    """972 kB that are a gigabyte when decompressed."""
    packed = zlib.compressobj(1, zlib.DEFLATED, 31)
    some = bytes(1_000_000)
    first = packed.compress(some * 4)
    return (
        first
        + b"".join(packed.compress(some) for _ in range(megabytes - 4))
        + (packed.flush())
    )


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def bombs(port: int, over: threading.Event) -> None:
    """Ten at once, again and again."""
    body = bomb()
    paths = itertools.cycle(["/nowhere", "/stats/", "/health/live", "/login", "/"])

    def send() -> None:
        head = (
            f"POST {next(paths)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError), connect(port) as line:
            line.sendall(head.encode() + body)
            line.recv(1)

    threads = [Crowd(send, 0.01) for _ in range(10)]
    for thread in threads:
        thread.__enter__()
    over.wait()
    for thread in threads:
        thread.__exit__()


def half_requests(port: int, over: threading.Event) -> None:
    """More connections than a process may have files, and none that ends."""
    lines = []
    for _ in range(HALF):
        with suppress(OSError):
            line = connect(port)
            lines.append(line)
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
    while not over.wait(0.2):
        for line in lines:
            with suppress(OSError):
                line.send(b"x")
    for line in lines:
        line.close()


def malformed_hosts(port: int, over: threading.Event) -> None:
    """On one connection after the other."""
    while not over.is_set():
        with suppress(OSError), connect(port) as line:
            line.sendall(b"GET /api/customers HTTP/1.1\r\nHost: a:b:c\r\n\r\n")
            assert b" 400 " in line.recv(1_000)


def untaken_answers(port: int, over: threading.Event) -> None:
    """The dearest page that needs no token, asked for by hundreds that read nothing."""
    asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    lines = []
    for _ in range(300):
        with suppress(OSError):
            line = connect(port)
            lines.append(line)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            line.setblocking(False)
    while not over.wait(0.05):
        for line in lines:
            with suppress(OSError):
                line.send(asked)
    for line in lines:
        line.close()


@contextmanager
def under(fire: Fire, port: int) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=fire, args=(port, over))
    thread.start()
    yield
    over.set()
    thread.join()


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT sum(stored) FROM partition_ledger"))
    return int(found or 0)


@pytest.mark.parametrize("files", ["1024", "100"])
def test_under_fire_health_checks_are_answered_and_beats_stored(
    topic: Topic,
    engine: Engine,
    make_worker: Callable[..., Worker],
    files: str,
) -> None:
    topic.make()
    worker = make_worker().start(
        "bash",
        "-c",
        f"ulimit -n {files} && exec {sys.executable} -m heartbeat_app worker -l info",
    )
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    port, process = int(worker.environ["WEB_PORT"]), psutil.Process(worker.pid)
    sent = itertools.count()

    def beat() -> None:
        now = datetime.now(UTC)
        some = range(A_SECOND // 4)
        topic.produce([encode(Heartbeat(f"c{next(sent)}", now, 70)) for _ in some])

    fires: list[Fire] = [bombs, half_requests, malformed_hosts, untaken_answers]
    with Crowd(beat, 0.25):
        for fire in fires[: 2 if files == "100" else None]:
            before, used, began = stored(engine), process.cpu_times(), time.monotonic()
            took = []
            with under(fire, port):
                while time.monotonic() - began < SECONDS:
                    asked = time.monotonic()
                    status, _ = worker.get("/health/live")
                    took.append(time.monotonic() - asked)
                    assert status == 200, (fire.__name__, took)
                    time.sleep(0.05)
                beats = stored(engine) - before
            cpu = process.cpu_times()
            busy = (cpu.user + cpu.system - used.user - used.system) / SECONDS
            print(
                f"{fire.__name__}: /health/live at most {max(took):.3f} s, "
                f"{beats / SECONDS:.0f} beats stored a second, {busy:.2f} of a core"
            )
            assert max(took) < ANSWERED_SECONDS, fire.__name__
            assert beats > SECONDS * A_SECOND / 4, fire.__name__
            worker.wait_until(
                lambda: worker.get("/health/ready")[0] == 200, "it is ready", seconds=5
            )
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0
