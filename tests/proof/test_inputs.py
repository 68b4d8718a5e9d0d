"""The quick scenarios of prove/scenarios/inputs.py."""

from __future__ import annotations

from tests.proof import quick

test_scenario = quick("inputs")
