"""Sends recordings into the topic, and counts what Kafka acknowledged."""

from __future__ import annotations

import heapq
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from heartbeat_app.cli.recordings import BadLine
from heartbeat_app.config import Settings
from heartbeat_app.domain import models
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.kafka.client import client_config
from heartbeat_app.terminal.stopping import StopSignals

Items = Iterable[Heartbeat | BadLine]

# How long Kafka may be away before beats count as not acknowledged; the value that
# Kafka's own producer has by default.
DELIVERY_TIMEOUT_SECONDS = 120

# After Ctrl-C: what is on its way may arrive.
STOP_SECONDS = 5.0

# How often progress is told, and how soon Ctrl-C is noticed.
TICK_SECONDS = 0.1

PRODUCER_CONFIG: dict[str, Any] = {
    # Acknowledged means: every in-sync replica has it, once and in order.
    "acks": "all",
    "enable.idempotence": True,
    # Where Faust's and Kafka's own producers put the same key.
    "partitioner": "murmur2_random",
    "linger.ms": 10,
    "compression.type": "lz4",
    "message.timeout.ms": DELIVERY_TIMEOUT_SECONDS * 1000,
    # Memory: as many beats wait as fit into 64 MiB.
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 65_536,
}


@dataclass(slots=True)
class Tally:
    """What became of the beats so far.

    Attributes:
        sent: Handed to Kafka's client.
        acknowledged: Kafka has them.
        failed: Kafka does not have them: how many, by error.
        withdrawn: Taken back before they left, after Ctrl-C.
        bad_lines: Passed over.
        trouble: What Kafka's client has complained of since the last one arrived.
        stopped_by: The signal that ended it before the end.
        stopped_at: The bad line that ended it before the end.
    """

    sent: int = 0
    acknowledged: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    withdrawn: int = 0
    bad_lines: int = 0
    trouble: str = ""
    stopped_by: signal.Signals | None = None
    stopped_at: BadLine | None = None

    @property
    def unknown(self) -> int:
        """On their way: Kafka may have them or not."""
        settled = self.acknowledged + self.failed.total() + self.withdrawn
        return self.sent - settled


def paced(
    recordings: Sequence[Items], speed: float | None
) -> Iterator[tuple[float, Heartbeat | BadLine]]:
    """Each beat or bad line with its time in seconds after the beginning.

    At a speed, all recordings begin together and keep the gaps of their timestamps;
    without one they come one after the other, at once.
    """
    if speed is None:
        for items in recordings:
            for item in items:
                yield 0.0, item
    else:
        timed = [_timed(items, speed) for items in recordings]
        yield from heapq.merge(*timed, key=lambda each: each[0])


def _timed(items: Items, speed: float) -> Iterator[tuple[float, Heartbeat | BadLine]]:
    first: datetime | None = None
    seconds = 0.0
    for item in items:
        if isinstance(item, Heartbeat):
            first = first or item.timestamp
            seconds = (item.timestamp - first).total_seconds() / speed
        yield seconds, item


class Sender:
    """Sends beats to one topic.

    Arguments:
        topic: Must exist.
        skip_bad: Pass over bad lines instead of stopping at the first.
        tell: Told, in words, of bad lines that are passed over and of other things
            that a person should know.
        progress: Told of the tally every now and then.
        latest: How far ahead of now a beat may be without a warning.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        *,
        skip_bad: bool = False,
        tell: Callable[[str], None] = lambda words: None,
        progress: Callable[[Tally], None] = lambda tally: None,
        latest: timedelta | None = None,
    ) -> None:
        self.tally = Tally()
        self._topic = topic
        self._skip_bad = skip_bad
        self._tell = tell
        self._progress = progress
        self._latest = latest
        self._next_tick = 0.0
        self._stop = StopSignals()
        config: dict[str, Any] = {
            **client_config(settings),
            **PRODUCER_CONFIG,
            "error_cb": self._on_error,
            "log_level": 0,  # what fails is counted and named
        }
        self._producer = Producer(config)

    def send(self, timed: Iterator[tuple[float, Heartbeat | BadLine]]) -> Tally:
        """Send everything at its time; returns when Kafka has answered for all.

        Ends early at a bad line, or at a signal to stop, with what was sent until
        then. Call it in the main thread.
        """
        with self._stop.caught():
            with suppress(KeyboardInterrupt):  # a signal while a line was read
                self._send_all(timed)
            if self._stop.signal is None:
                self._finish()
            if self._stop.signal is not None:
                self._break_off()
        self._progress(self.tally)
        return self.tally

    def _send_all(self, timed: Iterator[tuple[float, Heartbeat | BadLine]]) -> None:
        begin = time.monotonic()
        while True:
            self._stop.may_interrupt = True
            found = next(timed, None) if self._stop.signal is None else None
            self._stop.may_interrupt = False
            if found is None or self._stop.signal is not None:
                return
            seconds, item = found
            if seconds:
                self._wait_until(begin + seconds)
            if isinstance(item, BadLine):
                if not self._skip_bad:
                    self.tally.stopped_at = item
                    return
                self.tally.bad_lines += 1
                self._tell(f"Passed over {item}")
            else:
                self._send(item)

    def _wait_until(self, when: float) -> None:
        while self._stop.signal is None and (wait := when - time.monotonic()) > 0:
            self._tick(wait)

    def _send(self, beat: Heartbeat) -> None:
        if (
            self._latest is not None
            and beat.timestamp > datetime.now(UTC) + self._latest
        ):
            self._latest = None  # said once
            self._tell(
                f"From {beat.timestamp.isoformat()} on the beats lie further in the "
                "future than a worker accepts (MAX_FUTURE_SECONDS); --speed 1 sends "
                "them at their time."
            )
        while self._stop.signal is None:
            try:
                self._producer.produce(
                    self._topic,
                    value=models.encode(beat),
                    key=beat.customer_id.encode(),
                    on_delivery=self._on_delivery,
                )
            except BufferError:
                self._tick(TICK_SECONDS)
                continue
            self.tally.sent += 1
            if time.monotonic() >= self._next_tick:
                self._tick(0)
            return

    def _finish(self) -> None:
        """Wait until Kafka has answered for every beat, or its time is up."""
        while len(self._producer) and self._stop.signal is None:
            self._tick(TICK_SECONDS)

    def _break_off(self) -> None:
        """Take back what has not left; give what has some seconds to arrive."""
        self.tally.stopped_by = self._stop.signal
        self._producer.purge(in_flight=False, blocking=True)
        deadline = time.monotonic() + STOP_SECONDS
        while len(self._producer) and time.monotonic() < deadline:
            self._producer.poll(TICK_SECONDS)

    def _tick(self, seconds: float) -> None:
        self._producer.poll(min(seconds, TICK_SECONDS))
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._progress(self.tally)

    def _on_error(self, error: KafkaError) -> None:
        self.tally.trouble = error.str()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.tally.acknowledged += 1
            self.tally.trouble = ""
        elif error.code() == KafkaError._PURGE_QUEUE:
            self.tally.withdrawn += 1
        else:
            self.tally.failed[error.str()] += 1
