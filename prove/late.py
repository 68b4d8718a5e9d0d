"""A way to Kafka on which the group's coordinator answers late."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

# What is asked of a group's coordinator, by Kafka's numbers: offset commit and fetch,
# find coordinator, join, heartbeat, leave, sync.
GROUP_REQUESTS = frozenset(range(8, 15))
HEAD = struct.Struct(">ih")  # length of what follows it, number of the request


class LateCoordinator:
    """A TCP proxy that holds the requests to the coordinator back, each for a while.

    Attributes:
        port: Where it listens.
        target: The broker's port behind it.
        seconds: How long a request is held back at most; 0: not at all.
        delayed, longest: How many were held back, and the longest time, seconds.
    """

    def __init__(self, seed: int) -> None:
        self._choice = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.target = 0
        self.seconds = 0.0
        self.delayed = 0
        self.longest = 0.0

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @staticmethod
    def _start(work: object, *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self._start(self._forward_requests, client, broker)
                self._start(self._forward_answers, broker, client)

    def _forward_requests(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError), client, broker, client.makefile("rb") as requests:
            while head := requests.read(HEAD.size):
                length, number = HEAD.unpack(head)
                body = requests.read(length - 2)
                if number in GROUP_REQUESTS and self.seconds:
                    self._hold()
                broker.sendall(head + body)
            broker.shutdown(socket.SHUT_RDWR)

    def _hold(self) -> None:
        # Mostly short: with all of them long nobody would ever be in the group.
        wait = self.seconds * self._choice.random() ** 4
        self.delayed += 1
        self.longest = max(self.longest, wait)
        time.sleep(wait)

    @staticmethod
    def _forward_answers(broker: socket.socket, client: socket.socket) -> None:
        with suppress(OSError), broker, client:
            while answer := broker.recv(65_536):
                client.sendall(answer)
            client.shutdown(socket.SHUT_RDWR)
