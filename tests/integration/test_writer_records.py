"""A record that the database does not take is told from an outage by asking."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.domain.batches import Batch, Refused
from heartbeat_app.domain.excerpts import excerpt
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Reason, Refusal, Rules
from heartbeat_app.exceptions import ApartError
from heartbeat_app.storage.days.days import ensure_days
from heartbeat_app.storage.db import engine as storage_engine
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.write.writer import Writer, Written
from tests.storing import START, Kept, Received, batch_of, beat, beats, rows_of, store

pytestmark = pytest.mark.integration

MakeWriter = Callable[..., Writer]

BAD = beat("bad", 1.0)
REJECTED = "rejected_by_database"

STATES = (
    "08006",  # connection failure
    "21000",  # cardinality violation
    "22001",  # too long a text
    "23503",  # a foreign key of somebody else's
    "23505",  # a unique index of somebody else's
    "23514",  # a check of somebody else's
    "25006",  # read-only
    "40001",  # serialization failure
    "40P01",  # deadlock
    "42501",  # no privilege
    "53100",  # disk full
    "53200",  # out of memory
    "54000",  # program limit
    "55P03",  # lock timeout
    "57014",  # statement timeout
    "57P01",  # shutting down
    "58030",  # I/O error
    "P0001",  # a trigger's own
    "XX000",  # a fault of PostgreSQL
)


def on_insert(
    kept: Kept, body: str, when: str = "true", table: str = "heartbeats"
) -> None:
    """A trigger of somebody's, for the rows that it is about."""
    kept.do(
        "CREATE OR REPLACE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql"
        f" SECURITY DEFINER AS $$ BEGIN {body}; RETURN NEW; END $$",
        f"CREATE OR REPLACE TRIGGER theirs BEFORE INSERT ON {table} FOR EACH ROW"
        f" WHEN ({when}) EXECUTE FUNCTION theirs()",
    )


def raising(state: str) -> str:
    return (
        "RAISE EXCEPTION 'made up' USING ERRCODE = "
        f"'{state}', CONSTRAINT = 'theirs', TABLE = 'heartbeats'"
    )


