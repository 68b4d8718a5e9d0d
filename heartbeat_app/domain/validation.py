"""The refusals: why a record is not a heartbeat. Pure: no clock, no I/O.

`check` decides one record. `decode` (of `models`) refuses in C what is malformed;
what a person is told about it is worked out here, afterwards and only for refused
records, so that good ones do not pay for it.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from heartbeat_app.domain import models
from heartbeat_app.domain.models import Heartbeat

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
# Of a larger record only what is to be said about it is made into objects.
LARGE_BYTES = 16 * 1024
# Unless that tells nothing: a record of up to so many bytes is then made into objects.
LARGEST_BYTES = 256 * 1024

# An instant in RFC 3339 but for its second, which there is once in some years.
_LEAP_SECOND = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:60(\.\d+)?([Zz]|[+-]\d\d:?\d\d)", re.ASCII
)


class Reason(enum.StrEnum):
    """Stable codes of `dead_letters.reason`, see docs/reference/dead-letters.md."""

    EMPTY = "empty"
    NOT_JSON = "not_json"
    NESTED_TOO_DEEPLY = "nested_too_deeply"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    HEART_RATE_NOT_WHOLE = "heart_rate_not_whole"
    HEART_RATE_OUT_OF_RANGE = "heart_rate_out_of_range"
    CUSTOMER_ID_LENGTH = "customer_id_length"
    CUSTOMER_ID_CHARACTERS = "customer_id_characters"
    TIMESTAMP_INVALID = "timestamp_invalid"
    TIMESTAMP_NO_OFFSET = "timestamp_no_offset"
    TIMESTAMP_TOO_OLD = "timestamp_too_old"
    TIMESTAMP_PAST_RETENTION = "timestamp_past_retention"
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"
    TOO_MANY_DAYS = "too_many_days"
    CONFLICT = "conflict"
    REJECTED_BY_DATABASE = "rejected_by_database"
    TOO_LARGE = "too_large"
    UNREADABLE_BATCH = "unreadable_batch"
    CUSTOMER_ERASED = "customer_erased"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record was refused: a stable code, and words for a person."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds of acceptable timestamps at one moment."""

    earliest: datetime
    latest: datetime

    @classmethod
    def at(
        cls, now: datetime, *, max_future_seconds: float, retention_days: int | None
    ) -> Rules:
        """The rules at the moment `now` (aware)."""
        earliest = EARLIEST
        if retention_days is not None:
            earliest = max(EARLIEST, now - timedelta(days=retention_days))
        return cls(
            earliest=earliest,
            latest=now + timedelta(seconds=max_future_seconds),
        )


def check(value: bytes | None, rules: Rules) -> Heartbeat | Refusal:
    """Decide one record: any bytes give a beat or a refusal, never an exception."""
    if value is None:
        return Refusal(Reason.EMPTY, "The record has no value (a tombstone).")
    if not value:
        return Refusal(Reason.EMPTY, "The record's value is empty (0 bytes).")
    try:
        try:
            beat = models.decode(value)
            value.decode()  # the decoder does not look into fields that it ignores
        except (msgspec.MsgspecError, ValueError) as error:
            return _explain(value, error)
    except RecursionError:  # to say why goes deeper than to decode
        return Refusal(Reason.NESTED_TOO_DEEPLY, "The JSON is nested too deeply.")
    if "\x00" in beat.customer_id:
        return Refusal(
            Reason.CUSTOMER_ID_CHARACTERS,
            "customer_id holds U+0000, which PostgreSQL cannot store.",
        )
    return _check_timestamp(beat.timestamp, rules) or beat


def _check_timestamp(timestamp: datetime, rules: Rules) -> Refusal | None:
    if timestamp < EARLIEST:
        return Refusal(
            Reason.TIMESTAMP_TOO_OLD, f"timestamp {timestamp} lies before 2000."
        )
    if timestamp < rules.earliest:
        return Refusal(
            Reason.TIMESTAMP_PAST_RETENTION,
            f"timestamp {timestamp} lies before the retention, which begins at "
            f"{rules.earliest:%Y-%m-%d %H:%M:%S%z}.",
        )
    if timestamp > rules.latest:
        return Refusal(
            Reason.TIMESTAMP_IN_FUTURE,
            f"timestamp {timestamp} lies too far in the future; the latest accepted "
            f"on arrival was {rules.latest:%Y-%m-%d %H:%M:%S%z}.",
        )
    return None


class _Fields(msgspec.Struct):
    """A record's fields as they are written; all else is passed over, in C."""

    customer_id: msgspec.Raw = msgspec.Raw()
    timestamp: msgspec.Raw = msgspec.Raw()
    heart_rate: msgspec.Raw = msgspec.Raw()


_read_raw = msgspec.json.Decoder(msgspec.Raw).decode
_read_fields = msgspec.json.Decoder(_Fields).decode


def _essence(value: bytes) -> bytes:
    """What there is to say about a large record, written as a small one.

    As Python's objects it would take thirty times its bytes.

    Raises:
        ValueError: It is not JSON.
    """
    value.decode()
    whole = bytes(_read_raw(value)).strip()
    if not whole.startswith(b"{"):
        return _without_content(whole)
    fields = _read_fields(value)
    return b"{%b}" % b", ".join(
        b'"%b": %b' % (name.encode(), _without_content(written))
        for name in _Fields.__struct_fields__
        if (written := bytes(getattr(fields, name)).strip())
    )


def _without_content(written: bytes) -> bytes:
    empty = {b"{": b"{}", b"[": b"[]"}
    return empty.get(written[:1], written)


