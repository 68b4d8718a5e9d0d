"""Every guard, and how to take it out: the proof has to notice that it is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.servers import PROJECT

# What a worker, Alembic and the tests need of the project.
SOURCES = (
    "heartbeat_app",
    "alembic",
    "tests",
    "alembic.ini",
    "setup.cfg",
    "pyproject.toml",
)


@dataclass(frozen=True, slots=True)
class Patch:
    """Replaces a text that is exactly once in a file below the project's folder."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard, and how to take it out.

    Attributes:
        name: As it is asked for.
        holds: What it guards, for the report.
        fails: The scenario that fails without it, or the test where what it guards
            against comes too seldom to be waited for.
        patches: Take it out, and any other guard that would do its work.
    """

    name: str
    holds: str
    fails: str
    patches: tuple[Patch, ...]


WRITER = "heartbeat_app/storage/writer.py"
AGENT = "heartbeat_app/lane/agent.py"
FETCH = "heartbeat_app/lane/fetch.py"
ENGINE = "heartbeat_app/storage/engine.py"
# A worker that was frozen forgets its batches as soon as it hears of the rebalance;
# what holds when it does not hear of it in time is seen without that.
FORGET = Patch(
    AGENT,
    "        return self._lane.is_current(chunk.tp, chunk.epoch)\n",
    "        return True\n",
)


# What lies between the ledger and a batch above it is booked as missing, as it was in
# the log.
REWIND = Patch(
    WRITER,
    "    if next_offset is None or batch.asked > next_offset:\n",
    "    next_offset = next_offset or 0\n    if False:\n",
)

HANGING = Patch(
    ENGINE,
    "        if broken := uses.break_off(after_seconds=limit):\n",
    "        if broken := 0:\n",
)

GUARDS = {guard.name: guard for guard in (
    Guard(
        "fence",
        "what lies below the ledger's next offset was stored before and is dropped",
        "frozen",
        (
            FORGET,
            Patch(
                WRITER,
                "    if batch.position <= next_offset:\n"
                "        return None\n"
                "    return batch.since(next_offset)\n",
                "    return batch\n",
            ),
        ),
    ),
    Guard(
        "marks",
        "a batch marks its minutes for the roll-ups in its own transaction",
        "killed",
        (
            Patch(
                WRITER,
                "                *marks.marking([each for one in inserted"
                " for each in one.stored]),\n",
                "",
            ),
        ),
    ),
    Guard(
        "seek-to-the-ledger",
        "reading goes on where the ledger says, not where Kafka's group committed",
        "restored-while-stopped",
        (
            REWIND,
            Patch(
                "heartbeat_app/lane/consumer.py",
                "        offsets.update(await self.restart_at_ledger(lane_tps))\n",
                "        found = await self._thread.call_thread(\n"
                "            self._thread.seek_others_to_committed, lane_tps\n"
                "        )\n"
                "        starts = await self._find_starts(lane_tps)\n"
                "        for tp, each in starts.items():\n"
                "            offset = found.get(tp) or each.offset\n"
                "            starts[tp] = each._replace(offset=offset)\n"
                "        seek = self._thread.lane_seek\n"
                "        await self._thread.call_thread(seek, starts)\n"
                "        offsets.update({tp: s.offset for tp, s in starts.items()})\n",
            ),
        ),
    ),
    Guard(
        "acknowledge-in-order",
        "a batch is acknowledged to Kafka once it is stored, never before",
        "database-stopped",
        (Patch(AGENT, ".noack().events()", ".events()"),),
    ),
    Guard(
        "retry-in-place",
        "a batch that fails is tried again until it is stored",
        "database-stopped",
        (
            Patch(
                AGENT,
                "                failures += 1\n"
                "                await _pause(chunk, failures, error)\n",
                "                self._consumer.done([chunk])\n                break\n",
            ),
        ),
    ),
    Guard(
        "rewind",
        "a batch that begins above the ledger means that the ledger went back",
        "restored-from-a-backup",
        (REWIND,),
    ),
    Guard(
        "topic-ids",
        "a topic that was made again is read from its beginning, under its own books",
        "topic-remade-same",
        (
            Patch(
                "heartbeat_app/kafka.py",
                "            if topic_id == _NO_ID:\n",
                "            if True:\n",
            ),
        ),
    ),
    Guard(
        "fresh-topic-ids",
        "nothing is read while the topics' ids were not looked up for 2 s",
        "topic-remade-unseen",
        (
            Patch(
                "heartbeat_app/lane/lane.py",
                "MAX_ID_AGE_SECONDS = 2.0",
                "MAX_ID_AGE_SECONDS = 1e9",
            ),
        ),
    ),
    Guard(
        "read-committed",
        "records of aborted transactions are not read",
        "transactions",
        (
            Patch(
                FETCH,
                'consumer._isolation_level = "read_committed"',
                'consumer._isolation_level = "read_uncommitted"',
            ),
        ),
    ),
    Guard(
        "missing",
        "records that fell out of the log unread are counted, not passed over",
        "records-deleted",
        (
            Patch(
                FETCH,
                "missing=begin - asked,",
                "missing=0,",
            ),
        ),
    ),
    Guard(
        "id-bytes",
        "an id's length is told in bytes, so that every customer id comes back",
        "odd-customers",
        (
            Patch(
                "heartbeat_app/storage/copy.py",
                "_length(len(name)) + name",
                "_length(len(customer_id)) + name",
            ),
        ),
    ),
    Guard(
        "any-header",
        "a header's name may be any bytes",
        "odd-headers",
        (
            Patch(
                "heartbeat_app/lane/records.py",
                "        except UnicodeDecodeError:\n",
                "        except ZeroDivisionError:\n",
            ),
        ),
    ),
    Guard(
        "conflict-target",
        "only the natural key makes a beat a duplicate, not an id that is taken",
        "sequence-set-back",
        (
            Patch(
                "heartbeat_app/storage/beats.py",
                'ON CONFLICT (customer_id, "timestamp") DO NOTHING',
                "ON CONFLICT DO NOTHING",
            ),
        ),
    ),
    Guard(
        "end-blockers",
        "a frozen worker's session is ended when it holds a partition's row",
        "frozen-inside-copy",
        (
            Patch(
                WRITER,
                "        if row in self._blocked:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "end-idle-transactions",
        "a frozen worker does not keep the roll-ups from the others",
        "frozen-in-a-pass",
        (
            Patch(
                ENGINE,
                "IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000",
                "IDLE_IN_TRANSACTION_TIMEOUT_MS = 3_600_000",
            ),
        ),
    ),
    Guard(
        "an-outage-is-no-bad-record",
        "only what a row holds makes it a dead letter, by SQLSTATE and constraint",
        "migrated-meanwhile",
        (
            Patch(
                "heartbeat_app/storage/errors.py",
                '        state.startswith("23") and constraint(error) in'
                " ROW_CONSTRAINTS\n",
                '        state.startswith("23")\n',
            ),
        ),
    ),
    Guard(
        "new-sessions",
        "an attempt after a failure asks in new sessions, not in ones of before",
        "read-only",
        (Patch(WRITER, "            self._engine.dispose()\n", ""),),
    ),
    Guard(
        "halving",
        "of a batch with a row that PostgreSQL does not take only that row is refused",
        "rows-at-fault",
        (
            Patch(
                "heartbeat_app/storage/beats.py",
                "        if end - first == 1:\n",
                "        if True:\n",
            ),
        ),
    ),
    Guard(
        "in-parts",
        "what is too much at once for a slow database is written in parts",
        "very-slow-database",
        (
            Patch(
                WRITER,
                "        part = batch.first(self._most.get(row, batch.records))\n",
                "        part = batch\n",
            ),
        ),
    ),
    Guard(
        "memory-bound",
        "no more is read than a bound of bytes that wait to be stored",
        "slow-database",
        (
            Patch(
                "heartbeat_app/lane/lane.py",
                "        return len(partition.waiting) < MAX_WAITING_CHUNKS and (\n"
                "            not partition.waiting or self.waiting_bytes()"
                " < MAX_WAITING_BYTES\n        )\n",
                "        return True\n",
            ),
        ),
    ),
    Guard(
        "recovery",
        "a rebalance that waits for the database for long ends when it comes back",
        "database-away-at-a-rebalance",
        (
            Patch(
                "heartbeat_app/lane/recovery.py",
                "        await super()._wait(coro, timeout=None)\n",
                "        await super()._wait(coro, timeout=timeout)\n",
            ),
        ),
    ),
    Guard(
        "watchdog",
        "a worker that stands still ends itself",
        "recovery-zombie",
        (
            Patch(
                "heartbeat_app/watchdog.py",
                "            await self.app.crash(StandstillError(stalled))\n",
                "            pass\n",
            ),
        ),
    ),
    Guard(
        "watched-look",
        "a worker whose event loop or interpreter is blocked ends itself",
        "loop-blocked",
        (
            Patch(
                "heartbeat_app/watchdog.py",
                "            faulthandler.dump_traceback_later("
                "STANDSTILL_SECONDS, exit=True, file=2)\n",
                "            pass\n",
            ),
        ),
    ),
    Guard(
        "hanging-connections",
        "a connection that neither answers nor closes is broken off",
        "connection-silent",
        (HANGING,),
    ),
    Guard(
        "forget-what-is-stale",
        "what was read before a seek or a rebalance is neither written nor done",
        "tests/unit/test_lane_agent.py"
        "::test_what_is_stale_is_neither_handed_on_nor_done",
        (FORGET,),
    ),
    Guard(
        "no-seek-while-reassigned",
        "partitions that become another's are not taken back by a late seek",
        "tests/unit/test_fetch.py"
        "::test_a_seek_while_the_group_assigns_anew_brings_nothing_back",
        (
            Patch(
                FETCH,
                "        if consumer._fetcher._subscriptions"
                ".reassignment_in_progress:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "stop-at-a-truncated-log",
        "a log that lost its end is not read on as if nothing had happened",
        "tests/unit/test_fetch.py::test_a_log_that_ends_earlier_is_truncated",
        (
            Patch(
                FETCH,
                "        if begin < partition.expected:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "asked-anew",
        "a client that lost sight of Kafka does not keep the topics' ids away",
        "tests/unit/test_kafka.py::test_who_found_nobody_asks_anew",
        (
            Patch(
                "heartbeat_app/kafka.py",
                "                self._client = AdminClient(self._config)\n"
                "            raise\n",
                "            raise\n",
            ),
        ),
    ),
    Guard(
        "too-deep-to-explain",
        "a record that is nested too deeply to say why is refused like any other",
        "tests/unit/test_validation.py::test_refuses_whatever_it_takes_to_say_why",
        (
            Patch(
                "heartbeat_app/validation.py",
                "    except RecursionError:",
                "    except ZeroDivisionError:",
            ),
        ),
    ),
    Guard(
        "one-by-one",
        "what cannot be written together is written apart: no partition waits for "
        "another's row",
        "tests/unit/test_lane_agent.py"
        "::test_what_fails_together_is_tried_one_by_one",
        (
            Patch(
                AGENT,
                "            failed = current\n"
                "        for chunk in failed:\n"
                "            self._tasks.create_task(self._alone(chunk))\n",
                "            await asyncio.sleep(0.1)\n"
                "            self._tasks.create_task(self._together(chunks))\n"
                "            return\n",
            ),
        ),
    ),
    Guard(
        "lock-time-out",
        "who waits for a row that a frozen worker holds finds out within 5 s",
        "frozen-inside-copy",
        (Patch(ENGINE, "LOCK_TIMEOUT_MS = 5_000", "LOCK_TIMEOUT_MS = 3_600_000"),),
    ),
    Guard(
        "statement-time-out",
        "a statement that never returns is given up and tried again",
        "statement-never-returns",
        (
            Patch(
                ENGINE,
                "\nSTATEMENT_TIMEOUT_MS = 35_000",
                "\nSTATEMENT_TIMEOUT_MS = 3_600_000",
            ),
            HANGING,
        ),
    ),
    Guard(
        "refused-in-pages",
        "refused records of a megabyte do not make a statement that PostgreSQL ends "
        "the session for",
        "tests/integration/test_every_byte.py"
        "::test_large_refused_records_are_kept_a_few_at_a_time",
        (
            Patch(
                "heartbeat_app/storage/dead_letters.py",
                "        if size >= MAX_STATEMENT_BYTES:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "limit-on-days",
        "no number of days that are made up fills the database with partitions",
        "too-many-days",
        (
            Patch(
                "heartbeat_app/storage/days.py",
                "MAX_DAYS = 2_500",
                "MAX_DAYS = 1_000_000",
            ),
        ),
    ),
    Guard(
        "one-rolls-up",
        "nobody writes roll-ups beside another, over what a newer look gave",
        "tests/integration/test_rollup.py"
        "::test_nobody_writes_roll_ups_beside_another",
        (
            Patch(
                "alembic/versions/0002_rollups.py",
                "    IF NOT pg_try_advisory_xact_lock(x'726f6c6c'::INTEGER) THEN\n"
                "        RAISE EXCEPTION 'Another session works on the roll-ups'\n"
                "            USING ERRCODE = 'lock_not_available';\n"
                "    END IF;\n"
                "    IF since <> date_trunc('minute'",
                "    IF since <> date_trunc('minute'",
            ),
        ),
    ),
    Guard(
        "counted-once-more",
        "a beat that came after a day was checked is not dropped with the day",
        "day-dropped",
        (
            Patch(
                "alembic/versions/0002_rollups.py",
                "        IF there <> rolled_up OR there.count <> expected THEN\n",
                "        IF false THEN\n",
            ),
        ),
    ),
    Guard(
        "erasure-waits",
        "nothing of an erased customer is stored by who had not seen the erasure",
        "customer-erased",
        (
            Patch(
                "heartbeat_app/storage/erase.py",
                "LOCK TABLE erased_customers IN ACCESS EXCLUSIVE MODE",
                "LOCK TABLE erased_customers IN SHARE ROW EXCLUSIVE MODE",
            ),
        ),
    ),
)}  # fmt: skip


@contextmanager
def without(guard: Guard) -> Iterator[Path]:
    """A copy of the application in which the guard is taken out.

    Raises:
        ValueError: The patch does not fit any more.
    """
    with TemporaryDirectory(prefix="prove-source-") as folder:
        copy = Path(folder)
        for name in SOURCES:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(
                    source, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(source, copy / name)
        for patch in guard.patches:
            file = copy / patch.file
            text = file.read_text()
            if text.count(patch.old) != 1:
                raise ValueError(
                    f"A patch of {guard.name} does not fit {patch.file}: its text is "
                    f"there {text.count(patch.old)} times. Mend prove/guards.py."
                )
            file.write_text(text.replace(patch.old, patch.new))
        yield copy
