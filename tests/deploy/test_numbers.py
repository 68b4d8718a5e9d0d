"""Each number that is shown, worked out anew from what was sent by another engine.

DuckDB knows the rows as they lie in `heartbeats`, and what was sent when; it shares
neither SQL nor code with the product. A panel, rule or field that nobody checks fails.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sqlalchemy import Engine, text

from heartbeat_app.config import load_settings
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.live.board import Board
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.read.customers import Latest, list_customers, list_latest
from heartbeat_app.storage.read.history import Beat, Bucket, finest_step, read_history
from heartbeat_app.storage.read.live import LiveReader, read_last_hour
from heartbeat_app.storage.read.reads import LastMinute, Recent, Summary, read_summary
from heartbeat_app.storage.rollup.ingest import Hours
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from testkit import dashboards
from testkit.grafana_macros import View, expand
from tests.deploy import containers
from tests.deploy.containers import ComposePostgresql
from tests.deploy.test_prometheus import ANSWERS
from tests.storing import TOPIC, TOPIC_ID, batch_of

pytestmark = pytest.mark.integration

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
END = datetime(2025, 11, 3, 12, 34, 56, 789_000, tzinfo=UTC)
DENSE = "R&D #1 +x%20 = 'O\"Brien' \\N"
SPARSE = "once an hour; ä💓猫"
OTHERS = ["..", "a/b?c=d&e", " ", "{x}", "<b>", "z" * 255]
ENDS = [END, END.replace(minute=0, second=0, microsecond=0)]
SPANS = [
    5 * MINUTE, HOUR - 7 * MINUTE, HOUR, 6 * HOUR, 25 * HOUR, 2 * DAY, 8 * DAY,
    9 * DAY, 32 * DAY, 33 * DAY, 365 * DAY,
]  # fmt: skip
VIEWS = [(end - span, end) for end in ENDS for span in SPANS]
# On what is on the disk, and on what only a server knows.
NO_NUMBERS = {"Tables", "Size Of Each Day"}


@dataclasses.dataclass
class Sent:
    """One record of a batch: when that was stored, and what it is; None: no beat."""

    arrived: datetime
    partition: int
    beat: Heartbeat | None


def population() -> list[tuple[datetime, int, list[Heartbeat | None]]]:
    """Batches: when they are stored, their partition, their records."""
    chance = random.Random(20)
    found: list[tuple[datetime, int, list[Heartbeat | None]]] = []

    def arrive(at: datetime, *items: Heartbeat | None) -> None:
        # At a whole millisecond, in one of two partitions.
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)
        found.append((at, chance.randrange(2), list(items)))

    # A beat an hour for three days, then every six hours; half a day comes at once.
    hours = [*range(72), *range(72, 35 * 24, 6)]
    for first in range(0, len(hours), 12):
        sparse = [
            END - n * HOUR - timedelta(seconds=chance.randrange(600))
            for n in hours[first : first + 12]
        ]
        late = timedelta(seconds=chance.expovariate(1 / 900))
        beats = [Heartbeat(SPARSE, at, chance.randint(40, 200)) for at in sparse]
        arrive(max(sparse) + late, *beats)
    # Hours with beats every few seconds, of one customer, and gaps; the ends of both.
    pauses = [500, 1000, 2000, 90_000]  # milliseconds
    for day in (0, 0, 1, 3, 7, 8, 20, 31):
        begin = END - day * DAY - timedelta(minutes=chance.randrange(30, 120))
        at = begin
        for _ in range(15):
            items: list[Heartbeat | None] = []
            for _ in range(40):
                at += timedelta(milliseconds=chance.choice(pauses))
                items.append(Heartbeat(DENSE, at, chance.randint(50, 180)))
            behind = chance.choice([0.004, 0.03, 0.3, 4.0, 15.0, 310.0, 7000.0, 2e5])
            arrive(at + timedelta(seconds=behind), *items, *chance.choices(items, k=2))
    # Others, on days anywhere in the year, those of the clock's change too.
    days = [datetime(2025, 3, 30, tzinfo=UTC), datetime(2025, 10, 26, tzinfo=UTC)]
    days += [END.replace(hour=0) - chance.randrange(300) * DAY for _ in range(12)]
    for midnight in days:
        for _ in range(6):
            at = midnight + timedelta(seconds=chance.randrange(3 * 3600))
            late = timedelta(seconds=chance.expovariate(1 / 5))
            items = [
                Heartbeat(chance.choice(OTHERS), at + n * MINUTE, 30 + 40 * n % 270)
                for n in range(5)
            ]
            arrive(at + 4 * MINUTE + late, *items, None)
    # Clocks that are ahead; a beat at each bound of the ranges; others' rates.
    for end in ENDS:
        arrive(end - MINUTE, Heartbeat("ahead", end + 3 * MINUTE, 99))
        for bound in (end, end - HOUR, end - 6 * HOUR):
            for name in (DENSE, "edge"):
                arrive(bound, Heartbeat(name, bound, 250))
                arrive(bound + 2 * MINUTE, Heartbeat(name, bound, 251))  # a conflict
    return sorted(found, key=lambda batch: batch[0])


class Raw:
    """DuckDB, on tables `beats` (ts, customer, rate) and `sent` (what came when).

    Instants are microseconds since 1970.
    """

    def __init__(self, folder: Path, beats: Path, sent: Sequence[Sent]) -> None:
        self._db = duckdb.connect()
        self._db.execute(
            "CREATE TABLE beats AS SELECT * FROM read_csv(?, header = false, columns ="
            " {'ts': 'BIGINT', 'customer': 'VARCHAR', 'rate': 'INTEGER'})",
            [str(beats)],
        )
        path = folder / "sent.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
            for number, each in enumerate(sent):
                beat = each.beat
                which = (
                    ("", 0, -1)
                    if beat is None
                    else (beat.customer_id, micros(beat.timestamp), beat.heart_rate)
                )
                writer.writerow((number, micros(each.arrived), each.partition, *which))
        self._db.execute(
            "CREATE TABLE sent AS WITH all_of AS (SELECT * FROM read_csv(?,"
            " header = false, columns = {'number': 'BIGINT', 'arrived': 'BIGINT',"
            " 'part': 'INTEGER', 'customer': 'VARCHAR', 'ts': 'BIGINT',"
            " 'rate': 'INTEGER'})), firsts AS (SELECT *, first_value(rate) OVER w AS"
            " kept, row_number() OVER w AS nth FROM all_of WINDOW w AS"
            " (PARTITION BY customer, ts ORDER BY number))"
            " SELECT *, CASE WHEN rate < 0 THEN 'not_json' WHEN nth = 1 THEN 'stored'"
            " WHEN rate = kept THEN 'duplicate' ELSE 'conflict' END AS became,"
            " greatest(arrived - ts, 0) / 1e6 AS late FROM firsts",
            [str(path)],
        )

    def all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, list(values)).fetchall()


def micros(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def instant(micros: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(micros))


@dataclasses.dataclass
class World:
    engine: Engine
    worker: Engine
    raw: Raw


@pytest.fixture(scope="module")
def world(
    compose_postgresql: ComposePostgresql, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("numbers")
    done = containers.migrate(
        containers.app_folder(folder), postgresql=compose_postgresql.port
    )
    assert done.returncode == 0, done.stderr
    environ = containers.environment_here(
        "migrate", postgresql=compose_postgresql.port
    ) | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    settings = load_settings(environ, Path("/nonexistent"))
    engine = make_engine(settings.owner, application_name="owner", pool_size=2)
    worker = make_engine(settings, application_name="numbers", pool_size=4)
    sent = store(worker, population())
    path = folder / "beats.csv"
    with path.open("w") as file, contextlib.closing(engine.raw_connection()) as raw:
        raw.cursor().copy_expert(
            'COPY (SELECT (extract(epoch FROM "timestamp") * 1000000)::bigint,'
            " customer_id, heart_rate FROM heartbeats)"
            " TO STDOUT (FORMAT csv, FORCE_QUOTE (customer_id))",
            file,
        )
    job, hours = Job(worker), Hours(worker)
    while not job.run_pass() or not hours.run_pass():
        pass
    yield World(engine, worker, Raw(folder, path, sent))
    worker.dispose()
    engine.dispose()


def store(
    engine: Engine, batches: Sequence[tuple[datetime, int, list[Heartbeat | None]]]
) -> list[Sent]:
    """Through the writer, each at its time."""
    now = [END]
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0, 1: 0})
    writer = Writer(engine, clock=lambda: now[0])
    offsets = [0, 0]
    sent = []
    for arrived, partition, items in batches:
        now[0] = arrived
        # What comes in one batch and is no beat is looked at first.
        writer.write(batch_of(items, asked=offsets[partition], partition=partition))
        offsets[partition] += len(items)
        sent += [Sent(arrived, partition, item) for item in items]
    return sent


# What is to be shown


def steps(view: View, least: int, *, most: int | None = None) -> tuple[int, int, int]:
    """The width of a step in seconds, and the whole ones that hold the range, in µs."""
    step = max(least, int(view.step_seconds))
    begin = micros(view.start) // 1_000_000 // step * step
    end = math.ceil(micros(view.end) / 1_000_000 / step) * step
    if micros(view.end) // 1_000_000 % step == 0:
        # It ends within the first second of a step, which is as far as Grafana tells.
        return step, begin * 1_000_000, micros(view.end)
    return step, begin * 1_000_000, end * 1_000_000


def seconds_of(view: View) -> int:
    return int(view.end.timestamp()) - int(view.start.timestamp())


def rates(raw: Raw, view: View, beats: int, minutes: int, customer: str | None) -> Any:
    span = seconds_of(view)
    least = 1 if span <= beats else 60 if span <= minutes else 3600
    step, since, until = steps(view, least)
    found = raw.all(
        "SELECT ts // ? AS bin, avg(rate), min(rate), max(rate) FROM beats"
        " WHERE ts >= ? AND ts < ? AND (? IS NULL OR customer = ?)"
        " GROUP BY 1 ORDER BY 1",
        step * 1_000_000, since, until, customer, customer,
    )  # fmt: skip
    rows = []
    for number, (bin, *values) in enumerate(found):
        rows.append((instant(bin * step * 1e6), *values))
        gap = number + 1 < len(found) and (found[number + 1][0] - bin) * step
        if gap and gap > max(step, 60):
            rows.append((instant((bin + 1) * step * 1e6), None, None, None))
    return rows


def heat(raw: Raw, view: View) -> Any:
    step, since, until = steps(view, 60 if seconds_of(view) <= 90_000 else 3600)
    found = raw.all(
        "SELECT ts // ? AS bin, CASE WHEN rate < 50 THEN 0 WHEN rate >= 190 THEN 15"
        " ELSE rate // 10 - 4 END AS tens, count(*) FROM beats WHERE ts >= ? AND ts < ?"
        " GROUP BY ALL ORDER BY ALL",
        step * 1_000_000, since, until,
    )  # fmt: skip
    if not found:
        return []
    by_bin: dict[int, list[int]] = {}
    for bin, tens, count in found:
        by_bin.setdefault(bin, [0] * 16)[tens] = count
    return [
        (instant(bin * step * 1e6), *by_bin.get(bin, [0] * 16))
        for bin in range(min(by_bin), max(by_bin) + 1)
    ]


def minutes_of(raw: Raw, view: View, customer: str) -> list[tuple[int, int, int]]:
    """Beats, their sum and their highest of each minute."""
    width = 60 if seconds_of(view) <= 32 * 86_400 else 3600
    since = micros(view.start) // 1_000_000 // width * width
    until = math.ceil(micros(view.end) / 1_000_000 / width) * width
    return raw.all(
        "SELECT count(*), sum(rate), max(rate) FROM beats"
        " WHERE customer = ? AND ts >= ? AND ts < ? GROUP BY ts // 60000000",
        customer, since * 1_000_000, until * 1_000_000,
    )  # fmt: skip


def zones(raw: Raw, view: View, customer: str) -> Any:
    minutes = minutes_of(raw, view, customer)
    shares = [100 * total / (190 * count) for count, total, _ in minutes]
    bounds = [0, 50, 60, 70, 80, 90, 1000]
    counted = [
        sum(low <= share < high for share in shares) for low, high in pairwise(bounds)
    ]
    names = ["under 50 %", "50 to 60 %", "60 to 70 %", "70 to 80 %", "80 to 90 %"]
    names.append("90 % and more")
    return list(zip(names, counted, strict=True)) if minutes else []


def resting(raw: Raw, view: View, customer: str) -> Any:
    minutes = minutes_of(raw, view, customer)
    if not minutes:
        return []
    ranked = sorted(100 * total // count / 100 for count, total, _ in minutes)
    total = sum(each[1] for each in minutes) / sum(each[0] for each in minutes)
    lowest = ranked[max(0, math.ceil(0.05 * len(ranked)) - 1)]
    return [(lowest, total, max(each[2] for each in minutes))]


def arrivals(raw: Raw, view: View) -> Any:
    step = max(int(view.step_seconds), 3600 if seconds_of(view) > 691_200 else 60)
    since = micros(view.start) // 1_000_000 // step * step
    until = micros(view.end) // 60_000_000 * 60
    rows = []
    found = {
        row[0]: row[1:]
        for row in raw.all(
            "SELECT arrived // 1000000 // ? AS bin,"
            " count(*) FILTER (became = 'stored'),"
            " count(*) FILTER (became = 'duplicate'),"
            " count(*) FILTER (became NOT IN ('stored', 'duplicate')) FROM sent"
            " WHERE arrived >= ? AND arrived < ? GROUP BY 1",
            step, since * 1_000_000, until * 1_000_000,
        )
    }  # fmt: skip
    for begin in range(since, until, step):
        width = min(step, until - begin)
        counts = found.get(begin // step, (0, 0, 0))
        rows.append((instant(begin * 1e6), *(each / width for each in counts)))
    return rows


class Quantile:
    """Equals what may be shown for it: histograms know to which bucket it belongs."""

    def __init__(self, exact: float, least: float, most: float) -> None:
        self._bounds = least, most
        self._exact = exact

    def __eq__(self, shown: object) -> bool:
        if not isinstance(shown, float):
            return False
        least, most = self._bounds
        near = self._exact / 2.5 - 0.001 <= shown <= self._exact * 2.5 + 0.001
        return near and least - 1e-6 <= shown <= most + 1e-6

    def __repr__(self) -> str:
        return f"about {self._exact} in {self._bounds}"


def delays(raw: Raw, view: View) -> Any:
    step, since, until = steps(view, 3600 if seconds_of(view) > 691_200 else 60)
    found = raw.all(
        "SELECT arrived // ? AS bin, quantile_disc(late, [0.5, 0.95, 0.99])"
        " FILTER (became = 'stored'), min(late) FILTER (became = 'stored'),"
        " max(late) FILTER (became = 'stored') FROM sent"
        " WHERE arrived >= ? AND arrived < ? GROUP BY 1 ORDER BY 1",
        step * 1_000_000, since, until,
    )  # fmt: skip
    return [
        (
            instant(bin * step * 1e6),
            *(
                (None, None, None)
                if exact is None
                else (Quantile(each, least, most) for each in exact)
            ),
        )
        for bin, exact, least, most in found
    ]


def by_partition(raw: Raw, view: View) -> Any:
    since = micros(view.start) // 60_000_000 * 60_000_000
    until = math.ceil(micros(view.end) / 60_000_000) * 60_000_000
    return raw.all(
        "SELECT 'beats', part,"
        " count(*) FILTER (became = 'stored' AND arrived BETWEEN ?1 AND ?2 - 1),"
        " count(*) FILTER (became = 'duplicate' AND arrived BETWEEN ?1 AND ?2 - 1),"
        " count(*) FILTER (became IN ('conflict', 'not_json')"
        " AND arrived BETWEEN ?1 AND ?2 - 1), 0, 0 FROM sent GROUP BY 2 ORDER BY 2",
        since, until,
    )  # fmt: skip


def refused(raw: Raw, view: View) -> Any:
    found = raw.all(
        "SELECT became, count(*), max(arrived) FROM sent WHERE became IN ('conflict',"
        " 'not_json') AND arrived >= ? AND arrived < ? GROUP BY 1 ORDER BY 1",
        micros(view.start), micros(view.end),
    )  # fmt: skip
    return [(reason, count, instant(last)) for reason, count, last in found]


def latest(raw: Raw, view: View) -> Any:
    since = max(micros(view.start), int(view.end.timestamp() - 3600) * 1_000_000)
    found = raw.all(
        "SELECT customer, max(ts), arg_max(rate, ts) FROM beats"
        " WHERE ts >= ? AND ts < ? GROUP BY 1 ORDER BY encode(customer)",
        since // 1_000_000 * 1_000_000, micros(view.end),
    )  # fmt: skip
    return [(customer, instant(at), rate) for customer, at, rate in found]


def heard(raw: Raw, view: View) -> Any:
    until = micros(view.end) // 1_000_000 * 1_000_000
    return raw.all(
        "SELECT count(DISTINCT customer) FROM beats WHERE ts >= ? AND ts < ?",
        until - 60_000_000, until,
    )  # fmt: skip


def to_choose_from(raw: Raw, view: View) -> Any:
    month = view.end.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    since, until = (month - DAY).replace(day=1), (month + 32 * DAY).replace(day=1)
    return raw.all(
        "SELECT DISTINCT customer FROM beats WHERE ts >= ? AND ts < ?"
        " ORDER BY encode(customer)",
        micros(since), micros(until),
    )  # fmt: skip


def first_columns(count: int) -> Callable[[Any], Any]:
    return lambda rows: [row[:count] for row in rows]


Check = tuple[Callable[[Raw, View], Any], Callable[[Any], Any]]


def as_shown(rows: Any) -> Any:
    return rows


def of_customers(check: Callable[..., Any]) -> Check:
    return (
        lambda raw, view: check(raw, view, customer=view.variables["customer"])
    ), as_shown


def by_reason(rows: Any) -> Any:
    return sorted(row[:3] for row in rows)


def no_nulls(rows: Any) -> Any:
    return [tuple(0 if value is None else value for value in row) for row in rows]


def off_by_nothing(raw: Raw, view: View) -> Any:
    return [(0,)]


CHECKS: dict[str, Check] = {
    "Customers Heard In The Last Minute": (heard, as_shown),
    "Books Off By": (off_by_nothing, as_shown),
    "Books off": (off_by_nothing, as_shown),
    # Of the last five minutes; what was sent here is older.
    "Refusals above 1 %": (off_by_nothing, as_shown),
    "Heartbeat Rate Over Time": (
        lambda raw, view: rates(raw, view, 300, 691_200, None),
        as_shown,
    ),
    "Heart Rates Of All Customers": (heat, no_nulls),
    "Beats Per Second": (arrivals, as_shown),
    "Delay From Beat To Row": (delays, as_shown),
    "Refused By Reason": (refused, by_reason),
    "Latest Per Customer": (latest, as_shown),
    "Heart Rate": of_customers(
        lambda raw, view, customer: rates(raw, view, 3600, 172_800, customer)
    ),
    "Resting, Average, Highest": of_customers(resting),
    "Minutes By Zone": of_customers(zones),
    "By Partition": (by_partition, first_columns(7)),
    "Roll-up Backlog": (lambda raw, view: [(0, 0)], as_shown),
    "customer": (to_choose_from, as_shown),
}

QUERIES = list(dashboards.queries())


def test_nothing_is_shown_that_nobody_checks() -> None:
    asked_of_postgresql = {query.title for query in QUERIES}
    assert asked_of_postgresql == CHECKS.keys() | NO_NUMBERS
    asked_of_prometheus = {title for title, _ in dashboards.promql()}
    checked = {title for title, *_ in ANSWERS}
    # A disk that is not there, and readiness, which is 1 or 0.
    assert asked_of_prometheus - checked <= {"Disk Lasts For", "Workers Ready"} | {
        "Lag Over Time"
    }


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_a_panel_shows_what_the_beats_give(
    world: World, query: dashboards.Query
) -> None:
    if query.title in NO_NUMBERS:
        return
    expected, shown = CHECKS[query.title]
    customers = [DENSE, SPARSE, "edge", OTHERS[1], "nobody"]
    for start, end in VIEWS:
        for customer in customers if "$customer" in query.sql else customers[:1]:
            variables = {"maximum": "190", **query.variables, "customer": customer}
            view = View.of(
                start, end, points=query.points, least=query.least, variables=variables
            )
            with world.engine.connect() as connection:
                rows = connection.exec_driver_sql(
                    expand(query.sql, view).replace("%", "%%")
                ).all()
            found = [tuple(row) for row in shown([tuple(row) for row in rows])]
            wanted = [tuple(row) for row in expected(world.raw, view)]
            assert len(found) == len(wanted), (start, end, customer)
            for one, other in zip(found, wanted, strict=True):
                assert one == tuple(
                    pytest.approx(value, rel=1e-6)
                    if isinstance(value, float)
                    else value
                    for value in other
                ), (start, end, customer)


def almost(value: Any) -> Any:
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


# The API


STEP = {"minute": 60, "hour": 3600, "day": 86_400}


@pytest.mark.parametrize("customer", [DENSE, SPARSE, "edge", OTHERS[1], "nobody"])
def test_the_api_answers_what_the_beats_give(world: World, customer: str) -> None:
    assert {f.name for f in dataclasses.fields(Bucket)} == {
        "begin", "count", "min", "max", "mean"
    }  # fmt: skip
    for start, end in VIEWS:
        for step in (None, *STEP):
            if step == "minute" and end - start > 3 * DAY:
                continue
            found = read_history(world.worker, customer, start, end, step)
            assert found.step == (step or finest_step(end - start))
            if found.step == "raw":
                beats = world.raw.all(
                    "SELECT ts, rate FROM beats"
                    " WHERE customer = ? AND ts >= ? AND ts < ? ORDER BY ts",
                    customer, micros(start), micros(end),
                )  # fmt: skip
                assert found.points == [Beat(instant(at), rate) for at, rate in beats]
                continue
            width = STEP[found.step] * 1_000_000
            since = micros(start) // width * width
            until = -(-micros(end) // width) * width
            buckets = world.raw.all(
                "SELECT ts // ?1 * ?1, count(*), min(rate), max(rate), avg(rate)"
                " FROM beats WHERE customer = ?2 AND ts >= ?3 AND ts < ?4"
                " GROUP BY 1 ORDER BY 1",
                width, customer, since, until,
            )  # fmt: skip
            points = [dataclasses.astuple(point) for point in found.points]
            assert points == [
                (instant(at), *others, pytest.approx(mean, abs=0.001))
                for at, *others, mean in buckets
            ]


def test_the_api_lists_who_there_is(world: World) -> None:
    there = [
        name
        for (name,) in world.raw.all(
            "SELECT DISTINCT customer FROM beats ORDER BY encode(customer)"
        )
    ]
    assert list_customers(world.worker, after="", limit=100) == there
    for since in (END - 300 * DAY, END - 3 * DAY, END + MINUTE):
        last = world.raw.all(
            "SELECT customer, max(ts), arg_max(rate, ts) FROM beats WHERE ts >= ?"
            " GROUP BY 1 ORDER BY encode(customer)",
            micros(since),
        )
        found = list_latest(world.worker, since=since, after="", limit=100)
        assert found == [Latest(name, instant(at), rate) for name, at, rate in last]


# What is about this moment: /stats/, /api/summary, the live page


def test_this_moment_is_what_came_lately(world: World) -> None:
    before = dict(world.raw.all("SELECT became, count(*) FROM sent GROUP BY 1"))
    with world.engine.begin() as connection:
        offsets = dict(
            tuple(row)
            for row in connection.execute(
                text("SELECT partition, next_offset FROM partition_ledger")
            )
        )
    writer = Writer(world.worker)
    now = datetime.now(UTC)
    late = [3, 3, 3.5, 4, 20, 40, 310, 311, 312, 312, 4000]
    items: list[Heartbeat | None] = [
        Heartbeat("now", now - timedelta(seconds=each, milliseconds=n), 60 + n)
        for n, each in enumerate(late)
    ]
    items += [Heartbeat("ahead of now", now + 200 * MINUTE / 60, 130), None]
    writer.write(batch_of(items, asked=offsets[0]))
    summary = read_summary(world.worker)
    figures = dataclasses.asdict(summary)
    assert figures.keys() == {f.name for f in dataclasses.fields(Summary)}
    recent, minute = summary.recent, summary.last_minute
    in_minute = [n for n, each in enumerate(late) if each < 50]
    assert minute == LastMinute(len(in_minute), 1, 60, 65, 62.5)
    assert {f.name for f in dataclasses.fields(LastMinute)} == {
        "beats", "customers", "min", "max", "mean"
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(Recent)} == {
        "stored_per_second", "delay_p50_seconds", "delay_p95_seconds",
        "delay_max_seconds",
    }  # fmt: skip
    assert recent.delay_p50_seconds == Quantile(20, 0, 4100)
    assert recent.delay_p95_seconds == Quantile(4000, 0, recent.delay_max_seconds or 0)
    assert recent.delay_max_seconds == pytest.approx(4000, abs=30)
    assert recent.stored_per_second is not None
    assert 12 / 130 <= recent.stored_per_second <= 12 / 1
    stored = before["stored"] + 12
    dead = before["conflict"] + before["not_json"] + 1
    assert (summary.stored, summary.dead) == (stored, dead)
    assert summary.duplicate == before["duplicate"]
    assert summary.consumed == stored + dead + summary.duplicate
    assert summary.missing == 0
    days = {
        day for (day,) in world.raw.all("SELECT DISTINCT ts // 86400000000 FROM beats")
    }
    assert summary.days >= len(days)
    assert summary.first_day == instant(min(days) * 86_400e6).date()
    assert summary.last_day is not None
    assert summary.last_day >= now.date()
    look = LiveReader(world.worker).read()
    board = Board()
    board.add(look.heard, look.now)
    by_id = {each[0]: each[1:] for each in board.all(look.now)["customers"]}
    age, rate, slots = by_id["now"]
    assert 3000 <= age < 60_000
    assert rate == 60
    assert {rate for rate in slots if rate} <= set(range(60, 66))
    assert look.stored == stored
    assert look.dead == dead
    assert look.recent.delay_max_seconds == recent.delay_max_seconds
    hour = read_last_hour(world.worker, "now")
    assert sum(step.beats for step in hour) == sum(each < 3_590 for each in late)
    # The rule counts the last five minutes.
    (share,) = [q for q in QUERIES if q.title == "Refusals above 1 %"]
    with world.engine.connect() as connection:
        (found,) = connection.exec_driver_sql(share.sql).one()
    assert found == pytest.approx(1 / 13)
