"""Every batch is stored exactly once, and accounts for all of its records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from heartbeat_app.domain.batches import Refused
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Reason, Refusal
from heartbeat_app.exceptions import BooksError, LedgerWentBackError
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.write import beats as storage_beats
from heartbeat_app.storage.write import writer as storage_writer
from heartbeat_app.storage.write.beats import Inserted
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer, Written
from tests.storing import (
    START,
    TOPIC,
    TOPIC_ID,
    Book,
    Kept,
    Received,
    batch_of,
    beat,
    beats,
    rows_of,
    store,
)

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]


def book(
    next_offset: int,
    *,
    stored: int = 0,
    duplicate: int = 0,
    dead: int = 0,
    missing: int = 0,
    gap: int = 0,
    end_offset: int | None = None,
) -> Book:
    return Book(
        next_offset,
        next_offset if end_offset is None else end_offset,
        stored + duplicate + dead,
        stored,
        duplicate,
        dead,
        missing,
        gap,
    )


def what(written: Written) -> tuple[int, int, int]:
    assert written.consumed == written.stored + written.duplicate + written.dead
    return written.stored, written.duplicate, written.dead


# Which part of a batch is new


def test_a_batch_is_stored_and_booked(writer: Writer, kept: Kept) -> None:
    one, two = beats(2)
    batch = batch_of([one, None, two], missing=2, position=9, end_offset=12)
    written = writer.write(batch)
    assert (what(written), written.missing) == ((2, 0, 1), 2)
    assert kept.beats() == rows_of([one, two])
    assert kept.letters() == [(3, "not_json")]
    assert kept.book() == book(9, stored=2, dead=1, missing=2, gap=4, end_offset=12)


def test_a_batch_that_holds_no_record_moves_the_ledger(
    writer: Writer, kept: Kept
) -> None:
    assert what(writer.write(batch_of([], position=3))) == (0, 0, 0)
    assert kept.book() == book(3, gap=3)


def test_a_batch_written_again_changes_nothing(writer: Writer, kept: Kept) -> None:
    batch = batch_of([*beats(3), None])
    writer.write(batch)
    before = kept.everything()
    assert writer.write(batch) == Written()
    assert kept.everything() == before


def test_of_a_batch_that_overlaps_only_the_new_part_is_stored(
    writer: Writer, kept: Kept
) -> None:
    # The redelivered part differs, so that it would show: as rows, as dead letters.
    writer.write(batch_of([*beats(2), None]))
    redelivered = [*beats(2, customer="changed"), None]
    written = writer.write(batch_of([*redelivered, beat("new"), None]))
    assert what(written) == (1, 0, 1)
    assert kept.beats() == rows_of([*beats(2), beat("new")])
    assert kept.letters() == [(2, "not_json"), (4, "not_json")]
    assert kept.book() == book(5, stored=3, dead=2)


def test_a_batch_beyond_the_ledger_is_not_written(writer: Writer, kept: Kept) -> None:
    writer.write(batch_of(beats(3)))
    before = kept.everything()
    with pytest.raises(LedgerWentBackError) as caught:
        writer.write(batch_of([beat("beyond"), None], asked=4))
    assert caught.value.next_offset == 3
    assert kept.everything() == before
    # It stays usable: the reader seeks to the ledger and reads again.
    assert what(writer.write(batch_of(beats(3, first=3), asked=3))) == (3, 0, 0)


def test_a_batch_without_a_ledger_row_is_not_written(
    writer: Writer, kept: Kept
) -> None:
    with pytest.raises(LedgerWentBackError) as caught:
        writer.write(batch_of([beat(), None], topic_id="another"))
    assert caught.value.next_offset is None
    assert kept.beats() == []
    assert kept.letters() == []
    assert kept.minutes() == 0


def test_a_topic_made_again_has_books_of_its_own(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    writer.write(batch_of(beats(3)))
    PostgresLedger(engine).open(TOPIC, "topic-id-2", {0: 0})
    again = batch_of([*beats(2), beat("new")], topic_id="topic-id-2")
    assert what(writer.write(again)) == (1, 2, 0)
    assert kept.book() == book(3, stored=3)
    assert kept.book(topic_id="topic-id-2") == book(3, stored=1, duplicate=2)


def test_partitions_have_books_of_their_own(writer: Writer, kept: Kept) -> None:
    writer.write(batch_of(beats(3)))
    writer.write(batch_of([beat("other"), None], partition=1))
    assert kept.book(0) == book(3, stored=3)
    assert kept.book(1) == book(2, stored=1, dead=1)


def test_the_ledger_answers_where_to_go_on(writer: Writer, engine: Engine) -> None:
    writer.write(batch_of(beats(3), position=5))
    ledger = PostgresLedger(engine)
    assert ledger.next_offsets(TOPIC_ID, [0, 1, 2]) == {0: 5, 1: 0}
    assert ledger.next_offsets("another", [0]) == {}


def test_books_that_are_open_stay_as_they_are(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    writer.write(batch_of(beats(3)))
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 77, 5: 9})
    assert kept.book(0) == book(3, stored=3)
    assert kept.book(5) == book(9)


# Books that do not add up


@pytest.mark.parametrize(
    "wrong",
    [
        Inserted(stored=[START], duplicate=0),  # one fewer than the batch has
        Inserted(stored=[START, START], duplicate=1),
        Inserted(stored=[START, START, START], duplicate=-1),
    ],
)
def test_what_does_not_add_up_is_not_stored(
    writer: Writer, kept: Kept, monkeypatch: pytest.MonkeyPatch, wrong: Inserted
) -> None:
    before = kept.everything()
    right = storage_beats.insert_beats

    def insert(*arguments: Any, **options: Any) -> Inserted:
        right(*arguments, **options)
        return wrong

    monkeypatch.setattr(storage_writer, "insert_beats", insert)
    with pytest.raises(BooksError):
        writer.write(batch_of([*beats(2), None]))
    assert kept.everything() == before


def test_more_records_than_offsets_are_not_stored(writer: Writer, kept: Kept) -> None:
    before = kept.everything()
    batch = batch_of(beats(3))
    with pytest.raises(BooksError):
        writer.write(dataclasses.replace(batch, position=2))
    with pytest.raises(BooksError):
        writer.write(dataclasses.replace(batch, missing=1))
    assert kept.everything() == before


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("stored = stored + 1", "ledger_balances"),
        ("dead = dead - 1, consumed = consumed - 1", "ledger_accounts"),
        ("next_offset = next_offset + 1", "ledger_accounts"),
    ],
)
def test_the_database_itself_refuses_books_that_are_off(
    writer: Writer, kept: Kept, change: str, constraint: str
) -> None:
    writer.write(batch_of([*beats(2), None]))
    with pytest.raises(IntegrityError, match=constraint):
        kept.do(f"UPDATE partition_ledger SET {change}")


# Every byte of a beat


def test_the_environments_encoding_changes_nothing(
    make_writer: MakeWriter, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    found = [beat("é"), beat("😀")]
    assert what(make_writer().write(batch_of(found))) == (2, 0, 0)
    monkeypatch.delenv("PGCLIENTENCODING")
    assert kept.beats() == rows_of(found)


def test_a_beat_lies_in_the_partition_of_its_day_in_utc(
    writer: Writer, kept: Kept
) -> None:
    expected = {
        "2025-12-31T23:59:59.999999+00:00": "heartbeats_2025_12_31",
        "2026-01-01T00:00:00+00:00": "heartbeats_2026_01_01",
        "2026-01-01T00:30:00.000001+01:00": "heartbeats_2025_12_31",
        "2025-12-31T23:30:00-01:00": "heartbeats_2026_01_01",
        "2026-01-02T23:58:59+23:59": "heartbeats_2026_01_01",
        "2026-01-01T00:01:00-23:59": "heartbeats_2026_01_02",
        "2026-01-01T23:59:59.999999+00:00": "heartbeats_2026_01_01",
    }
    writer.write(batch_of([beat(at, at=datetime.fromisoformat(at)) for at in expected]))
    found = kept.all("SELECT customer_id, tableoid::regclass::text FROM heartbeats")
    assert dict(tuple(row) for row in found) == expected
    for each in kept.beats():
        assert each[1] == datetime.fromisoformat(each[0])


# Duplicates and conflicts


def test_what_is_there_already_is_a_duplicate(writer: Writer, kept: Kept) -> None:
    writer.write(batch_of(beats(5)))
    again = batch_of([*beats(5), *beats(3, first=5)], asked=5)
    assert what(writer.write(again)) == (3, 5, 0)
    assert kept.beats() == rows_of(beats(8))
    assert kept.letters() == []
    assert kept.book() == book(13, stored=8, duplicate=5)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many beats were given to each COPY that takes them for new."""
    tried: list[int] = []
    right = storage_beats._copy_new

    def copy_new(cursor: Any, new: Sequence[Heartbeat]) -> bool:
        tried.append(len(new))
        return right(cursor, new)

    monkeypatch.setattr(storage_beats, "_copy_new", copy_new)
    return tried


