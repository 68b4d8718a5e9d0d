"""What came in by hour is what came in by minute, also after late minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.db.tables import ingest_minute
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.rollup import ingest
from heartbeat_app.storage.rollup.ingest import Hours
from tests.storing import Kept

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
# By Python, from the minutes: what the hours have to be.
SUMMED = ("batches", "consumed", "stored", "duplicate", "dead", "delay_sum_seconds")


@pytest.fixture
def hours_engine(settings: Settings) -> Iterator[Engine]:
    """As the worker's."""
    engine = make_engine(settings, application_name="hours")
    yield engine
    engine.dispose()


@pytest.fixture
def running(engine: Engine) -> datetime:
    """The oldest hour that is not due yet."""
    with engine.connect() as connection:
        now = connection.execute(select(func.now())).scalar_one()
    return (
        (now - ingest.SETTLED)
        .astimezone(UTC)
        .replace(minute=0, second=0, microsecond=0)
    )


def came_in(
    engine: Engine, *minutes: datetime, partition: int = 0, batches: int = 1
) -> None:
    """A minute each, all of them different."""
    rows = [
        {
            "topic_id": "t", "partition": partition, "minute": minute,
            "batches": batches, "consumed": 10 + n, "stored": 7 + n, "duplicate": 2,
            "dead": 1, "delay_sum_seconds": n / 4, "delay_max_seconds": n % 7,
            "delay_histogram": [n, *[1] * 17], "write_seconds": n / 8,
            "delay_min_seconds": n % 7 if n % 3 else None,
        }
        for n, minute in enumerate(minutes)
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(ingest_minute.insert(), rows)


def hours(kept: Kept) -> dict[tuple[int, datetime], Sequence[Any]]:
    """The rows of ingest_hour, by partition and hour."""
    found = kept.all("SELECT * FROM ingest_hour ORDER BY partition, hour")
    return {(row.partition, row.hour): row[3:] for row in found}


def expected(kept: Kept, until: datetime) -> dict[tuple[int, datetime], Sequence[Any]]:
    """The hours that are over, as Python adds them up."""
    sums: dict[tuple[int, datetime], list[Any]] = {}
    for row in kept.all("SELECT * FROM ingest_minute ORDER BY minute"):
        key = row.partition, row.minute.astimezone(UTC).replace(minute=0)
        if key[1] >= until:
            continue
        new = list(row[3:])
        old = sums.setdefault(key, [0] * 6 + [0.0, [0] * 18, 0.0, None])
        sums[key] = [
            *(a + b for a, b in zip(old[:6], new[:6], strict=True)),
            max(old[6], new[6]),
            [a + b for a, b in zip(old[7], new[7], strict=True)],
            old[8] + new[8],
            min((each for each in (old[9], new[9]) if each is not None), default=None),
        ]
    return {key: tuple(value) for key, value in sorted(sums.items())}


def test_hours_that_are_over_are_added_up(
    hours_engine: Engine, engine: Engine, kept: Kept, running: datetime
) -> None:
    """Of two partitions, with a gap of months, at once and not the running hour."""
    for partition in (0, 1):
        came_in(
            engine,
            *(running - 200 * DAY + n * 7 * MINUTE for n in range(300)),
            *(running - HOUR + n * MINUTE for n in range(62)),
            partition=partition,
        )
    statements: list[str] = []
    event.listen(
        hours_engine, "before_cursor_execute", lambda *a: statements.append(a[2])
    )
    job = Hours(hours_engine)
    assert job.run_pass()
    assert hours(kept) == expected(kept, running)
    assert len(hours(kept)) == 2 * (35 + 1)
    # The 35 hours in steps, and that one; not one for each of 200 days.
    assert sum("roll_up_ingest" in each for each in statements) == 7
    statements.clear()
    assert job.run_pass()
    assert len(statements) == 2, "there is nothing to do"


def test_nothing_came_in(hours_engine: Engine, kept: Kept) -> None:
    assert Hours(hours_engine).run_pass()
    assert hours(kept) == {}


def test_a_late_minute_is_taken_in_with_the_next_hour(
    hours_engine: Engine, engine: Engine, kept: Kept, running: datetime
) -> None:
    began = running - 3 * HOUR
    came_in(engine, *(began + n * MINUTE for n in range(60)))
    Hours(hours_engine).run_pass()
    late = began + 59 * MINUTE
    kept.do(f"UPDATE ingest_minute SET batches = 2, dead = 9 WHERE minute = '{late}'")
    came_in(engine, began + 59 * MINUTE, partition=1)
    came_in(engine, began + HOUR)
    assert hours(kept) != expected(kept, running)
    Hours(hours_engine).run_pass()
    assert hours(kept) == expected(kept, running)
    assert len(hours(kept)) == 3


def test_what_is_equal_is_not_written_again(
    hours_engine: Engine, engine: Engine, kept: Kept, running: datetime
) -> None:
    came_in(engine, *(running - 2 * HOUR + n * MINUTE for n in range(100)))
    Hours(hours_engine).run_pass()
    before = kept.all("SELECT xmin::text, * FROM ingest_hour ORDER BY hour")
    Hours(hours_engine).run_pass()
    assert kept.all("SELECT xmin::text, * FROM ingest_hour ORDER BY hour") == before


def test_a_pass_that_is_stopped_goes_on_where_it_was(
    hours_engine: Engine, engine: Engine, kept: Kept, running: datetime
) -> None:
    came_in(engine, *(running - 3 * DAY + n * 30 * MINUTE for n in range(100)))
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    job = Hours(hours_engine)
    assert not job.run_pass(stopped)
    all_of_it = expected(kept, running)
    assert hours(kept) == dict(list(all_of_it.items())[:12])
    assert job.run_pass()
    assert hours(kept) == all_of_it


def test_one_at_a_time(
    hours_engine: Engine, engine: Engine, kept: Kept, running: datetime
) -> None:
    came_in(engine, running - HOUR)
    job = Hours(hours_engine)
    with engine.begin() as other:
        other.execute(
            select(func.roll_up_ingest(running - 9 * HOUR, running - 8 * HOUR))
        )
        assert job.run_pass()
        assert hours(kept) == {}
    assert job.run_pass()
    assert len(hours(kept)) == 1


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2026-01-01 00:30Z", "2026-01-01 02:00Z"),
        ("2026-01-01 00:00Z", "2026-01-01 02:30Z"),
        ("2026-01-01 00:00Z", "2999-01-01 00:00Z"),
        ("2026-01-01 00:00Z", None),
    ],
)
def test_only_whole_hours_that_are_over(
    hours_engine: Engine, since: str, until: str | None
) -> None:
    asked = text("SELECT roll_up_ingest(:since, :until)")
    with hours_engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(asked, {"since": since, "until": until})
    assert errors.sqlstate(caught.value) == "22023"


