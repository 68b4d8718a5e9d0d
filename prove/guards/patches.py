"""What several guards' removals replace."""

from __future__ import annotations

from prove.guards.guard import Patch

WRITER = "heartbeat_app/storage/write/writer.py"
AGENT = "heartbeat_app/lane/agent.py"
FETCH = "heartbeat_app/lane/fetch.py"
ENGINE = "heartbeat_app/storage/db/engine.py"
# A worker that was frozen forgets its batches as soon as it hears of the rebalance;
# what holds when it does not hear of it in time is seen without that.
FORGET = Patch(
    AGENT,
    "        return self._lane.is_current(chunk.tp, chunk.epoch)\n",
    "        return True\n",
)


# What lies between the ledger and a batch above it is booked as missing, as it was in
# the log.
REWIND = Patch(
    WRITER,
    "    if next_offset is None or batch.asked > next_offset:\n",
    "    next_offset = next_offset or 0\n    if False:\n",
)

HANGING = Patch(
    ENGINE,
    "        if broken := uses.break_off(after_seconds=limit):\n",
    "        if broken := 0:\n",
)
