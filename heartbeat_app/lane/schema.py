"""The schema of a lane topic: decodes whole chunks, encodes single records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import faust
from faust.types import AppT, CodecArg, Message
from faust.types.core import OpenHeadersArg

from heartbeat_app.exceptions import LaneError
from heartbeat_app.lane.chunk import Chunk

Batch = TypeVar("Batch")
Value = TypeVar("Value")


class LaneSchema(faust.Schema[Any, Any], Generic[Batch, Value]):
    """Turns chunks into batches on the way in, values into bytes on the way out.

    Arguments:
        decode: Makes the agent's batch of a chunk. Must not raise: what is wrong with a
                record belongs into the batch.
        encode: Makes the bytes of one value to send.
    """

    def __init__(
        self,
        *,
        decode: Callable[[Chunk], Batch],
        encode: Callable[[Value], bytes],
    ) -> None:
        self._decode_chunk = decode
        self._encode_value = encode
        super().__init__(key_type=str, key_serializer="raw", value_serializer="raw")

    def loads_key(self, app: AppT, message: Message, **kwargs: Any) -> None:
        """A chunk has no key; its records have."""

    def loads_value(self, app: AppT, message: Message, **kwargs: Any) -> Any:
        """Decode the chunk that the lane's consumer put in place of the bytes.

        Raises:
            LaneError: The decoder raised. Not one of Faust's decode errors, for
                which Faust would acknowledge and drop the whole chunk.
        """
        chunk: Any = message.value
        try:
            return self._decode_chunk(chunk)
        except Exception as error:
            raise LaneError(f"The decoder of {chunk} raised {error!r}.") from error

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