IS_BAD = "starts_with(NEW.customer_id, 'bad')"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each transaction had, and 0 for each probe."""
    made: list[int] = []
    write, probe = Writer._write, Writer._probe

    def count_write(self: Writer, connection: Any, batches: Any) -> Any:
        made.append(sum(batch.records for batch in batches))
        return write(self, connection, batches)

    def count_probe(self: Writer, *arguments: Any, **options: Any) -> None:
        made.append(0)
        return probe(self, *arguments, **options)

    monkeypatch.setattr(Writer, "_write", count_write)
    monkeypatch.setattr(Writer, "_probe", count_probe)
    return made


def fails(writer: Writer, batch: Batch, times: int) -> None:
    """Every write of it raises, as long as it is an outage."""
    for _ in range(times):
        with pytest.raises((DBAPIError, psycopg2.Error)):
            store(writer, batch, attempts=1)


# The record's fault


def test_a_record_that_fails_alone_is_kept_whatever_the_error(
    make_writer: MakeWriter, kept: Kept
) -> None:
    writer = make_writer()
    expected = []
    for asked, state in zip(itertools.count(step=3), STATES, strict=False):
        on_insert(kept, raising(state), IS_BAD)
        one, two = beats(2, first=asked)
        bad = beat("bad", asked)
        written = store(writer, batch_of([one, bad, two], asked=asked))
        assert (written.stored, written.dead) == (2, 1), state
        assert written.reasons == {Reason.REJECTED_BY_DATABASE: 1}
        expected.append((asked + 1, REJECTED))
    assert kept.letters() == expected


@pytest.mark.parametrize("state", STATES)
def test_what_fails_for_all_records_is_an_outage_whatever_the_error(
    writer: Writer, kept: Kept, state: str
) -> None:
    batch = batch_of([*beats(5), None, BAD])
    before = kept.everything()
    on_insert(kept, raising(state))
    fails(writer, batch, 5)
    assert kept.everything() == before
    kept.do("DROP TRIGGER theirs ON heartbeats")
    assert store(writer, batch, attempts=1).stored == 6
    assert kept.letters() == [(5, "not_json")]


def test_its_dead_letter_has_its_beginning_its_size_and_its_digest(
    writer: Writer, kept: Kept
) -> None:
    value = json.dumps({"customer_id": "bad", "more": "x" * 10_000}).encode()
    record = Received(1, value, b"key", [("device", b"7")])
    batch = batch_of([beat("good"), BAD])
    batch = dataclasses.replace(batch, sources=[batch.sources[0], record])
    on_insert(kept, raising("XX000"), IS_BAD)
    store(writer, batch)
    [row] = kept.all(
        "SELECT key, value, headers, reason, detail, record_size, record_sha256,"
        " customer_ids FROM dead_letters"
    )
    assert bytes(row.key) == b"key"
    assert bytes(row.value) == value[: 4096 - 3]
    assert (row.reason, row.detail) == (REJECTED, "made up")
    whole = b"key" + value + b"device7"
    assert row.record_size == len(whole)
    assert bytes(row.record_sha256) == hashlib.sha256(whole).digest()
    assert set(row.customer_ids) == {"bad", "key", "device", "7"}


def test_a_check_of_somebody_elses_is_told_by_the_rows_that_it_lets_in(
    writer: Writer, kept: Kept
) -> None:
    kept.do("ALTER TABLE heartbeats ADD CONSTRAINT theirs CHECK (customer_id <> 'bad')")
    assert store(writer, batch_of([*beats(3), BAD])).dead == 1
    assert kept.letters() == [(3, REJECTED)]
    kept.do("ALTER TABLE heartbeats ADD CONSTRAINT no CHECK (false) NOT VALID")
    before = kept.everything()
    fails(writer, batch_of([beat("good")], asked=4), 6)
    assert kept.everything() == before


def test_a_record_that_ends_its_session_is_found(writer: Writer, kept: Kept) -> None:
    on_insert(kept, "PERFORM pg_terminate_backend(pg_backend_pid())", IS_BAD)
    written = store(writer, batch_of([*beats(20), BAD, *beats(20, first=20)]))
    assert (written.stored, written.dead) == (40, 1)
    assert kept.letters() == [(20, REJECTED)]


def test_a_session_that_ends_for_every_record_is_an_outage(
    writer: Writer, kept: Kept
) -> None:
    on_insert(kept, "PERFORM pg_terminate_backend(pg_backend_pid())")
    before = kept.everything()
    fails(writer, batch_of([beat("good")]), 8)
    assert kept.everything() == before


def test_a_duplicate_at_fault_stays_a_duplicate(writer: Writer, kept: Kept) -> None:
    """What is there already meets no trigger."""
    writer.write(batch_of([BAD]))
    on_insert(kept, raising("XX000"), IS_BAD)
    written = store(writer, batch_of([BAD, beat("bad", 2.0), beat("good")], asked=1))
    assert (written.stored, written.duplicate, written.dead) == (1, 0, 2)


def test_several_bad_records_in_a_batch_are_found_by_few_attempts(
    writer: Writer, kept: Kept, attempts: list[int]
) -> None:
    on_insert(kept, raising("XX000"), IS_BAD)
    items: list[Heartbeat | None] = list(beats(5_000))
    places = [0, 1, 17, 2_500, 2_501, 4_999]
    for place in places:
        items[place] = beat("bad", place)
    written = store(writer, batch_of(items))
    assert (written.stored, written.dead) == (4_994, 6)
    assert kept.letters() == [(place, REJECTED) for place in places]
    print(f"{len(attempts)} transactions: {attempts}")
    assert len(attempts) < 150


def test_all_records_of_a_batch_may_be_bad(
    writer: Writer, kept: Kept, attempts: list[int]
) -> None:
    on_insert(kept, raising("XX000"), IS_BAD)
    store(writer, batch_of([beat("bad", n) for n in range(50)]))
    assert kept.letters() == [(n, REJECTED) for n in range(50)]
    assert len(attempts) < 50 * 6 + 20
    assert writer._troubles == {}


# What a dead letter fails for


def refused_as(*records: Received, detail: str = "It is not JSON.") -> Batch:
    """Good beats, and records that are none."""
    good = batch_of([beat("good", n) for n in range(3)])
    return dataclasses.replace(
        good,
        position=3 + len(records),
        refused=[Refused(each, Refusal(Reason.NOT_JSON, detail)) for each in records],
    )


def test_a_dead_letter_that_fails_as_a_whole_is_kept_by_its_beginning(
    writer: Writer, kept: Kept
) -> None:
    on_insert(kept, raising("54000"), "length(NEW.value) > 5000", "dead_letters")
    store(writer, refused_as(Received(3, b"x" * 6_000), Received(4, b"short")))
    rows = kept.all(
        'SELECT "offset", reason, length(value), record_size, detail FROM dead_letters'
        ' ORDER BY "offset"'
    )
    assert [tuple(row)[:4] for row in rows] == [
        (3, REJECTED, 4096, 6_000),
        (4, "not_json", 5, None),
    ]
    assert "not_json" in rows[0].detail


def test_where_its_beginning_fails_too_nothing_of_it_is_kept(
    writer: Writer, kept: Kept
) -> None:
    on_insert(
        kept,
        raising("22P05"),
        "strpos(NEW.headers::TEXT, 'wrong') > 0 OR strpos(NEW.detail, 'made up') > 0",
        "dead_letters",
    )
    bad = Received(3, b"x" * 6_000, b"key", [("wrong", b"1")])
    store(writer, refused_as(bad, Received(4, b"short")))
    rows = kept.all(
        'SELECT "offset", key, value, headers, record_size, record_sha256, detail'
        ' FROM dead_letters ORDER BY "offset"'
    )
    assert tuple(rows[0])[:5] == (3, None, None, [], 6_009)
    digest = hashlib.sha256(b"key" + b"x" * 6_000 + b"wrong1").digest()
    assert bytes(rows[0].record_sha256) == digest
    assert "nothing" in rows[0].detail
    assert bytes(rows[1].value) == b"short"


def test_what_the_driver_does_not_take_is_the_records_fault_too(
    writer: Writer, kept: Kept
) -> None:
    store(writer, refused_as(Received(3), detail="NUL \x00"))
    assert kept.letters() == [(3, REJECTED)]
    assert len(kept.beats()) == 3


# Outages


REVOKED = [
    "INSERT ON heartbeats",
    "INSERT ON dead_letters",
    "INSERT ON rollup_marks",
    "INSERT ON ingest_minute",
    "UPDATE (dead) ON partition_ledger",
    "SELECT ON erased_customers",
    "USAGE ON SEQUENCE heartbeats_id_seq",
]


@pytest.mark.parametrize("what", REVOKED)
def test_a_right_that_was_revoked_rejects_nothing(
    writer: Writer, kept: Kept, what: str
) -> None:
    before = kept.everything()
    batch = batch_of([BAD, None])
    kept.do(f"REVOKE {what} FROM worker")
    fails(writer, batch, 8)
    assert kept.everything() == before
    kept.do(f"GRANT {what} TO worker")
    store(writer, batch, attempts=1)
    assert kept.letters() == [(1, "not_json")]


def test_a_duplicate_rejects_nothing_where_there_are_no_temporary_tables(
    writer: Writer, kept: Kept, name: str
) -> None:
    """Only what is there already needs them; the probe does, too."""
    writer.write(batch_of([BAD]))
    before = kept.everything()
    kept.do(
        f'REVOKE TEMPORARY ON DATABASE "{name}" FROM worker, PUBLIC',
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'writer' AND datname = current_database()",
    )
    fails(writer, batch_of([BAD], asked=1), 8)
    assert kept.everything() == before


@contextmanager
def holding(engine: Engine, each: Heartbeat) -> Iterator[None]:
    """Another session has the beat's key in hand."""
    with engine.connect() as other:
        other.execute(
            text(
                'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                " VALUES (:customer, :at, 1)"
            ),
            {"customer": each.customer_id, "at": each.timestamp},
        )
        yield
        other.rollback()


