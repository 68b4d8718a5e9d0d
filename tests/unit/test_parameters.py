"""What the parameters of the read API may be, and what is said of the others."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from heartbeat_app.storage.read.history import STEPS
from heartbeat_app.storage.read.spans import widen
from heartbeat_app.storage.rollup.marks import day_span
from heartbeat_app.web.parameters import (
    DEFAULT_PAGE,
    MAX_PAGE,
    BadParameterError,
    Parameters,
    check_encoding,
    customer_id,
    preferred,
)

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ALL = {"limit", "after", "since", "from", "to", "step"}


def given(**values: str) -> Parameters:
    pairs = [(name.rstrip("_"), value) for name, value in values.items()]
    return Parameters(pairs, ALL)


def test_what_is_not_given_has_a_default() -> None:
    assert given().limit() == DEFAULT_PAGE
    assert given().after() == ""
    assert given().span(NOW) == (NOW - timedelta(hours=1), NOW, None)
    assert given(to="2000-01-01T00:30:00Z").span(NOW)[0].year == 2000
    assert given().since(NOW) == NOW - timedelta(days=1)
    assert given().format("") == "json"


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-01T12:00:00Z",
        "2026-01-01T13:00:00+01:00",
        "2026-01-01T13:00:00 01:00",  # a plus sign that was not written as %2B
        "2026-01-01T12:00:00.000000Z",
        "2026-01-01T13:00:00+0100",
        "2026-01-01T13:00:00 0100",
        "2026-01-01T11:00:00.0-0100",
    ],
)
def test_an_instant_may_be_written_in_many_ways(written: str) -> None:
    assert given(from_=written, to="2026-01-01T13:00:00Z").span(NOW)[0] == NOON


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("from", "yesterday", "no instant such as"),
        ("from", "2026-01-01T12:00:00", "no instant such as"),
        ("from", "2026-13-01T12:00:00Z", "no instant such as"),
        ("from", "1999-12-31T23:59:59Z", "before 2000"),
        ("to", "9999-12-31T23:59:59-00:01", "after 9999"),
        ("from", "2026-01-03T00:00:00Z", "does not lie before `to`"),
        ("from", "2026-01-02T12:00:00Z", "does not lie before `to`"),
        ("step", "week", "allowed is one of raw, minute, hour, day"),
        ("step", "", "allowed is one of"),
    ],
)
def test_a_wrong_span_is_told(parameter: str, value: str, words: str) -> None:
    parameters = given(**{f"{parameter}_": value})
    with pytest.raises(BadParameterError, match=words) as caught:
        parameters.span(NOW)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("end", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z"])
def test_the_last_second_has_an_end(end: str) -> None:
    parameters = given(from_="9999-12-31T23:00:00Z", to=end)
    since, until, _ = parameters.span(NOW)
    for step in STEPS.values():
        begin, after = widen(since, until, step)
        assert begin <= since < until <= after
    assert day_span(date.max)[1] >= until


@pytest.mark.parametrize(
    ("path", "query", "parameter"),
    [
        ("/api/customers/Zo%EB/heart-rate", "", "customer_id"),
        ("/api/customers/%C3/heart-rate", "", "customer_id"),
        ("/api/customers/%ED%A0%80/heart-rate", "", "customer_id"),
        ("/api/customers", "limit=3&after=Zo%EB", "after"),
        ("/api/customers", "%FF", "\ufffd"),
    ],
)
def test_what_is_escaped_is_utf8(path: str, query: str, parameter: str) -> None:
    with pytest.raises(BadParameterError, match="not UTF-8") as caught:
        check_encoding(path, query)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("id", ["Zo%C3%AB", "Zo%25EB", "100%", "%zz", "Zoë", "a%00b"])
def test_what_is_utf8_may_be_escaped(id: str) -> None:
    check_encoding(f"/api/customers/{id}/heart-rate", f"after={id}&x")


def test_no_span_is_longer_than_its_points() -> None:
    to = "2026-01-02T00:00:00Z"
    longest = datetime(2026, 1, 2, tzinfo=UTC) - timedelta(minutes=4_999)
    given(from_=longest.isoformat(), to=to, step="minute").span(NOW)
    longer = (longest - timedelta(seconds=1)).isoformat()
    with pytest.raises(BadParameterError, match="5,000 points") as caught:
        given(from_=longer, to=to, step="minute").span(NOW)
    assert caught.value.parameter == "step"
    given(from_=longer, to=to).span(NOW)
    with pytest.raises(BadParameterError, match="5,000 points"):
        given(from_="2000-01-01T00:00:00Z", to="2100-01-01T00:00:00Z").span(NOW)


@pytest.mark.parametrize("limit", ["0", str(MAX_PAGE + 1), "-1", "ten", "", "1.0", "٣"])
def test_a_page_has_a_limit(limit: str) -> None:
    with pytest.raises(BadParameterError, match="limit"):
        given(limit=limit).limit()


def test_the_latest_are_of_the_last_month() -> None:
    edge = (NOW - timedelta(days=31)).isoformat()
    assert given(since=edge).since(NOW) == NOW - timedelta(days=31)
    with pytest.raises(BadParameterError, match="31 days"):
        given(since="2025-12-02T11:59:59Z").since(NOW)


@pytest.mark.parametrize("value", ["", "x" * 256, "a\x00b", "\ud800"])
def test_what_no_customer_can_be_called(value: str) -> None:
    with pytest.raises(BadParameterError):
        customer_id(value)


@pytest.mark.parametrize(
    "value", ["..", "a/b", "%2F", "'; DROP TABLE", "x" * 255, "💓"]
)
def test_what_a_customer_can_be_called(value: str) -> None:
    assert customer_id(value) == value


def test_what_is_unknown_or_given_twice_is_told() -> None:
    with pytest.raises(BadParameterError, match="form: unknown; known are after, form"):
        Parameters([("form", "csv")], ALL)
    with pytest.raises(BadParameterError, match="limit: given twice"):
        Parameters([("limit", "1"), ("limit", "1")], ALL)
    with pytest.raises(BadParameterError, match="xml"):
        given(format="xml").format("")


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("text/csv", "csv"),
        ("TEXT/CSV; charset=utf-8", "csv"),
        ("text/csv;q=0.5, application/json;q=0.9", "json"),
        ("application/json;q=0.1, text/csv", "csv"),
        ("text/csv;q=0", "json"),
        ("text/csv;q=much", "json"),
        ("text/html, application/xml", "json"),
    ],
)
def test_the_accept_header_chooses(accept: str, format: str) -> None:
    assert preferred(accept) == format
    assert given(format="json").format(accept) == "json"
