"""Knows what was sent and what has to be stored; independent of the application.

It shares no code with what it judges: it makes the records, says of each what has to
become of it, and reads the tables with SQL of its own.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, text

BASE = datetime(2026, 1, 1, tzinfo=UTC)

Row = tuple[str, datetime, int]


def good(customer: str, when: datetime, rate: int) -> bytes:
    """A valid record."""
    beat = {"customer_id": customer, "timestamp": when.isoformat(), "heart_rate": rate}
    return json.dumps(beat).encode()


def _beat(**fields: object) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        beat: dict[str, object] = {
            "customer_id": f"bad-{number}",
            "timestamp": BASE.isoformat(),
            "heart_rate": 70,
            **fields,
        }
        return json.dumps({k: v for k, v in beat.items() if v is not ...}).encode()

    return make


# Every kind of bad record that one record alone can be, by the reason it has to get.
BAD: dict[str, Callable[[int], bytes | None]] = {
    "empty": lambda number: None if number % 2 else b"",
    "not_json": lambda number: b"not json \xff\x00%d" % number,
    "nested_too_deeply": lambda number: b'{"x": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    "not_an_object": lambda number: b"[%d]" % number,
    "missing_field": _beat(heart_rate=...),
    "wrong_type": _beat(heart_rate="70"),
    "heart_rate_not_whole": _beat(heart_rate=70.5),
    "heart_rate_out_of_range": _beat(heart_rate=301),
    "customer_id_length": _beat(customer_id="x" * 256),
    "customer_id_characters": _beat(customer_id="a\x00b"),
    "timestamp_invalid": _beat(timestamp="2026-02-30T00:00:00Z"),
    "timestamp_no_offset": _beat(timestamp="2026-01-01T00:00:00"),
    "timestamp_too_old": _beat(timestamp="1999-12-31T23:59:59Z"),
    "timestamp_past_retention": _beat(timestamp="2010-01-01T00:00:00Z"),
    "timestamp_in_future": _beat(timestamp="2400-01-01T00:00:00Z"),
}
# For timestamp_past_retention; everything else of the oracle is younger.
RETENTION_DAYS = "3650"


@dataclass
class Oracle:
    """What has to be in the tables, all of it and nothing else.

    Attributes:
        rows: Rate by customer and instant.
        refused: Reason by the record's key.
        records: How many were made.
        repeated: How many of them came before, with the same rate.
    """

    seed: int
    partitions: int
    rows: dict[tuple[str, datetime], int] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)
    records: int = 0
    repeated: int = 0

    def make(
        self, count: int, *, bad: float = 0.0, repeated: float = 0.0
    ) -> Iterator[tuple[int, bytes, bytes | None]]:
        """Records as partition, key (a different one each) and value.

        Arguments:
            bad: Share of each kind of bad record; a conflict is one more kind.
            repeated: Share of records that were sent before.
        """
        choice = random.Random(f"{self.seed}/{self.records}")
        kinds = list(BAD)
        # A repeated record has to follow the first in the same partition.
        recent: list[list[Row]] = [[] for _ in range(self.partitions)]
        for number in range(self.records, self.records + count):
            self.records += 1
            key = b"%d" % number
            partition = number % self.partitions
            drawn = choice.random()
            before = recent[partition]
            if drawn < bad * len(kinds):
                reason = kinds[int(drawn / bad)]
                self.refused[key] = reason
                yield partition, key, BAD[reason](number)
                continue
            drawn -= bad * len(kinds)
            if drawn < bad and before:
                customer, when, rate = choice.choice(before)
                self.refused[key] = "conflict"
                yield partition, key, good(customer, when, rate % 300 + 1)
                continue
            drawn -= bad
            if 0 <= drawn < repeated and before:
                self.repeated += 1
                yield partition, key, good(*choice.choice(before))
                continue
            row = (
                f"customer-{number % 997}",
                BASE + timedelta(milliseconds=number),
                choice.randint(1, 300),
            )
            self.rows[row[:2]] = row[2]
            before.append(row)
            del before[:-500]
            yield partition, key, good(*row)

    def check(self, engine: Engine) -> None:
        """Hold the tables against what has to be there."""
        with engine.connect() as connection:
            rows = connection.execute(
                text('SELECT customer_id, "timestamp", heart_rate FROM heartbeats')
            ).all()
            dead = connection.execute(
                text("SELECT key, reason FROM dead_letters")
            ).all()
            books = connection.execute(
                text(
                    "SELECT sum(consumed), sum(stored), sum(duplicate), sum(dead),"
                    " sum(missing), sum(gap) FROM partition_ledger"
                )
            ).one()
        found = {(row[0], row[1]): row[2] for row in rows}
        lost = self.rows.keys() - found.keys()
        extra = found.keys() - self.rows.keys()
        wrong = [
            key for key in found.keys() & self.rows if found[key] != self.rows[key]
        ]
        assert not lost, f"{len(lost)} beats are lost, such as {min(lost)}"
        assert not extra, f"{len(extra)} rows were never sent, such as {min(extra)}"
        assert len(rows) == len(found), f"{len(rows) - len(found)} rows are doubled"
        assert not wrong, f"{len(wrong)} rows have another rate, such as {min(wrong)}"
        reasons = {bytes(row[0]): row[1] for row in dead}
        assert len(reasons) == len(dead), "dead letters are doubled"
        differ = {
            key: (self.refused.get(key), reasons.get(key))
            for key in self.refused.keys() | reasons.keys()
            if self.refused.get(key) != reasons.get(key)
        }
        kinds = Counter(differ.values())
        assert not differ, f"dead letters (expected, found): {kinds}"
        expected = (
            self.records, len(self.rows), self.repeated, len(self.refused), 0, 0,
        )  # fmt: skip
        assert tuple(books) == expected, "the books say otherwise"