@pytest.mark.parametrize("limit", ["LOCK_TIMEOUT_MS", "STATEMENT_TIMEOUT_MS"])
def test_a_record_that_waits_for_another_session_is_never_at_fault(
    make_writer: MakeWriter,
    kept: Kept,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    monkeypatch.setattr(storage_engine, limit, 150)
    writer = make_writer()
    ensure_days(engine, [BAD.timestamp.date()])
    batch = batch_of([*beats(3), BAD, *beats(3, first=3)])
    with holding(engine, BAD):
        fails(writer, batch, 8)
        # What is before it is stored meanwhile.
        assert kept.beats() == rows_of(beats(3))
        assert kept.letters() == []
    assert store(writer, batch, attempts=1).dead == 0
    assert kept.beats() == rows_of([*beats(6), BAD])


def test_an_outage_of_fifty_thousand_records_is_asked_for_by_probes(
    writer: Writer, kept: Kept, attempts: list[int]
) -> None:
    batch = batch_of(beats(50_000))
    on_insert(kept, raising("P0001"))
    fails(writer, batch, 12)
    assert len(attempts) <= 24
    kept.do("DROP TRIGGER theirs ON heartbeats")
    attempts.clear()
    assert store(writer, batch, attempts=1).stored == 50_000
    assert attempts[:2] == [0, 25_000]
    assert len(attempts) < 20


def test_an_outage_that_begins_in_the_midst_of_a_search_rejects_nothing(
    writer: Writer, kept: Kept, attempts: list[int]
) -> None:
    batch = batch_of([*beats(500), BAD, *beats(500, first=500)])
    on_insert(kept, raising("P0001"), IS_BAD)
    rest: Batch | None = batch
    failures = 0
    while len(attempts) < 12:
        assert rest is not None
        try:
            rest = writer.write(rest).rest
        except (DBAPIError, psycopg2.Error):
            failures += 1
            rest = batch
    kept.do("DROP TRIGGER theirs ON heartbeats")
    on_insert(kept, raising("P0001"))
    attempts.clear()
    fails(writer, batch, 5)
    assert len(attempts) < 60  # a search and its probes, not one for each record
    assert kept.letters() == []
    kept.do("DROP TRIGGER theirs ON heartbeats")
    assert store(writer, batch, attempts=1).dead == 0
    assert kept.beats() == rows_of([*beats(1_000), BAD])


def test_a_probe_that_fails_stops_nothing_that_goes(writer: Writer, kept: Kept) -> None:
    """As with a foreign key of somebody's, which knows no made-up customer."""
    kept.do(
        "CREATE TABLE customers (id TEXT PRIMARY KEY)",
        "INSERT INTO customers VALUES ('c')",
        "ALTER TABLE heartbeats ADD FOREIGN KEY (customer_id) REFERENCES customers",
    )
    batch = batch_of([*beats(3), beat("unknown"), *beats(3, first=3)])
    fails(writer, batch, 6)
    assert kept.letters() == []
    kept.do("INSERT INTO customers VALUES ('unknown')")
    assert store(writer, batch, attempts=1).stored == 7


# Beside it


def test_other_partitions_go_on(writer: Writer, kept: Kept) -> None:
    on_insert(kept, raising("XX000"), IS_BAD)
    bad = batch_of([*beats(10), BAD])
    with pytest.raises(DBAPIError):
        raise_sqlalchemy(writer, bad)
    other = batch_of([beat("other")], partition=1)
    with pytest.raises(ApartError):
        writer.write_together([bad, other])
    assert writer.write(other).stored == 1
    store(writer, bad)
    assert kept.letters() == [(10, REJECTED)]


def raise_sqlalchemy(writer: Writer, batch: Batch) -> None:
    try:
        writer.write(batch)
    except psycopg2.Error as error:
        raise DBAPIError("", None, error) from error


def test_a_new_writer_begins_the_search_anew(
    make_writer: MakeWriter, kept: Kept, attempts: list[int]
) -> None:
    on_insert(kept, raising("XX000"), IS_BAD)
    batch = batch_of([*beats(50), BAD, *beats(50, first=50)])
    for stop in range(3, 16, 3):
        writer = make_writer()
        attempts.clear()
        rest: Batch | None = batch
        while rest is not None and len(attempts) < stop:
            try:
                rest = writer.write(rest).rest
            except (DBAPIError, psycopg2.Error):
                rest = batch
    store(make_writer(), batch)
    assert kept.beats() == rows_of(beats(100))
    assert kept.letters() == [(50, REJECTED)]
    assert kept.book()[:6] == (101, 101, 101, 100, 0, 1)


def test_a_batch_read_anew_goes_on_behind_what_is_stored(
    writer: Writer, kept: Kept, attempts: list[int]
) -> None:
    """Not record by record through what is there already."""
    on_insert(kept, raising("XX000"), IS_BAD)
    batch = batch_of([*beats(1_000), BAD])
    rest: Batch | None = batch
    while not kept.letters():
        assert rest is not None
        try:
            rest = writer.write(rest).rest
        except (DBAPIError, psycopg2.Error):
            rest = batch
    attempts.clear()
    store(writer, batch, attempts=1)
    assert len(attempts) <= 1


def test_each_search_says_so_once_without_the_record(
    writer: Writer, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    on_insert(kept, "RAISE EXCEPTION USING MESSAGE = 'no ' || NEW.customer_id", IS_BAD)
    store(writer, batch_of([*beats(10), BAD, *beats(10, first=10), beat("bad", 2.0)]))
    assert 1 <= len(caplog.records) <= 2  # one for each search
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert "rejected_by_database" in record.getMessage()
        assert "bad" not in record.getMessage()
    assert [row.detail for row in kept.all("SELECT detail FROM dead_letters")] == [
        "no bad",
        "no bad",
    ]


def test_a_rejected_beat_is_stored_by_a_replay_once_it_can_be(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    value = json.dumps(
        {"customer_id": "bad", "timestamp": "2026-01-01T12:00:01Z", "heart_rate": 70}
    ).encode()
    batch = dataclasses.replace(batch_of([BAD]), sources=[Received(0, value)])
    on_insert(kept, raising("XX000"), IS_BAD)
    store(writer, batch)
    assert kept.letters() == [(0, REJECTED)]
    rules = Rules.at(
        START + timedelta(days=1), max_future_seconds=1, retention_days=None
    )
    assert replay(engine, rules, START).outcomes == {f"refused: {REJECTED}": 1}
    kept.do("DROP TRIGGER theirs ON heartbeats")
    assert replay(engine, rules, START).outcomes == {"stored": 1}
    assert kept.beats() == rows_of([BAD])


def test_a_replay_is_no_judge_in_an_outage(
    writer: Writer, kept: Kept, engine: Engine
) -> None:
    value = json.dumps(
        {"customer_id": "bad", "timestamp": "2026-01-01T12:00:01Z", "heart_rate": 70}
    ).encode()
    store(writer, refused_as(Received(3, value)))
    on_insert(kept, raising("22000"))
    rules = Rules.at(
        START + timedelta(days=1), max_future_seconds=1, retention_days=None
    )
    with pytest.raises(DBAPIError):
        replay(engine, rules, START)
    kept.do("DROP TRIGGER theirs ON heartbeats")
    assert replay(engine, rules, START).outcomes == {"stored": 1}


def test_failures_between_probes_that_fail_prove_nothing(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that comes and goes is an outage, however often a record meets it."""
    probes = itertools.cycle([True, False, False])
    given: list[Batch] = []

    def fail(batches: Sequence[Batch], *, halves: bool = False) -> list[Written]:
        given.extend(batches)
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(writer, "_takes_others", lambda *_, **__: next(probes))
    monkeypatch.setattr(writer, "_try", fail)
    batch = batch_of([beat("good")])
    for _ in range(40):
        with suppress(psycopg2.Error):
            writer.write(batch)
    assert not any(each.refused for each in given)


def test_an_excerpt_that_fails_keeps_whose_it_is(writer: Writer, kept: Kept) -> None:
    whole = Received(0, b" " * 5_000 + b'{"customer_id": "anna"}')
    made = excerpt(whole)
    on_insert(kept, raising("54000"), "NEW.reason = 'too_large'", "dead_letters")
    refused = [Refused(made, Refusal(Reason.TOO_LARGE, "It is too large."))]
    batch = dataclasses.replace(batch_of([]), position=1, refused=refused)
    store(writer, batch)
    assert kept.letters() == [(0, REJECTED)]
    [row] = kept.all("SELECT record_size, customer_ids FROM dead_letters")
    assert tuple(row) == (made.size, ["anna"])
