"""The quick scenarios of the proof, a file for each group: pytest runs some at once."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from prove.run import run
from prove.scenario import Scenario, scenarios


def quick(group: str) -> Callable[[Scenario], None]:
    """A test of each quick scenario of the group, with a seed of this run."""
    chosen = {
        name: each
        for name, each in scenarios().items()
        if each.quick and each.group == group
    }

    @pytest.mark.proof
    @pytest.mark.parametrize("scenario", chosen.values(), ids=chosen)
    def test(scenario: Scenario) -> None:
        outcome = run(scenario, seed=random.SystemRandom().randrange(1_000_000))
        assert outcome.passed, "\n".join(
            [f"scripts/prove {outcome.name} --seed {outcome.seed}", *outcome.complaints]
        )

    return test