def test_while_beats_come_again_they_are_looked_up_first(
    writer: Writer, kept: Kept, tried: list[int]
) -> None:
    """A COPY that fails costs time, and tells PostgreSQL's log whose beat it was."""
    writer.write(batch_of(beats(10)))
    writer.write(batch_of(beats(10, first=5), asked=10))
    writer.write(batch_of(beats(10, first=10), asked=20))
    writer.write(batch_of(beats(10, first=20), asked=30))
    writer.write(batch_of(beats(10, first=30), asked=40))
    assert tried == [10, *(10, 5), *(5, 0), 10, 10]
    assert kept.beats() == rows_of(beats(40))


def test_once_old_ones_come_again_all_are_looked_up_first(
    writer: Writer, kept: Kept, tried: list[int]
) -> None:
    writer.write(batch_of(beats(100)))
    writer.write(batch_of(beats(10, first=95), asked=100))  # lately
    tried.clear()
    writer.write(batch_of([*beats(10, first=105), *beats(1, first=7)], asked=110))
    writer.write(batch_of([*beats(10, first=115), *beats(1, first=8)], asked=121))
    writer.write(batch_of(beats(10, first=125), asked=132))
    writer.write(batch_of(beats(10, first=135), asked=142))
    assert tried == [*(11, 10), 10, 10, 10]
    assert kept.beats() == rows_of(beats(145))
    assert kept.book() == book(152, stored=145, duplicate=7)


