"""A batch accounts for every offset, however it is cut and whatever is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heartbeat_app.domain import batches, models
from heartbeat_app.domain.batches import Batch, Refused, decode_records, refuse_beats
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Reason, Refusal, Rules, check
from tests.record_strategies import ANY_VALUE
from tests.storing import START, Received, batch_of, beat, beats

RULES = Rules.at(START, max_future_seconds=300, retention_days=None)
RETENTION = Rules.at(START, max_future_seconds=300, retention_days=30)


def offsets(batch: Batch) -> list[int]:
    """Offsets of all records."""
    return sorted(
        [source.offset for source in batch.sources]
        + [each.record.offset for each in batch.refused]
    )


def gap(batch: Batch) -> int:
    return batch.position - batch.asked - batch.records - batch.missing


def test_since_its_own_beginning_is_the_whole_batch() -> None:
    batch = batch_of([beat(), None, beat()], asked=5)
    assert batch.since(5) is batch


def test_since_keeps_what_is_at_or_above_the_offset() -> None:
    one, two, three, four = beats(4)
    batch = batch_of([one, None, two, three, None, four], asked=10).since(13)
    assert (batch.asked, batch.position) == (13, 16)
    assert batch.beats == [three, four]
    assert [source.offset for source in batch.sources] == [13, 15]
    assert [each.record.offset for each in batch.refused] == [14]


def test_since_the_last_offset_may_leave_no_beats() -> None:
    batch = batch_of([beat(), beat(), None]).since(2)
    assert (batch.beats, batch.sources) == ([], [])
    assert offsets(batch) == [2]


def test_since_inside_a_gap_keeps_the_rest_of_it() -> None:
    one, two = beats(2)
    batch = batch_of([one, two], offsets=[0, 6], position=9)
    assert gap(batch) == 7
    cut = batch.since(4)
    assert cut.beats == [two]
    assert gap(cut) == 4  # 4, 5, 7 and 8


@pytest.mark.parametrize(
    ("offset", "missing"), [(100, 20), (110, 10), (120, 0), (125, 0)]
)
def test_since_keeps_what_is_missing_above_the_offset(
    offset: int, missing: int
) -> None:
    batch = batch_of(beats(10), asked=100, missing=20)
    assert (batch.position, gap(batch)) == (130, 0)
    cut = batch.since(offset)
    assert (cut.missing, gap(cut)) == (missing, 0)


@st.composite
def any_batch(draw: st.DrawFn) -> Batch:
    """A batch of beats and refused records with missing offsets and gaps."""
    asked, missing = draw(st.integers(0, 50)), draw(st.integers(0, 10))
    steps = draw(st.lists(st.integers(1, 4), max_size=12))
    at, found = asked + missing - 1, []
    for step in steps:
        at += step
        found.append(at)
    items = [beat() if draw(st.booleans()) else None for _ in found]
    position = at + 1 + draw(st.integers(0, 3))
    return batch_of(
        items, asked=asked, offsets=found, position=position, missing=missing
    )


@given(any_batch(), st.data())
def test_both_parts_of_a_batch_account_for_the_whole(
    batch: Batch, data: st.DataObject
) -> None:
    if batch.position == batch.asked:
        return
    cut = data.draw(st.integers(batch.asked, batch.position - 1))
    rest = batch.since(cut)
    assert offsets(rest) == [offset for offset in offsets(batch) if offset >= cut]
    assert len(rest.beats) == len(rest.sources)
    assert (rest.asked, rest.position) == (cut, batch.position)
    # Missing are the first offsets; a hole is a gap wherever it is cut.
    absent = set(range(cut, batch.position)) - set(offsets(batch))
    lost = absent & set(range(batch.asked, batch.asked + batch.missing))
    assert rest.missing == len(lost)
    assert gap(rest) == len(absent - lost)


@given(any_batch(), st.integers(1, 5))
def test_a_batch_in_parts_accounts_for_the_whole(batch: Batch, most: int) -> None:
    parts, rest = [batch.first(most)], batch
    while parts[-1].position < batch.position:
        rest = rest.since(parts[-1].position)
        parts.append(rest.first(most))
    assert [part.asked for part in parts[1:]] == [p.position for p in parts[:-1]]
    assert all(0 < part.records <= most for part in parts[:-1])
    assert parts[-1].records <= most
    assert [each for part in parts for each in offsets(part)] == offsets(batch)
    assert [beat for part in parts for beat in part.beats] == batch.beats
    assert sum(part.missing for part in parts) == batch.missing
    assert sum(gap(part) for part in parts) == gap(batch)
    assert all(gap(part) >= 0 for part in parts)


def test_the_first_of_a_batch_may_be_all_of_it() -> None:
    batch = batch_of([beat(), None, beat()])
    assert batch.first(3) is batch


def test_refused_beats_take_their_record_along() -> None:
    one, two, three = beats(3)
    batch = batch_of([one, None, two, three])
    after = refuse_beats(batch, [0, 2], Reason.TOO_MANY_DAYS, "why")
    assert after.beats == [two]
    assert [source.offset for source in after.sources] == [2]
    refusal = Refusal(Reason.TOO_MANY_DAYS, "why")
    assert after.refused == [
        *batch.refused,
        Refused(Received(0), refusal),
        Refused(Received(3), refusal),
    ]
    assert after.records == batch.records == 4


def test_nothing_to_refuse_leaves_the_batch_as_it_is() -> None:
    batch = batch_of(beats(2))
    assert refuse_beats(batch, [], Reason.TOO_MANY_DAYS, "why") is batch


def test_a_batch_names_its_offsets() -> None:
    assert str(batch_of(beats(3), asked=7, partition=2)) == "beats[2]@7-9"


def received(values: Sequence[bytes | None]) -> list[Received]:
    return [Received(offset, value) for offset, value in enumerate(values)]


def test_good_records_are_their_own_sources() -> None:
    records = received([models.encode(each) for each in beats(3)])
    assert decode_records(records, RULES) == (beats(3), records, [])


def test_no_records_are_no_beats() -> None:
    assert decode_records([], RULES) == ([], [], [])


def test_a_bad_record_does_not_touch_its_neighbours() -> None:
    one, two = beats(2)
    records = received([models.encode(one), b"{", models.encode(two), None])
    found, sources, refused = decode_records(records, RULES)
    assert found == [one, two]
    assert sources == [records[0], records[2]]
    assert [(each.record.offset, each.refusal.reason) for each in refused] == [
        (1, Reason.NOT_JSON),
        (3, Reason.EMPTY),
    ]


OLD = datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
GOOD = models.encode(beat())
VALUES = [
    GOOD,
    models.encode(beat("other", 1)),
    b"",
    None,
    b"no JSON",
    b"[" * 100_000,
    b"[1]",
    b"\xff",
    models.encode(beat(rate=301)),
    models.encode(beat("a\x00b")),
    models.encode(beat("")),
    models.encode(beat(at=OLD)),
    models.encode(beat(at=OLD + timedelta(microseconds=1))),
    models.encode(beat(at=START - timedelta(days=30, microseconds=1))),
    models.encode(beat(at=START - timedelta(days=30))),
    models.encode(beat(at=START + timedelta(seconds=300))),
    models.encode(beat(at=START + timedelta(seconds=300, microseconds=1))),
    b'{"customer_id": "c", "timestamp": "0001-01-01T00:00:00+23:59", "heart_rate": 7}',
    b'{"customer_id": "c", "timestamp": "9999-12-31T23:59:59-23:59", "heart_rate": 7}',
    b'{"customer_id": "c", "timestamp": "2026-01-01T00:00:00", "heart_rate": 7}',
]


@given(
    st.lists(st.sampled_from(VALUES) | ANY_VALUE, max_size=8),
    st.sampled_from([RULES, RETENTION]),
)
@example([GOOD, models.encode(beat("a\x00b"))], RULES)
@example([GOOD, models.encode(beat(at=OLD))], RULES)
@example([GOOD, GOOD[:-1] + b', "x": "\xff"}'], RULES)
def test_the_fast_way_decides_as_the_check_of_one_record_does(
    values: list[bytes | None], rules: Rules
) -> None:
    records = received(values)
    found, sources, refused = decode_records(records, rules)
    checked = {record.offset: check(record.value, rules) for record in records}
    assert dict(zip([s.offset for s in sources], found, strict=True)) == {
        offset: each for offset, each in checked.items() if isinstance(each, Heartbeat)
    }
    assert {each.record.offset: each.refusal for each in refused} == {
        offset: each for offset, each in checked.items() if isinstance(each, Refusal)
    }


def test_a_chunk_without_bad_records_is_not_checked_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(value: bytes | None, rules: Rules) -> Heartbeat | Refusal:
        raise AssertionError("One by one, which takes several times as long.")

    monkeypatch.setattr(batches, "check", never)
    decode_records(received([GOOD] * 10), RULES)


def test_offsets_that_nothing_explains_are_never_more_than_the_gap() -> None:
    whole = Batch(
        topic="beats", topic_id="id", partition=0, asked=0, position=100, missing=10,
        end_offset=100, beats=[], sources=[], refused=[], unexplained=90,
    )  # fmt: skip
    assert whole.gap == 90
    assert whole.since(60).gap == 40
