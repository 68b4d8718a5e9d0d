"""What is kept of a record that is not kept whole, and who is found in it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.domain.excerpts import (
    KEPT_BYTES,
    MOST_IDS,
    Excerpt,
    Excerpting,
    excerpt,
    size_of,
)
from tests.storing import Received

PAD = b"." * 10_000


def pieces_of(whole: bytes | None, size: int) -> Iterator[bytes]:
    for begin in range(0, len(whole or b""), size):
        yield (whole or b"")[begin : begin + size]


def in_pieces(record: Received, size: int) -> Excerpt:
    """The excerpt of a record that comes in pieces of that size."""
    made = Excerpting()

    def part(whole: bytes | None) -> None:
        for piece in pieces_of(whole, size):
            made.add(memoryview(piece))

    made.key(None if record.key is None else len(record.key))
    part(record.key)
    made.value(None if record.value is None else len(record.value))
    part(record.value)
    for name, value in record.headers:
        made.header_name(len(name.encode()))
        part(name.encode())
        made.header_value(None if value is None else len(value))
        part(value)
    return made.end(record.offset)


def ids(value: bytes) -> Sequence[str]:
    return excerpt(Received(0, value)).customer_ids


def test_the_beginning_of_key_value_and_headers_is_kept() -> None:
    record = Received(7, PAD, b"carl", [("name", b"value")])
    found = excerpt(record)
    assert (found.offset, found.key, found.value) == (7, b"carl", PAD[: KEPT_BYTES - 4])
    assert (found.headers, found.size) == ([], 4 + len(PAD) + 9)
    assert found.sha256 == hashlib.sha256(b"carl" + PAD + b"namevalue").digest()
    assert found.size == size_of(record)
    small = Received(7, b"v", None, [("a", b"b"), ("c", PAD), ("d", b"e")])
    assert excerpt(small).headers == [("a", b"b")]
    assert len(excerpt(Received(7, None, PAD)).key or b"") == KEPT_BYTES


WAYS = {
    "behind": b'{"pad": "%b", "customer_id": "carl"}' % PAD,
    "before": b'{"customer_id": "carl", "pad": "%b"}' % PAD,
    "no JSON": PAD + b'"customer_id"  :\n "carl", ',
    "escaped": b'{"pad": "%b", "customer_id": "c\\u0061rl"}' % PAD,
    "an escaped name": b'{"pad": "%b", "customer\\u005fid": "carl"}' % PAD,
    "JSON in JSON": json.dumps(
        {"pad": "." * 10_000, "it": json.dumps({"customer_id": "carl"})}
    ).encode(),
    "in JSON in JSON": json.dumps(
        [PAD.decode(), json.dumps([json.dumps({"customer_id": "carl"})])]
    ).encode(),
}


@pytest.mark.parametrize("value", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("size", [1, 7, 4096, 65_536])
def test_who_is_named_is_found(value: bytes, size: int) -> None:
    assert in_pieces(Received(0, value), size).customer_ids == ["carl"]


def test_who_is_named_beside_the_value_is_found() -> None:
    record = Received(0, PAD, "zoë".encode(), [("who", b"carl"), ("anna", PAD)])
    assert list(excerpt(record, ["dora"]).customer_ids) == sorted(
        ["zoë", "who", "carl", "anna", "dora"]
    )
    assert list(ids(b'{"customer_id": 17, "b": {"customer_id": "1\\u0000"}}')) == ["17"]


@given(st.text(min_size=1, max_size=255), st.integers(99, 6000), st.booleans())
def test_any_id_is_found_wherever_a_piece_ends(
    customer_id: str, size: int, ascii: bool
) -> None:
    value = json.dumps(
        {"pad": PAD.decode(), "customer_id": customer_id, "more": "."},
        ensure_ascii=ascii,
    ).encode("utf-8", "surrogatepass")
    found = in_pieces(Received(0, value), size).customer_ids
    if "\x00" not in customer_id:
        assert customer_id in found


@given(st.binary(max_size=300), st.none() | st.binary(max_size=300), st.integers(1, 50))
def test_pieces_make_no_difference(value: bytes, key: bytes | None, size: int) -> None:
    record = Received(3, value, key, [("h", value)])
    assert in_pieces(record, size) == excerpt(record)


def test_of_a_record_that_names_too_many_nothing_is_kept() -> None:
    many = b"".join(b'{"customer_id": "%d"}' % n for n in range(MOST_IDS + 1))
    found = excerpt(Received(0, many, b"key", [("a", b"b")]))
    assert (found.key, found.value, found.headers) == (None, None, [])
    assert (found.customer_ids, found.size) == ([], len(many) + 5)
    assert found.sha256 == hashlib.sha256(b"key" + many + b"ab").digest()


@pytest.mark.parametrize(
    "unit",
    [b"\\", b'"', b'"customer_id":"', b'\\"customer_id\\":\\"', b"\\u0063", b" ", b"\0",
     b'"customer_id" ', b'\\\\\\"'],
)  # fmt: skip
def test_no_piece_takes_long_to_look_through(unit: bytes) -> None:
    made = Excerpting()
    piece = (unit * 65_536)[:65_536]
    made.key(None)
    made.value(64 * len(piece))
    longest = 0.0
    for _ in range(64):
        began = time.thread_time()
        made.add(piece)
        longest = max(longest, time.thread_time() - began)
    assert longest < 0.1
