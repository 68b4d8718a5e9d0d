"""What the agents of an ordinary partition were given, and how far they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection


class Given:
    """The offsets that were handed out and are not committed yet.

    Faust looks for what to commit in what is done, and so takes what is not for a gap
    in the log where it does not know better: at the head, and at one offset. Here what
    was handed out says which offsets there are.
    """

    def __init__(self) -> None:
        # Ascending, each [first, one after last]: one for each gap of the log.
        self._ranges: deque[list[int]] = deque()

    def add(self, offset: int) -> None:
        """Note that a record is handed out; they come in the log's order."""
        if self._ranges and self._ranges[-1][1] == offset:
            self._ranges[-1][1] += 1
        else:
            self._ranges.append([offset, offset + 1])

    def done(self, acked: Collection[int]) -> int | None:
        """The offset to commit: after the last before which all are acknowledged."""
        offset = None
        for first, end in self._ranges:
            for each in range(first, end):
                if each not in acked:
                    return offset
                offset = each + 1
        return offset

    def committed(self, offset: int) -> None:
        """Forget what lies below an offset that is committed."""
        while self._ranges and self._ranges[0][0] < offset:
            head = self._ranges[0]
            head[0] = min(head[1], offset)
            if head[0] == head[1]:
                self._ranges.popleft()
