"""Runs a scenario in a world of its own, and says what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from prove.scenario import Scenario, Skipped
from prove.world import Outcome, World
from testkit.servers import PROJECT


def run(scenario: Scenario, seed: int, *, source: Path = PROJECT) -> Outcome:
    """Run one scenario; never raises, what went wrong is among the complaints.

    Arguments:
        source: The application's code; a copy with a guard taken out, or our own.
    """
    began = time.monotonic()
    outcome = Outcome(scenario.name, seed)
    try:
        # Short, since sockets have short names; removed also after a failure, whose
        # story the complaints tell.
        with tempfile.TemporaryDirectory(prefix="prove-") as folder:
            world = World(
                Path(folder),
                name=scenario.name,
                seed=seed,
                source=source,
                kafka=scenario.kafka,
                cluster=scenario.cluster,
                workers_roll_up=not scenario.quick,
            )
            outcome = world.outcome
            try:
                with world:
                    scenario.run(world)
                    world.settle()
            except Skipped as why:
                outcome.skipped = str(why)
            except BaseException:
                outcome.complaints.append(world.last_words())
                raise
    except (Exception, KeyboardInterrupt) as error:
        outcome.complaints.append(f"{type(error).__name__}: {error}")
        outcome.complaints.append(traceback.format_exc())
        if isinstance(error, KeyboardInterrupt):
            raise
    outcome.seconds = time.monotonic() - began
    return outcome


def run_test(test: str, *, source: Path) -> Outcome:
    """Run one of the project's tests on a copy; what it asserted are the complaints.

    Raises:
        RuntimeError: It neither passed nor failed.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", test],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    # Said once, not for each of its parameters.
    complaints = dict.fromkeys(
        line[1:].strip() for line in done.stdout.splitlines() if line[:2] == "E "
    )
    assert done.returncode == 0 or complaints, done.stdout
    seconds = time.monotonic() - began
    return Outcome(test, seed=0, seconds=seconds, complaints=list(complaints))
