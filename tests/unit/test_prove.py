"""The proof itself: its list of scenarios and its patches."""

from __future__ import annotations

import pytest

from prove.guards import GUARDS, Guard, without
from prove.report import PAGE
from prove.scenario import scenarios
from prove.world import Outcome
from testkit.servers import PROJECT


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_guard_can_be_taken_out(guard: Guard) -> None:
    file, _, test = guard.fails.partition("::")
    assert guard.fails in scenarios() or f"def {test}(" in (PROJECT / file).read_text()
    with without(guard) as source:
        for patch in guard.patches:
            compile((source / patch.file).read_text(), patch.file, "exec")


def test_who_fails_for_another_reason_does_not_miss_a_guard() -> None:
    guard = GUARDS["rewind"]
    assert not guard.is_missed(Outcome("restored", 1))
    assert not guard.is_missed(Outcome("restored", 1, complaints=["no such server"]))
    assert guard.is_missed(Outcome("restored", 1, complaints=["7 beats are lost"]))


def test_the_quick_scenarios_are_of_every_group() -> None:
    quick = {each.group for each in scenarios().values() if each.quick}
    # Three brokers take longer to start than a quick scenario may.
    assert quick == {each.group for each in scenarios().values()} - {"cluster"}


def test_every_scenario_has_a_row_on_the_page() -> None:
    """One that was not run for the page says so there."""
    text = PAGE.read_text()
    assert [name for name in scenarios() if f"| **{name}**: " not in text] == []
