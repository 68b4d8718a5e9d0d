"""Faust's statistics, counting records where a message is chunks of them."""

from __future__ import annotations

from typing import Any

from faust import Monitor
from faust.types import TP, EventT, Message, StreamT

from heartbeat_app.lane.chunk import Chunks


class LaneMonitor(Monitor):
    """Faust's monitor; chunks count as their records."""

    def on_message_in(self, tp: TP, offset: int, message: Message) -> None:
        """Count the records of chunks as received."""
        super().on_message_in(tp, offset, message)
        chunks: Any = message.value
        if isinstance(chunks, Chunks):
            self.messages_active -= 1  # Faust is not told when they are done
            more = sum(len(chunk.records) for chunk in chunks) - 1
            self.messages_received_total += more
            self.messages_received_by_topic[tp.topic] += more

    def on_stream_event_in(
        self, tp: TP, offset: int, stream: StreamT[Any], event: EventT[Any]
    ) -> dict[Any, Any] | None:
        """Count the records of chunks as events."""
        state = super().on_stream_event_in(tp, offset, stream, event)
        chunks: Any = event.message.value
        if isinstance(chunks, Chunks):
            self.events_active -= 1
            more = sum(len(chunk.records) for chunk in chunks) - 1
            self.events_total += more
            self.events_by_stream[self.stream_lookup[stream]] += more
            self.events_by_task[self.task_lookup[stream.task_owner]] += more
        return state
