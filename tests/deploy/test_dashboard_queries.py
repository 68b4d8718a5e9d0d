"""Every query of the dashboards and rules, as Grafana sends it, on PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from testkit import dashboards
from testkit.dashboards import FIRST_QUERY, SPANS, Query
from testkit.grafana_macros import View, expand
from tests.deploy import containers
from tests.deploy.containers import ComposePostgresql

pytestmark = pytest.mark.integration

QUERIES = list(dashboards.queries())
PANELS = {
    f"{name}: {panel['title']}": panel
    for name, dashboard in dashboards.load().items()
    for panel in dashboard["panels"]
}
every_query = pytest.mark.parametrize("query", QUERIES, ids=str)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
TEN = NOON, NOON + 10 * MINUTE


@dataclass
class Answer:
    columns: list[str]
    rows: list[tuple[Any, ...]]

    @property
    def row(self) -> dict[str, Any]:
        """The only one."""
        (row,) = self.rows
        return dict(zip(self.columns, row, strict=True))


@pytest.fixture(scope="module")
def migrated(
    compose_postgresql: ComposePostgresql, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = containers.app_folder(tmp_path_factory.mktemp("app"))
    done = containers.migrate(folder, postgresql=compose_postgresql.port)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def owner(
    compose_postgresql: ComposePostgresql, migrated: None
) -> Iterator[Connection]:
    with contextlib.closing(compose_postgresql.connect()) as connection:
        yield connection


@pytest.fixture(scope="module")
def grafana(
    compose_postgresql: ComposePostgresql, migrated: None
) -> Iterator[Connection]:
    """What Grafana connects as: the reader, with the password of its own container."""
    variables = containers.environment("grafana")
    assert compose_postgresql.database == variables["POSTGRESQL_DATABASE"]
    connection = compose_postgresql.connect(
        user="heartbeat_reader", password=variables["POSTGRESQL_READER_PASSWORD"]
    )
    with contextlib.closing(connection):
        yield connection


@pytest.fixture(autouse=True)
def emptied(owner: Connection) -> Iterator[None]:
    yield
    with owner.cursor() as cursor:
        cursor.execute(
            "TRUNCATE heartbeats, heartbeats_minute, heartbeats_hour,"
            " heartbeats_minute_all, heartbeats_hour_all, rollup_marks, dropped_days,"
            " ingest_minute, ingest_hour, partition_ledger, dead_letters,"
            " dropped_dead_letters"
        )


Beats = Sequence[tuple[str, datetime, int]]


def store(owner: Connection, beats: Beats, *, rolled_up: bool = True) -> None:
    """Store beats, and roll them up as the worker does."""
    with owner.cursor() as cursor:
        for day in {at.date() for _, at, _ in beats}:
            cursor.execute("SELECT make_day(%s)", (day,))
        execute_values(
            cursor,
            'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate) VALUES %s',
            beats,
            page_size=1000,
        )
        if rolled_up:
            for hour in {
                at.replace(minute=0, second=0, microsecond=0) for _, at, _ in beats
            }:
                cursor.execute("SELECT roll_up_minutes(%s, %s)", (hour, hour + HOUR))
                cursor.execute("SELECT roll_up_hour(%s)", (hour,))


@pytest.fixture
def ten_minutes_of_beats(owner: Connection) -> None:
    """Three customers, a beat a second each, of 60, 70 and 80."""
    store(
        owner,
        [
            (f"customer-{number}", NOON + timedelta(seconds=second), 60 + 10 * number)
            for second in range(600)
            for number in range(3)
        ],
    )


@pytest.fixture
def ten_minutes_of_books(owner: Connection) -> None:
    """Two partitions, 300 beats a minute each, all within 0.05 to 0.1 s but the last.

    Minute 7 brought nothing. Before them the topic was deleted and made again.
    """
    histogram = [0] * 18
    histogram[6] = 300  # up to 0.1 s
    slow = [0] * 50
    slow[11] = 300  # up to 5 s
    with owner.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO ingest_minute (topic_id, partition, minute, batches, consumed,"
            " stored, duplicate, dead, delay_sum_seconds, delay_max_seconds,"
            " delay_histogram, write_seconds) VALUES %s",
            [
                (
                    *("new", partition, NOON + timedelta(minutes=minute)),
                    *(60, 336, 300, 30, 6, 20.0),
                    *((4.5, slow) if minute == 9 else (0.099, histogram)),
                    1.5,
                )
                for partition in (0, 1)
                for minute in range(10)
                if minute != 7
            ],
        )
        execute_values(
            cursor,
            "INSERT INTO partition_ledger (topic, topic_id, partition, first_offset,"
            " next_offset, end_offset, consumed, stored, dead, missing, updated_at)"
            " VALUES %s",
            [
                ("heartbeats", "old", 0, 0, 10, 99_999, 10, 10, 0, 0, NOON),
                *(
                    ("heartbeats", "new", *row, datetime.now(UTC))
                    for row in (
                        (0, 0, 500, 500, 500, 488, 12, 0),
                        (1, 0, 700, 775, 697, 697, 0, 3),
                    )
                ),
            ],
        )
        execute_values(
            cursor,
            'INSERT INTO dead_letters (topic, topic_id, partition, "offset", headers,'
            " reason, detail, first_seen) VALUES %s",
            [
                (
                    *("heartbeats", "new", 0, n, "[]"),
                    "not_json" if n < 3 else "heart_rate",
                    "Not JSON" if n < 3 else "The heart rate is 0",
                    NOON + timedelta(minutes=n),
                )
                for n in range(12)  # two of them after the ten minutes
            ],
        )


def query(title: str) -> Query:
    (found,) = [each for each in QUERIES if each.title == title]
    return found


def run(connection: Connection, sql: str) -> Answer:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        assert cursor.description is not None
        rows = [
            tuple(float(v) if isinstance(v, Decimal) else v for v in row)
            for row in cursor.fetchall()
        ]
        return Answer([column.name for column in cursor.description], rows)


def ask(
    grafana: Connection,
    title: str,
    start: datetime = TEN[0],
    end: datetime = TEN[1],
    interval: str = "1m",
    **variables: str,
) -> Answer:
    """The answer of a panel, rule or variable."""
    asked = query(title)
    view = View(start, end, interval, {**asked.variables, **variables})
    return run(grafana, expand(asked.sql, view))


@every_query
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_an_empty_database_is_no_error(
    grafana: Connection, query: Query, span: timedelta
) -> None:
    rows = run(grafana, query.expand(NOON - span, NOON)).rows
    # What counts says 0; all others show their words for no data.
    counts = query.where == "alerting" or query.title in (
        "Beats Per Second",
        "Customers Heard In The Last Minute",
        "Books Off By",
        "Roll-up Backlog",
        "Tables",
    )
    assert counts or rows == []


@every_query
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_only_what_is_shown_is_opened(
    grafana: Connection, owner: Connection, query: Query, span: timedelta
) -> None:
    """Beats of the last hour of the range at most, roll-ups of its months.

    The customers to choose from are those of the last two months.
    """
    days = [(NOON + n * DAY).date() for n in range(-40, 5)]
    months = [(NOON + 30 * n * DAY).date() for n in range(-15, 3)]
    with owner.cursor() as cursor:
        # Months are made of days.
        cursor.execute(
            "SELECT make_day(day) FROM unnest(%s::date[]) AS day", ([*days, *months],)
        )
        cursor.execute(
            "SELECT make_rollup_month(month) FROM unnest(%s::date[]) AS month",
            (months,),
        )
    start = NOON - span
    plan = run(grafana, "EXPLAIN (FORMAT JSON) " + query.expand(start, NOON)).rows
    opened = set(re.findall(r'"Relation Name": "(\w+)"', json.dumps(plan)))
    assert opened or query.where == "alerting"
    raw = {days_of(name) for name in opened if re.search(r"\d_\d\d_\d\d$", name)}
    assert raw <= {max(start, NOON - HOUR).date(), NOON.date()}
    if query.title in ("Heartbeat Rate Over Time", "Heart Rate"):
        assert bool(raw) == (span <= HOUR)
    least = min(start, NOON - 31 * DAY) if query.title == "customer" else start
    rolled_up = {name[-7:] for name in opened if re.search(r"[a-z]_\d{4}_\d\d$", name)}
    assert rolled_up <= {
        f"{least + n * DAY:%Y_%m}" for n in range((NOON - least).days + 2)
    } - {f"{NOON + DAY * 40:%Y_%m}"}


def days_of(partition: str) -> date:
    return date.fromisoformat(partition[-10:].replace("_", "-"))


@every_query
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_what_lies_outside_of_the_range_changes_nothing(
    grafana: Connection,
    owner: Connection,
    ten_minutes_of_beats: None,
    ten_minutes_of_books: None,
    query: Query,
    span: timedelta,
) -> None:
    if query.title in ("customer", "Tables"):
        return  # they are about all there is
    asked = query.expand(TEN[1] - span, TEN[1], customer="customer-0")
    before = without_ages(run(grafana, asked))
    for at in (TEN[1] - span - 31 * DAY, TEN[1] + 2 * DAY):
        store(owner, [("customer-0", at + timedelta(seconds=n), 299) for n in range(3)])
        with owner.cursor() as cursor:
            cursor.execute(
                "INSERT INTO ingest_minute SELECT 'new', 0, %s, 60, 900, 800, 50, 50,"
                " 9, 9, array_fill(50::bigint, '{18}'), 99",
                (at.replace(minute=0),),
            )
            cursor.execute(
                'UPDATE dead_letters SET first_seen = %s WHERE "offset" = 11', (at,)
            )
    assert without_ages(run(grafana, asked)) == before


@every_query
@pytest.mark.parametrize("span", [5 * MINUTE, 9 * DAY])
def test_the_sessions_time_zone_makes_no_difference(
    grafana: Connection,
    ten_minutes_of_beats: None,
    ten_minutes_of_books: None,
    query: Query,
    span: timedelta,
) -> None:
    asked = query.expand(TEN[1] - span, TEN[1], customer="customer-0")
    answers = []
    with grafana.cursor() as cursor:
        for zone in ("Asia/Kolkata", "America/St_Johns", "UTC"):
            cursor.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
            answers.append(without_ages(run(grafana, asked)))
    assert answers[0] == answers[1] == answers[2]


def without_ages(answer: Answer) -> list[dict[str, object]]:
    """Seconds until now go on meanwhile."""
    ages = {"last moved", "oldest waits"}
    return [
        {
            column: value
            for column, value in zip(answer.columns, row, strict=True)
            if column not in ages
        }
        for row in answer.rows
    ]


@every_query
def test_columns_are_formatted(
    grafana: Connection,
    ten_minutes_of_beats: None,
    ten_minutes_of_books: None,
    query: Query,
) -> None:
    """What is formatted is there, each line has a colour, each number a unit."""
    panel = PANELS.get(str(query))
    if panel is None:
        return  # of a rule, or a variable
    answer = run(grafana, query.expand(*TEN, customer="customer-0"))
    formatted = {
        override["matcher"]["options"]: {each["id"] for each in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    assert formatted.keys() <= set(answer.columns)
    if panel["type"] == "timeseries":
        lines = set(answer.columns) - {"time"}
        assert lines == {name for name in formatted if "color" in formatted[name]}
    if panel["type"] == "table":
        assert answer.rows
        for name, value in zip(answer.columns, answer.rows[0], strict=True):
            if isinstance(value, int | float | datetime) and name != "partition":
                assert "unit" in formatted[name], name


# Overview


def test_heartbeat_rate_over_time_from_minutes(
    grafana: Connection, owner: Connection, ten_minutes_of_beats: None
) -> None:
    """And from nothing else: the hour has the fast beat, too."""
    store(owner, [("fast", NOON + timedelta(minutes=5.5), 190)])
    answer = ask(grafana, "Heartbeat Rate Over Time")
    assert answer.columns == ["time", "average", "lowest", "highest"]
    fast = ((180 * 70 + 190) / 181, 60, 190)
    assert answer.rows == [
        (NOON + n * MINUTE, *(fast if n == 5 else (70, 60, 80))) for n in range(10)
    ]


def test_heartbeat_rate_over_time_from_beats(
    grafana: Connection, owner: Connection, ten_minutes_of_beats: None
) -> None:
    """Also those that are not rolled up yet, and none outside of the range."""
    store(owner, [("late", NOON + timedelta(seconds=60.5), 190)], rolled_up=False)
    start, end = NOON + timedelta(seconds=59.5), NOON + timedelta(seconds=62)
    rows = ask(grafana, "Heartbeat Rate Over Time", start, end, "1s").rows
    assert rows == [
        (NOON + timedelta(seconds=59), 70, 60, 80),
        (NOON + timedelta(seconds=60), 100, 60, 190),
        (NOON + timedelta(seconds=61), 70, 60, 80),
    ]


def test_heartbeat_rate_over_time_from_hours(
    grafana: Connection, ten_minutes_of_beats: None
) -> None:
    """Also of days whose beats and minutes are gone; no step is below an hour."""
    ends = NOON - 9 * DAY, NOON + 5 * MINUTE
    rows = ask(grafana, "Heartbeat Rate Over Time", *ends, "30m").rows
    assert rows == [(NOON, 70, 60, 80)]


def test_the_next_coarser_ones_take_the_place_of_what_was_dropped(
    grafana: Connection, owner: Connection, ten_minutes_of_beats: None
) -> None:
    view = NOON, NOON + 4 * MINUTE, "1s"
    title, heat = "Heartbeat Rate Over Time", "Heart Rates Of All Customers"
    with owner.cursor() as cursor:
        drop(cursor, NOON.date())
        rows = ask(grafana, title, *view).rows
        assert rows == [(NOON + n * MINUTE, 70, 60, 80) for n in range(4)]
        assert len(ask(grafana, heat, *view).rows) == 4
        cursor.execute("TRUNCATE heartbeats_minute_all")
        assert ask(grafana, title, *view).rows == [(NOON, 70, 60, 80)]
        assert len(ask(grafana, heat, *view).rows) == 1


def drop(cursor: Any, day: date) -> None:
    """A day's beats, as the retention does."""
    cursor.execute(f"TRUNCATE heartbeats_{day:%Y_%m_%d}")
    cursor.execute("INSERT INTO dropped_days VALUES (%s, 0, now(), now())", (day,))


