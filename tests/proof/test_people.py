"""The quick scenarios of prove/scenarios/people.py."""

from __future__ import annotations

from tests.proof import quick

test_scenario = quick("people")