def test_a_suspect_is_stored_or_a_conflict_all_the_same(
    writer: Writer, kept: Kept
) -> None:
    one, two = beat(second=1), beat(second=2)
    writer.write(batch_of([one]))
    writer.write(batch_of([one], asked=1))
    again = [beat(second=1, rate=99), two, two, beat(second=2, rate=99)]
    assert what(writer.write(batch_of(again, asked=2))) == (1, 1, 2)
    assert kept.beats() == rows_of([one, two])
    assert kept.letters() == [(2, "conflict"), (5, "conflict")]


def test_a_row_at_fault_among_suspects_is_found(writer: Writer, kept: Kept) -> None:
    """Also where those that nobody suspects are in order."""
    wrong = beat("wrong", rate=9000)
    writer.write(batch_of([beat()]))
    assert what(store(writer, batch_of([beat(), wrong], asked=1))) == (0, 1, 1)
    again = [beat("new"), beat(), wrong, beat("newer")]
    assert what(store(writer, batch_of(again, asked=3))) == (2, 1, 1)
    assert kept.letters() == [(2, "rejected_by_database"), (5, "rejected_by_database")]
    assert kept.beats() == rows_of([beat(), beat("new"), beat("newer")])


def test_beats_that_come_again_are_looked_up_fast_on_a_day_that_has_just_begun(
    writer: Writer, kept: Kept
) -> None:
    """PostgreSQL knows nothing of it yet and takes it for nearly empty."""

    def seconds(first: int, count: int, asked: int) -> float:
        began = time.perf_counter()
        writer.write(batch_of(beats(count, first=first), asked=asked))
        return time.perf_counter() - began

    new = seconds(0, 5_000, 0) / 5_000
    seconds(0, 15_000, 5_000)
    mixed = seconds(14_000, 10_000, 20_000) / 10_000
    print(f"a beat beside beats that came again takes {mixed / new:.0f} times as long")
    assert mixed < 30 * new  # 150 times, were each compared with the whole day
    assert kept.book() == book(30_000, stored=24_000, duplicate=6_000)