def test_nothing_is_drawn_where_nothing_came(
    grafana: Connection, owner: Connection
) -> None:
    minutes = [0, 1, 4, 5]
    store(owner, [("c", NOON + n * MINUTE, 60) for n in minutes])
    rows = ask(grafana, "Heartbeat Rate Over Time").rows
    assert [(row[0] - NOON) / MINUTE for row in rows] == [0, 1, 2, 4, 5]
    assert [row[1] for row in rows] == [60, 60, None, 60, 60]


def test_the_query_of_the_old_readme_still_works(
    grafana: Connection, ten_minutes_of_beats: None
) -> None:
    view = View(NOON, NOON + timedelta(seconds=9), "1s")
    answer = run(grafana, expand(FIRST_QUERY, view))
    assert answer.columns == ["time", "value"]
    assert len(answer.rows) == 30
    assert answer.rows[0][0] == NOON


def test_customers_heard_in_the_last_minute(
    grafana: Connection, owner: Connection, ten_minutes_of_beats: None
) -> None:
    store(owner, [("long ago", TEN[1] - timedelta(seconds=61), 60)])
    title = "Customers Heard In The Last Minute"
    assert ask(grafana, title).row == {"customers": 3}
    assert ask(grafana, title, NOON - DAY, NOON - HOUR).row == {"customers": 0}


