"""Sends an oracle's records while the faults happen, and counts what Kafka took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from confluent_kafka import Producer

from testkit.oracle import Oracle, Record, Row

# Kafka may be away for long; nothing that the oracle counts on may be given up.
CONFIG: dict[str, Any] = {
    # A batch of a few records costs Kafka as much as one of many.
    "linger.ms": 25,
    "enable.idempotence": True,
    "message.timeout.ms": 600_000,
    # Of a broker that hangs: another one leads its partitions by then.
    "socket.timeout.ms": 10_000,
    "topic.metadata.propagation.max.ms": 60_000,
    "message.max.bytes": 2_000_000,
    "log_level": 0,
}
# Each kind of bad record, conflicts included; and records sent before.
BAD = 0.002
REPEATED = 0.01


class Feed:
    """Sends records of an oracle to their partitions, in order, at some pace.

    Arguments:
        rate: Records a second; None: as fast as it goes.
        compression: One of Kafka's codecs.
    """

    def __init__(
        self,
        oracle: Oracle,
        bootstrap_servers: str,
        topic: str,
        *,
        rate: float | None = None,
        compression: str = "none",
    ) -> None:
        self._oracle = oracle
        self._topic = topic
        self._rate = rate
        self._producer = Producer(
            {
                **CONFIG,
                "bootstrap.servers": bootstrap_servers,
                "compression.type": compression,
            }
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures: list[str] = []
        self._played = False
        self.sent = 0

    def send(self, count: int, *, bad: float = BAD, repeated: float = REPEATED) -> None:
        """Send so many records and wait until Kafka has them."""
        self._send(self._oracle.make(count, bad=bad, repeated=repeated))

    def send_recordings(self) -> None:
        """Send the real recordings."""
        self._send(self._oracle.recordings())

    def send_records(self, records: Iterable[Record]) -> None:
        """Send these, of which the oracle knows."""
        self._send(records)

    def send_beats(self, rows: Iterable[Row], *, partition: int | None = None) -> None:
        """Send these beats, all new, to one partition or to their customers'."""
        self._send(self._oracle.beats(rows, partition=partition))

    def start(self, records: Iterator[Record] | None = None) -> None:
        """Send in the background until `stop`: these, or what the oracle makes."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(records,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sending, and wait until Kafka has all of it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._flush()

    def _run(self, records: Iterator[Record] | None) -> None:
        if records is None:
            records = self._oracle.make(10**9, bad=BAD, repeated=REPEATED)
        if not self._played:
            self._played = True
            records = chain(self._oracle.recordings(), records)
        self._produce(records)

    def _send(self, records: Iterable[Record]) -> None:
        self._stop.clear()
        self._produce(iter(records))
        self._flush()

    def _produce(self, records: Iterator[Record]) -> None:
        began, first = time.monotonic(), self.sent
        while not self._stop.is_set():
            if self._rate is not None:
                ahead = (self.sent - first) / self._rate - (time.monotonic() - began)
                if ahead > 0.01:
                    self._producer.poll(0)
                    self._stop.wait(ahead)
                    continue
            # Taken only now: what the oracle makes has to be sent.
            record = next(records, None)
            if record is None:
                return
            partition, key, value = record
            while True:
                try:
                    self._producer.produce(
                        self._topic, value, key, partition=partition,
                        on_delivery=self._note,
                    )  # fmt: skip
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self.sent += 1
            if self.sent % 500 == 0:
                self._producer.poll(0)

    def _note(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failures.append(str(error))

    def _flush(self) -> None:
        left = self._producer.flush(180)
        if left or self._failures:
            raise AssertionError(
                f"Kafka did not take {left + len(self._failures)} records: "
                f"{self._failures[:1]}"
            )
