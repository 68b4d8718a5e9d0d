"""A TCP proxy that falls silent without closing anything, or lets little through."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

# Small, so that what a program has sent is still with the program when it is frozen.
BUFFER_BYTES = 16 * 1024


class Proxy:
    """Stands between programs and a server of 127.0.0.1; use it as a context manager.

    Arguments:
        target: The server's port.
        bytes_a_second: What all connections may send together in a direction; None:
            as much as they like.

    Attributes:
        passed: How many bytes went through so far, either way.
    """

    def __init__(self, target: int, *, bytes_a_second: float | None = None) -> None:
        self._target = target
        self._limits = [Limit(bytes_a_second) for _ in range(2)]
        self._silent = threading.Event()
        self._lock = threading.Lock()
        self.passed = 0
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._muted: set[socket.socket] = set()
        self._listener = socket.socket()
        # Inherited by what is accepted. Small segments keep the buffers of the other
        # side small, too.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1_400)
        self._listener.bind(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and take no more."""
        for each in [self._listener, *(one for pair in self._open for one in pair)]:
            close(each)

    def silence(self) -> None:
        """Forward nothing any more, of those that connect from now on neither."""
        with self._lock:
            self._silent.set()
            self._muted.update(one for pair in self._open for one in pair)

    def speak(self) -> None:
        """Forward what those send that connect from now on; the others stay silent."""
        self._silent.clear()

    def turn(self, target: int) -> None:
        """Lead those that connect from now on to another port of 127.0.0.1."""
        self._target = target

    def ports(self) -> list[int]:
        """The ports from which it is connected to the server."""
        with self._lock:
            return [there.getsockname()[1] for _, there in self._open]

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                here.close()
                continue
            with self._lock:
                self._open.append((here, there))
                if self._silent.is_set():
                    self._muted.update((here, there))
            for source, target, limit in zip(
                (here, there), (there, here), self._limits, strict=True
            ):
                threading.Thread(
                    target=self._forward, args=(source, target, limit), daemon=True
                ).start()

    def _forward(
        self, source: socket.socket, target: socket.socket, limit: Limit
    ) -> None:
        with suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                limit.wait(len(data))
                if source in self._muted:
                    return
                target.sendall(data)
                with self._lock:
                    self.passed += len(data)
        # Not even that somebody closed it is told.
        if source in self._muted:
            return
        close(source)
        close(target)
        with self._lock:
            self._open = [pair for pair in self._open if source not in pair]


class Limit:
    """Lets so many bytes a second through."""

    def __init__(self, bytes_a_second: float | None) -> None:
        self._rate = bytes_a_second
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def wait(self, count: int) -> None:
        """Wait until that many more may go."""
        if self._rate is None:
            return
        with self._lock:
            begin = max(self._free, time.monotonic())
            self._free = begin + count / self._rate
        time.sleep(max(0.0, begin - time.monotonic()))


def close(each: socket.socket) -> None:
    """Close a socket, and wake the thread that waits for it."""
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