def test_books_that_balance_are_off_by_nothing(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    assert ask(grafana, "Books Off By").row == {"off by": 0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('DELETE FROM dead_letters WHERE "offset" < 5', 5),
        (
            'DELETE FROM dead_letters WHERE "offset" < 5;'
            " INSERT INTO dropped_dead_letters VALUES ('new', 0, 4)",
            1,
        ),
        ('UPDATE dead_letters SET partition = 7 WHERE "offset" = 0', 2),
    ],
)
def test_books_that_are_off(
    grafana: Connection,
    owner: Connection,
    ten_minutes_of_books: None,
    change: str,
    expected: int,
) -> None:
    with owner.cursor() as cursor:
        cursor.execute(change)
    assert ask(grafana, "Books Off By").row == {"off by": expected}
    assert ask(grafana, "Books off").row == {"off by": expected}


def test_books_whose_offsets_are_off(
    grafana: Connection, owner: Connection, ten_minutes_of_books: None
) -> None:
    """As only a damaged table has them: PostgreSQL checks each row."""
    name = "ledger_accounts_for_every_offset"
    with owner.cursor() as cursor:
        cursor.execute(f"ALTER TABLE partition_ledger DROP CONSTRAINT {name}")
        cursor.execute("UPDATE partition_ledger SET missing = missing + 2")
        assert ask(grafana, "Books Off By").row == {"off by": 6}
        cursor.execute("DELETE FROM partition_ledger")
        cursor.execute(
            f"ALTER TABLE partition_ledger ADD CONSTRAINT {name}"
            " CHECK (next_offset - first_offset = consumed + missing + gap)"
        )


