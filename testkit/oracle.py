"""Knows what was sent and what has to be stored; independent of the application.

It shares no code with what it judges: it makes the records, says of each what has to
become of it, and reads the tables with SQL of its own.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, text

from testkit.servers import PROJECT

BASE = datetime(2026, 1, 1, tzinfo=UTC)

# How many rows of the roll-ups are not what GROUP BY over the beats gives, or are not
# there; by table. Marked or not. The beats of a day that was dropped give nothing.
ROLLUPS_OFF = """
SELECT 'heartbeats_:unit', count(*) FROM (
    SELECT customer_id, date_trunc(':unit', "timestamp", 'UTC') AS :unit,
           count(*) AS count, sum(heart_rate) AS sum,
           min(heart_rate) AS min, max(heart_rate) AS max,
           (array_agg(heart_rate ORDER BY "timestamp"))[1] AS first,
           (array_agg(heart_rate ORDER BY "timestamp" DESC))[1] AS last
    FROM heartbeats GROUP BY 1, 2
) AS expected
FULL JOIN heartbeats_:unit AS found USING (customer_id, :unit)
WHERE (:unit AT TIME ZONE 'UTC')::DATE NOT IN (SELECT day FROM dropped_days) AND
      (expected.count, expected.sum, expected.min, expected.max, expected.first,
       expected.last)
    IS DISTINCT FROM
    (found.count, found.sum, found.min, found.max, found.first, found.last)
UNION ALL
SELECT 'heartbeats_:unit_all', count(*) FROM (
    SELECT date_trunc(':unit', "timestamp", 'UTC') AS :unit, heart_rate,
           count(*) AS count
    FROM heartbeats GROUP BY 1, 2
) AS expected
FULL JOIN (
    SELECT :unit, heart_rate, counted FROM heartbeats_:unit_all,
           unnest(histogram) WITH ORDINALITY AS buckets(counted, heart_rate)
    WHERE counted <> 0
) AS found USING (:unit, heart_rate)
WHERE (:unit AT TIME ZONE 'UTC')::DATE NOT IN (SELECT day FROM dropped_days)
  AND expected.count IS DISTINCT FROM found.counted
