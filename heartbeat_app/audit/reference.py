"""What a record is, by the documents: plain, with no other code of ours.

The deep audit judges records by it, and so does the fuzzer what the application makes
of them. The grammars are those of RFC 8259 (JSON) and RFC 3339 (instants), the reasons
those of docs/reference/dead-letters.md.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import NamedTuple

# How deep a record may be nested before it may be refused for that alone.
SURELY_READ_DEPTH = 150

MICROSECOND_OF_2000 = 946_684_800_000_000


class Beat(NamedTuple):
    """A beat; the instant in microseconds since 1970."""

    customer_id: str
    instant: int
    heart_rate: int


@dataclass(frozen=True)
class Number:
    """A number as it was written, since 72.0 is not 72 here."""

    written: str


Pairs = list[tuple[str, "Json"]]


@dataclass(frozen=True)
class Object:
    """An object's fields in their order, repeated ones too."""

    fields: Pairs


Json = None | bool | str | Number | list["Json"] | Object


class NotJson(Exception):
    """The text is not JSON."""


_blank = re.compile(r"[ \t\n\r]*")
_number = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_text = re.compile(
    r'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+)"', re.DOTALL
)
_escape = re.compile(r"\\(?:u(....)|(.))")
_controls = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_words: dict[str, Json] = {"true": True, "false": False, "null": None}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> Json:
        found = self.value()
        self.skip_blanks()
        if self.at != len(self.text):
            raise NotJson
        return found

    def skip_blanks(self) -> None:
        found = _blank.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def take(self, what: str) -> bool:
        """Whether this comes next, after blanks; if so, behind it."""
        self.skip_blanks()
        if not self.text.startswith(what, self.at):
            return False
        self.at += len(what)
        return True

    def need(self, what: str) -> None:
        if not self.take(what):
            raise NotJson

    def value(self) -> Json:
        if self.take("{"):
            return self.read_object()
        if self.take("["):
            return self.read_list()
        for word, meaning in _words.items():
            if self.take(word):
                return meaning
        if self.text.startswith('"', self.at):
            return self.string()
        found = _number.match(self.text, self.at)
        if found is None:
            raise NotJson
        self.at = found.end()
        return Number(found[0])

    def read_object(self) -> Json:
        fields: Pairs = []
        if self.take("}"):
            return Object(fields)
        while True:
            self.skip_blanks()
            name = self.string()
            self.need(":")
            fields.append((name, self.value()))
            if self.take("}"):
                return Object(fields)
            self.need(",")

    def read_list(self) -> Json:
        items: list[Json] = []
        if self.take("]"):
            return items
        while True:
            items.append(self.value())
            if self.take("]"):
                return items
            self.need(",")

    def string(self) -> str:
        found = _text.match(self.text, self.at)
        if found is None:
            raise NotJson
        self.at = found.end()
        units = _escape.sub(_unescaped, found[1])
        # Joins the halves of pairs; a half without its other half stays one.
        text = units.encode("utf-16-le", "surrogatepass")
        return text.decode("utf-16-le", "surrogatepass")


def _unescaped(found: re.Match[str]) -> str:
    if found[1]:
        return chr(int(found[1], 16))
    return _controls.get(found[2], found[2])


# Deeper than any value that the fuzzer makes.
RECURSION_LIMIT = 50_000


def _parsed(text: str) -> Json:
    """Parse with Python's own parser, which is quick; what is deep, by ours."""
    limit = sys.getrecursionlimit()
    try:
        found: Json = json.loads(
            text,
            object_pairs_hook=Object,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_no_constant,
        )
    except RecursionError:
        sys.setrecursionlimit(RECURSION_LIMIT)
        try:
            found = _Parser(text).whole()
        finally:
            sys.setrecursionlimit(limit)
    except ValueError as error:
        raise NotJson from error
    return found


def _no_constant(name: str) -> Json:
    raise NotJson


def _depth(found: Json) -> int:
    depth = 0
    level = [found]
    while level := [each for each in level if isinstance(each, list | Object)]:
        depth += 1
        level = [
            inside
            for each in level
            for inside in (
                [value for _, value in each.fields]
                if isinstance(each, Object)
                else each
            )
        ]
    return depth


def judge(
    value: bytes | None, *, earliest: int, latest: int
) -> tuple[Beat | None, set[str]]:
    """The beat, or None and every reason for which the record may be refused.

    A record with several faults has several reasons; which of them is told is not
    said anywhere.

    Arguments:
        earliest, latest: The first and last accepted instant.
    """
    if not value:
        return None, {"empty"}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None, {"not_json"} | _depth_of_the_unreadable(value)
    try:
        found = _parsed(text)
    except NotJson:
        return None, {"not_json"} | _depth_of_the_unreadable(value)
    except RecursionError:
        return None, {"nested_too_deeply"}
    reasons: set[str] = set()
    if _depth_of_the_unreadable(value) and _depth(found) > SURELY_READ_DEPTH:
        reasons.add("nested_too_deeply")
    if not isinstance(found, Object):
        return None, {*reasons, "not_an_object", *_lone_surrogates(found)}
    beat, more = _beat(found, earliest, latest)
    reasons |= more
    return (None if reasons else beat), reasons