def test_beats_per_second(grafana: Connection, ten_minutes_of_books: None) -> None:
    answer = ask(grafana, "Beats Per Second")
    assert answer.columns == ["time", "stored", "duplicate", "refused"]
    assert answer.rows == [
        (NOON + n * MINUTE, *((0, 0, 0) if n == 7 else (10, 1, 0.2))) for n in range(10)
    ]


def test_beats_per_second_in_steps_that_the_range_cuts(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    """12:01 to 12:06 in steps of 5 minutes: the second step has one minute only."""
    rows = ask(grafana, "Beats Per Second", NOON + MINUTE, NOON + 6 * MINUTE, "5m").rows
    assert [(row[0], row[1]) for row in rows] == [(NOON, 10), (NOON + 5 * MINUTE, 10)]


def test_the_running_minute_is_left_out(
    grafana: Connection, ten_minutes_of_books: None, owner: Connection
) -> None:
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE ingest_minute SET minute = date_trunc('minute', now())"
            " WHERE minute = %s",
            (NOON,),
        )
    now = datetime.now(UTC)
    rows = ask(grafana, "Beats Per Second", now - timedelta(minutes=3), now).rows
    assert {row[1] for row in rows} == {0}


def test_delay_from_beat_to_row(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    answer = ask(grafana, "Delay From Beat To Row")
    assert answer.columns == ["time", "p50", "p95", "p99"]
    # The longest are 0.099 and 4.5 s; of the shortest nothing is known.
    usual = tuple(pytest.approx(0.05 + 0.049 * q) for q in (0.5, 0.95, 0.99))
    slow = tuple(pytest.approx(2 + 2.5 * q) for q in (0.5, 0.95, 0.99))
    assert answer.rows == [
        (NOON + n * MINUTE, *(slow if n == 9 else usual)) for n in range(10) if n != 7
    ]


def test_the_delay_of_ten_minutes_together(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    """One minute of nine is slow: more than 5 of 100 beats, fewer than half."""
    (row,) = ask(grafana, "Delay From Beat To Row", *TEN, "20m").rows
    assert row[:2] == (NOON, pytest.approx(0.05 + 0.05 * 4.5 / 8))
    assert 2 < row[2] < 5


BY_HOUR = (
    "Beats Per Second",
    "Delay From Beat To Row",
    "By Partition",
)


@pytest.fixture
def ten_days_of_minutes(owner: Connection, ten_minutes_of_books: None) -> None:
    """Every seventh minute of the days before, no two alike, of two partitions."""
    with owner.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ingest_minute SELECT 'new', n %% 2,"
            " %s - n * interval '7 minutes', 1 + n %% 9, 35 + n %% 50, 30 + n %% 50,"
            " 3, 2, 1, 1, array_fill(0::bigint, ARRAY[n %% 17])"
            " || (30 + n %% 50)::bigint || array_fill(0::bigint, ARRAY[17 - n %% 17]),"
            " n / 8.0"
            " FROM generate_series(1, 2100) AS n",
            (NOON,),
        )


def add_up(owner: Connection, since: datetime, until: datetime) -> None:
    with owner.cursor() as cursor:
        cursor.execute("SELECT roll_up_ingest(%s, %s)", (since, until))


@pytest.mark.parametrize("title", BY_HOUR)
@pytest.mark.parametrize("added_up", [3 * DAY, 11 * DAY])
@pytest.mark.parametrize("end", [TEN[1] - 33 * MINUTE, TEN[1]])
@pytest.mark.parametrize("interval", ["30m", "1d"])
def test_many_days_by_the_hour_are_what_their_minutes_are(
    grafana: Connection,
    owner: Connection,
    ten_days_of_minutes: None,
    title: str,
    added_up: timedelta,
    end: datetime,
    interval: str,
) -> None:
    """Whatever is added up yet, and neither end at a whole hour."""
    view = end - 9 * DAY, end, interval
    by_minute = almost(ask(grafana, title, *view))
    assert by_minute
    begin = NOON - 11 * DAY
    add_up(owner, begin, begin + added_up)
    assert almost(ask(grafana, title, *view)) == by_minute


def almost(answer: Answer) -> list[dict[str, object]]:
    """Sums of fractions depend on their order."""
    return [
        {n: f"{v:.9g}" if isinstance(v, float) else v for n, v in row.items()}
        for row in without_ages(answer)
    ]


@pytest.mark.parametrize("title", BY_HOUR)
def test_many_days_are_read_by_the_hour_as_far_as_they_are_added_up(
    grafana: Connection, owner: Connection, ten_days_of_minutes: None, title: str
) -> None:
    view = NOON - 9 * DAY, TEN[1], "1h"
    add_up(owner, NOON - 11 * DAY, NOON)
    before = without_ages(ask(grafana, title, *view))
    short = without_ages(ask(grafana, title, NOON - 7 * DAY, TEN[1], "30m"))
    with owner.cursor() as cursor:
        cursor.execute("DELETE FROM ingest_minute WHERE minute < %s", (NOON,))
        assert without_ages(ask(grafana, title, *view)) == before
        cursor.execute("DELETE FROM ingest_minute")
        assert without_ages(ask(grafana, title, *view)) != before
    assert without_ages(ask(grafana, title, NOON - 7 * DAY, TEN[1], "30m")) != short


@pytest.mark.parametrize(
    ("start", "interval", "steps"),
    [(NOON, "1m", 10), (NOON, "5m", 2), (NOON - 2 * DAY, "15m", 1)],
)
def test_heart_rates_of_all_customers(
    grafana: Connection,
    ten_minutes_of_beats: None,
    start: datetime,
    interval: str,
    steps: int,
) -> None:
    answer = ask(grafana, "Heart Rates Of All Customers", start, TEN[1], interval)
    for row in answer.rows:
        named = dict(zip(answer.columns, row, strict=True))
        beats = {n: v for n, v in named.items() if n != "time" and v}
        assert beats == dict.fromkeys(("60 to 69", "70 to 79", "80 to 89"), 600 / steps)
    assert len(answer.rows) == steps


def test_the_heat_map_has_a_row_for_each_rate(
    grafana: Connection, owner: Connection
) -> None:
    rates = range(1, 301)
    store(owner, [("c", NOON + timedelta(seconds=n / 10), n) for n in rates])
    answer = ask(grafana, "Heart Rates Of All Customers")
    _, *counts = answer.rows[0]
    assert sum(counts) == len(rates)
    assert counts == [49, *[10] * 14, 111]
    # From the lowest to the highest, as they are drawn.
    starts = [int(n) for name in answer.columns for n in re.findall(r"^\d+", name)]
    assert all(one < other for one, other in pairwise(starts))


def test_the_heat_map_has_steps_of_one_width(
    grafana: Connection, owner: Connection
) -> None:
    """Grafana takes the distance of the first two for all."""
    store(owner, [("c", NOON + n * MINUTE, 60) for n in (0, 5, 6)])
    answer = ask(grafana, "Heart Rates Of All Customers")
    assert [row[0] for row in answer.rows] == [NOON + n * MINUTE for n in range(7)]
    sixties = [row[answer.columns.index("60 to 69")] for row in answer.rows]
    assert sixties == [1, None, None, None, None, 1, 1]


def test_refused_by_reason(grafana: Connection, ten_minutes_of_books: None) -> None:
    answer = ask(grafana, "Refused By Reason")
    assert answer.columns == ["reason", "refused", "last", "for example"]
    assert answer.rows == [
        ("heart_rate", 7, NOON + 9 * MINUTE, "The heart rate is 0"),
        ("not_json", 3, NOON + 2 * MINUTE, "Not JSON"),
    ]


def test_what_a_replay_stored_is_not_refused(
    grafana: Connection, owner: Connection, ten_minutes_of_books: None
) -> None:
    with owner.cursor() as cursor:
        for offset, outcome in enumerate(
            ["stored", "duplicate", "refused: not_json", "erased", "conflict"]
        ):
            cursor.execute(
                "UPDATE dead_letters SET replay_outcome = %s, replayed_at = now()"
                ' WHERE "offset" = %s',
                (outcome, offset),
            )
    rows = ask(grafana, "Refused By Reason").rows
    assert [row[:2] for row in rows] == [("heart_rate", 7), ("not_json", 1)]


def test_latest_per_customer(grafana: Connection, ten_minutes_of_beats: None) -> None:
    end = NOON + timedelta(seconds=300)
    for start in (NOON, NOON - 300 * DAY):
        answer = ask(grafana, "Latest Per Customer", start, end)
        last = end - timedelta(seconds=1)
        assert answer.columns == ["customer", "last beat", "heart rate"]
        assert answer.rows == [(f"customer-{n}", last, 60 + 10 * n) for n in range(3)]


def test_latest_per_customer_reads_the_newest_beats(
    grafana: Connection, ten_minutes_of_beats: None, owner: Connection
) -> None:
    """Of 25,000 more beats of one customer before noon, and one last beat at noon."""
    with owner.cursor() as cursor:
        cursor.execute(
            'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
            " SELECT 'early', %(noon)s - n * interval '10 ms', 70"
            " FROM generate_series(1, 25000) AS n"
            " UNION ALL SELECT 'last', %(noon)s, 70",
            {"noon": NOON},
        )
    ends = NOON - HOUR, NOON + timedelta(milliseconds=1)
    rows = ask(grafana, "Latest Per Customer", *ends).rows
    assert ("last", NOON, 70) in rows
    assert ("early", NOON - timedelta(milliseconds=10), 70) in rows


# Customer


ODD = 'O\'Brien "x" $maximum \\'


@pytest.fixture
def two_hours_of_one(owner: Connection) -> None:
    """A beat every 10 s: 60 for an hour, then 20 minutes' silence, then 120."""
    seconds = [*range(0, 3600, 10), *range(4800, 7200, 10)]
    store(
        owner,
        [(ODD, NOON + timedelta(seconds=s), 60 if s < 3600 else 120) for s in seconds]
        + [("another", NOON + timedelta(seconds=s), 200) for s in range(0, 7200, 30)],
    )


def test_a_customers_rate_from_beats(
    grafana: Connection, two_hours_of_one: None
) -> None:
    """The line goes on over 10 s between beats, and not over 20 minutes."""
    start, end = NOON + 59 * MINUTE, NOON + 81 * MINUTE
    rows = ask(grafana, "Heart Rate", start, end, "1s", customer=ODD).rows
    steps = [(row[0] - start).total_seconds() for row in rows]
    before = [float(n) for n in range(0, 60, 10)]
    after = [1260.0 + n for n in range(0, 60, 10)]
    assert steps == [*before, 51, *after]
    assert [row[1:] for row in rows] == [
        *[(60, 60, 60)] * 6,
        (None, None, None),
        *[(120, 120, 120)] * 6,
    ]


def test_a_customers_rate_from_minutes(
    grafana: Connection, two_hours_of_one: None
) -> None:
    rows = ask(grafana, "Heart Rate", NOON, NOON + 2 * HOUR, "1m", customer=ODD).rows
    assert len(rows) == 60 + 1 + 40
    assert rows[60] == (NOON + HOUR, None, None, None)
    assert rows[61] == (NOON + 80 * MINUTE, 120, 120, 120)


def test_a_customers_rate_from_hours(
    grafana: Connection, two_hours_of_one: None, owner: Connection
) -> None:
    store(owner, [(ODD, NOON + 5 * HOUR, 90)])
    rows = ask(
        grafana, "Heart Rate", NOON - 3 * DAY, NOON + 6 * HOUR, "30m", customer=ODD
    ).rows
    assert rows == [
        (NOON, 60, 60, 60),
        (NOON + HOUR, 120, 120, 120),
        (NOON + 2 * HOUR, None, None, None),
        (NOON + 5 * HOUR, 90, 90, 90),
    ]


def test_what_the_retention_dropped_is_shown_from_roll_ups(
    grafana: Connection, two_hours_of_one: None, owner: Connection
) -> None:
    view = NOON, NOON + HOUR - timedelta(seconds=1), "1s"
    with owner.cursor() as cursor:
        drop(cursor, NOON.date())
        rows = ask(grafana, "Heart Rate", *view, customer=ODD).rows
        assert rows == [(NOON + n * MINUTE, 60, 60, 60) for n in range(60)]
        cursor.execute("TRUNCATE heartbeats_minute, heartbeats_minute_all")
        rows = ask(grafana, "Heart Rate", *view, customer=ODD).rows
        assert rows == [(NOON, 60, 60, 60)]


def test_a_range_that_reaches_beyond_the_retention(
    grafana: Connection, two_hours_of_one: None, owner: Connection
) -> None:
    """The minutes of the first hour were dropped: its hour takes their place."""
    view = NOON, NOON + 2 * HOUR
    with owner.cursor() as cursor:
        for table in ("heartbeats_minute", "heartbeats_minute_all"):
            cursor.execute(f"DELETE FROM {table} WHERE minute < %s", (NOON + HOUR,))
    rows = ask(grafana, "Heart Rate", *view, customer=ODD).rows
    assert rows == [(NOON, 60, 60, 60), (NOON + HOUR, 120, 120, 120)]
    rows = ask(grafana, "Minutes By Zone", *view, customer=ODD).rows
    assert [row[1] for row in rows] == [60, 0, 40, 0, 0, 0]
    row = ask(grafana, "Resting, Average, Highest", *view, customer=ODD).row
    assert row == {"resting": 60, "average": 84, "highest": 120}
    rows = ask(grafana, "Heartbeat Rate Over Time", *view, "1s").rows
    assert [row[0] for row in rows] == [NOON, NOON + HOUR]
    rows = ask(grafana, "Heart Rates Of All Customers", *view, "1s").rows
    assert [(row[0], sum(filter(None, row[1:]))) for row in rows] == [
        (NOON, 360 + 120),
        (NOON + HOUR, 240 + 120),
    ]


def test_beats_that_were_dropped_are_shown_by_the_minute(
    grafana: Connection, two_hours_of_one: None, owner: Connection
) -> None:
    midnight = NOON + 12 * HOUR
    beats = [(ODD, midnight + n * MINUTE, 60) for n in range(-5, 5)]
    store(owner, beats)
    with owner.cursor() as cursor:
        drop(cursor, NOON.date())
    view = midnight - 2 * MINUTE, midnight + 2 * MINUTE, "1s"
    rows = ask(grafana, "Heart Rate", *view, customer=ODD).rows
    assert rows == [(midnight + n * MINUTE, 60, 60, 60) for n in range(-2, 2)]
    rows = ask(grafana, "Heartbeat Rate Over Time", *view).rows
    assert [row[0] for row in rows] == [midnight + n * MINUTE for n in range(-2, 2)]


def test_resting_average_and_highest(grafana: Connection, owner: Connection) -> None:
    """20 minutes of 50 with one beat of 180, 80 minutes of 100."""
    store(
        owner,
        [
            ("c", NOON + n * MINUTE + timedelta(seconds=s), rate)
            for n in range(100)
            for s, rate in ((0, 50 if n < 20 else 100), (30, 50 if n < 20 else 100))
        ]
        + [("c", NOON + timedelta(seconds=45), 180)],
    )
    title = "Resting, Average, Highest"
    row = ask(grafana, title, NOON, NOON + 2 * HOUR, customer="c").row
    average = (20 * 2 * 50 + 80 * 2 * 100 + 180) / 201
    assert row == {"resting": 50, "average": pytest.approx(average), "highest": 180}
    by_hour = ask(grafana, title, NOON - 40 * DAY, NOON + 2 * HOUR, customer="c").row
    assert by_hour["average"] == pytest.approx(average)
    assert by_hour == row


def test_minutes_by_zone(grafana: Connection, two_hours_of_one: None) -> None:
    """60 minutes of 60 and 40 minutes of 120."""
    ends = NOON, NOON + 2 * HOUR
    rows = ask(grafana, "Minutes By Zone", *ends, customer=ODD).rows
    assert rows == [
        ("under 50 %", 60),
        ("50 to 60 %", 0),
        ("60 to 70 %", 40),  # 120 of 190
        ("70 to 80 %", 0),
        ("80 to 90 %", 0),
        ("90 % and more", 0),
    ]
    rows = ask(grafana, "Minutes By Zone", *ends, customer=ODD, maximum="150").rows
    assert [row[1] for row in rows] == [60, 0, 0, 0, 40, 0]  # a limit is the upper's
    rows = ask(grafana, "Minutes By Zone", NOON - 40 * DAY, ends[1], customer=ODD).rows
    assert [row[1] for row in rows] == [60, 0, 40, 0, 0, 0]


def test_a_beat_an_hour_is_a_minute_an_hour(
    grafana: Connection, owner: Connection
) -> None:
    """However long the range is."""
    store(owner, [("c", NOON - n * HOUR, 60) for n in range(1, 24 * 40 + 1)])
    for days in (31, 33, 40):
        start = NOON - days * DAY
        rows = ask(grafana, "Minutes By Zone", start, NOON, customer="c").rows
        assert sum(row[1] for row in rows) == days * 24


def test_hours_of_which_no_minutes_are_known_are_told_apart(
    grafana: Connection, owner: Connection, two_hours_of_one: None
) -> None:
    """They were dropped by a version that did not keep their averages."""
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE heartbeats_hour SET minute_rates = NULL WHERE hour = %s", (NOON,)
        )
    ends = NOON - 40 * DAY, NOON + 2 * HOUR
    rows = ask(grafana, "Minutes By Zone", *ends, customer=ODD).rows
    assert rows[2] == ("60 to 70 %", 40)
    assert rows[-1] == ("unknown, at most", 60)