def test_what_comes_twice_in_a_batch_is_a_duplicate(writer: Writer, kept: Kept) -> None:
    one, two = beats(2)
    assert what(writer.write(batch_of([one, two, one, one]))) == (2, 2, 0)
    assert kept.beats() == rows_of([one, two])


def test_the_same_instant_with_another_offset_is_a_duplicate(
    writer: Writer, kept: Kept
) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    same = beat(at=START.astimezone(zone))
    assert what(writer.write(batch_of([beat(), same]))) == (1, 1, 0)


def test_of_two_heart_rates_at_one_instant_the_first_stays(
    writer: Writer, kept: Kept
) -> None:
    writer.write(batch_of([beat(rate=70)]))
    second = [beat(rate=71), beat(rate=70), beat("other")]
    assert what(writer.write(batch_of(second, asked=1))) == (1, 1, 1)
    assert kept.beats() == rows_of([beat(rate=70), beat("other")])
    assert kept.letters() == [(1, "conflict")]


def test_of_two_heart_rates_in_one_batch_the_first_stays(
    writer: Writer, kept: Kept
) -> None:
    found = [beat("b"), beat(rate=90), beat(rate=60), beat(rate=90), beat("a")]
    assert what(writer.write(batch_of(found))) == (3, 1, 1)
    assert kept.beats() == rows_of([beat("b"), beat(rate=90), beat("a")])
    assert kept.letters() == [(2, "conflict")]


def test_a_conflict_is_kept_with_the_record_that_it_was(
    writer: Writer, kept: Kept
) -> None:
    batch = batch_of([beat(rate=70), None, beat(rate=71)])
    record = Received(2, b'{"the": "second"}', b"key", [("device", b"7")])
    batch = dataclasses.replace(batch, sources=[batch.sources[0], record])
    writer.write(batch)
    [row] = kept.all(
        'SELECT key, value, headers, reason FROM dead_letters WHERE "offset" = 2'
    )
    assert [bytes(row[0]), bytes(row[1]), *row[2:]] == [
        b"key",
        b'{"the": "second"}',
        [["device", "7"]],
        "conflict",
    ]