def _depth_of_the_unreadable(value: bytes) -> set[str]:
    """Which of two faults a decoder meets first is its own affair."""
    deep = value.count(b"[") + value.count(b"{") > SURELY_READ_DEPTH
    return {"nested_too_deeply"} if deep else set()


def _lone_surrogates(found: Json) -> set[str]:
    waiting = [found]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and not _is_characters(each):
            return {"not_json"}
        if isinstance(each, list):
            waiting += each
        if isinstance(each, Object):
            for name, value in each.fields:
                waiting += [name, value]
    return set()


def _is_characters(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _beat(found: Object, earliest: int, latest: int) -> tuple[Beat | None, set[str]]:
    ids = [value for name, value in found.fields if name == "customer_id"]
    timestamps = [value for name, value in found.fields if name == "timestamp"]
    rates = [value for name, value in found.fields if name == "heart_rate"]
    reasons: set[str] = set()
    for name, value in found.fields:
        if name == "customer_id":
            reasons |= _customer_id_faults(value)
        elif name == "timestamp":
            reasons |= _instant(value)[1]
        elif name == "heart_rate":
            reasons |= _heart_rate_faults(value)
        else:
            reasons |= _lone_surrogates(name) | _lone_surrogates(value)
    if not (ids and timestamps and rates):
        return None, reasons | {"missing_field"}
    # Of a field that is there more than once, the last counts.
    customer_id, rate = ids[-1], rates[-1]
    instant = _instant(timestamps[-1])[0]
    if isinstance(customer_id, str) and "\x00" in customer_id:
        reasons.add("customer_id_characters")
    if instant is not None:
        if instant < MICROSECOND_OF_2000:
            reasons.add("timestamp_too_old")
        elif instant < earliest:
            reasons.add("timestamp_past_retention")
        if instant > latest:
            reasons.add("timestamp_in_future")
    if reasons or instant is None:
        return None, reasons
    assert isinstance(customer_id, str)
    assert isinstance(rate, Number)
    return Beat(customer_id, instant, int(rate.written)), reasons


def _customer_id_faults(value: Json) -> set[str]:
    if not isinstance(value, str):
        return {"wrong_type"}
    reasons = set()
    if not _is_characters(value):
        reasons.add("customer_id_characters")
    if not 1 <= len(value) <= 255:
        reasons.add("customer_id_length")
    return reasons


def _heart_rate_faults(value: Json) -> set[str]:
    if not isinstance(value, Number):
        return {"wrong_type"}
    if not re.fullmatch("-?[0-9]+", value.written):
        return {"heart_rate_not_whole"}
    if len(value.written) > 3 or not 1 <= int(value.written) <= 300:
        return {"heart_rate_out_of_range"}
    return set()


_rfc_3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]+))?(?:([Zz])|([+-])([0-9]{2}):?([0-9]{2}))?"
)
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _instant(value: Json) -> tuple[int | None, set[str]]:
    if not isinstance(value, str):
        return None, {"wrong_type"}
    found = _rfc_3339.fullmatch(value)
    if found is None:
        return None, {"timestamp_invalid"}
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    fraction, zulu, sign, *offset = found.groups()[6:]
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= _days(year, month)):
        return None, {"timestamp_invalid"}
    if hour > 23 or minute > 59 or second > 59:
        return None, {"timestamp_invalid"}
    seconds = (_days_since_1970(year, month, day) * 24 + hour) * 3600
    microseconds = (seconds + minute * 60 + second) * 1_000_000
    if fraction:
        tenths = int(fraction[:7].ljust(7, "0"))
        microseconds += (tenths + 5) // 10
    if microseconds >= 253_402_300_800_000_000:  # rounded into the year 10000
        return None, {"timestamp_invalid"}
    if zulu:
        return microseconds, set()
    if sign is None:
        return None, {"timestamp_no_offset"}
    hours, minutes = map(int, offset)
    if hours > 23 or minutes > 59:
        return None, {"timestamp_invalid"}
    ahead = (hours * 60 + minutes) * 60_000_000
    return microseconds - (ahead if sign == "+" else -ahead), set()


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days(year: int, month: int) -> int:
    return 29 if month == 2 and _is_leap(year) else _MONTHS[month - 1]


def _days_since_1970(year: int, month: int, day: int) -> int:
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400
    days += sum(_days(year, each) for each in range(1, month)) + day - 1
    return days - 719_162
