"""The quick scenarios of prove/scenarios/workers.py."""

from __future__ import annotations

from tests.proof import quick

test_scenario = quick("workers")
