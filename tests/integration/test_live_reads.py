"""What the live page reads, on a real PostgreSQL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from heartbeat_app.config import Settings
from heartbeat_app.storage.days import days
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.operator.erase import erase
from heartbeat_app.storage.read import live
from heartbeat_app.storage.read.live import LiveReader, Look, read_last_hour

pytestmark = pytest.mark.integration

INSERT = text(
    'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
    " VALUES (:customer, now() - make_interval(secs => :ago), :rate)"
)

# 50 customers, a beat a second for 40 minutes, none of them of another day.
MANY = text("""
INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)
SELECT 'c' || number, CAST(:now AS TIMESTAMPTZ) - make_interval(secs => ago), 70
FROM generate_series(1, 50) AS number, generate_series(1, 2400) AS ago
""")
HOUR_OF_ONE = {"customer_id": "c7", "span": live.HOUR, "seconds": 5}


@pytest.fixture
def reads(settings: Settings) -> Iterator[Engine]:
    """As the worker connects, with the days around today."""
    engine = make_engine(settings, application_name="live", pool_size=2)
    today = datetime.now(UTC).date()
    days.ensure_days(engine, [today + timedelta(days=n) for n in range(-3, 3)])
    yield engine
    engine.dispose()


@pytest.fixture
def reader(reads: Engine) -> LiveReader:
    return LiveReader(reads)


def put(
    connection: Connection, customer: str, ago: float = 0.0, rate: int = 70
) -> None:
    # As a batch does it: a transaction has its number before its first id.
    connection.execute(text("SELECT pg_current_xact_id()"))
    values = {"customer": customer, "ago": ago, "rate": rate}
    connection.execute(INSERT, values)


def told(look: Look) -> dict[str, int]:
    """The rate of each customer's last beat."""
    last = sorted(look.heard, key=lambda each: each.at)
    return {each.customer_id: each.rate for each in last if each.rate}


def test_everybody_since_yesterday_and_then_what_is_new(
    engine: Engine, reader: LiveReader
) -> None:
    with engine.begin() as connection:
        put(connection, "now", 1, 61)
        put(connection, "now", 2, 99)
        put(connection, "an hour ago", 3600, 62)
        put(connection, "three days ago", 3 * 86_400, 63)
    look = reader.read()
    assert look.is_anew
    assert told(look) == {"now": 61, "an hour ago": 62}
    assert reader.read().heard == []
    with engine.begin() as connection:
        put(connection, "now", 0, 64)
        put(connection, "who <b>comes</b>", 0, 65)
        put(connection, "late", 7200, 66)
    look = reader.read()
    assert not look.is_anew
    assert told(look) == {"now": 64, "who <b>comes</b>": 65, "late": 66}
    [late] = [each for each in look.heard if each.customer_id == "late"]
    assert late.slot is None


def test_who_was_erased_is_forgotten(
    settings: Settings, engine: Engine, reader: LiveReader
) -> None:
    with engine.begin() as connection:
        put(connection, "erased", 1)
        put(connection, "other", 1)
    assert set(told(reader.read())) == {"erased", "other"}
    owner = make_engine(settings.owner, application_name="erase")
    erase(owner, "erased")
    owner.dispose()
    look = reader.read()
    assert look.is_anew
    assert set(told(look)) == {"other"}
    assert not reader.read().is_anew


@pytest.mark.parametrize("first", [True, False])
def test_what_is_committed_late_is_not_passed_over(
    engine: Engine, reader: LiveReader, first: bool
) -> None:
    """Ids are given before the commit: the lower one may appear after the higher."""
    if not first:
        reader.read()
    with engine.connect() as slow, engine.connect() as quick:
        put(slow, "slow", 0, 61)
        put(quick, "quick", 0, 62)
        quick.commit()
        assert told(reader.read()) == {"quick": 62}
        assert "slow" not in told(reader.read())
        slow.commit()
    assert told(reader.read())["slow"] == 61
    # And what was settled is not read for ever.
    reader.read()
    assert reader.read().heard == []


def test_a_beat_of_the_future_is_of_now(engine: Engine, reader: LiveReader) -> None:
    with engine.begin() as connection:
        put(connection, "ahead", -200)
    look = reader.read()
    [slot] = {each.slot for each in look.heard} - {None}
    assert slot == int(look.now // live.SLOT_SECONDS)


def test_a_look_after_a_long_pause_begins_anew(
    engine: Engine, reader: LiveReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        put(connection, "a")
    reader.read()
    monkeypatch.setattr(live, "LONGEST_GAP", timedelta(0))
    look = reader.read()
    assert look.is_anew
    assert told(look) == {"a": 70}


def test_only_the_days_in_question_are_touched(
    engine: Engine, reader: LiveReader
) -> None:
    """And of today's rows, which are most, those that an index finds."""
    # Noon: shortly after midnight few rows of the last minutes are of today.
    now = datetime.now(UTC).replace(hour=12)
    with engine.begin() as connection:
        connection.execute(MANY, {"now": now})
        connection.execute(text("ANALYZE heartbeats"))
    reader.read()
    with engine.connect() as connection:
        last_id = connection.scalar(text("SELECT max(id) FROM heartbeats"))
        for query, index, more in (
            (live.ADDED, "pkey", {"after": last_id - 2000}),
            (live.EVERYBODY, "customer_id_timestamp_idx", {}),
            (live.LAST_ID, "pkey", {}),
            (live.LATELY, "timestamp_idx", {}),
            (live.LAST_HOUR, "customer_id_timestamp_idx", HOUR_OF_ONE),
        ):
            at_noon = query.text.replace("now()", "CAST(:now AS TIMESTAMPTZ)")
            plan = connection.scalar(
                text(f"EXPLAIN (FORMAT JSON) {at_noon}"), {**live._bounds(now), **more}
            )
            words = json.dumps(plan)
            today = f"heartbeats_{now.date():%Y_%m_%d}"
            assert f'"Index Name": "{today}_{index}"' in words, words
            assert not re.search(
                f'"Seq Scan", [^{{}}]*"Relation Name": "{today}"', words
            ), words
            old = f"heartbeats_{now.date() - timedelta(days=3):%Y_%m_%d}"
            assert old not in words


def test_the_last_hour_of_one_customer(engine: Engine, reads: Engine) -> None:
    with engine.begin() as connection:
        for ago, rate in ((1, 60), (1800, 70), (1800.001, 90), (3700, 99)):
            put(connection, "c", ago, rate)
        put(connection, "d", 1, 120)
    steps = read_last_hour(reads, "c")
    assert sum(step.beats for step in steps) == 3
    assert steps == sorted(steps)
    assert (steps[0].low, steps[-1].high) == (70, 60)
    assert read_last_hour(reads, "nobody") == []
