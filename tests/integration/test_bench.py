"""A run of the benchmark counts only when all is in the table, as it was sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.beats import DAY_BEGIN, DAY_LENGTH, WHOLE_DAY, Window, make_beats
from bench.contender import PythonContender, Task
from bench.contenders.raw_copy import RawCopy
from bench.run import RunFailedError, expect, run
from bench.stage import Stage, stage_for_tests

RECORDS = 2000


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stage_for_tests() as stage:
        yield stage


@pytest.fixture
def task(stage: Stage) -> Task:
    name = stage.new_name("run")
    return Task(stage, name, "none", RECORDS, name)


def test_a_run_tells_records_and_time_and_usage(stage: Stage, task: Task) -> None:
    engine = stage.new_database(task.database)
    expected = expect(stage, make_beats(RECORDS))
    outcome = run(RawCopy(500), task, engine, expected)
    engine.dispose()
    assert expected.rows == outcome.records == RECORDS
    assert 0 < outcome.seconds < 10
    assert 0 < outcome.start_seconds < 30
    assert outcome.usage.cpu_seconds > 0
    assert outcome.usage.peak_mb > 10


def test_other_rows_than_were_sent_are_not_counted(stage: Stage, task: Task) -> None:
    engine = stage.new_database(task.database)
    expected = expect(stage, make_beats(RECORDS))
    # As many rows, at other instants.
    other = Window(DAY_BEGIN, DAY_BEGIN + DAY_LENGTH / 2)

    class Liar(RawCopy):
        def start(self, task: Task) -> None:
            super().start(replace(task, window=other))

    with pytest.raises(RunFailedError, match="2,000 rows, 2,000 were sent"):
        run(Liar(500), task, engine, expected)
    engine.dispose()
    assert task.window == WHOLE_DAY


def test_a_program_that_ends_is_not_counted(stage: Stage, task: Task) -> None:
    engine = stage.new_database(task.database)
    expected = expect(stage, make_beats(RECORDS))
    broken = PythonContender("broken", "broken one", "no_such_program.py", "none")
    with pytest.raises(RunFailedError, match=r"broken one ended:\n.*can't open file"):
        run(broken, task, engine, expected)
    engine.dispose()
