"""Every query of the dashboard, as Grafana sends it, on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from tests.deploy import containers
from tests.deploy.composefile import PROJECT
from tests.deploy.containers import ComposePostgresql
from tests.deploy.grafana_macros import View, expand

pytestmark = pytest.mark.integration

DASHBOARD = json.loads((PROJECT / "grafana/dashboards/heartbeats.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
TEN_MINUTES = View(NOON, NOON + timedelta(minutes=10), "1m")


@dataclass
class Answer:
    columns: list[str]
    rows: list[tuple[Any, ...]]


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


@pytest.fixture
def ten_minutes_of_beats(owner: Connection) -> Iterator[None]:
    """Three customers, a beat a second each, of 60, 70 and 80; and a busy second.

    In its last second 2,000 beats of 70 come before 200 beats of 200.
    """
    beats = [
        (f"customer-{number}", NOON + timedelta(seconds=second), 60 + 10 * number)
        for second in range(600)
        for number in range(3)
    ]
    busy = NOON + timedelta(seconds=599)
    beats += [
        (f"crowd-{n}", busy + timedelta(microseconds=n + 1), 70 if n < 2000 else 200)
        for n in range(2200)
    ]
    with owner.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE heartbeats_2025_01_01 PARTITION OF heartbeats"
            " FOR VALUES FROM ('2025-01-01Z') TO ('2025-01-02Z')"
        )
        execute_values(
            cursor,
            'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate) VALUES %s',
            beats,
        )
    yield
    with owner.cursor() as cursor:
        cursor.execute("DROP TABLE heartbeats_2025_01_01")


@pytest.fixture
def ten_minutes_of_books(owner: Connection) -> Iterator[None]:
    """Two partitions, 300 beats a minute each, all within 0.05 to 0.1 s but the last.

    Minute 7 brought nothing. Before them the topic was deleted and made again.
    """
    histogram = [0] * 18
    histogram[6] = 300  # up to 0.1 s
    slow = [0] * 18
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
                    1.0,
                )
                for partition in (0, 1)
                for minute in range(10)
                if minute != 7
            ],
        )
        execute_values(
            cursor,
            "INSERT INTO partition_ledger (topic, topic_id, partition, first_offset,"
            " next_offset, end_offset, consumed, stored, updated_at) VALUES %s",
            [
                ("heartbeats", "old", 0, 0, 10, 99_999, 10, 10, NOON),
                ("heartbeats", "new", 0, 0, 500, 500, 500, 500, datetime.now(UTC)),
                ("heartbeats", "new", 1, 0, 700, 775, 700, 700, datetime.now(UTC)),
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
    yield
    with owner.cursor() as cursor:
        cursor.execute("TRUNCATE ingest_minute, partition_ledger, dead_letters")


def ask(grafana: Connection, query: str, view: View = TEN_MINUTES) -> Answer:
    with grafana.cursor() as cursor:
        cursor.execute(expand(query, view))
        assert cursor.description is not None
        rows = [
            tuple(float(v) if isinstance(v, Decimal) else v for v in row)
            for row in cursor.fetchall()
        ]
        return Answer([column.name for column in cursor.description], rows)


def ask_panel(grafana: Connection, title: str, view: View = TEN_MINUTES) -> Answer:
    (target,) = PANELS[title]["targets"]
    return ask(grafana, target["rawSql"], view)


@pytest.mark.parametrize("title", PANELS)
@pytest.mark.parametrize("interval", ["1s", "15s", "1m", "2h", "1d"])
def test_an_empty_database_is_no_error(
    grafana: Connection, title: str, interval: str
) -> None:
    view = View(NOON, NOON + timedelta(days=2), interval)
    rows = ask_panel(grafana, title, view).rows
    # The rate counts nothing as 0; all others show their words for no data.
    assert title == "Beats Per Second" or rows == []


def test_heartbeat_rate_over_time(
    grafana: Connection, ten_minutes_of_beats: None
) -> None:
    answer = ask_panel(grafana, "Heartbeat Rate Over Time")
    assert answer.columns == ["time", "average", "lowest", "highest"]
    assert answer.rows == [
        (NOON + timedelta(minutes=minute), pytest.approx(70, abs=0.1), 60, 80)
        for minute in range(10)
    ]


def test_a_crowded_step_is_read_in_part(
    grafana: Connection, ten_minutes_of_beats: None
) -> None:
    """The 200 beats of 200 lie behind the first 1,000 of their step."""
    last = View(NOON + timedelta(seconds=598), NOON + timedelta(seconds=600), "1s")
    answer = ask_panel(grafana, "Heartbeat Rate Over Time", last)
    assert [row[3] for row in answer.rows] == [80, 80]


def test_only_the_range_that_is_shown_is_read(
    grafana: Connection, ten_minutes_of_beats: None
) -> None:
    """The first step begins before the range: what lies there is left out."""
    view = View(NOON + timedelta(seconds=90), NOON + timedelta(seconds=95), "1m")
    answer = ask_panel(grafana, "Heartbeat Rate Over Time", view)
    assert answer.rows == [(NOON + timedelta(minutes=1), 70, 60, 80)]
    after_all = View(NOON + timedelta(seconds=599.5), TEN_MINUTES.end, "1m")
    assert ask_panel(grafana, "Heartbeat Rate Over Time", after_all).rows == []


def test_the_query_of_the_old_readme_still_works(
    grafana: Connection, ten_minutes_of_beats: None
) -> None:
    answer = ask(
        grafana,
        'SELECT "timestamp" AS "time", "heart_rate" AS "value" FROM heartbeats'
        ' WHERE $__timeFilter("timestamp") ORDER BY "timestamp" ASC',
        View(NOON, NOON + timedelta(seconds=9), "1s"),
    )
    assert answer.columns == ["time", "value"]
    assert len(answer.rows) == 30
    assert answer.rows[0][0] == NOON


def test_beats_per_second(grafana: Connection, ten_minutes_of_books: None) -> None:
    answer = ask_panel(grafana, "Beats Per Second")
    assert answer.columns == ["time", "stored", "duplicate", "refused"]
    assert answer.rows == [
        (NOON + timedelta(minutes=m), *((0, 0, 0) if m == 7 else (10, 1, 0.2)))
        for m in range(10)
    ]


def test_beats_per_second_in_steps_that_the_range_cuts(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    """12:01 to 12:06 in steps of 5 minutes: the second step has one minute only."""
    view = View(NOON + timedelta(minutes=1), NOON + timedelta(minutes=6), "5m")
    rows = ask_panel(grafana, "Beats Per Second", view).rows
    assert [(row[0], row[1]) for row in rows] == [
        (NOON, 10),
        (NOON + timedelta(minutes=5), 10),
    ]


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
    view = View(now - timedelta(minutes=3), now, "1m")
    rows = ask_panel(grafana, "Beats Per Second", view).rows
    assert {row[1] for row in rows} == {0}


def test_delay_from_beat_to_row(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    answer = ask_panel(grafana, "Delay From Beat To Row")
    assert answer.columns == ["time", "p50", "p95", "max"]
    usual = (pytest.approx(0.075), pytest.approx(0.0975), 0.099)
    slow = (pytest.approx(3.5), pytest.approx(4.85), 4.5)
    assert answer.rows == [
        ((NOON + timedelta(minutes=m)).timestamp(), *(slow if m == 9 else usual))
        for m in range(10)
        if m != 7
    ]


def test_lag_is_that_of_the_topic_that_there_is(
    grafana: Connection, ten_minutes_of_books: None
) -> None:
    answer = ask_panel(grafana, "Lag")
    assert answer.columns == ["topic", "partition", "lag", "next offset", "last moved"]
    assert [row[:4] for row in answer.rows] == [
        ("heartbeats", 0, 0, 500),
        ("heartbeats", 1, 75, 700),
    ]
    assert all(0 <= row[4] < 60 for row in answer.rows)


def test_refused_by_reason(grafana: Connection, ten_minutes_of_books: None) -> None:
    answer = ask_panel(grafana, "Refused By Reason")
    assert answer.columns == ["reason", "refused", "last", "for example"]
    assert answer.rows == [
        ("heart_rate", 8, TEN_MINUTES.end, "The heart rate is 0"),
        ("not_json", 3, NOON + timedelta(minutes=2), "Not JSON"),
    ]


def test_latest_per_customer(grafana: Connection, ten_minutes_of_beats: None) -> None:
    view = View(NOON, NOON + timedelta(seconds=300), "1m")
    answer = ask_panel(grafana, "Latest Per Customer", view)
    assert answer.columns == ["customer", "last beat", "heart rate"]
    assert answer.rows == [
        (f"customer-{number}", view.end, 60 + 10 * number) for number in range(3)
    ]


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
    view = View(NOON - timedelta(hours=1), NOON, "1m")
    rows = ask_panel(grafana, "Latest Per Customer", view).rows
    assert ("last", NOON, 70) in rows
    assert ("early", NOON - timedelta(milliseconds=10), 70) in rows


def test_columns_that_are_formatted_exist(
    grafana: Connection, ten_minutes_of_beats: None, ten_minutes_of_books: None
) -> None:
    for title, panel in PANELS.items():
        formatted = {o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]}
        assert formatted <= set(ask_panel(grafana, title).columns), title


def test_grafanas_sessions_are_short_and_compile_nothing(grafana: Connection) -> None:
    assert ask(grafana, "SHOW statement_timeout").rows == [("30s",)]
    assert ask(grafana, "SHOW jit").rows == [("off",)]


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
    with (
        grafana.cursor() as cursor,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        cursor.execute(statement)