def test_the_books_say_which_hour_is_not_its_minutes(
    hours_engine: Engine, engine: Engine, kept: Kept, running: datetime
) -> None:
    """But nothing of the hours that are added up again anyway."""
    came_in(engine, *(running - 6 * HOUR + n * 5 * MINUTE for n in range(72)))
    Hours(hours_engine).run_pass()
    assert read_books(engine, deep=True).balanced
    kept.do(
        "UPDATE ingest_hour SET dead = dead + 1, stored = stored - 1"
        f" WHERE hour IN ('{running - 3 * HOUR}', '{running - HOUR}')"
    )
    assert read_books(engine, deep=True).balanced
    wrong = running - 5 * HOUR
    kept.do(f"UPDATE ingest_hour SET batches = 0 WHERE hour = '{wrong}'")
    assert read_books(engine).balanced
    [problem] = read_books(engine, deep=True).problems
    assert "ingest_hour has 1 rows that are not what ingest_minute gives" in problem
    kept.do(problem[problem.index("SELECT") : -1])
    assert read_books(engine, deep=True).balanced


# What the dashboards ask


@pytest.mark.parametrize("added_up", ["nothing", "some", "all"])
@pytest.mark.parametrize("step", ["1 minute", "1 hour", "3 hours"])
def test_between_any_instants_hours_and_minutes_give_what_the_minutes_give(
    hours_engine: Engine,
    engine: Engine,
    kept: Kept,
    running: datetime,
    added_up: str,
    step: str,
) -> None:
    for partition in (0, 1):
        came_in(
            engine,
            *(running - 6 * HOUR + n * MINUTE for n in range(380)),
            partition=partition,
        )
    if added_up == "some":
        until = running - 3 * HOUR
        with engine.begin() as connection:
            asked = select(func.roll_up_ingest(running - 6 * HOUR, until))
            connection.execute(asked)
    elif added_up == "all":
        Hours(hours_engine).run_pass()
    columns = "partition, " + ", ".join(f"sum({each})" for each in SUMMED)
    values = {"step": step}
    for after in (-7 * HOUR, -6 * HOUR, -5.5 * HOUR, -MINUTE, 10 * MINUTE):
        for before in (-5.4 * HOUR, -2 * HOUR, -1.6 * HOUR, MINUTE, 5 * HOUR):
            bounds = {"since": running + after, "until": running + before}
            found, those = (
                kept.all(
                    f"SELECT {columns}, histogram_sum(delay_histogram) FROM {source}"
                    " GROUP BY partition ORDER BY partition",
                    **bounds,
                    **more,
                )
                for source, more in (
                    (
                        "ingest_between(:since, :until, CAST(:step AS INTERVAL))",
                        values,
                    ),
                    (
                        "ingest_minute WHERE minute >= :since AND minute < :until",
                        {},
                    ),
                )
            )
            assert found == those, (after, before)
    rows = kept.all(
        "SELECT FROM ingest_between(:since, :until, CAST(:step AS INTERVAL))",
        since=running - 6 * HOUR, until=running, **values,
    )  # fmt: skip
    by_the_minute = {"nothing": 360, "some": 183, "all": 6}[added_up]
    assert len(rows) == 2 * (360 if step == "1 minute" else by_the_minute)


def test_the_bounds_reach_the_index(engine: Engine) -> None:
    """The function becomes a part of the query, and is not run by itself."""
    with engine.connect() as connection:
        plan = "\n".join(
            connection.scalars(
                text(
                    "EXPLAIN SELECT sum(stored) FROM"
                    " ingest_between('2026-01-01Z', '2026-02-01Z', '1 minute')"
                )
            )
        )
    assert "Function Scan" not in plan
    assert "(minute < '2026-02-01" in plan