"""
RECORDINGS = PROJECT / "tests" / "recordings"

Row = tuple[str, datetime, int]
# Partition, key and value.
Record = tuple[int, bytes, bytes | None]


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
        keys: Customer and instant by the key of the record that brought them.
        refused: Reason by the record's key.
        made: How many were made, which numbers them.
        gone: How many beats are not to be there at the end: removed, with their
            customer or their day, or refused without their contents.
        records: How many of them have to be read.
        repeated: How many of them came before, with the same rate.
    """

    seed: int
    partitions: int
    rows: dict[tuple[str, datetime], int] = field(default_factory=dict)
    keys: dict[bytes, tuple[str, datetime]] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)
    made: int = 0
    gone: int = 0
    records: int = 0
    repeated: int = 0

    def next_number(self) -> int:
        """Count one more record; its number."""
        self.records += 1
        self.made += 1
        return self.made - 1

    def make(
        self, count: int, *, bad: float = 0.0, repeated: float = 0.0
    ) -> Iterator[Record]:
        """Records as partition, key (a different one each) and value.

        Arguments:
            bad: Share of each kind of bad record; a conflict is one more kind.
            repeated: Share of records that were sent before.
        """
        choice = random.Random(f"{self.seed}/{self.made}")
        kinds = list(BAD)
        # A repeated record has to follow the first in the same partition.
        recent: list[list[Row]] = [[] for _ in range(self.partitions)]
        for _ in range(count):
            number = self.next_number()
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
                sys.intern(f"customer-{number % 997}"),
                BASE + timedelta(milliseconds=number),
                choice.randint(1, 300),
            )
            beat = row[:2]
            self.rows[beat] = row[2]
            self.keys[key] = beat
            before.append(row)
            del before[:-500]
            yield partition, key, good(*row)

    def record(
        self, value: bytes | None, becomes: Row | str, *, partition: int | None = None
    ) -> Record:
        """One more record; a row that was not sent before, or a reason to refuse it."""
        number = self.next_number()
        key = b"%d" % number
        if isinstance(becomes, str):
            self.refused[key] = becomes
        else:
            self.rows[becomes[:2]] = becomes[2]
            self.keys[key] = becomes[:2]
        return number % self.partitions if partition is None else partition, key, value

    def recordings(self) -> Iterator[Record]:
        """Records of the real recordings; each customer in one partition."""
        for path in sorted(RECORDINGS.glob("*.csv")):
            with path.open(newline="") as lines:
                for found in csv.DictReader(lines):
                    number = self.next_number()
                    when = datetime.fromisoformat(found["timestamp"])
                    row = found["customer_id"], when
                    rate = int(found["heart_rate"])
                    if row in self.rows:
                        assert self.rows[row] == rate, f"{row} is a conflict"
                        self.repeated += 1
                    self.rows[row] = rate
                    key = b"%d" % number
                    self.keys[key] = row
                    partition = zlib.crc32(row[0].encode()) % self.partitions
                    yield partition, key, good(*row, rate)

    def beats(
        self, rows: Iterable[Row], *, partition: int | None = None, refused: str = ""
    ) -> Iterator[Record]:
        """Records of these beats, none of which was sent before.

        Arguments:
            partition: Where to; None: each customer in a partition.
            refused: The reason, if they are to be refused.
        """
        for row in rows:
            where = partition
            if where is None:
                where = zlib.crc32(row[0].encode()) % self.partitions
            yield self.record(good(*row), refused or row, partition=where)

    def beats_to_go(
        self, rows: Iterable[Row], *, partition: int | None = None
    ) -> Iterator[Record]:
        """Records of these beats, none of which was sent before or is to stay.

        Arguments:
            partition: Where to; None: anywhere.
        """
        for row in rows:
            number = self.next_number()
            self.gone += 1
            where = number % self.partitions if partition is None else partition
            yield where, b"%d" % number, good(*row)

    def forgive(self, keys: Iterable[bytes]) -> int:
        """Do not expect these records, which nobody could read; how many there were.

        They must not have been sent twice, or conflict with others.
        """
        forgiven = 0
        for key in keys:
            forgiven += 1
            if self.refused.pop(key, None) is None:
                del self.rows[self.keys[key]]
        self.records -= forgiven
        return forgiven

    def judge(
        self,
        database: Engine | Connection,
        *,
        exact: bool = True,
        rolled_up: bool = False,
    ) -> Verdict:
        """Hold the tables against what has to be there.

        Arguments:
            exact: Whether the books have to tell the same counts as the oracle; not
                so where records were read again from another topic or an older ledger.
            rolled_up: Whether the roll-ups have to be what the rows give, already.
        """
        with ExitStack() as stack:
            if isinstance(database, Engine):
                connection = stack.enter_context(database.connect())
            else:
                connection = database
            compared = self._compare(connection)
            off = list(rollups_off(connection)) if rolled_up else []
            letters = connection.execute(
                text("SELECT key, reason FROM dead_letters")
            ).all()
            removed = connection.scalar(
                text(
                    "SELECT (SELECT coalesce(sum(beats), 0) FROM erased_customers)"
                    " + (SELECT coalesce(sum(rows), 0) FROM dropped_days)"
                )
            )
            books = connection.execute(
                text(
                    "SELECT sum(consumed), sum(stored), sum(duplicate), sum(dead),"
                    " sum(missing), bool_and(consumed = stored + duplicate + dead"
                    " AND next_offset - first_offset = consumed + missing + gap)"
                    " FROM partition_ledger"
                )
            ).one()
        consumed, stored, duplicate, refused, missing, add_up = books
        dead = [row for row in letters if row[0] is not None]
        emptied = len(letters) - len(dead)
        reasons = {bytes(row[0]): row[1] for row in dead}
        misjudged = Counter(
            (self.refused.get(key), reasons.get(key))
            for key in self.refused.keys() | reasons.keys()
            if self.refused.get(key) != reasons.get(key)
        )
        doubled_letters = len(dead) - len(reasons)
        unheard = sum(n for (_, reason), n in misjudged.items() if reason is None)
        complaints = [*compared.complaints(), *off]
        if doubled_letters:
            complaints.append(f"{doubled_letters} dead letters are doubled")
        if misjudged:
            complaints.append(f"dead letters (expected, found): {dict(misjudged)}")
        if not add_up:
            complaints.append("the books do not add up")
        if removed + emptied != self.gone:
            complaints.append(
                f"of {self.gone} beats that were to go {removed} were removed and "
                f"{emptied} refused without their contents"
            )
        if (stored, refused) != (compared.rows + removed, len(letters)):
            complaints.append(
                f"the books say {stored} stored and {refused} dead, the tables hold "
                f"{compared.rows} and {len(letters)}, removed were {removed}"
            )
        if exact:
            expected = self.records, self.repeated
            if (consumed, duplicate) != expected:
                complaints.append(
                    f"the books say {consumed} consumed and {duplicate} duplicates, "
                    f"not {expected}"
                )
        return Verdict(
            sent=self.records,
            stored=compared.rows,
            duplicate=int(duplicate or 0),
            refused=len(letters),
            missing=int(missing or 0),
            lost=len(compared.lost)
            + unheard
            + max(0, self.gone - int(removed) - emptied),
            doubled=compared.doubled + doubled_letters,
            complaints=complaints,
        )

    def _compare(self, connection: Connection) -> Compared:
        """Hold the rows against what has to be there, some at a time: there may be
        millions."""
        found = Compared(lost=set(self.rows))
        rows = connection.execute(
            text('SELECT customer_id, "timestamp", heart_rate FROM heartbeats'),
            execution_options={"yield_per": 10_000},
        )
        for customer, when, rate in rows:
            found.rows += 1
            beat = customer, when
            expected = self.rows.get(beat)
            if beat in found.lost:
                found.lost.remove(beat)
            elif expected is not None or beat in found.extra:
                found.doubled += 1
            else:
                found.extra.add(beat)
            if expected is not None and rate != expected:
                found.wrong.add(beat)
        return found

    def check(self, engine: Engine) -> None:
        """Assert that the tables hold what has to be there, and nothing is missing."""
        verdict = self.judge(engine)
        assert not verdict.complaints, "; ".join(verdict.complaints)
        assert verdict.missing == 0


