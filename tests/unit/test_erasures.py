"""Which customers a refused record names, and what a batch loses to an erasure."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pytest

from heartbeat_app.domain.batches import Refused
from heartbeat_app.domain.validation import Reason
from heartbeat_app.storage.write import erasures
from heartbeat_app.storage.write.erasures import Erased, digest_of, refuse
from heartbeat_app.storage.write.naming import customers_named, is_unreadable, may_name
from tests.storing import REFUSAL, Received, batch_of, beat

KEY = b"k" * 32
ANNA = Erased((b"other", KEY), frozenset({digest_of(KEY, "anna")}), 1)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (None, None, set()),
        (b"anna", None, {"anna"}),
        (b"", b"{}", set()),
        (None, b'{"customer_id": "anna", "heart_rate": 0}', {"anna"}),
        (b"bea", b'{"customer_id":"anna"}', {"anna", "bea"}),
        (None, rb'{"customer_id": "\u0061nn\u0061"}', {"anna"}),
        (None, rb'{"customer\u005fid": "anna"}', {"anna"}),
        (None, b'{"customer_id": "a", "customer_id": "b"}', {"a", "b"}),
        (None, b'[{"beat": {"customer_id": "anna"}}]', {"anna"}),
        (None, b'{"customer_id": 42}', {"42"}),
        (None, b'{"customer_id": null}', set()),
        (None, b'{"customer_id": "anna", "heart_rate": ', {"anna"}),
        (None, b'\xff {"customer_id" : "anna"}', {"anna"}),
        # The second would be JSON in a text.
        (None, b'\xff"customer_id":"a\\"b"', {'a"b', "a"}),
        (None, b'\xff"customer_id":"a\\x"', {"a\\x"}),
        (None, b'{"note": "anna"}', {"anna"}),
        (None, b'{"note": "anna", "customer_id": "bea"}', {"bea"}),
        (None, b'{"anna": 1}', set()),
        (None, b'{"rate": 72, "text": "72", "customer_id" : 7}', {"7"}),
        (None, b'["72", 72]', set()),
        (None, rb'{"by": ["zo\u00e9"]}', {"zo\u00e9"}),
        (None, rb'{"by": "\uD83D\ude00"}', {"\U0001f600"}),
        (None, rb'"{\"by\": \"zo\\u00E9\"}"', {"zo\u00e9"}),
        (None, rb'{"m": "{\"customer_id\":\"anna\"}"}', {"anna"}),
        (None, rb"log: {\"customer_id\": \"anna\"}", {"anna"}),
        (None, rb'{"a": "b\", "customer_id": "anna"', {"anna"}),
        (None, b'{"customer_id":"customer_id": "anna"', {"anna"}),
        (None, b"customer=anna&rate=72", {"anna"}),
        (None, b"anna,2026-01-01,72", {"anna"}),
        (b"user:anna", None, {"anna", "user:anna"}),
        (b'{"customer_id":"anna"}', None, {"anna"}),
        (None, b"[" * 100_000, set()),
        (b"\xff", b"\x00", {"\udcff"}),
    ],
)
def test_what_a_record_names(
    key: bytes | None, value: bytes | None, named: set[str]
) -> None:
    found = customers_named(key, value, ())
    assert named <= found
    # Words of what is no JSON may be anything.
    people = {"anna", "bea", "zo\u00e9", "\U0001f600", "a", "72", "7", "42"}
    assert found & people == named & people


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ([["customer_id", "anna"], ("bea", None)], {"anna", "bea"}),
        ([["x", {"base64": "AGFubmE="}]], set()),
        ([["x", {"base64": "/yB1c2VyPWFubmE="}]], {"anna"}),
        ([["from", "user=anna"]], {"anna"}),
        ([["from", "user=anna;role=x"]], {"anna"}),
        ([["from", 'id="anna"']], {"anna"}),
        ([["from", "/users/zo%C3%A9"]], {"zo\u00e9"}),
        ([["from", r'{"by": "zo\u00e9"}']], {"zo\u00e9"}),
        ([["from", r'{"customer_id": 72}']], {"72"}),
        ([["customer_id", "72"]], {"72"}),
        ([["attempt", "72"], ["rate", "x=72"]], set()),
    ],
)
def test_what_its_headers_name_counts_too(headers: Any, named: set[str]) -> None:
    people = {"anna", "bea", "zo\u00e9", "72"}
    assert customers_named(None, None, headers) & people == named


def test_a_record_of_somebody_else_is_theirs() -> None:
    """Whoever else is in it: a person has to look at it."""
    value = b'{"customer_id": "bea", "friend": "anna"}'
    assert customers_named(None, value, [["by", "user=anna"]]) & {"anna"} == set()
    assert may_name("anna", None, value, [["by", "user=anna"]])


@pytest.mark.parametrize(
    ("customer", "value", "expected"),
    [
        ("anna", rb'{"note": "tell \u0061nna"}', True),
        ("anna", b'{"anna": 1}', True),
        ("anna", "anna".encode("utf-16-be"), True),
        ("anna", "\xe4nna".encode(), False),
        ("a/b", rb'{"note": "to a\/b."}', True),
        ("72", b'{"heart_rate": 72, "t": "12:72:72"}', False),
        ("72", b'{"heart_rate": "72"}', True),
        ("72", b"rate=72", True),
    ],
)
def test_what_may_name_a_customer(customer: str, value: bytes, expected: bool) -> None:
    assert may_name(customer, None, value, ()) == expected


@pytest.mark.parametrize(
    ("value", "unreadable"),
    [
        (b"", False),
        (b"{", False),
        ("zo\u00e9".encode(), False),
        (gzip.compress(b"x", mtime=0), True),
        (b"BZh91AY&SY", True),
        ("anna".encode("utf-16"), True),
        (b"\xff\xfe", True),
        (b"a\x00b", True),
    ],
)
def test_what_cannot_be_looked_into(value: bytes, unreadable: bool) -> None:
    assert is_unreadable(None, value, ()) == unreadable
    assert is_unreadable(value, None, ()) == unreadable


SIZE = 256 * 1024


@pytest.mark.parametrize(
    "unit",
    [
        b'"', b'\\"', b"\\", b'"customer_id"', b'"customer_id":"\\"', b'"customer_id" ',
        b'"a":"b",', b"\\u005c", b"%61=", b"[[{", b" : ", b"a b ", b'\\\\"', b"\xff",
    ],
)  # fmt: skip
def test_a_long_record_takes_no_longer_than_its_length(unit: bytes) -> None:
    """Whatever it is made of: linear, or the work of an attacker would be ours."""

    def seconds(size: int) -> float:
        value = unit * (size // len(unit))
        began = time.process_time()
        customers_named(None, value, ())
        may_name("zo\u00e9", None, value, ())
        return time.process_time() - began

    assert seconds(SIZE) < max(30 * seconds(SIZE // 8), 1.0)


def test_while_nobody_was_erased_a_batch_stays_as_it_is() -> None:
    batch = batch_of([beat("anna"), None])
    assert refuse(batch, Erased()) is batch


def test_nothing_is_kept_of_what_an_erased_customer_sent() -> None:
    batch = batch_of([beat("bea"), beat("anna"), None, beat("ann")])
    broken = Received(4, b'{"customer_id": "anna"', b"x", [("name", b"anna")])
    other = Received(5, b'{"customer_id": "anna2"', b"\xff", [("name", b"\xff")])
    tagged = Received(6, b"{", None, [("x", b""), ("customer_id", b"anna")])
    batch.refused.extend(  # type: ignore[attr-defined]
        [Refused(each, REFUSAL) for each in (broken, other, tagged)]
    )
    after = refuse(batch, ANNA)
    assert [each.customer_id for each in after.beats] == ["bea", "ann"]
    assert [each.offset for each in after.sources] == [0, 3]
    assert after.records == batch.records
    by_offset = {each.record.offset: each for each in after.refused}
    assert sorted(by_offset) == [1, 2, 4, 5, 6]
    for offset in (1, 4, 6):
        each = by_offset[offset]
        assert each.refusal == erasures.REFUSAL
        assert each.refusal.reason == Reason.CUSTOMER_ERASED
        record = each.record
        assert (record.key, record.value, record.headers) == (None, None, ())
    assert by_offset[5].record is other
    assert by_offset[2] in batch.refused
