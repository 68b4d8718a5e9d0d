"""Holds the decoder against the reference, for any bytes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from heartbeat_app.audit import reference
from heartbeat_app.domain import models
from heartbeat_app.domain.batches import decode_records
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import Reason, Refusal, Rules, check
from heartbeat_app.storage.db.copy import beats_rows
from tests import copied
from tests.storing import Received

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RULES = Rules.at(NOW, max_future_seconds=300, retention_days=None)
RETENTION = Rules.at(NOW, max_future_seconds=300, retention_days=3_650)
GOOD = models.encode(Heartbeat("good", NOW, 70))

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def instant(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def hold(value: bytes | None, rules: Rules = RULES) -> Heartbeat | Refusal:
    """What the decoder makes of a value.

    Raises:
        AssertionError: The reference says otherwise, it depends on the neighbours, or
            what came out cannot be stored.
    """
    found = check(value, rules)
    beat, reasons = reference.judge(
        value, earliest=instant(rules.earliest), latest=instant(rules.latest)
    )
    if isinstance(found, Refusal):
        assert found.reason in reasons, (value, found, beat, reasons)
        assert isinstance(found.reason, Reason)
        # PostgreSQL can hold the words, and a person can read them.
        assert "\x00" not in found.detail
        assert found.detail.encode()
        assert 0 < len(found.detail) < 400, found.detail
    else:
        assert not reasons or reasons == {"nested_too_deeply"}, (value, found, reasons)
        told = (found.customer_id, instant(found.timestamp), found.heart_rate)
        assert beat is None or told == beat, (value, found, beat)
        assert beat is not None or reasons, value
        assert check(models.encode(found), rules) == found
        [[customer_id, timestamp, _]] = copied.fields(beats_rows([found]))
        assert customer_id.decode() == found.customer_id
        assert copied.instant(timestamp) == found.timestamp
    _hold_among_others(value, found, rules)
    return found


def _hold_among_others(
    value: bytes | None, found: Heartbeat | Refusal, rules: Rules
) -> None:
    records = [Received(0, GOOD), Received(1, value), Received(2, GOOD)]
    beats, sources, refused = decode_records(records, rules)
    if isinstance(found, Refusal):
        assert [each.refusal for each in refused] == [found], (value, refused)
        assert [each.offset for each in sources] == [0, 2]
    elif refused:
        # How deep is too deep depends on the stack of who calls the decoder.
        [each] = refused
        assert each.refusal.reason is Reason.NESTED_TOO_DEEPLY, (value, refused)
        assert value is not None
        assert value.count(b"[") + value.count(b"{") > reference.SURELY_READ_DEPTH
    else:
        assert beats[1] == found, (value, beats, refused)
        assert len(sources) == 3
