"""The quick scenarios of prove/scenarios/standstill.py."""

from __future__ import annotations

from tests.proof import quick

test_scenario = quick("standstill")
