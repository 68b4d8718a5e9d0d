"""Invented customers: heart rates with the distribution of the original project."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime

from heartbeat_app.domain.models import Heartbeat

NORMAL_SHARE = 0.9
NORMAL = range(60, 101)
# Below and above, equally likely value by value.
OUTLIERS = (*range(50, 60), *range(101, 121))


class SyntheticCustomers:
    """`customers` people with one beat each whenever they are asked.

    Arguments:
        seed: The same seed gives the same rates.
    """

    def __init__(self, customers: int, seed: int | None = None) -> None:
        self._ids = [f"customer-{number:04d}" for number in range(1, customers + 1)]
        self._random = random.Random(seed)

    def beats(self, now: datetime) -> Iterator[Heartbeat]:
        """One beat of everybody: 90 % from 60 to 100 bpm, the rest from 50 to 120."""
        for customer_id in self._ids:
            normal = self._random.random() < NORMAL_SHARE
            rate = self._random.choice(NORMAL if normal else OUTLIERS)
            yield Heartbeat(customer_id, now, rate)
