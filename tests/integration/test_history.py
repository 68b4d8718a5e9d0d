"""Answers about customers are right, and cheap however many beats there are."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, TextClause, func, select, text

from heartbeat_app.config import Settings
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.exceptions import TooManyBeatsError, TooSlowError
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.read import customers, history, spans
from heartbeat_app.storage.read.customers import Latest, list_customers, list_latest
from heartbeat_app.storage.read.history import (
    MAX_POINTS,
    STEPS,
    Beat,
    Bucket,
    read_history,
)
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.writer import Writer
from tests.storing import START, Kept, batch_of, beat

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)
IDS = ["a", "A", "ä", "b/c", "..", "a%2Fb", "'; --", "\\N", " ", "{x}", "猫", "z" * 255]


@pytest.fixture
def asking(settings: Settings) -> Iterator[Engine]:
    """Connects as the read API does: with the worker's rights."""
    engine = make_engine(settings, application_name="api", pool_size=1)
    yield engine
    engine.dispose()


def stored(writer: Writer, beats: list[Heartbeat]) -> list[Heartbeat]:
    written = writer.write(batch_of(beats))
    assert written.stored == len(beats)
    return beats


def scattered(days: int, count: int) -> list[Heartbeat]:
    """Beats of all ids over some days, at different instants."""
    chance = random.Random(7)
    seconds = chance.sample(range(days * 86_400), count)
    return [
        beat(chance.choice(IDS), second, chance.randint(1, 300)) for second in seconds
    ]


def in_order(kept: Kept, ids: set[str]) -> list[str]:
    found = kept.all(
        "SELECT c FROM unnest(CAST(:ids AS VARCHAR[])) AS c ORDER BY c", ids=list(ids)
    )
    return [row[0] for row in found]


def roll_up(engine: Engine) -> None:
    """Work out all that is marked."""
    while not Job(engine).run_pass():
        pass


ROLLED_UP = ["nothing", "some", "all", "all, and dropped"]


@pytest.mark.parametrize("rolled_up", ROLLED_UP)
@pytest.mark.parametrize("days_a_query", [1, 2, 50])
def test_the_pages_of_customers_hold_each_once(
    writer: Writer,
    kept: Kept,
    engine: Engine,
    asking: Engine,
    monkeypatch: pytest.MonkeyPatch,
    days_a_query: int,
    rolled_up: str,
) -> None:
    monkeypatch.setattr(spans, "DAYS_A_QUERY", days_a_query)
    beats = stored(writer, scattered(days=5, count=60))
    if rolled_up != "nothing":
        roll_up(engine)
    if rolled_up == "some":
        late = [beat("new", 90), beat("newer", 3 * 86_400), beat("a", 91)]
        writer.write(batch_of(late, asked=60))
        beats = [*beats, *late]
    if rolled_up == "all, and dropped":
        kept.do("DELETE FROM heartbeats")
    expected = in_order(kept, {each.customer_id for each in beats})
    for limit in (1, 5, 1_000):
        found: list[str] = []
        while page := list_customers(
            asking, after=found[-1] if found else "", limit=limit
        ):
            assert len(page) <= limit
            found.extend(page)
        assert found == expected


def test_nobody_is_a_customer_before_the_first_beat(asking: Engine) -> None:
    assert list_customers(asking, after="", limit=10) == []
    assert list_latest(asking, since=START, after="", limit=10) == []
    assert read_history(asking, "a", START, START + DAY).points == []


def test_the_latest_beat_is_that_of_each_customer_who_has_one_since_then(
    writer: Writer, kept: Kept, asking: Engine
) -> None:
    beats = stored(writer, scattered(days=5, count=60))
    for since in (START, START + 3.3 * DAY, START + 4.9 * DAY, START + 9 * DAY):
        last: dict[str, Heartbeat] = {}
        for each in beats:
            before = last.get(each.customer_id)
            if each.timestamp >= since and (
                before is None or each.timestamp > before.timestamp
            ):
                last[each.customer_id] = each
        expected = [
            Latest(one, last[one].timestamp, last[one].heart_rate)
            for one in in_order(kept, set(last))
        ]
        found: list[Latest] = []
        while page := list_latest(
            asking, since=since, after=found[-1].customer_id if found else "", limit=4
        ):
            found.extend(page)
        assert found == expected


