"""What the roll-ups cost a backlog: ours with them, with their marks alone, without."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from bench.beats import CUSTOMERS, DAY_BEGIN, Window, make_beats
from bench.contenders.ours import Ours
from bench.formats import plain
from bench.judge import Spread, ratios
from bench.measures.backlog import as_figures, run_topic
from bench.measures.setting import Setting
from bench.run import expect

WITHOUT = "none"
# Each beside the other that it is compared with: the first round begins with the
# first, the next with the last.
VARIANTS = {
    "ours": "with marks and job, as it is",
    "marks-only": "with marks, without the job",
    WITHOUT: "without either",
}


def measure(setting: Setting) -> dict[str, Any]:
    """Rounds of the three."""
    count = setting.records
    # As people have them: a beat a second of each.
    window = Window(DAY_BEGIN, DAY_BEGIN + timedelta(seconds=count / CUSTOMERS))
    expected = expect(setting.stage, make_beats(count, window))
    topic = f"a-beat-a-second-{count}"
    setting.stage.load(topic, map(plain, make_beats(count, window)), count)
    rounds = []
    for number in range(1, setting.rounds + 1):
        figures = {}
        for name in VARIANTS if number % 2 else reversed(VARIANTS):
            worker = Ours() if name == "ours" else Ours(fewer_roll_ups=name)
            setting.progress.tell(f"Round {number}: {VARIANTS[name]}")
            figures[name] = as_figures(
                run_topic(setting, worker, topic, window, expected)
            )
            rate = figures[name]["records_per_second"]
            setting.progress.tell(f"  {rate:,.0f} records/s")
        rounds.append(figures)
    return {"records": count, "rounds": rounds}


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """Each against the worker without."""
    rounds = figures["rounds"]
    rates = [
        {name: run["records_per_second"] for name, run in each.items()}
        for each in rounds
    ]
    lines = [
        "## Roll-ups",
        "",
        f"{figures['records']:,} records in one backlog, a beat a second of "
        f"{CUSTOMERS:,} customers, {len(rounds)} rounds. The job works out their "
        "minutes meanwhile, for which PostgreSQL reads each beat again.",
        "",
        "| worker | records/s | against without | CPU s per million |",
        "|---|---|---|---|",
    ]
    for name, title in VARIANTS.items():
        rate = Spread.of([each[name] for each in rates]).words(0)
        ratio = Spread.of(ratios(rates, name, [WITHOUT])).words()
        cpu = Spread.of(
            [each[name]["cpu_seconds"] * 1e6 / figures["records"] for each in rounds]
        ).words(1)
        lines.append(f"| {title} | {rate} | {ratio} | {cpu} |")
    return [*lines, ""]
