"""An erasure looks again, in another way, and does not claim what is not so."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from heartbeat_app.cli import report
from heartbeat_app.config import Settings
from heartbeat_app.exceptions import NotErasedError
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.operator import erase as module
from heartbeat_app.storage.operator.erase import erase
from heartbeat_app.storage.operator.erase_check import Check, check_letters
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.writer import Writer
from tests.storing import TOPIC_ID, Kept, Received, batch_of
from tests.typed import typed

from .test_erase import names, some_of, with_letters

pytestmark = pytest.mark.integration


@pytest.fixture
def owner(settings: Settings) -> Iterator[Engine]:
    """Connects as the command does."""
    engine = make_engine(settings.owner, application_name="erase", pool_size=2)
    yield engine
    engine.dispose()


def escaped(text: str, chance: random.Random) -> str:
    """The inside of a text of JSON, each character in some form that it may have."""
    out = ""
    for character in text:
        units = character.encode("utf-16-be")
        numbered = "".join(
            r"\u" + units[at : at + 2].hex() for at in range(0, len(units), 2)
        )
        forms = [numbered, numbered.upper().replace(r"\U", r"\u")]
        if character == '"':
            forms.append(r"\"")
        elif character == "\\":
            forms.append("\\\\")
        elif character == "/":
            forms += ["/", r"\/"]
        elif character == "\n":
            forms.append(r"\n")
        else:
            forms += [character] * 3
        out += chance.choice(forms)
    return out


def nested(customer: str, depth: int, field: str, chance: random.Random) -> str:
    """A record that has the id in a field, in JSON in a text, in JSON in a text, …"""
    name = escaped(field, chance)
    inner = f'{{"a": [1, {{"{name}" : "{escaped(customer, chance)}"}}]}}'
    for _ in range(depth):  # letters and digits of an escape nobody escapes again
        text = "".join(
            escaped(each, chance) if each in '"\\/' else each for each in inner
        )
        inner = f'{{"message":"{text}"}}'
    return inner


PEOPLE = [
    "er-victim-7",
    "zoé-er9",
    'a "quoted" \\ one',
    "наташа/2",
    "😀\n",
    "anna",
    "72",
]


@pytest.mark.parametrize("customer", PEOPLE)
def test_whatever_form_the_id_has_it_is_found_both_ways(
    writer: Writer, owner: Engine, kept: Kept, customer: str
) -> None:
    chance = random.Random(customer)
    records = [
        nested(customer, depth, field, chance)[: 10**6 if whole else -3].encode()
        for depth in range(4)
        for field in ("customer_id", "by")
        for whole in (True, False)
        for _ in range(3)
        if field == "customer_id" or customer != "72"
    ]
    others = [b'{"customer_id": "bea", "rate": 72}', b'["72,5", 72]', b"nothing"]
    writer.write(
        with_letters(
            batch_of([None]),
            *(Received(1 + at, value) for at, value in enumerate([*records, *others])),
        )
    )
    check = Check(customer)
    assert sum(check_letters(owner, check)) == len(records) + len(others)
    first = kept.all("SELECT min(id) FROM dead_letters")[0][0]
    # The independent look alone finds all of them.
    found = {*check.letters, *check.elsewhere}
    missed = [records[at] for at in range(len(records)) if first + at not in found]
    assert not missed
    erasure = erase(owner, customer)
    assert erasure.letters + len(erasure.elsewhere) == len(records)
    # What is whole is JSON, and is emptied.
    assert erasure.letters >= len(records) // 2
    left = kept.all('SELECT value FROM dead_letters WHERE "offset" > :last',
                    last=len(records))  # fmt: skip
    assert [bytes(value) for (value,) in left] == others


@pytest.mark.parametrize(
    ("customer", "value"),
    [
        ("+4917012345", b'{"customer_id": +4917012345, "heart_rate": 72}'),
        ("CORP\\bob", b'{"customer_id": "CORP\\bob", "heart_rate": 999}'),
        ("٧٢", '{"by": "٧٢"}'.encode()),
    ],
)
def test_what_is_odd_is_emptied_where_the_check_finds_it(
    writer: Writer, owner: Engine, customer: str, value: bytes
) -> None:
    writer.write(with_letters(batch_of([None]), Received(1, value)))
    check = Check(customer)
    assert sum(check_letters(owner, check)) == 1
    assert len(check.letters) + len(check.elsewhere) == 1
    assert erase(owner, customer).letters == 1


@pytest.mark.parametrize("customer", ["er-victim-7", "zoé-er9"])
def test_what_names_the_customer_beside_the_value_goes_too(
    writer: Writer, owner: Engine, kept: Kept, customer: str
) -> None:
    encoded = customer.encode()
    writer.write(
        with_letters(
            batch_of([None]),
            Received(1, b"{", None, [("from", b"user=" + encoded)]),
            Received(2, b"{", b"user:" + encoded),
            Received(3, b"{", None, [("from", b"\xff " + encoded)]),
            Received(4, json.dumps([customer]).encode()),
            Received(5, json.dumps({"m": json.dumps({"by": customer})}).encode()),
            Received(6, b"customer=" + encoded + b"&rate=72"),
            Received(7, b"{", json.dumps({"customer_id": customer}).encode()),
            # Somebody else's, or only perhaps the customer's.
            Received(8, json.dumps({"customer_id": "bea", "by": customer}).encode()),
            Received(9, json.dumps({"note": f"tell {customer}"}).encode()),
            Received(10, json.dumps({customer: 1}).encode()),
            Received(11, customer.encode("utf-16")),
            # Nobody can tell.
            Received(12, gzip.compress(encoded)),
            Received(13, b"{", b"\x00\x00\x00\x07"),
            Received(14, "anything".encode("utf-16")),
        )
    )
    ids = dict(kept.all('SELECT "offset", id FROM dead_letters'))
    erasure = erase(owner, customer)
    emptied = kept.all("SELECT \"offset\" FROM dead_letters WHERE detail = :words",
                       words=module.DETAIL)  # fmt: skip
    assert {offset for (offset,) in emptied} == {1, 2, 3, 4, 5, 6, 7}
    assert erasure.elsewhere == [ids[each] for each in (8, 9, 10, 11)]
    assert erasure.unreadable == [ids[each] for each in (12, 13, 14)]
    words = report.erased(erasure)
    assert "4 dead letters may name the customer; look at them" in words
    assert "3 dead letters cannot be looked into" in words
    assert (
        f"the customer: {', '.join(str(ids[each]) for each in (12, 13, 14))}" in words
    )


def test_a_number_is_no_name(writer: Writer, owner: Engine, kept: Kept) -> None:
    writer.write(
        with_letters(
            batch_of([None]),
            Received(1, b'{"customer_id": "bea", "heart_rate": 72}'),
            Received(2, b'{"heart_rate": 72, "timestamp": "2026-01-01T00:72:72Z"}'),
            Received(3, b"{", None, [("attempt", b"72")]),
            Received(4, b'{"heart_rate": "72"}'),
            Received(5, b'{"customer_id": 72, "heart_rate": 0}'),
            Received(6, b'{"customer_id": 720}', b"7"),
            Received(7, b"{", b"72"),
        )
    )
    ids = dict(kept.all('SELECT "offset", id FROM dead_letters'))
    erasure = erase(owner, "72")
    assert erasure.letters == 2
    assert erasure.elsewhere == [ids[3], ids[4]]
    emptied = kept.all('SELECT "offset" FROM dead_letters WHERE detail = :words',
                       words=module.DETAIL)  # fmt: skip
    assert {offset for (offset,) in emptied} == {5, 7}


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        ("_delete_day", "9 rows in heartbeats_2026"),
        ("_delete_rollups", "rows in heartbeats_minute_2026_01"),
        ("_empty", "2 dead letters (ids "),
    ],
)
def test_it_fails_where_something_is_left(
    writer: Writer,
    owner: Engine,
    worker_engine: Engine,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    left: str,
) -> None:
    """And an earlier success is taken back."""
    assert erase(owner, "anna")
    kept.do("TRUNCATE erased_customers")
    writer.write(
        with_letters(
            some_of("anna", "bea"),
            Received(18, b"{", b"anna"),
            Received(19, rb'{"m": "{\"customer_id\": \"\\u0061nna\"}"}'),
        )
    )
    Job(worker_engine).run_pass()
    kept.do("INSERT INTO dropped_days VALUES ('2025-12-01', 0, now(), now())")
    whole = getattr(module, broken)
    monkeypatch.setattr(module, broken, lambda *_: 0)
    if broken == "_delete_day":
        left = "3 rows in heartbeats_2026_01_01"
    with pytest.raises(NotErasedError) as caught:
        erase(owner, "anna")
    assert left in caught.value.message
    assert "anna" not in caught.value.message
    assert kept.all("SELECT FROM erased_customers WHERE finished_at IS NULL")
    monkeypatch.setattr(module, broken, whole)
    erase(owner, "anna")
    assert names(kept, "anna") == []
    assert kept.all("SELECT FROM erased_customers WHERE finished_at IS NOT NULL")


@pytest.fixture
def worker_engine(settings: Settings) -> Iterator[Engine]:
    """Connects as a worker does."""
    engine = make_engine(settings, application_name="worker", pool_size=2)
    yield engine
    engine.dispose()


def test_a_detached_month_of_roll_ups_loses_the_customer_too(
    writer: Writer, owner: Engine, worker_engine: Engine, kept: Kept
) -> None:
    writer.write(some_of("anna", "bea"))
    Job(worker_engine).run_pass()
    for parent in ("minute", "hour"):
        kept.do(
            f"ALTER TABLE heartbeats_{parent} DETACH PARTITION"
            f" heartbeats_{parent}_2026_01"
        )
    assert erase(owner, "anna").rollups == 6
    assert names(kept, "anna") == []


def test_the_command_fails_loudly(
    environ: dict[str, str], writer: Writer, kept: Kept
) -> None:
    """Where a table of ours holds the customer that the deletion does not know."""
    writer.write(some_of("anna"))
    kept.do(
        "CREATE TABLE heartbeats_kept AS SELECT * FROM heartbeats",
        f"ALTER TABLE heartbeats_kept OWNER TO {environ['POSTGRESQL_OWNER_USERNAME']}",
    )
    done = typed(environ, "erase", "anna", "--yes")
    assert (done.status, done.out) == (1, "")
    assert "The customer is not erased: 9 rows in heartbeats_kept still" in done.err
    assert "not noted as finished" in done.err
    kept.do("DROP TABLE heartbeats_kept")
    assert typed(environ, "erase", "anna", "--yes").status == 0


def test_long_ids_and_letters_of_a_megabyte_take_seconds(
    make_writer: Callable[..., Writer], owner: Engine, kept: Kept
) -> None:
    """As long as an id may be, of what is longest in a pattern."""
    writer = make_writer()
    long = '😀é\\"x' * 51
    filler = b'{"a": "\\u00e9\\\\\\\\", ' * 50_000
    for at in range(6):
        ending = b'"customer_id": "%b"' % json.dumps(long)[1:-1].encode() * (at % 2)
        writer.write(
            with_letters(batch_of([], asked=at), Received(at, filler + ending))
        )
    told: list[int] = []
    erasure = erase(owner, long, lambda so_far: told.append(so_far.done))
    assert (erasure.letters, erasure.elsewhere) == (3, [])
    assert kept.book(topic_id=TOPIC_ID).dead == 6
    assert len(told) > 4