def rollups_off(connection: Connection) -> Iterator[str]:
    """What of the roll-ups is not what the rows give, in words."""
    for unit in ("minute", "hour"):
        query = text(ROLLUPS_OFF.replace(":unit", unit))
        for name, count in connection.execute(query).all():
            if count:
                yield f"{count} rows of {name} are not what the beats give"


@dataclass(slots=True)
class Compared:
    """How the rows of the table differ from what has to be there."""

    lost: set[tuple[str, datetime]]
    extra: set[tuple[str, datetime]] = field(default_factory=set)
    wrong: set[tuple[str, datetime]] = field(default_factory=set)
    rows: int = 0
    doubled: int = 0

    def complaints(self) -> Iterator[str]:
        """What is wrong, in words."""
        if self.lost:
            yield f"{len(self.lost)} beats are lost, such as {min(self.lost)}"
        if self.extra:
            yield f"{len(self.extra)} rows were never sent, such as {min(self.extra)}"
        if self.doubled:
            yield f"{self.doubled} rows are doubled"
        if self.wrong:
            yield f"{len(self.wrong)} rows have another rate: {min(self.wrong)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the records.

    Attributes:
        sent: Records that Kafka took.
        stored, refused: Rows and dead letters.
        duplicate, missing: What the books say of records that came twice, and of
            offsets that fell out of the log unread.
        lost: Beats and refused records that are nowhere.
        doubled: Rows and dead letters beyond the first of their key.
        complaints: What is wrong, in words; none if all is well.
    """

    sent: int
    stored: int
    duplicate: int
    refused: int
    missing: int
    lost: int
    doubled: int
    complaints: list[str]
