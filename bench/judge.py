"""What figures mean: ratios within a round, their spread, and whether to trust them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The rate of the same COPY should be the same in every round. Where it is not, by more
# than this share of its median, the machine did other work meanwhile.
TOO_NOISY = 0.30


@dataclass(frozen=True)
class Spread:
    """The middle of some values, and how far they go."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @property
    def share(self) -> float:
        """From the lowest to the highest, as a share of the median."""
        return (self.high - self.low) / self.median

    def words(self, digits: int = 2) -> str:
        """For a table."""
        median, low, high = (
            f"{value:,.{digits}f}" for value in (self.median, self.low, self.high)
        )
        return f"{median} ({low} to {high})"


def best(rates: Mapping[str, float], names: Sequence[str]) -> float | None:
    """The highest rate of those of the names that are there."""
    there = [rates[name] for name in names if name in rates]
    return max(there) if there else None


def ratios(
    rounds: Sequence[Mapping[str, float]], name: str, others: Sequence[str]
) -> list[float]:
    """In each round the contender's rate over the best of the others'.

    Rounds in which one of them has no rate are left out.
    """
    found = []
    for rates in rounds:
        other = best(rates, others)
        if name in rates and other is not None:
            found.append(rates[name] / other)
    return found


def noise_words(limits: Sequence[float]) -> str:
    """Whether the machine was quiet enough, told from the limit's rate by round."""
    if len(limits) < 2:
        return "Raw COPY ran once: nothing is known about the machine's noise."
    share = f"{Spread.of(limits).share:.0%}"
    if is_too_noisy(limits):
        return (
            "**Too noisy to judge**: from round to round raw COPY went over "
            f"{share} of its median rate, more than {TOO_NOISY:.0%}. Run it again on a "
            "machine that does nothing else."
        )
    return (
        f"From round to round raw COPY went over {share} of its median rate; "
        f"beyond {TOO_NOISY:.0%} nothing would be judged."
    )


def is_too_noisy(limits: Sequence[float]) -> bool:
    """Whether the limit's rates differ by more than can be judged."""
    return len(limits) > 1 and Spread.of(limits).share > TOO_NOISY


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that so many of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[int(rank) - 1]