@pytest.mark.parametrize("rolled_up", ROLLED_UP)
@pytest.mark.parametrize("days_a_query", [1, 50])
def test_a_bucket_is_what_its_beats_are(
    writer: Writer,
    asking: Engine,
    engine: Engine,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    rolled_up: str,
    days_a_query: int,
) -> None:
    monkeypatch.setattr(spans, "DAYS_A_QUERY", days_a_query)
    beats = scattered(days=3, count=1_000)
    some = 900 if rolled_up == "some" else len(beats)
    stored(writer, beats[:some])
    if rolled_up != "nothing":
        roll_up(engine)
    # Late ones, and a customer of whom nothing was rolled up.
    late = [*beats[some:], beat("new", 90, 50)] if rolled_up == "some" else []
    if late:
        writer.write(batch_of(late, asked=some))
    if rolled_up == "all, and dropped":
        kept.do("DROP TABLE heartbeats_2026_01_01", "DELETE FROM heartbeats")
    for step in STEPS:
        for customer_id in [*IDS[:4], "new"]:
            mine = [b for b in [*beats[:some], *late] if b.customer_id == customer_id]
            check_buckets(asking, customer_id, step, mine)


def check_buckets(
    asking: Engine, customer_id: str, step: str, beats: list[Heartbeat]
) -> None:
    """What is answered is what the beats give, neither end at a whole step."""
    width = STEPS[step]
    since, until = START + timedelta(minutes=3, seconds=7), START + 2.2 * DAY
    buckets: defaultdict[datetime, list[int]] = defaultdict(list)
    for each in beats:
        begin = each.timestamp - (each.timestamp - spans.ORIGIN) % width
        if since - width < begin < until:
            buckets[begin].append(each.heart_rate)
    found = read_history(asking, customer_id, since, until, step)
    assert found.step == step
    assert (found.since - spans.ORIGIN) % width == timedelta()
    assert found.since <= since < found.since + width
    assert found.until - width < until <= found.until
    assert found.points == [
        Bucket(begin, len(r), min(r), max(r), round(sum(r) / len(r), 3))
        for begin, r in sorted(buckets.items())
    ]


def test_the_beats_are_counted_only_where_they_are_not_rolled_up(
    writer: Writer, asking: Engine, engine: Engine, kept: Kept
) -> None:
    minutes = [beat("a", 60 * minute, 60) for minute in range(180)]
    stored(writer, minutes)
    roll_up(engine)
    kept.do(  # so that both can be told apart
        "UPDATE heartbeats_minute SET sum = 99, max = 99",
        "UPDATE heartbeats_hour SET sum = 60 * 99, max = 99",
    )
    writer.write(batch_of([beat("b", 65 * 60, 60)], asked=180))

    def highest(step: str) -> list[int]:
        found = read_history(asking, "a", START, START + timedelta(hours=3), step)
        return [each.max for each in found.points if isinstance(each, Bucket)]

    assert highest("minute") == [99] * 60 + [60] * 60 + [99] * 60
    assert highest("hour") == [99, 60, 99]
    assert highest("day") == [60]


def test_what_was_dropped_is_answered_by_what_is_left_of_it(
    writer: Writer, asking: Engine, engine: Engine, kept: Kept
) -> None:
    stored(writer, [beat("a", 60, 60), beat("a", at=START + 40 * DAY)])
    roll_up(engine)

    def step(since: datetime) -> str:
        return read_history(asking, "a", since, since + timedelta(hours=1)).step

    assert step(START) == "raw"
    kept.do(
        "ALTER TABLE heartbeats DETACH PARTITION heartbeats_2026_01_01",
        "INSERT INTO dropped_days (day, rows, detached_at, dropped_at)"
        " VALUES ('2026-01-01', 1, now(), now())",
    )
    assert (step(START), step(START + 40 * DAY)) == ("minute", "raw")
    kept.do("DROP TABLE heartbeats_minute_2026_01")
    found = read_history(asking, "a", START, START + timedelta(hours=1))
    assert (found.step, len(found.points)) == ("hour", 1)
    # Whoever asks for a step gets it.
    asked = read_history(asking, "a", START, START + timedelta(hours=1), "minute")
    assert asked.points == []


