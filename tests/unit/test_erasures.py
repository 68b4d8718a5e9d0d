"""Which customers a refused record names, and what a batch loses to an erasure."""

from __future__ import annotations

import pytest

from heartbeat_app.batches import Refused
from heartbeat_app.storage import erasures
from heartbeat_app.storage.erasures import Erased, customers_named, digest_of, refuse
from heartbeat_app.validation import Reason
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
        (None, b'\xff"customer_id":"a\\"b"', {'a"b'}),
        (None, b'\xff"customer_id":"a\\x"', {"a\\x"}),
        (None, b'{"note": "anna"}', set()),
        (None, b"[" * 100_000, set()),
        (b"\xff", b"\x00", {"\udcff"}),
    ],
)
def test_what_a_record_names(
    key: bytes | None, value: bytes | None, named: set[str]
) -> None:
    assert customers_named(key, value, ()) == named


def test_what_its_headers_name_counts_too() -> None:
    headers = [["customer_id", "anna"], ("bea", None), ["x", {"base64": "Yw=="}]]
    assert customers_named(None, None, headers) == {"customer_id", "anna", "bea", "x"}


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