@pytest.mark.parametrize("days", [0, 9, 40])
def test_the_bucket_that_begins_at_the_end_is_left_out(
    grafana: Connection, owner: Connection, days: int
) -> None:
    """And the one that the range begins in is whole."""
    hour = NOON - HOUR
    at = timedelta(seconds=30)
    store(owner, [("c", hour + n * MINUTE + at, 60) for n in range(60)])
    store(owner, [("c", hour - MINUTE, 200), ("c", NOON, 160), ("c", NOON + at, 160)])
    view = hour + timedelta(seconds=40) - days * DAY, NOON
    row = ask(grafana, "Resting, Average, Highest", *view, customer="c").row
    average = 60 if days == 0 else (60 * 60 + 200) / 61
    assert row["average"] == pytest.approx(average)
    assert row["highest"] == (60 if days == 0 else 200)
    for title in ("Heart Rate", "Heartbeat Rate Over Time"):
        rows = ask(grafana, title, *view, customer="c").rows
        assert 160 not in [row[3] for row in rows]
        assert rows[-1][0] >= hour
    (first, *_) = ask(grafana, "Heartbeat Rate Over Time", hour + at * 1.5, NOON).rows
    assert first == (hour, 60, 60, 60)


def test_the_customers_to_choose_from(
    grafana: Connection, two_hours_of_one: None, owner: Connection
) -> None:
    store(owner, [("gone", NOON - 70 * DAY, 60), ("lately", NOON - 20 * DAY, 60)])
    rows = ask(grafana, "customer").rows
    assert rows == [(ODD,), ("another",), ("lately",)]  # by their bytes


