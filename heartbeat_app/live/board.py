"""What is known of every customer, and the messages that tell it. Pure.

Over the wire a customer is its place in the order in which the page was told of it,
and an instant is an age in milliseconds before the message's own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heartbeat_app.storage.read.live import SLOT_SECONDS, SLOTS, Heard


class Customer:
    """The last beat, and the lowest and highest rate of each of the last slots.

    Attributes:
        number: The place in the order.
        latest: The latest timestamp, in seconds since 1970, as a device told it.
        at_ms: When the last beat was, in milliseconds, and not later than it was first
            seen: a device whose clock is ahead must not look fresh for longer.
        lows, highs: Rates by slot modulo SLOTS; 0: no beat.
        slot: The newest slot with a beat.
    """

    __slots__ = (
        "at_ms",
        "customer_id",
        "highs",
        "latest",
        "lows",
        "number",
        "rate",
        "slot",
    )

    def __init__(self, number: int, customer_id: str) -> None:
        self.number = number
        self.customer_id = customer_id
        self.latest = 0.0
        self.at_ms = 0
        self.rate = 0
        self.slot = 0
        self.lows = [0] * SLOTS
        self.highs = [0] * SLOTS

    def add(self, heard: Heard, now_ms: int) -> bool:
        """Add beats, known ones too; whether they say anything new."""
        is_new = heard.slot is not None and self._widen(
            heard.slot, heard.low, heard.high
        )
        at_ms = int(heard.at * 1000)
        if heard.rate and (
            heard.at > self.latest
            # Once a clock that was ahead is set right; the beat that lay ahead was
            # seen before, and is not the last one a second time.
            or (heard.at < self.latest and self.at_ms < at_ms <= now_ms)
        ):
            self.latest = max(self.latest, heard.at)
            self.at_ms, self.rate = min(at_ms, now_ms), heard.rate
            is_new = True
        return is_new

    def _widen(self, slot: int, low: int, high: int) -> bool:
        if slot <= self.slot - SLOTS:
            return False
        if slot > self.slot:
            for passed in range(max(self.slot + 1, slot - SLOTS + 1), slot + 1):
                self.lows[passed % SLOTS] = self.highs[passed % SLOTS] = 0
            self.slot = slot
        place = slot % SLOTS
        before = self.lows[place], self.highs[place]
        if before[0]:
            low, high = min(low, before[0]), max(high, before[1])
        self.lows[place], self.highs[place] = low, high
        return (low, high) != before

    def slots(self, last: int) -> list[int]:
        """Low and high of each slot, in turn, up to the slot `last`."""
        return [
            rate
            for slot in range(last - SLOTS + 1, last + 1)
            for rate in (
                (self.lows[slot % SLOTS], self.highs[slot % SLOTS])
                if self.slot - SLOTS < slot <= self.slot
                else (0, 0)
            )
        ]


class Board:
    """All customers; forgets nobody until it is cleared."""

    def __init__(self) -> None:
        self._customers: dict[str, Customer] = {}

    def clear(self) -> None:
        """Forget all."""
        self._customers.clear()

    def add(self, heard: Sequence[Heard], now: float) -> dict[str, Any]:
        """Add beats; the message for a page that knows all that was known before.

        `ids`: customers that are new, their places in the order following. `heard`:
        place, age, rate, and the lowest and highest of that slot where they differ.
        """
        now_ms = int(now * 1000)
        ids: list[str] = []
        told: list[list[int]] = []
        for each in heard:
            customer = self._customers.get(each.customer_id)
            if customer is None:
                customer = Customer(len(self._customers), each.customer_id)
                self._customers[each.customer_id] = customer
                ids.append(each.customer_id)
            if customer.add(each, now_ms):
                age = now_ms - min(int(each.at * 1000), customer.at_ms)
                row = [customer.number, age, each.rate]
                if not each.low == each.rate == each.high:
                    row += [each.low, each.high]
                told.append(row)
        return {"now": now_ms, "ids": ids, "heard": told}

    def all(self, now: float) -> dict[str, Any]:
        """The message for a page that knows nothing.

        `customers`: id, age, rate, and low and high by slot, 0 where there was none.
        """
        now_ms = int(now * 1000)
        slot = now_ms // (SLOT_SECONDS * 1000)
        return {
            "now": now_ms,
            "customers": [
                [
                    each.customer_id,
                    now_ms - each.at_ms,
                    each.rate,
                    each.slots(slot),
                ]
                for each in self._customers.values()
            ],
        }
