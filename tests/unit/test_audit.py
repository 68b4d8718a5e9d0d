"""What the books and Kafka's log say together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from heartbeat_app.audit.findings import audit
from heartbeat_app.kafka.client import LogRange, TopicLog
from heartbeat_app.storage.read.books import Books, PartitionBooks, Rows

ROW = PartitionBooks(
    topic="beats",
    topic_id="new",
    partition=0,
    first_offset=10,
    next_offset=120,
    end_offset=120,
    consumed=100,
    stored=90,
    duplicate=7,
    dead=3,
    missing=4,
    gap=6,
    updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    dead_letters=3,
)
SOUND = replace(ROW, next_offset=116, missing=0)


def logs(begin: int, end: int, topic_id: str = "new") -> dict[str, TopicLog]:
    return {"beats": TopicLog("beats", topic_id, {0: LogRange(begin, end)})}


def test_books_that_add_up_are_balanced() -> None:
    books = Books([ROW, replace(ROW, partition=1)])
    assert books.balanced
    assert books.total.consumed == 200
    assert books.total.stored + books.total.duplicate + books.total.dead == 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"consumed": 101, "gap": 5}, "off by +1"),
        ({"stored": 80}, "stored 80 + duplicate 7 + dead 3 = 90; off by +10"),
        ({"gap": 0}, "missing 4 + gap 0 + unreadable 0 = 104; off by +6"),
        ({"next_offset": 119}, "offsets 10 to 118 are 109, but"),
        ({"unreadable_letters": 2}, "are about 2 offsets; off by +2."),
        ({"dead_letters": 1}, "dead 3, but counted dead letters are 1; off by -2"),
    ],
)
def test_says_which_partition_is_off_by_how_much(
    changes: dict[str, int], words: str
) -> None:
    books = Books([replace(ROW, partition=1), replace(ROW, **changes)])  # type: ignore[arg-type]
    (problem,) = books.problems
    assert problem.startswith("beats[0] (topic id new): ")
    assert words in problem
    assert not books.balanced


def test_rows_are_what_was_stored_and_what_was_replayed() -> None:
    assert Books([ROW], rows=Rows(counted=92, replayed=2)).balanced
    (problem,) = Books([ROW], rows=Rows(counted=91, replayed=2)).problems
    assert "91 rows" in problem
    assert "off by -1" in problem


@pytest.mark.parametrize(
    ("begin", "end", "lag"),
    [
        (0, 116, 0),
        (0, 120, 4),
        (116, 120, 4),
        (118, 120, 2),  # what fell out of the log cannot be read any more
        (120, 120, 0),
    ],
)
def test_lag_is_what_the_log_still_holds_unread(begin: int, end: int, lag: int) -> None:
    result = audit(Books([SOUND]), "beats", logs(begin, end))
    assert (result.lag, result.lines[0].lag) == (lag, lag)
    assert not result.problems
    assert result.complete


def test_a_partition_that_nobody_read_yet_lags_by_all_it_holds() -> None:
    result = audit(Books([]), "beats", logs(5, 20))
    assert result.lag == 15
    assert result.lines[0].books is None
    assert not result.problems


def test_books_ahead_of_the_log_are_a_problem() -> None:
    result = audit(Books([SOUND]), "beats", logs(0, 100))
    (problem,) = result.problems
    assert "next offset is 116, but the log ends at 100; off by +16" in problem


def test_a_partition_that_the_topic_has_not_is_a_problem() -> None:
    result = audit(Books([replace(SOUND, partition=1)]), "beats", logs(0, 0))
    (problem,) = result.problems
    assert "no such partition" in problem


def test_what_fell_out_of_the_log_unread_is_a_warning() -> None:
    result = audit(Books([SOUND]), "beats", logs(118, 120))
    (warning,) = result.warnings
    assert "2 offsets fell out of the log" in warning


def test_missing_records_are_a_warning_for_good() -> None:
    result = audit(Books([ROW]), "beats", logs(0, 120))
    (warning,) = result.warnings
    assert "4 records are missing" in warning
    assert not result.problems


def test_a_topic_made_again_is_not_compared_with_the_old_books() -> None:
    result = audit(Books([SOUND]), "beats", logs(0, 5, topic_id="newer"))
    assert not result.problems
    assert [line.lag for line in result.lines] == [None, 5]
    assert result.lag == 5


def test_a_topic_that_is_not_there_is_a_warning() -> None:
    result = audit(Books([SOUND]), "beats", {})
    assert list(result.warnings) == ["Kafka has no topic beats (HEARTBEATS_TOPIC)."]


def test_without_kafka_the_rest_is_still_checked() -> None:
    result = audit(Books([replace(ROW, stored=0)]), "beats", None)
    assert not result.complete
    assert result.lag is None
    assert len(result.problems) == 1


OLD = replace(SOUND, topic="earlier", topic_id="old")
BOTH = {
    **logs(0, 120),
    "earlier": TopicLog("earlier", "old", {0: LogRange(0, 1_000)}),
}


def test_lag_is_of_the_topic_that_is_read() -> None:
    result = audit(Books([OLD, SOUND]), "beats", BOTH)
    assert [(line.is_read, line.lag) for line in result.lines] == [
        (False, 884),
        (True, 4),
    ]
    assert result.lag == 4
    (warning,) = result.warnings
    assert "earlier[0] (topic id old): it is no longer read" in warning
    assert "884 of its records were never read" in warning


def test_what_came_after_the_books_were_read_is_no_lag() -> None:
    before = logs(0, 116)
    result = audit(Books([SOUND]), "beats", logs(0, 1_117), before=before)
    assert result.lag == 0
    assert not result.problems
    late = replace(SOUND, next_offset=110, gap=0)
    assert audit(Books([late]), "beats", logs(0, 1_117), before=before).lag == 6
    # Books that went on meanwhile are not ahead of the log.
    result = audit(Books([SOUND]), "beats", logs(0, 116), before=logs(0, 90))
    assert (result.lag, result.problems) == (0, [])
    # Of a topic that was made again meanwhile the earlier end says nothing.
    old = logs(0, 500, topic_id="gone")
    assert audit(Books([SOUND]), "beats", logs(0, 120), before=old).lag == 4


def test_settings_that_do_not_suit_are_warnings() -> None:
    result = audit(Books([SOUND]), "beats", logs(0, 120), faults=["compacted"])
    assert list(result.warnings) == ["compacted"]
    assert not result.problems
