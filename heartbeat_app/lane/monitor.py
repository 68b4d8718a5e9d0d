"""Faust's statistics, counting records where a message is a chunk of them."""

from __future__ import annotations

from typing import Any

from faust import Monitor
from faust.types import TP, EventT, Message, StreamT

from heartbeat_app.lane.chunk import Chunk


class LaneMonitor(Monitor):
    """Faust's monitor; a chunk counts as its records."""

    def on_message_in(self, tp: TP, offset: int, message: Message) -> None:
        """Count a chunk's records as received."""
        super().on_message_in(tp, offset, message)
        chunk: Any = message.value
        if isinstance(chunk, Chunk):
            self.messages_active -= 1  # Faust is not told when a chunk is done
            self.messages_received_total += len(chunk.records) - 1
            self.messages_received_by_topic[tp.topic] += len(chunk.records) - 1

    def on_stream_event_in(
        self, tp: TP, offset: int, stream: StreamT[Any], event: EventT[Any]
    ) -> dict[Any, Any] | None:
        """Count a chunk's records as events."""
        state = super().on_stream_event_in(tp, offset, stream, event)
        chunk: Any = event.message.value
        if isinstance(chunk, Chunk):
            self.events_active -= 1
            self.events_total += len(chunk.records) - 1
            self.events_by_stream[self.stream_lookup[stream]] += len(chunk.records) - 1
            task = self.task_lookup[stream.task_owner]
            self.events_by_task[task] += len(chunk.records) - 1
        return state