def _explain(value: bytes, error: Exception) -> Refusal:
    """Say in words and a code what the decoder refused."""
    if len(value) > LARGE_BYTES:
        refusal = _explain_as(value, _essence, error)
        # Lone surrogates stop the reader, and of a field that is there twice it has
        # the last only.
        if refusal.reason is not Reason.NOT_JSON or len(value) > LARGEST_BYTES:
            return refusal
    return _explain_as(value, bytes, error)


def _explain_as(
    value: bytes, written: Callable[[bytes], bytes], error: Exception
) -> Refusal:
    try:
        found: Any = json.loads(
            written(value).decode(),
            parse_int=_whole_number,
            parse_float=_Float,
            parse_constant=_no_constant,
            object_pairs_hook=_Object,
        )
    except UnicodeDecodeError as wrong:
        return Refusal(
            Reason.NOT_JSON,
            f"The value is not UTF-8: byte {wrong.start} of {len(value)} "
            f"is 0x{value[wrong.start]:02x}.",
        )
    except ValueError as wrong:
        return Refusal(Reason.NOT_JSON, f"The value is not JSON: {wrong}.")
    if not isinstance(found, _Object):
        return Refusal(
            Reason.NOT_AN_OBJECT,
            f"The value is JSON but {_kind(found)}, not an object.",
        )
    for name in Heartbeat.__struct_fields__:
        if not found.all(name):
            return Refusal(Reason.MISSING_FIELD, f"The field {name} is missing.")
    for name, explain in (
        ("customer_id", _explain_customer_id),
        ("timestamp", _explain_timestamp),
        ("heart_rate", _explain_heart_rate),
    ):
        for each in found.all(name):
            if refusal := explain(each):
                return refusal
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Refusal(
            Reason.NOT_JSON,
            "The value is not strict JSON: a name or text of a field that is ignored "
            "holds a lone surrogate, which is no character.",
        )
    return Refusal(Reason.NOT_JSON, f"The value is not strict JSON: {error}.")


def _explain_customer_id(customer_id: Any) -> Refusal | None:
    if not isinstance(customer_id, str):
        return Refusal(
            Reason.WRONG_TYPE, f"customer_id is {_kind(customer_id)}, not a text."
        )
    if any("\ud800" <= character <= "\udfff" for character in customer_id):
        return Refusal(
            Reason.CUSTOMER_ID_CHARACTERS,
            "customer_id holds a lone surrogate, which is no character.",
        )
    if not 1 <= len(customer_id) <= models.MAX_CUSTOMER_ID_LENGTH:
        return Refusal(
            Reason.CUSTOMER_ID_LENGTH,
            f"customer_id has {len(customer_id):,} characters; allowed are 1 to "
            f"{models.MAX_CUSTOMER_ID_LENGTH}.",
        )
    return None


def _explain_timestamp(timestamp: Any) -> Refusal | None:
    if not isinstance(timestamp, str):
        return Refusal(
            Reason.WRONG_TYPE,
            f"timestamp is {_kind(timestamp)}, not a text such as "
            f"2026-01-01T00:00:00+00:00.",
        )
    # Asked of the decoder, not of Python's own parser: they disagree at the edges.
    try:
        decoded = msgspec.convert(timestamp, datetime)
    except (msgspec.MsgspecError, ValueError):
        decoded = None
    # It takes a U+0000 before the offset for the end of the text.
    if decoded is None or "\x00" in timestamp:
        if _LEAP_SECOND.fullmatch(timestamp):
            return Refusal(
                Reason.TIMESTAMP_INVALID,
                f"timestamp {timestamp[:64]!r} is a leap second, which is "
                "rejected: stored, it would be the next second.",
            )
        return Refusal(
            Reason.TIMESTAMP_INVALID,
            f"timestamp {timestamp[:64]!r} is no instant in RFC 3339.",
        )
    if decoded.tzinfo is None:
        return Refusal(
            Reason.TIMESTAMP_NO_OFFSET,
            f"timestamp {timestamp[:64]!r} has no offset from UTC.",
        )
    return None


def _explain_heart_rate(heart_rate: Any) -> Refusal | None:
    if isinstance(heart_rate, float):
        return Refusal(
            Reason.HEART_RATE_NOT_WHOLE,
            f"heart_rate {heart_rate} is not written as a whole number.",
        )
    if isinstance(heart_rate, bool) or not isinstance(heart_rate, int):
        return Refusal(
            Reason.WRONG_TYPE,
            f"heart_rate is {_kind(heart_rate)}, not a whole number.",
        )
    if not models.LOWEST_HEART_RATE <= heart_rate <= models.HIGHEST_HEART_RATE:
        return Refusal(
            Reason.HEART_RATE_OUT_OF_RANGE,
            f"heart_rate is {_shortened(heart_rate)}; allowed is "
            f"{models.LOWEST_HEART_RATE} to {models.HIGHEST_HEART_RATE}.",
        )
    return None


class _Object(list[tuple[str, Any]]):
    """An object's fields as they came: the decoder wants every repeated one valid."""

    def all(self, wanted: str) -> list[Any]:
        return [value for name, value in self if name == wanted]


class _Float(float):
    """A number that is not written as a whole one; shown as it is written."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __str__(self) -> str:
        return self._written[:64]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _whole_number(digits: str) -> int:
    """A number of any length, which Python's own parser refuses beyond 4,300 digits."""
    return int(digits[:20])


def _shortened(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "a number of 19 digits or more"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "an object" if isinstance(value, _Object) else "a list"
