"""The record: one typed heartbeat, the same in topic, timer, import and tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Protocol

import msgspec

MAX_CUSTOMER_ID_LENGTH = 255
LOWEST_HEART_RATE = 1
HIGHEST_HEART_RATE = 300


# gc=False: beats hold no references that could form a cycle, and millions of them
# would make every collection slow.
class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """One beat; its constraints are checked while decoding, in C."""

    customer_id: Annotated[
        str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOMER_ID_LENGTH)
    ]
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    heart_rate: Annotated[
        int, msgspec.Meta(ge=LOWEST_HEART_RATE, le=HIGHEST_HEART_RATE)
    ]


def why_no_customer_id(value: str) -> str | None:
    """What is wrong with an id that a person gave; None: a customer may have it."""
    if not 1 <= len(value) <= MAX_CUSTOMER_ID_LENGTH:
        return (
            f"has {len(value):,} characters; allowed is 1 to {MAX_CUSTOMER_ID_LENGTH}"
        )
    # PostgreSQL keeps no NUL, and a lone surrogate is what stands for a byte that was
    # not UTF-8.
    if re.search("[\x00\ud800-\udfff]", value):
        return "holds a character that no id can have"
    return None


decode = msgspec.json.Decoder(Heartbeat).decode
_encode = msgspec.json.Encoder().encode


def encode(beat: Heartbeat) -> bytes:
    """The JSON of a beat, as it travels in the topic."""
    return _encode(beat)


class Record(Protocol):
    """What a record of a Kafka topic tells, as its consumer gives it."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...
