"""For how long the oldest record of a partition that is not stored has waited. Pure."""

from __future__ import annotations

from collections import deque

# After so many looks every second one is forgotten, and from then on only every second
# one is kept: a day's standstill costs no memory, and the answer is short by a few
# thousandths of it.
MOST_LOOKS = 1_000


class Waiting:
    """Remembers when the log of a partition was first seen to be how long.

    It knows only what it saw: a backlog that was there before the first look has
    waited since that look.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._spacing = 0.0  # seconds

    def look(self, now: float, *, done: int, end: int) -> float:
        """Look once.

        Arguments:
            now: Seconds, of a clock that does not go back.
            done: The offset up to which everything is stored.
            end: Where the log ends.

        Returns:
            Seconds since the record at `done` was first seen to be there; 0 when
            there is none.
        """
        looks = self._looks
        if looks and end < looks[-1][1]:
            looks.clear()  # another topic of that name
        while looks and looks[0][1] <= done:
            looks.popleft()
        if not looks:
            self._spacing = 0.0
            if end <= done:
                return 0.0
            looks.append((now, end))
        elif end > looks[-1][1] and now - looks[-1][0] >= self._spacing:
            looks.append((now, end))
        if len(looks) > MOST_LOOKS:
            self._looks = looks = deque(list(looks)[::2])
            self._spacing = max(1.0, 2 * self._spacing)
        return now - looks[0][0]
