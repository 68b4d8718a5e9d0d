"""The schema of a lane topic: chunks on the way in, single values on the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import faust
from faust.types import AppT, CodecArg, Message
from faust.types.core import OpenHeadersArg

Value = TypeVar("Value")


class LaneSchema(faust.Schema[Any, Any], Generic[Value]):
    """Hands the lane's chunks to the agent, and turns values into bytes to send.

    What is in a chunk is for the agent to decode: when it was decoded here, in the
    event loop, all else waited, and it lay in memory until its turn came.

    Arguments:
        encode: Makes the bytes of one value to send.
    """

    def __init__(self, *, encode: Callable[[Value], bytes]) -> None:
        self._encode_value = encode
        super().__init__(key_type=str, key_serializer="raw", value_serializer="raw")

    def loads_key(self, app: AppT, message: Message, **kwargs: Any) -> None:
        """Chunks have no key; their records have."""

    def loads_value(self, app: AppT, message: Message, **kwargs: Any) -> Any:
        """The `Chunks` that the lane's consumer put in the place of the bytes."""
        return message.value

    def dumps_value(
        self,
        app: AppT,
        value: Any,
        *,
        serializer: CodecArg | None = None,
        headers: OpenHeadersArg,
    ) -> tuple[Any, OpenHeadersArg]:
        """Encode one value for sending; bytes go out as they are."""
        payload = value if isinstance(value, bytes) else self._encode_value(value)
        return payload, headers
