"""The speed, in short: ours against raw COPY of the same rows in the same run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.beats import make_beats
from bench.contender import Contender, Task
from bench.contenders.ours import Ours
from bench.contenders.raw_copy import RawCopy
from bench.formats import Format
from bench.run import Summary, expect, run
from bench.stage import Stage, stage_for_tests

pytestmark = pytest.mark.speed

RECORDS = 300_000
LEAST = 0.7
# A machine that is shared does other work now and then.
ATTEMPTS = 3


@pytest.fixture
def stage() -> Iterator[Stage]:
    with stage_for_tests() as stage:
        yield stage


def rate(stage: Stage, contender: Contender, expected: Summary) -> float:
    """Records a second of one run, whose rows were checked."""
    topic = stage.topic(RECORDS, Format.JSON)
    name = stage.new_name(contender.name)
    engine = stage.new_database(name)
    try:
        task = Task(stage, name, topic, RECORDS, name)
        return run(contender, task, engine, expected).rate
    finally:
        stage.drop_database(engine)


def test_ours_is_not_much_slower_than_copy(stage: Stage) -> None:
    expected = expect(stage, make_beats(RECORDS))
    ratios = []
    for _ in range(ATTEMPTS):
        copied = max(rate(stage, RawCopy(size), expected) for size in (5_000, 20_000))
        ratios.append(rate(stage, Ours(), expected) / copied)
        if ratios[-1] >= LEAST:
            return
    pytest.fail(
        f"The worker stored {RECORDS:,} records at {max(ratios):.2f} of COPY's rate at "
        f"best ({ratios}), less than {LEAST}. Run `scripts/bench -c copy -c ours` on "
        "an idle machine; docs/explanation/benchmarks.md tells where the time goes."
    )
