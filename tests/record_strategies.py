"""Values of records for hypothesis: right, nearly right, and any bytes."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import strategies as st


def _raw(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass").hex()
    return (
        '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'
    )


Write = Callable[[str], str]
_WAYS: list[Write] = [json.dumps, _raw, _escaped]
WRITTEN = st.sampled_from(_WAYS)

CUSTOMER_IDS = (
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"),
        min_size=1,
        max_size=30,
    )
    | st.text(st.sampled_from("\\\t\n\r .N\x01\x7f\u2028é😀"), min_size=1, max_size=9)
    | st.sampled_from(
        [
            " ", "  a  ", "\t", "\n", "\r\n", "\\", "\\N", "\\.", "\\n", "NULL", "null",
            "\x01", "\x08\x0b\x0c", "\x7f", "\x85", "\ufeff", "\uffff", "\U0010ffff",
            "é", "e\u0301", "😀" * 255, "\\" * 255, "\n" * 255, "'", '"', "{}", "%s",
        ]
    )
)  # fmt: skip


def _two_digits(highest: int) -> st.SearchStrategy[str]:
    return st.integers(0, highest).map("{:02}".format)


OFFSETS = st.sampled_from(["Z", "z", "+00:00", "-00:00", "+14:00", "-14:00"]) | (
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from("+-"),
        _two_digits(23),
        st.sampled_from([":", ""]),
        _two_digits(59),
    )
)


def _timestamps(*days: str) -> st.SearchStrategy[str]:
    return st.builds(
        "{}{}{}:{}:{}{}{}".format,
        st.sampled_from(days),
        st.sampled_from("Tt "),
        _two_digits(23),
        _two_digits(59),
        _two_digits(59),
        st.just("") | st.text("0123456789", min_size=1, max_size=12).map(".{}".format),
        OFFSETS,
    )


# Few days, so that few partitions are needed; all accepted at any offset.
TIMESTAMPS = _timestamps(
    "2000-01-02", "2016-12-31", "2017-01-01", "2024-02-29", "2024-12-31", "2025-12-30"
)
EDGES = _timestamps("1999-12-31", "2000-01-01", "2025-12-31", "2026-01-01")
ODD_TIMESTAMPS = st.sampled_from(
    [
        "2016-12-31T23:59:60Z", "2026-01-01T24:00:00Z", "2026-01-01T23:60:00Z",
        "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.9999995Z",
        "9999-12-31T23:59:59-23:59", "10000-01-01T00:00:00Z", "2023-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z",
        "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+00:60",
        "2026-01-01T00:00:00", "2026-01-01", "2026-01-01T00:00Z", "1767225600",
        "1767225600000", "2026-W01-1T00:00:00Z", "20260101T000000Z", "now", "",
        "2026-01-01T12:05:00.0000004Z", "2026-01-01T12:05:00.0000005Z",
        "1999-12-31T23:59:59.9999994Z", "1999-12-31T23:59:59.9999995Z",
        "٢026-01-01T00:00:00Z", "2026-01-01T00:00:00\u221205:00",
    ]
)  # fmt: skip

RATES = st.integers(1, 300).map(str)
NUMBERS = (
    st.integers(-2, 302).map(str)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(
        ["-0", "72.0", "7.2e1", "72e0", "072", "+72", "1e400", "9" * 5000]
    )
)

_scalars = st.one_of(
    st.builds(lambda write, text: write(text), WRITTEN, st.text(max_size=20)),
    st.builds(lambda write, text: write(text), WRITTEN, CUSTOMER_IDS),
    NUMBERS,
    st.sampled_from(["null", "true", "false", "NaN", '"\\ud800"', '"\\udc00\\ud800"']),
)
ANY_JSON = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda found: f"[{','.join(found)}]")
        | st.lists(st.tuples(_scalars, inner), max_size=3).map(
            lambda found: f"{{{','.join(f'{name}:{value}' for name, value in found)}}}"
        )
    ),
    max_leaves=5,
)

_id_pieces = st.builds(lambda write, text: write(text), WRITTEN, CUSTOMER_IDS)
_instant_pieces = st.builds(lambda write, text: write(text), WRITTEN, TIMESTAMPS)


def _field(
    name: str, piece: st.SearchStrategy[str]
) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(WRITTEN.map(lambda write: write(name)), piece)


def _object(fields: list[tuple[str, str]], blank: str) -> bytes:
    inside = f",{blank}".join(f"{name}{blank}:{value}" for name, value in fields)
    return f"{blank}{{{inside}{blank}}}{blank}".encode()


_BLANKS = st.sampled_from(["", " ", "\n", "\t\r\n "])
_ids = _field("customer_id", _id_pieces)
_instants = _field("timestamp", _instant_pieces)
_rates = _field("heart_rate", RATES)


# Accepted, whatever the order, the escapes and the blanks.
@st.composite
def _right(draw: st.DrawFn) -> bytes:
    fields = [draw(_ids), draw(_instants), draw(_rates)]
    return _object(draw(st.permutations(fields)), draw(_BLANKS))


RIGHT = _right()

_wrong_fields = st.one_of(
    _field("customer_id", ANY_JSON | st.just('"' + "a" * 256 + '"')),
    _field("timestamp", ANY_JSON | (ODD_TIMESTAMPS | EDGES).map(json.dumps)),
    _field("heart_rate", NUMBERS | ANY_JSON),
    st.tuples(_scalars, ANY_JSON),
)


@st.composite
def _nearly_right(draw: st.DrawFn) -> bytes:
    """A record in which something was left out, put in its place, or added."""
    fields = [draw(_ids), draw(_instants), draw(_rates)]
    what = draw(st.integers(0, 3))
    if what < 3:
        del fields[draw(st.integers(0, 2))]
    if what > 0:
        fields.insert(draw(st.integers(0, len(fields))), draw(_wrong_fields))
    return _object(fields, draw(_BLANKS))


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A record of which some bytes are others, or in another encoding."""
    value = draw(RIGHT | _nearly_right())
    at = draw(st.integers(0, len(value)))
    upto = draw(st.integers(at, min(len(value), at + 3)))
    value = value[:at] + draw(st.binary(max_size=3)) + value[upto:]
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-16", "utf-8-sig", "utf-32"]))
    if encoding == "utf-8":
        return value
    return value.decode(errors="replace").encode(encoding)


NEARLY_RIGHT = _nearly_right()
ANY_VALUE = st.one_of(st.none(), st.binary(), RIGHT, NEARLY_RIGHT, _damaged())