def test_a_duplicate_waits_only_for_its_own_days(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    found = [beat(at=START + timedelta(days=day)) for day in range(3)]
    writer.write(batch_of(found))
    with engine.begin() as other:
        # As somebody has who is dropping that day.
        other.execute(text("LOCK heartbeats_2026_01_02 IN ACCESS EXCLUSIVE MODE"))
        again = batch_of([found[0], found[2]], asked=3)
        assert what(writer.write(again)) == (0, 2, 0)


@pytest.mark.parametrize(("theirs", "expected"), [(70, (1, 2, 0)), (99, (1, 1, 1))])
@pytest.mark.parametrize("staged", [False, True])
def test_a_beat_that_another_session_is_inserting_is_waited_for(
    writer: Writer,
    kept: Kept,
    engine: Engine,
    aside: ThreadPoolExecutor,
    theirs: int,
    expected: tuple[int, int, int],
    staged: bool,
) -> None:
    writer.write(batch_of([beat("there")]))
    # Meets a duplicate before or after the row of the other session.
    found = [beat("there"), beat("contested"), beat("z")]
    if not staged:
        found = found[1:] + found[:1]
    with engine.begin() as other:
        other.execute(
            text(
                'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                " VALUES ('contested', :at, :rate)"
            ),
            {"at": START, "rate": theirs},
        )
        writing = aside.submit(writer.write, batch_of(found, asked=1))
        kept.waits("writer")
    assert what(writing.result(10)) == expected
    assert kept.beats() == rows_of(
        [beat("there"), beat("contested", rate=theirs), beat("z")]
    )


def test_a_beat_that_another_session_takes_back_is_stored(
    writer: Writer, kept: Kept, engine: Engine, aside: ThreadPoolExecutor
) -> None:
    writer.write(batch_of([beat("there")]))
    with engine.connect() as other:
        other.execute(
            text(
                'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                " VALUES ('contested', :at, 99)"
            ),
            {"at": START},
        )
        writing = aside.submit(writer.write, batch_of([beat("contested")], asked=1))
        kept.waits("writer")
        other.rollback()
    assert what(writing.result(10)) == (1, 0, 0)


def test_an_id_sequence_that_was_set_back_swallows_no_beat(
    writer: Writer, kept: Kept
) -> None:
    # All at one instant, so that the primary key (id, timestamp) is hit; more of the
    # first ones than ids that COPY uses up in vain.
    first = [beat(f"first-{n}") for n in range(200)]
    second = [beat(f"second-{n}") for n in range(50)]
    writer.write(batch_of(first))
    kept.do("ALTER SEQUENCE heartbeats_id_seq RESTART WITH 1")
    batch = batch_of([first[0], *second], asked=200)
    attempts, written = 0, None
    while written is None:
        attempts += 1
        assert attempts < 60
        try:
            written = writer.write(batch)
        except (DBAPIError, psycopg2.Error) as error:  # tried again, as the agent does
            assert errors.constraint(error) == "heartbeats_2026_01_01_pkey"  # noqa: PT017
            assert len(kept.beats()) == 200
    assert what(written) == (50, 1, 0)
    assert kept.beats() == rows_of(first + second)


def test_random_batches_keep_what_a_dictionary_keeps(
    writer: Writer, kept: Kept
) -> None:
    import random

    chance = random.Random(7)
    expected: dict[tuple[str, datetime], int] = {}
    total = [0, 0, 0]
    asked = 0
    for _ in range(15):
        found = [
            beat(f"c{chance.randrange(6)}", chance.randrange(20), chance.randint(1, 3))
            for _ in range(chance.randrange(40))
        ]
        for each in found:
            rate = expected.setdefault(
                (each.customer_id, each.timestamp), each.heart_rate
            )
            total[1 if rate == each.heart_rate else 2] += 1
        total[0] = len(expected)
        writer.write(batch_of(found, asked=asked))
        asked += len(found)
    assert kept.beats() == sorted((*key, rate) for key, rate in expected.items())
    assert kept.book() == book(
        asked, stored=total[0], duplicate=total[1] - total[0], dead=total[2]
    )


# Rows that PostgreSQL rejects

LONG = "x" * 256  # the checks of the record let none of these through


@pytest.mark.parametrize(
    "wrong",
    [beat("w", rate=0), beat("w", rate=301), beat(LONG)],
    ids=["rate 0", "rate 301", "long id"],
)
@pytest.mark.parametrize("at", [0, 1, 2499, 4999])
def test_a_rejected_row_is_found_among_thousands(
    writer: Writer, kept: Kept, wrong: Heartbeat, at: int
) -> None:
    good = beats(4999)
    items = [*good[:at], wrong, *good[at:]]
    assert what(store(writer, batch_of(items))) == (4999, 0, 1)
    assert kept.letters() == [(at, "rejected_by_database")]
    assert kept.beats() == rows_of(good)


def test_rejected_rows_among_duplicates_and_conflicts_cost_nothing_else(
    writer: Writer, kept: Kept
) -> None:
    there = beats(300)
    writer.write(batch_of(there))
    new = beats(1700, first=300)
    items: list[Heartbeat | None] = [*there, *new]
    expected: list[tuple[int, str]] = []
    for at, wrong, reason in [
        (0, beat("w", rate=0), "rejected_by_database"),
        (7, beat("c", 0.004, 299), "conflict"),
        (500, beat(LONG), "rejected_by_database"),
        (501, beat(LONG), "rejected_by_database"),
        (502, new[3], "duplicate"),
        (900, None, "not_json"),
        (1600, beat("w", 1.5, 301), "rejected_by_database"),
        (1999, beat("c", 1.5, 299), "conflict"),
        (2007, beat("w", 1.6, 301), "rejected_by_database"),
    ]:
        items.insert(at, wrong)
        if reason != "duplicate":
            expected.append((300 + at, reason))
    written = store(writer, batch_of(items, asked=300))
    assert kept.letters() == expected
    assert kept.beats() == rows_of(there + new)
    assert what(written) == (1700, 301, 8)


def test_the_first_of_a_key_may_be_the_rejected_one(writer: Writer, kept: Kept) -> None:
    found = [beat(rate=0), beat(rate=80), beat(rate=301), beat(rate=80)]
    assert what(store(writer, batch_of(found))) == (1, 1, 2)
    assert kept.beats() == rows_of([beat(rate=80)])
    # The other one is wrong in two ways; either reason is true.
    assert [offset for offset, _ in kept.letters()] == [0, 2]


def test_all_rows_may_be_rejected(writer: Writer, kept: Kept) -> None:
    assert what(store(writer, batch_of([beat(rate=0)] * 9))) == (0, 0, 9)
    assert kept.beats() == []


# Dead letters


HEADERS: list[tuple[str, Any]] = [
    ("text", "é😀".encode()),
    ("empty", b""),
    ("none", None),
    ("binary", b"\xff\xfe\x00"),
    ("nul", b"a\x00b"),
    ("text", b"again"),
    ("", b"no name"),
    ("n\x00l", b"\\u0000"),
]


def test_a_refused_record_is_kept_as_it_was_received(
    make_writer: MakeWriter, kept: Kept
) -> None:
    records = [
        Received(0, None, None),
        Received(1, b"", b""),
        Received(2, b"\x00\xff\\'%s" * 3, b"\x00key", HEADERS),
        Received(3, bytes(range(256)) * 4096, None),
    ]
    batch = dataclasses.replace(
        batch_of([], position=4),
        refused=[
            Refused(record, Refusal(Reason.NOT_JSON, f"It's 100 % {record.offset} \\"))
            for record in records
        ],
    )
    make_writer(clock=lambda: START).write(batch)
    found = kept.all(
        'SELECT topic, topic_id, partition, "offset", key, value, headers, reason,'
        " detail, first_seen, replayed_at, replay_outcome FROM dead_letters ORDER BY id"
    )
    assert [
        (row.offset, bytes(row.value or b""), bytes(row.key or b"")) for row in found
    ] == [(each.offset, each.value or b"", each.key or b"") for each in records]
    assert [row.value is None for row in found] == [True, False, False, False]
    assert [row.key is None for row in found] == [True, False, False, True]
    row = found[2]
    assert row.headers == [
        ["text", "é😀"],
        ["empty", ""],
        ["none", None],
        ["binary", {"base64": "//4A"}],
        ["nul", {"base64": "YQBi"}],
        ["text", "again"],
        ["", "no name"],
        [{"base64": "bgBs"}, "\\u0000"],
    ]
    assert (row.topic, row.topic_id, row.partition) == (TOPIC, TOPIC_ID, 0)
    assert (row.reason, row.detail) == ("not_json", "It's 100 % 2 \\")
    assert (row.first_seen, row.replayed_at, row.replay_outcome) == (START, None, None)


def test_a_partition_read_again_keeps_each_dead_letter_once(
    writer: Writer, kept: Kept
) -> None:
    batch = batch_of([None, beat(), beat(rate=71)])
    writer.write(batch)
    # As after a person had the partition read again.
    kept.do(
        "UPDATE partition_ledger SET next_offset = 0, consumed = 0, stored = 0,"
        " duplicate = 0, dead = 0"
    )
    assert what(writer.write(batch)) == (0, 1, 2)
    assert kept.letters() == [(0, "not_json"), (2, "conflict")]


def test_fifty_thousand_refused_records_take_a_reasonable_time(
    make_writer: MakeWriter, kept: Kept
) -> None:
    writer = make_writer()
    count = 50_000
    batch = batch_of([None] * count)
    batch = dataclasses.replace(
        batch,
        refused=[
            Refused(
                Received(n, b"x" * 100, b"key", [("a", b"1"), ("b", b"\xff")]),
                Refusal(Reason.NOT_JSON, "The value is not JSON."),
            )
            for n in range(count)
        ],
    )
    statements: list[bool] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(*arguments: Any) -> None:
        # A list of parameters is sent row by row, a page has them all in one.
        statements.append(isinstance(arguments[3], list))

    began = time.monotonic()
    try:
        assert what(writer.write(batch)) == (0, 0, count)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    seconds = time.monotonic() - began
    print(f"{count:,} refused records in one batch: {seconds:.1f} s")
    assert not any(statements)
    assert len(statements) < 100
    assert seconds < 30
    assert kept.all("SELECT count(*) FROM dead_letters") == [(count,)]


# What came in, by minute


def minutes(kept: Kept) -> list[Any]:
    return list(
        kept.all(
            "SELECT partition, minute, batches, consumed, stored, duplicate, dead,"
            " delay_sum_seconds, delay_max_seconds, delay_histogram, write_seconds,"
            " delay_min_seconds"
            " FROM ingest_minute ORDER BY minute, partition"
        )
    )


def test_a_minute_adds_up_its_batches(make_writer: MakeWriter, kept: Kept) -> None:
    now = [START + timedelta(seconds=10)]
    writer = make_writer(clock=lambda: now[0])
    writer.write(batch_of([beat("a", 8), beat("b", 9.5), None]))
    now[0] = START + timedelta(seconds=59.9)
    writer.write(batch_of([beat("a", 8), beat("c", 59.9), None], asked=3))
    [row] = minutes(kept)
    assert row[:7] == (0, START, 2, 6, 3, 1, 2)
    assert row.delay_sum_seconds == pytest.approx(2.5)
    assert row.delay_max_seconds == pytest.approx(2.0)
    assert row.delay_min_seconds == 0
    histogram = [0] * 50
    histogram[0], histogram[8], histogram[10] = 1, 1, 1  # 0, 0.5 and 2 s
    assert row.delay_histogram == histogram
    assert 0 < row.write_seconds < 10


def test_every_minute_and_partition_has_a_row(
    make_writer: MakeWriter, kept: Kept
) -> None:
    now = [START + timedelta(seconds=59.999999)]
    writer = make_writer(clock=lambda: now[0])
    writer.write(batch_of([beat("a")]))
    writer.write(batch_of([beat("b"), None], partition=1))
    now[0] = START + timedelta(seconds=60)
    writer.write(batch_of([beat("c")], asked=1))
    later = START + timedelta(minutes=1)
    assert [row[:7] for row in minutes(kept)] == [
        (0, START, 1, 1, 1, 0, 0),
        (1, START, 1, 2, 1, 0, 1),
        (0, later, 1, 1, 1, 0, 0),
    ]


def test_what_was_stored_before_came_in_once(writer: Writer, kept: Kept) -> None:
    writer.write(batch_of(beats(2)))
    writer.write(batch_of(beats(2)))
    assert kept.minutes() == 1