def test_single_beats_are_given_as_long_as_they_are_few(
    writer: Writer, asking: Engine
) -> None:
    hour = timedelta(hours=1)
    exactly = [beat("many", n * 0.72, 60) for n in range(MAX_POINTS)]
    stored(writer, [*exactly, beat("other", 1, 99)])
    found = read_history(asking, "many", START, START + hour)
    assert found.step == "raw"
    assert found.points == [Beat(each.timestamp, 60) for each in exactly]

    one_more = beat("many", 1.5, 200)
    writer.write(batch_of([one_more], asked=MAX_POINTS + 1))
    found = read_history(asking, "many", START, START + hour)
    assert (found.step, len(found.points)) == ("minute", 60)
    with pytest.raises(TooManyBeatsError):
        read_history(asking, "many", START, START + hour, "raw")


@pytest.mark.parametrize(
    ("span", "step"),
    [
        (timedelta(seconds=1), "raw"),
        (timedelta(hours=1), "raw"),
        (timedelta(hours=1, microseconds=1), "minute"),
        (timedelta(minutes=4_999), "minute"),
        (timedelta(minutes=5_000), "hour"),
        (timedelta(days=208), "hour"),
        (timedelta(days=365), "day"),
    ],
)
def test_the_step_is_the_finest_that_fits(
    asking: Engine, span: timedelta, step: str
) -> None:
    since = START + timedelta(seconds=30)  # neither end at a whole step
    found = read_history(asking, "a", since, since + span)
    assert found.step == step
    if step != "raw":
        assert (found.until - found.since) / STEPS[step] <= MAX_POINTS


@pytest.mark.parametrize("year", [2000, 9999])
def test_the_first_and_the_last_instants_can_be_asked_for(
    asking: Engine, year: int
) -> None:
    day = datetime(year, 12, 30, tzinfo=UTC) if year > 2000 else spans.ORIGIN
    for step in ("raw", *STEPS):
        found = read_history(asking, "a", day, day + timedelta(hours=5), step)
        assert found.points == []


