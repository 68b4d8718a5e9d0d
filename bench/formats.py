"""How a beat is written in a topic: as the product has it, and as Connect needs it."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from heartbeat_app.domain.models import Heartbeat, encode


class Format(enum.Enum):
    """What a contender reads."""

    JSON = "json"
    JSON_WITH_SCHEMA = "json-with-schema"


# Connect's own form: a schema in every record. Debezium knows the name of the type
# that PostgreSQL calls TIMESTAMPTZ.
SCHEMA = {
    "type": "struct",
    "optional": False,
    "name": "heartbeat",
    "fields": [
        {"field": "customer_id", "type": "string", "optional": False},
        {
            "field": "timestamp",
            "type": "string",
            "optional": False,
            "name": "io.debezium.time.ZonedTimestamp",
            "version": 1,
        },
        {"field": "heart_rate", "type": "int32", "optional": False},
    ],
}
_SCHEMA_JSON = msgspec.json.encode(SCHEMA)


def plain(beat: Heartbeat) -> tuple[bytes, bytes]:
    """Key and value as the product's own topic has them."""
    return beat.customer_id.encode(), encode(beat)


def with_schema(beat: Heartbeat) -> tuple[bytes, bytes]:
    """The same in an envelope with its schema."""
    value = b'{"schema":%b,"payload":%b}' % (_SCHEMA_JSON, encode(beat))
    return beat.customer_id.encode(), value


WRITERS: dict[Format, Callable[[Heartbeat], tuple[bytes, bytes]]] = {
    Format.JSON: plain,
    Format.JSON_WITH_SCHEMA: with_schema,
}
