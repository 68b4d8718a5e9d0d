"""Mends Faust's recovery, which a time-out ends for ever."""

from __future__ import annotations

from typing import Any

from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery
from faust.types import TP
from mode import Seconds


class LaneRecovery(Recovery):
    """A recovery that outlives slow look-ups.

    mode's `wait_first` reports a time-out as "the service was stopped", at which
    Faust's recovery loop ends: the worker stays alive, assigned and idle, and not even
    the next rebalance revives it. Without a time-out the wait still ends when the
    service stops or another rebalance begins, which are the ends that matter; the
    lane relies on it while the database is away.

    And it ends when another rebalance has begun, not only when that one has assigned
    partitions. Faust would start the flow in the middle of it: partitions that become
    another's were processed on, and what was handed out until the next seek was
    dropped, and committed over.
    """

    _rebalance = 0

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Call when partitions were assigned."""
        app: Any = self.app
        if generation_id == app.consumer_generation_id:  # Faust ignores another
            self._rebalance = app.rebalancing_count
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

    async def _wait(self, coro: Any, timeout: Seconds | None = None) -> None:
        await super()._wait(coro, timeout=None)
        app: Any = self.app
        if app.rebalancing_count != self._rebalance:
            raise RebalanceAgain()


class LaneTableManager(TableManager):
    """Faust's table manager with the mended recovery, and no wait for no tables."""

    async def on_start(self) -> None:
        """Call when it starts.

        Faust sleeps for a second first, in which agents may make tables. Where nobody
        has made one by then, this is a third of the time to the first stored beat.
        """
        if self.data:
            await super().on_start()
            return
        await self._update_channels()
        await self.recovery.start()

    @property
    def recovery(self) -> Recovery:
        """Recovery service used by this table manager."""
        if self._recovery is None:
            self._recovery = LaneRecovery(
                self.app, self, beacon=self.beacon, loop=self.loop
            )
        return self._recovery
