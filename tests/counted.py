"""A worker's metrics after one batch of everything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from faust.types import TP

from heartbeat_app.domain.validation import Reason
from heartbeat_app.exceptions import LedgerWentBackError
from heartbeat_app.kafka.policy import faults
from heartbeat_app.storage.db.tables import DELAY_BOUNDS_SECONDS
from heartbeat_app.storage.rollup.ingest import Delays
from heartbeat_app.storage.rollup.rollup import Backlog
from heartbeat_app.storage.write.writer import Written
from heartbeat_app.worker.metrics import Metrics
from heartbeat_app.worker.watchdog import Health, Lag

HEALTH = Health((), 7, {TP("beats", 0): Lag(7, 1.5)})
BACKLOG = Backlog(12, datetime.now(UTC) - timedelta(seconds=90))
HISTOGRAM = [1, 2, *[0] * (len(DELAY_BOUNDS_SECONDS) - 2), 4]
POLICIES = {"beats": faults("beats", {"cleanup.policy": "compact"})}
BATCH = Written(
    consumed=10,
    stored=7,
    duplicate=1,
    dead=2,
    missing=3,
    unexplained=4,
    seconds=0.03,
    reasons={Reason.NOT_JSON: 1, Reason.CONFLICT: 1},
    delays=Delays(9.5, 8.0, HISTOGRAM, 0.0005),
)


def metrics(health: Health = HEALTH, backlog: Backlog | None = BACKLOG) -> Metrics:
    """Each metric, with each of its labels."""
    found = Metrics(lambda: health, lambda: backlog, lambda: POLICIES)
    found.count("beats", 0, BATCH)
    found.count_transaction(BATCH.seconds)
    found.count_retry(LedgerWentBackError("here", 1, None))
    return found
