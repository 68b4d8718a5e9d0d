"""What Prometheus asks for: counted a batch at a time, never a beat at a time.

docs/reference/metrics.md lists every metric; a test compares it with this module.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from heartbeat_app.domain.validation import Reason
from heartbeat_app.exceptions import ApartError, LedgerWentBackError
from heartbeat_app.kafka.policy import Fault, What
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.tables import DELAY_BOUNDS_SECONDS
from heartbeat_app.storage.rollup.rollup import Backlog
from heartbeat_app.storage.write.writer import Written
from heartbeat_app.worker.watchdog import Health

# Powers of ten and their halves, from a quiet second to the most that a chunk holds.
BATCH_BOUNDS_RECORDS = (1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 50_000)
# From a small batch on a fast disk to more than a statement's time-out.
TRANSACTION_BOUNDS_SECONDS = (
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0,
)  # fmt: skip

PARTITION = ("topic", "partition")

# Prometheus sees no increase in a series whose first sample is not 0, so each cause is
# there from the start, and there are no others: classes of SQLSTATEs, and types.
OTHER = "other"
CAUSES = (
    "08", "25", "40", "42", "53", "54", "55", "57", "58", "XX",
    "OperationalError", "InterfaceError", "TimeoutError", LedgerWentBackError.__name__,
    OTHER,
)  # fmt: skip

# Each counter would have a twin with the instant that it began at; the process's
# start time tells the same.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The worker's metrics.

    Arguments:
        health: What the watchdog saw last.
        backlog: What was still to be rolled up, as far as is known.
        policies: What of the topics' settings does not suit, by topic.
    """

    def __init__(
        self,
        health: Callable[[], Health],
        backlog: Callable[[], Backlog | None],
        policies: Callable[[], Mapping[str, Sequence[Fault]]],
    ) -> None:
        self.registry = CollectorRegistry()
        self._health = health
        self._consumed = self._counter(
            "heartbeat_app_records_consumed",
            "Records of Kafka that were dealt with: stored, duplicate or dead.",
            PARTITION,
        )
        self._stored = self._counter(
            "heartbeat_app_beats_stored", "Beats that became new rows.", PARTITION
        )
        self._duplicate = self._counter(
            "heartbeat_app_beats_duplicate",
            "Beats that were stored before.",
            PARTITION,
        )
        self._dead = self._counter(
            "heartbeat_app_records_dead",
            "Records that became dead letters, by reason.",
            (*PARTITION, "reason"),
        )
        self._missing = self._counter(
            "heartbeat_app_records_missing",
            "Records that fell out of Kafka's log before they were read.",
            PARTITION,
        )
        self._unexplained = self._counter(
            "heartbeat_app_offsets_unexplained",
            "Offsets without a record that no transaction explains (compaction?).",
            PARTITION,
        )
        self._unreadable = self._counter(
            "heartbeat_app_offsets_unreadable",
            "Offsets of record batches that could not be taken apart; a dead letter "
            "has each batch.",
            PARTITION,
        )
        self._retries = self._counter(
            "heartbeat_app_retries",
            "Attempts to store a batch that failed and were made again, by cause: "
            "the class of the SQLSTATE, or the type of the error.",
            ("cause",),
        )
        for cause in CAUSES:
            self._retries.labels(cause)
        # One series, where the sum of all causes over a year takes Prometheus long.
        self._failed = Counter(
            "heartbeat_app_writes_failed",
            "Attempts to store a batch that failed and were made again, of all causes.",
            registry=self.registry,
        )
        self._batch = Histogram(
            "heartbeat_app_batch_records",
            "Records of a batch.",
            buckets=BATCH_BOUNDS_RECORDS,
            registry=self.registry,
        )
        self._transaction = Histogram(
            "heartbeat_app_transaction_seconds",
            "What a batch's transaction took, or that of several small ones, its "
            "commit included.",
            buckets=TRANSACTION_BOUNDS_SECONDS,
            registry=self.registry,
        )
        self._delays = DelayCollector()
        self.registry.register(self._delays)
        self.registry.register(HealthCollector(health))
        self.registry.register(BacklogCollector(backlog))
        self.registry.register(PolicyCollector(policies))
        ProcessCollector(registry=self.registry)
        Info(
            "heartbeat_app_build",
            "What runs here.",
            registry=self.registry,
        ).info(
            {
                "version": version("heartbeat_app"),
                "python_version": platform.python_version(),
                "faust_version": version("faust-streaming"),
            }
        )

    def _counter(self, name: str, help: str, labels: Sequence[str]) -> Counter:
        return Counter(name, help, labels, registry=self.registry)

    def count(self, topic: str, partition: int, written: Written) -> None:
        """Count a batch that is in the database; in any thread.

        Its transaction is counted by `count_transaction`, since batches share one.
        """
        where = topic, str(partition)
        if written.unexplained:
            self._unexplained.labels(*where).inc(written.unexplained)
        if not (written.consumed or written.missing or written.unreadable):
            return  # stored before, or nothing but holes
        self._consumed.labels(*where).inc(written.consumed)
        self._stored.labels(*where).inc(written.stored)
        self._duplicate.labels(*where).inc(written.duplicate)
        self._missing.labels(*where).inc(written.missing)
        self._unreadable.labels(*where).inc(written.unreadable)
        for reason, count in written.reasons.items():
            self._dead.labels(*where, reason.value).inc(count)
        self._batch.observe(written.consumed)
        self._delays.add(written.delays.histogram, written.delays.total)

    def count_transaction(self, seconds: float) -> None:
        """Count a transaction that was committed."""
        self._transaction.observe(seconds)

    def count_retry(self, error: Exception) -> None:
        """Count an attempt that failed and will be made again.

        That batches cannot share a transaction is no failure.
        """
        if not isinstance(error, ApartError):
            self._retries.labels(cause_of(error)).inc()
            self._failed.inc()

    def expose(self, accept: str) -> tuple[bytes, str]:
        """All metrics, in the format that the Accept header asks for, and its name.

        Of a partition that was just assigned all counters are there at 0.
        """
        for tp in self._health().lags:
            where = tp.topic, str(tp.partition)
            for counter in (
                self._consumed, self._stored, self._duplicate, self._missing,
                self._unexplained, self._unreadable,
            ):  # fmt: skip
                counter.labels(*where)
            for reason in Reason:
                self._dead.labels(*where, reason.value)
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def cause_of(error: Exception) -> str:
    """One of CAUSES, whatever happens."""
    state = errors.sqlstate(error)
    cause = state[:2] if state else type(errors.original(error)).__name__
    return cause if cause in CAUSES else OTHER


