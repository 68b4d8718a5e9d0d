"""Every guard, and how to take it out: the proof has to notice that it is gone."""

from __future__ import annotations

from prove.guards.by_scenario import BY_SCENARIO
from prove.guards.by_test import BY_TEST
from prove.guards.guard import Guard, without

__all__ = ["GUARDS", "Guard", "without"]

GUARDS = {guard.name: guard for guard in (*BY_SCENARIO, *BY_TEST)}