# Pipeline


def test_by_partition(grafana: Connection, ten_minutes_of_books: None) -> None:
    answer = ask(grafana, "By Partition")
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    assert all(0 <= row.pop("last moved") < 60 for row in rows)
    came = {"stored": 2700, "duplicate": 270, "refused": 54}
    assert rows == [
        {"topic": "heartbeats", "partition": 0, **came, "missing": 0, "lag": 0},
        {"topic": "heartbeats", "partition": 1, **came, "missing": 3, "lag": 75},
    ]
    row = ask(grafana, "By Partition", NOON - DAY, NOON - HOUR).rows[0]
    assert row[2:5] == (0, 0, 0)


def test_a_topic_that_is_no_longer_read_has_no_lag(
    grafana: Connection, owner: Connection, ten_minutes_of_books: None
) -> None:
    with owner.cursor() as cursor:
        cursor.execute(
            "INSERT INTO partition_ledger (topic, topic_id, partition, first_offset,"
            " next_offset, end_offset, updated_at) VALUES"
            " ('earlier', 'before', 0, 0, 0, 1500, now() - interval '1 day')"
        )
    answer = ask(grafana, "By Partition")
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    assert [(row["topic"], row["lag"]) for row in rows] == [
        ("earlier (no longer read)", None), ("heartbeats", 0), ("heartbeats", 75),
    ]  # fmt: skip


