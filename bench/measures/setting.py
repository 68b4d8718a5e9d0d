"""What a measurement is given."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from bench.contender import Contender
from bench.progress import Progress
from bench.stage import Stage


@dataclass(frozen=True)
class Setting:
    """The stage, who takes part, and how much of it.

    Attributes:
        contenders: By name; several of a name are variants, of which the best counts.
        table_rows: Rows that are in the table before, for the full table.
    """

    stage: Stage
    progress: Progress
    contenders: Mapping[str, list[Contender]]
    records: int
    rounds: int
    table_rows: int

    def in_order_of(self, number: int) -> list[Contender]:
        """All contenders, in the order of that round.

        Shuffled by the round's number: none always comes first, or always after the
        same one. The limit and ours stay side by side, since they are compared most.
        """
        near = [each for each in self._all() if each.is_limit or each.name == "ours"]
        far = [each for each in self._all() if each not in near]
        chosen = random.Random(number)
        chosen.shuffle(near)
        groups = [near, *([each] for each in far)]
        chosen.shuffle(groups)
        return [each for group in groups for each in group]

    def _all(self) -> list[Contender]:
        return [each for variants in self.contenders.values() for each in variants]
