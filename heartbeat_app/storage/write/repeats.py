"""Which beats of a batch are likely to be there already, by those that came before."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from heartbeat_app.domain.models import Heartbeat


class Repeats:
    """What was sent again lately in one partition; of one thread at a time.

    Nothing, until a batch holds what is there already. From then on each beat whose
    key came before it in its batch, or in the batch before: what a producer sends again
    when it tries again. Every beat once that was too few, as when an old part of the
    topic is sent again. A batch without any ends it.

    Only a hint, of hashes: the database knows what is there.
    """

    def __init__(self) -> None:
        self._lately: AbstractSet[int] | None = None
        self._everywhere = False

    @property
    def are_expected(self) -> bool:
        """Whether the next batch is likely to hold any."""
        return self._everywhere or self._lately is not None

    def suspects(self, beats: Sequence[Heartbeat]) -> Sequence[int]:
        """Ascending indexes of the beats that may be there, or come twice."""
        if self._everywhere:
            return range(len(beats))
        if self._lately is None:
            return ()
        before, now = self._lately, set[int]()
        found = []
        for index, key in enumerate(_keys(beats)):
            if key in before or key in now:
                found.append(index)
            now.add(key)
        self._lately = now
        return found

    def learn(self, beats: Sequence[Heartbeat], *, some: bool, others: bool) -> None:
        """Learn what a batch was.

        Arguments:
            some: Beats of it were there.
            others: Not all of those were suspected.
        """
        if not some:
            self._lately, self._everywhere = None, False
        elif others and self._lately is None:
            self._lately = set(_keys(beats))
        elif others:
            self._lately, self._everywhere = None, True


def _keys(beats: Sequence[Heartbeat]) -> list[int]:
    return [hash((beat.customer_id, beat.timestamp)) for beat in beats]