def test_roll_up_backlog(grafana: Connection, owner: Connection) -> None:
    assert ask(grafana, "Roll-up Backlog").row == {"minutes": 0, "oldest waits": 0}
    with owner.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO rollup_marks (since, until, marked_at) VALUES %s",
            [
                (NOON, NOON + 5 * MINUTE, datetime.now(UTC) - 2 * MINUTE),
                (NOON + 3 * MINUTE, NOON + 6 * MINUTE, datetime.now(UTC)),
                (NOON + HOUR, NOON + HOUR + MINUTE, datetime.now(UTC)),
            ],
        )
    row = ask(grafana, "Roll-up Backlog").row
    assert row["minutes"] == 7
    assert 120 <= row["oldest waits"] < 180


def test_tables(grafana: Connection, ten_minutes_of_beats: None) -> None:
    answer = ask(grafana, "Tables")
    rows = {row[0]: row[1:] for row in answer.rows}
    partitions, _, size = rows["heartbeats"]
    assert partitions >= 1
    assert size > 1800 * 60
    assert [row[3] for row in answer.rows] == sorted(
        (row[3] for row in answer.rows), reverse=True
    )


def test_the_size_of_each_day(grafana: Connection, owner: Connection) -> None:
    days = [datetime(2025, 3, n, tzinfo=UTC) for n in (1, 2, 3)]
    store(owner, [("c", day, 60) for day in days])
    rows = ask(grafana, "Size Of Each Day", days[0] - HOUR, days[1] + HOUR).rows
    assert [row[0] for row in rows] == days[:2]
    assert all(row[1] > 0 for row in rows)


