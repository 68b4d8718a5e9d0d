"""The timer that sends the beats of invented customers, on one worker only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from heartbeat_app.simulator.synthetic import SyntheticCustomers
from heartbeat_app.worker.agents import heartbeats
from heartbeat_app.worker.application import app

log = logging.getLogger(__name__)

customers = SyntheticCustomers(
    app.settings.synthetic_customers, app.settings.synthetic_seed
)


_round: asyncio.Future[None] | None = None


@app.timer(app.settings.synthetic_interval_seconds, on_leader=True, traced=False)  # type: ignore[untyped-decorator]
async def send_synthetic_beats() -> None:
    """Begin to send one beat of every customer.

    Beside the timer, which sleeps the whole interval after each call: with the sending
    inside, 1,000 customers had 830 beats a second. A round that is still going on
    takes the place of the next.
    """
    global _round
    if app.settings.synthetic_customers and (_round is None or _round.done()):
        _round = app.add_future(send_round_or_warn())


async def send_round_or_warn() -> None:
    """Send a round; an error costs this round only, where Faust ends the worker."""
    try:
        await send_round()
    except Exception as error:  # noqa: BLE001 (see above)
        log.warning("Some synthetic heartbeats were not sent: %r", error)


async def send_round() -> None:
    """Send one beat of every customer and log where they went."""
    sending = [
        await heartbeats.send(key=beat.customer_id, value=beat)
        for beat in customers.beats(datetime.now(UTC))
    ]
    acknowledged = await asyncio.gather(*sending)
    log.info("Sent %s heartbeats %s", f"{len(acknowledged):,}", where(acknowledged))


def where(acknowledged: Iterable[Any]) -> str:
    """Partitions and offsets of what was sent: `heartbeats[0]@5-9, …`."""
    offsets: dict[tuple[str, int], list[int]] = {}
    for metadata in acknowledged:
        offsets.setdefault((metadata.topic, metadata.partition), []).append(
            metadata.offset
        )
    return ", ".join(
        f"{topic}[{partition}]@{min(found)}-{max(found)}"
        for (topic, partition), found in sorted(offsets.items())
    )
