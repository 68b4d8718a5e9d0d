"""What people look at is right also when little or nothing came in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from heartbeat_app.storage.read.reads import Recent, read_recent
from heartbeat_app.storage.write.dead_letters import count_by_reason
from heartbeat_app.storage.write.writer import Writer
from tests.storing import batch_of, beat, beats

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]


def test_before_the_first_batch_nobody_knows_anything(engine: Engine) -> None:
    assert read_recent(engine) == Recent(None, None, None, None)
    assert count_by_reason(engine) == {}


def test_batches_without_a_new_beat_have_no_delay(
    writer: Writer, engine: Engine
) -> None:
    now = datetime.now(UTC)
    old = datetime.now(UTC) - timedelta(minutes=9)
    Writer(engine, clock=lambda: old).write(batch_of([beat(at=now)]))
    writer.write(batch_of([beat(at=now), None], asked=1))
    assert read_recent(engine) == Recent(0.0, None, None, None)


def test_the_delays_lie_below_the_longest(writer: Writer, engine: Engine) -> None:
    now = datetime.now(UTC)
    found = [beat(f"c{n}", at=now - timedelta(seconds=n / 10)) for n in range(100)]
    writer.write(batch_of(found))
    recent = read_recent(engine)
    assert recent.stored_per_second is not None
    assert 100 / 121 < recent.stored_per_second <= 100 / 59
    assert recent.delay_p50_seconds is not None
    assert recent.delay_p95_seconds is not None
    assert recent.delay_max_seconds is not None
    assert 3 < recent.delay_p50_seconds < recent.delay_p95_seconds
    assert recent.delay_p95_seconds <= recent.delay_max_seconds


def test_a_guess_inside_a_bucket_does_not_exceed_the_longest(
    writer: Writer, engine: Engine
) -> None:
    at = datetime.now(UTC) - timedelta(seconds=60.5)  # in a bucket up to 300 s
    writer.write(batch_of([beat(f"c{n}", at=at) for n in range(100)]))
    recent = read_recent(engine)
    assert recent.delay_max_seconds is not None
    assert 60 < recent.delay_max_seconds < 100
    assert recent.delay_p95_seconds == recent.delay_max_seconds


def test_what_came_in_long_ago_is_left_out(
    make_writer: MakeWriter, engine: Engine
) -> None:
    old = datetime.now(UTC) - timedelta(minutes=3)
    make_writer(clock=lambda: old).write(batch_of(beats(3)))
    assert read_recent(engine) == Recent(None, None, None, None)


def test_refused_records_are_counted_by_reason(writer: Writer, engine: Engine) -> None:
    writer.write(batch_of([None, beat(rate=70), beat(rate=71), None]))
    assert count_by_reason(engine) == {"not_json": 2, "conflict": 1}