# Alert rules


def booked(owner: Connection, ago: timedelta, *, stored: int, dead: int) -> None:
    with owner.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ingest_minute (topic_id, partition, minute, consumed, stored,"
            " dead, delay_sum_seconds, delay_max_seconds, delay_histogram,"
            " write_seconds) VALUES ('t', 0, date_trunc('minute', now() - %s), %s, %s,"
            " %s, 0, 0, '{}', 0)",
            (ago, stored + dead, stored, dead),
        )


def test_refusals(grafana: Connection, owner: Connection) -> None:
    title = "Refusals above 1 %"
    assert ask(grafana, title).row == {"share": 0}
    booked(owner, HOUR, stored=0, dead=500)  # long ago
    booked(owner, MINUTE, stored=980, dead=20)
    assert ask(grafana, title).row == {"share": 0.02}


def test_a_rule_asks_for_one_number(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    for each in QUERIES:
        if each.where == "alerting":
            (value,) = ask(grafana, each.title).row.values()
            assert isinstance(value, float), each.title


# What the role may, and how it is set


def test_grafanas_sessions_are_short_and_compile_nothing(grafana: Connection) -> None:
    assert run(grafana, "SHOW statement_timeout").rows == [("30s",)]
    assert run(grafana, "SHOW jit").rows == [("off",)]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM heartbeats",
        "INSERT INTO dead_letters DEFAULT VALUES",
        "UPDATE partition_ledger SET next_offset = 0",
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
        "SELECT make_day('2030-01-01')",
        "CREATE ROLE another",
    ],
)
def test_grafana_can_change_nothing(grafana: Connection, statement: str) -> None:
    with grafana.cursor() as cursor:
        # Its transactions only read, which it may change, and then it may no more.
        cursor.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