class DelayCollector(Collector):
    """From a beat's timestamp to its row; takes over each batch's own histogram."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(DELAY_BOUNDS_SECONDS) + 1)
        self._sum = 0.0

    def add(self, histogram: Sequence[int], total: float) -> None:
        """Add a histogram with the bounds DELAY_BOUNDS_SECONDS, and its sum."""
        with self._lock:
            self._counts = [a + b for a, b in zip(self._counts, histogram, strict=True)]
            self._sum += total

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Make the metric; its buckets are cumulative."""
        with self._lock:
            counts, total = self._counts, self._sum
        bounds = [*(str(bound) for bound in DELAY_BOUNDS_SECONDS), "+Inf"]
        yield HistogramMetricFamily(
            "heartbeat_app_delay_seconds",
            "From a beat's timestamp to its row, of new rows; 0 where the timestamp "
            "lies in the future.",
            buckets=list(zip(bounds, accumulate(counts), strict=True)),
            sum_value=total,
        )


class HealthCollector(Collector):
    """What the watchdog saw at its last look, a second ago at most."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Make the metrics; of partitions that this worker has now, and only those."""
        health = self._health()
        yield GaugeMetricFamily(
            "heartbeat_app_ready",
            "1 when the worker is ready, 0 when not; /health/ready says why.",
            value=float(health.ready),
        )
        records = GaugeMetricFamily(
            "heartbeat_app_lag_records",
            "Records of the worker's partitions that Kafka has and that are not "
            "stored yet.",
            labels=PARTITION,
        )
        seconds = GaugeMetricFamily(
            "heartbeat_app_lag_seconds",
            "For how long the oldest of those records has waited, as far as this "
            "worker saw it.",
            labels=PARTITION,
        )
        for tp, lag in health.lags.items():
            where = [tp.topic, str(tp.partition)]
            records.add_metric(where, lag.records)
            seconds.add_metric(where, lag.seconds)
        yield records
        yield seconds


class BacklogCollector(Collector):
    """What was still to be rolled up after the last pass, twenty seconds ago or so."""

    def __init__(self, backlog: Callable[[], Backlog | None]) -> None:
        self._backlog = backlog

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Make the metrics; none while nobody knows."""
        backlog = self._backlog()
        if backlog is None:
            return
        waited = 0.0
        if backlog.oldest is not None:
            waited = (datetime.now(UTC) - backlog.oldest).total_seconds()
        yield GaugeMetricFamily(
            "heartbeat_app_rollup_backlog",
            "How many minutes are still to be rolled up, by all workers.",
            value=backlog.minutes,
        )
        yield GaugeMetricFamily(
            "heartbeat_app_rollup_backlog_seconds",
            "For how long the oldest of them has waited.",
            value=waited,
        )


class PolicyCollector(Collector):
    """Whether the topics' settings suit, as Kafka told them last."""

    def __init__(self, policies: Callable[[], Mapping[str, Sequence[Fault]]]) -> None:
        self._policies = policies

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Make the metric; nothing of a topic whose settings nobody knows."""
        faults = GaugeMetricFamily(
            "heartbeat_app_topic_policy_fault",
            "1 where a setting of the topic does not suit, 0 where it does; "
            "/health/ready says more.",
            labels=("topic", "what"),
        )
        for topic, found in dict(self._policies()).items():
            wrong = {fault.what for fault in found}
            for what in What:
                faults.add_metric([topic, what.value], float(what in wrong))
        yield faults
