"""The quick scenarios of prove/scenarios/postgres.py."""

from __future__ import annotations

from tests.proof import quick

test_scenario = quick("postgres")
