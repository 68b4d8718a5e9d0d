"""A backlog: every contender on the same records, in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.beats import WHOLE_DAY, Window, make_beats
from bench.contender import Contender, Task
from bench.judge import Spread, best, noise_words, ratios
from bench.measures.setting import Setting
from bench.pictures import Bar, bars
from bench.run import Outcome, RunFailedError, Summary, expect, run

OURS = "ours"
PICTURE = "bench-backlog.svg"


def measure(setting: Setting) -> dict[str, Any]:
    """Run all rounds."""
    stage = setting.stage
    expected: dict[int, Summary] = {}
    rounds: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    who = [each for variants in setting.contenders.values() for each in variants]
    for each in who:
        count = records_of(each, setting.records)
        if count not in expected:
            expected[count] = expect(stage, make_beats(count))
    for number in range(1, setting.rounds + 1):
        figures: dict[str, Any] = {}
        for each in setting.in_order_of(number):
            if each.name in failed:
                continue
            count = records_of(each, setting.records)
            setting.progress.tell(f"Round {number}: {each.title}, {count:,} records")
            try:
                outcome = run_once(setting, each, count, expected[count])
            except RunFailedError as error:
                failed[each.name] = str(error).splitlines()[0]
                setting.progress.tell(str(error))
                continue
            setting.progress.tell(f"  {outcome.rate:,.0f} records/s")
            figures[each.name] = as_figures(outcome)
        rounds.append(figures)
    return {
        "records": setting.records,
        "contenders": [
            {
                "name": each.name,
                "title": each.title,
                "settings": each.settings,
                "is_limit": each.is_limit,
                "is_consumer": each.is_consumer,
            }
            for each in who
        ],
        "rounds": rounds,
        "failed": failed,
    }


def records_of(contender: Contender, records: int) -> int:
    """Slow contenders get fewer."""
    return min(records, contender.most_records or records)


def run_once(
    setting: Setting, contender: Contender, count: int, expected: Summary
) -> Outcome:
    """One run with the records of a whole day."""
    stage = setting.stage
    reads = contender.is_consumer
    topic = stage.topic(count, contender.format) if reads else "none"
    return run_topic(setting, contender, topic, WHOLE_DAY, expected)


def run_topic(
    setting: Setting,
    contender: Contender,
    topic: str,
    window: Window,
    expected: Summary,
) -> Outcome:
    """One run on a database of its own, which is dropped afterwards."""
    stage = setting.stage
    name = stage.new_name(contender.name)
    engine = stage.new_database(name)
    try:
        task = Task(stage, name, topic, expected.rows, name, window)
        return run(contender, task, engine, expected)
    finally:
        stage.drop_database(engine)


def as_figures(outcome: Outcome) -> dict[str, float]:
    """For the results."""
    return {
        "records": outcome.records,
        "records_per_second": round(outcome.rate),
        "seconds": round(outcome.seconds, 3),
        "start_seconds": round(outcome.start_seconds, 2),
        "cpu_seconds": round(outcome.usage.cpu_seconds, 2),
        "peak_mb": round(outcome.usage.peak_mb),
    }


def rates_of(figures: dict[str, Any]) -> list[dict[str, float]]:
    """By round, the rate of each contender."""
    return [
        {name: run["records_per_second"] for name, run in each.items()}
        for each in figures["rounds"]
    ]


def limits_of(figures: dict[str, Any]) -> list[str]:
    """The names of the limit's variants."""
    return [each["name"] for each in figures["contenders"] if each["is_limit"]]


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """A table of the contenders, the fastest first, and how each was set up."""
    rates = rates_of(figures)
    limits = limits_of(figures)
    lines = [
        "## A backlog",
        "",
        f"{figures['records']:,} records, {len(rates)} rounds in changing order. The "
        "ratio is that of one round, against the best batch size of raw COPY in it; "
        "the median of the rounds, and the lowest and highest. A slow contender gets "
        "fewer records: its rate is what compares.",
        "",
        noise_words([rate for each in rates if (rate := best(each, limits))]),
        "",
        f"![Records a second against raw COPY](images/{PICTURE})",
        "",
        "| | records | records/s | against raw COPY | ours is faster by | CPU s per "
        "million | peak MB | first row after s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _row(each, figures, rates, limits)
        for each in _ordered(figures, rates)
        if _runs(figures, each["name"])
    ]
    lines += ["", "Settings:", ""]
    lines += [
        f"- {each['title']}: {each['settings']}" for each in figures["contenders"]
    ]
    if figures["failed"]:
        lines += ["", "Not counted:", ""]
        lines += [f"- {name}: {why}" for name, why in figures["failed"].items()]
    return [*lines, ""]


def pictures(figures: dict[str, Any]) -> Mapping[str, str]:
    """The ratios as bars."""
    rates = rates_of(figures)
    limits = limits_of(figures)
    rows = []
    for each in _ordered(figures, rates):
        found = ratios(rates, each["name"], limits)
        if found and not each["is_limit"]:
            spread = Spread.of(found)
            ours = each["name"] == OURS
            rows.append(
                Bar(each["title"], spread.median, spread.low, spread.high, ours)
            )
    title = "Records a second from Kafka into PostgreSQL"
    return {PICTURE: bars(title, "1 = raw COPY of the same rows", rows)}


def _runs(figures: dict[str, Any], name: str) -> list[dict[str, float]]:
    return [each[name] for each in figures["rounds"] if name in each]


def _ordered(
    figures: dict[str, Any], rates: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    def rate(each: dict[str, Any]) -> float:
        found = [of[each["name"]] for of in rates if each["name"] in of]
        return Spread.of(found).median if found else 0.0

    return sorted(figures["contenders"], key=rate, reverse=True)


def _row(
    each: dict[str, Any],
    figures: dict[str, Any],
    rates: Sequence[Mapping[str, float]],
    limits: Sequence[str],
) -> str:
    name = each["name"]
    runs = _runs(figures, name)

    def spread(value: str, digits: int = 0) -> str:
        return Spread.of([run[value] for run in runs]).words(digits)

    against = ratios(rates, name, limits)
    faster = [] if name == OURS or each["is_limit"] else ratios(rates, OURS, [name])
    cells = [
        f"**{each['title']}**" if name == OURS else each["title"],
        f"{runs[0]['records']:,}",
        spread("records_per_second"),
        Spread.of(against).words(2 if Spread.of(against).median > 0.1 else 4)
        if against
        else "",
        Spread.of(faster).words(1) if faster else "",
    ]
    if each["is_consumer"]:
        cpu = [run["cpu_seconds"] / run["records"] * 1e6 for run in runs]
        cells += [
            Spread.of(cpu).words(1),
            spread("peak_mb"),
            spread("start_seconds", 1),
        ]
    else:
        # It makes its rows itself, which is not what is measured.
        cells += [""] * 3
    return "| " + " | ".join(cells) + " |"