def test_it_gives_up_when_it_takes_too_long(
    writer: Writer, asking: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(writer, scattered(days=3, count=30))
    monkeypatch.setattr(spans, "DAYS_A_QUERY", 1)
    monkeypatch.setattr(spans, "ANSWER_SECONDS", -1.0)
    with pytest.raises(TooSlowError):
        list_customers(asking, after="", limit=10)


# A month of ten customers at a beat a minute.
DAYS, CUSTOMERS = 30, 10
FILL = """
INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)
SELECT 'customer-' || c, TIMESTAMPTZ '2026-01-01 00:00Z' + m * INTERVAL '1 minute',
       60 + m % 50
FROM generate_series(1, 10) AS c, generate_series(0, 30 * 1440 - 1) AS m
"""
ROLL_UP = """
INSERT INTO heartbeats_{table}
SELECT customer_id, date_bin('{unit}', "timestamp", '2000-01-01Z'), count(*),
       sum(heart_rate), min(heart_rate), max(heart_rate), 60, 60
FROM heartbeats GROUP BY 1, 2
"""
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def filled(engine: Engine) -> Engine:
    ensure_days(engine, {(BEGIN + n * DAY).date() for n in range(DAYS)})
    with engine.begin() as connection:
        connection.execute(text(FILL))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE heartbeats"))
    return engine


def explain(engine: Engine, statement: TextClause, **values: Any) -> dict[str, Any]:
    with engine.connect() as connection:
        plan: dict[str, Any] = connection.execute(
            text(f"EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) {statement.text}"), values
        ).scalar_one()[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def scans(plan: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The days that a plan opens, and how."""
    opened = [
        node
        for node in nodes(plan)
        if node.get("Relation Name", "").startswith("heartbeats_")
    ]
    return {n["Relation Name"] for n in opened}, {n["Node Type"] for n in opened}


def pages_read(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


INDEXED = {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
SPAN: dict[str, Any] = {"customer_id": "customer-3", "since": BEGIN + 3 * DAY}


@pytest.mark.parametrize("statement", ["BEATS", "BUCKETS"])
def test_a_customers_hours_open_one_day_and_read_the_index(
    filled: Engine, statement: str
) -> None:
    more = {"limit": 5_001, "step": STEPS["minute"], "origin": spans.ORIGIN}
    values = {**SPAN, "until": BEGIN + 3 * DAY + timedelta(hours=3), **more}
    plan = explain(filled, getattr(history, statement), **values)
    opened, ways = scans(plan)
    assert opened == {"heartbeats_2026_01_04"}
    assert ways <= INDEXED
    assert pages_read(plan) < 200, "of 14,400 rows on that day"


@pytest.fixture
def filled_roll_ups(filled: Engine) -> Engine:
    with filled.begin() as connection:
        for month in (BEGIN, BEGIN + 31 * DAY):
            connection.execute(select(func.make_day(month.date())))
            connection.execute(select(func.make_rollup_month(month.date())))
        for table, unit in (("minute", "1 minute"), ("hour", "1 hour")):
            connection.execute(text(ROLL_UP.format(table=table, unit=unit)))
    with filled.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE heartbeats_minute, heartbeats_hour"))
    return filled


def test_a_customers_month_opens_its_roll_ups_and_reads_the_index(
    filled_roll_ups: Engine,
) -> None:
    for step, width in STEPS.items():
        values = {**SPAN, "until": SPAN["since"] + 10 * width}
        plan = explain(filled_roll_ups, history.ROLLED_UP[step], **values)
        opened, ways = scans(plan)
        table = "minute" if step == "minute" else "hour"
        assert opened == {f"heartbeats_{table}_2026_01"}
        assert ways <= INDEXED
        assert pages_read(plan) < 100, "of 7,200 hours or 432,000 minutes"


def test_a_page_of_customers_is_a_step_a_customer_and_day(filled: Engine) -> None:
    values = {"since": BEGIN, "until": BEGIN + DAYS * DAY, "after": "", "limit": 100}
    plan = explain(filled, customers.CUSTOMERS, **values)
    opened, ways = scans(plan)
    assert len(opened) == DAYS
    assert ways <= {"Index Scan", "Index Only Scan"}
    # A descent is two or three pages; all rows are 3,000 of them and 432,000 entries.
    assert pages_read(plan) < 5 * (CUSTOMERS + 1) * DAYS


def test_a_page_of_customers_is_a_step_a_customer_and_month(
    filled_roll_ups: Engine,
) -> None:
    plan = explain(
        filled_roll_ups, customers.CUSTOMERS_ROLLED_UP, after="", limit=CUSTOMERS
    )
    opened, ways = scans(plan)
    assert opened == {"heartbeats_hour_2026_01", "heartbeats_hour_2026_02"}
    assert ways <= {"Index Scan", "Index Only Scan"}
    assert pages_read(plan) < 5 * (CUSTOMERS + 1) * 2
    # And no day, since none is marked.
    with filled_roll_ups.connect() as connection:
        connection.execute(text("BEGIN; LOCK TABLE heartbeats_2026_01_01"))
        assert list_customers(filled_roll_ups, after="customer-5", limit=2) == [
            "customer-6",
            "customer-7",
        ]


def test_the_latest_beats_open_only_the_days_since_then(filled: Engine) -> None:
    since = BEGIN + 28 * DAY
    values = {"since": since, "until": "infinity", "exact_since": since}
    plan = explain(filled, customers.LATEST, **values, after="", limit=100)
    opened, ways = scans(plan)
    assert opened == {"heartbeats_2026_01_29", "heartbeats_2026_01_30"}
    assert ways <= {"Index Scan", "Index Only Scan"}
    assert pages_read(plan) < 20 * (CUSTOMERS + 1)
