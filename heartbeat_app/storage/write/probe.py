"""Probes: made-up records that tell whether the database takes any. Pure.

They are written as beats and dead letters are, and rolled back.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, timedelta

from heartbeat_app.domain.batches import Batch, Refused
from heartbeat_app.domain.excerpts import KEPT_BYTES, size_of
from heartbeat_app.domain.models import Heartbeat, Record
from heartbeat_app.domain.validation import Reason, Refusal
from heartbeat_app.storage.rollup.marks import day_span

# Of this size PostgreSQL takes any record. If not a larger one, its size is at fault.
MAX_BYTES = 1024 * 1024

_HEART_RATE = 60


@dataclass(frozen=True, slots=True)
class _Made:
    """A record of bytes that cannot be compressed."""

    offset: int
    value: bytes
    key: bytes = b"probe"
    headers: tuple[tuple[str, bytes | None], ...] = (("probe", b""),)


def beat_like(beat: Heartbeat) -> Heartbeat:
    """A beat of the same day, at any instant of it, of a customer that nobody has."""
    length = min(255, max(32, len(beat.customer_id.encode())))
    name = f"probe-{secrets.token_hex(128)}"[:length]
    since, _ = day_span(beat.timestamp.astimezone(UTC).date())
    instant = since + timedelta(microseconds=secrets.randbelow(86_400_000_000))
    return Heartbeat(name, instant, _HEART_RATE)


def probe_of(part: Batch, next_offset: int, *, as_large: bool) -> Batch:
    """A batch like the first record of another, to begin at that offset.

    Two beats of its day, if it is one, of customers that nobody has; and a record that
    is refused.

    Arguments:
        as_large: The refused one is as large as the other's, not as its excerpt.
    """
    beats: list[Heartbeat] = []
    size = KEPT_BYTES
    if part.beats:
        beats = [beat_like(part.beats[0]), beat_like(part.beats[0])]
    elif part.refused and as_large:
        size = min(size_of(part.refused[0].record), MAX_BYTES)
    records: list[Record] = [_Made(next_offset + n, b"") for n in range(len(beats))]
    letter = _Made(next_offset + len(beats), os.urandom(size))
    return replace(
        part,
        asked=next_offset,
        position=letter.offset + 1,
        missing=0,
        unexplained=0,
        unreadable=(),
        beats=beats,
        sources=records,
        refused=[Refused(letter, Refusal(Reason.REJECTED_BY_DATABASE, "A probe."))],
    )
