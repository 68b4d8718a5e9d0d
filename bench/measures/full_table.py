"""A day that holds many rows already, against an empty one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, text

from bench.beats import CUSTOMERS, DAY_BEGIN, DAY_LENGTH, Window, make_beats
from bench.contender import Contender, Task
from bench.formats import plain
from bench.judge import Spread, ratios
from bench.measures.setting import Setting
from bench.run import Summary, expect, run

OURS = "ours"
FILLED = Window(DAY_BEGIN, DAY_BEGIN + DAY_LENGTH / 2)
# Each run into the full table takes a new part of the day's second half.
PART = timedelta(minutes=20)
ROWS_A_STATEMENT = 500_000

# As make_beats does it: the customers in turn, evenly over the time.
FILL = text(
    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
    " SELECT 'customer-' || lpad((n % :customers)::text, 4, '0'),"
    " :since + n * make_interval(secs => :step), 60 + n % 41"
    " FROM generate_series(:first, :last) AS n"
)


def measure(setting: Setting) -> dict[str, Any]:
    """Rounds of COPY and ours into an empty and into a full table."""
    stage, count = setting.stage, setting.records
    setting.progress.tell(f"Filling a table with {setting.table_rows:,} rows")
    full = stage.new_database("full")
    fill(setting, full, setting.table_rows)
    rounds = []
    part = 0
    for number in range(1, setting.rounds + 1):
        rates: dict[str, float] = {}
        for each in setting.in_order_of(number):
            window = Window(
                FILLED.until + part * PART, FILLED.until + (part + 1) * PART
            )
            part += 1
            expected = expect(stage, make_beats(count, window))
            topic = f"part-{part}-{count}"
            if not each.is_limit:
                records = map(plain, make_beats(count, window))
                stage.load(topic, records, count)
            name = stage.new_name(each.name)
            empty = stage.new_database(name)
            pairs = [("empty", empty), ("full", full)]
            for which, engine in pairs if number % 2 else reversed(pairs):
                setting.progress.tell(f"Round {number}: {each.title}, {which} table")
                rate = _rate(setting, each, engine, topic, window, expected)
                rates[f"{each.name} {which}"] = round(rate)
                setting.progress.tell(f"  {rate:,.0f} records/s")
            stage.drop_database(empty)
        rounds.append(rates)
    stage.drop_database(full)
    return {
        "records": count,
        "table_rows": setting.table_rows,
        "titles": {
            each.name: each.title
            for variants in setting.contenders.values()
            for each in variants
        },
        "rounds": rounds,
    }


def fill(setting: Setting, engine: Engine, rows: int) -> None:
    """Put rows into the first half of the day, in the order of their time."""
    step = (FILLED.until - FILLED.since).total_seconds() / (rows + 1)
    with setting.progress.task("Filling the table", rows) as advance:
        for first in range(0, rows, ROWS_A_STATEMENT):
            last = min(rows, first + ROWS_A_STATEMENT) - 1
            with engine.begin() as connection:
                connection.execute(
                    FILL,
                    {
                        "customers": CUSTOMERS,
                        "since": FILLED.since,
                        "step": step,
                        "first": first,
                        "last": last,
                    },
                )
            advance(last - first + 1)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # As autovacuum will have left it; else it would come in the middle of a run.
        connection.execute(text("VACUUM (ANALYZE) heartbeats"))


def _rate(
    setting: Setting,
    contender: Contender,
    engine: Engine,
    topic: str,
    window: Window,
    expected: Summary,
) -> float:
    stage = setting.stage
    with stage.admin() as connection:
        connection.execute(text("CHECKPOINT"))
    database = engine.url.database
    assert database is not None
    # In the full table the ledger knows other topics: the group is new each time.
    group = stage.new_name(f"full-{contender.name}")
    task = Task(stage, database, topic, setting.records, group, window)
    return run(contender, task, engine, expected).rate


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """Full against empty."""
    rounds = figures["rounds"]
    lines = [
        "## A full table",
        "",
        f"{figures['records']:,} records into a day that holds "
        f"{figures['table_rows']:,} rows, against the same records into an empty one, "
        f"{len(rounds)} rounds.",
        "",
        "| | empty, records/s | full, records/s | full against empty |",
        "|---|---|---|---|",
    ]
    for name, title in figures["titles"].items():
        full, empty = f"{name} full", f"{name} empty"
        lines.append(
            f"| {f'**{title}**' if name == OURS else title} "
            f"| {Spread.of([each[empty] for each in rounds]).words(0)} "
            f"| {Spread.of([each[full] for each in rounds]).words(0)} "
            f"| {Spread.of(ratios(rounds, full, [empty])).words()} |"
        )
    return [*lines, ""]
