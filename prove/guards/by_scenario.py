"""The guards without which a scenario fails."""

from __future__ import annotations

from prove.guards.guard import Guard, Patch
from prove.guards.patches import AGENT, ENGINE, FETCH, FORGET, HANGING, REWIND, WRITER

BY_SCENARIO = (
    Guard(
        "fence",
        "what lies below the ledger's next offset was stored before and is dropped",
        "frozen",
        "all that was sent is read",
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
        "are not what the beats give",
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
        "beats are lost",
        (
            REWIND,
            Patch(
                "heartbeat_app/lane/consumer.py",
                "        offsets.update(await self.restart_at_ledger(lane_tps))\n",
                "        found = await self._thread.call_thread(\n"
                "            self._thread.seek_others, lane_tps, {}\n"
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
        "Kafka was told",
        (Patch(AGENT, ".noack().events()", ".events()"),),
    ),
    Guard(
        "retry-in-place",
        "a batch that fails is tried again until it is stored",
        "database-stopped",
        "beats are lost",
        (
            REWIND,
            Patch(
                AGENT,
                "                failures += 1\n"
                "                self._failures[chunk.tp] += 1\n"
                "                await _pause(chunk, self._failures[chunk.tp],"
                " error)\n",
                "                self._consumer.done([chunk])\n"
                "                break\n",
            ),
        ),
    ),
    Guard(
        "rewind",
        "a batch that begins above the ledger means that the ledger went back",
        "restored-from-a-backup",
        "beats are lost",
        (REWIND,),
    ),
    Guard(
        "topic-ids",
        "a topic that was made again is read from its beginning, under its own books",
        "topic-remade-same",
        "all that was sent is read",
        (
            Patch(
                "heartbeat_app/kafka/client.py",
                "            if topic_id == _NO_ID:\n",
                "            if True:\n",
            ),
        ),
    ),
    Guard(
        "fresh-topic-ids",
        "nothing is read while the topics' ids were not looked up for 2 s",
        "topic-remade-unseen",
        "dead letters",
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
        "rows were never sent",
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
        "the books say 0 missing",
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
        "all that was sent is read",
        (
            Patch(
                "heartbeat_app/storage/db/copy.py",
                "_length(len(name)) + name",
                "_length(len(customer_id)) + name",
            ),
        ),
    ),
    Guard(
        "any-header",
        "a header's name may be any bytes",
        "odd-headers",
        "all that was sent is read",
        (
            Patch(
                "heartbeat_app/lane/batch_reader.py",
                'headers.append((name.decode("utf-8", "surrogateescape"), content))',
                "headers.append((name.decode(), content))",
            ),
        ),
    ),
    Guard(
        "conflict-target",
        "only the natural key makes a beat a duplicate, not an id that is taken",
        "sequence-set-back",
        "beats are lost",
        (
            Patch(
                "heartbeat_app/storage/write/beats.py",
                'ON CONFLICT (customer_id, "timestamp") DO NOTHING',
                "ON CONFLICT DO NOTHING",
            ),
        ),
    ),
    Guard(
        "end-blockers",
        "a frozen worker's session is ended when it holds a partition's row",
        "frozen-inside-copy",
        "the other worker reads all partitions",
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
        "another worker rolled up",
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
        "only what fails alone between probes that pass becomes a dead letter",
        "migrated-meanwhile",
        "dead letters (expected, found)",
        (
            Patch(
                WRITER,
                "            return False\n        return True\n",
                "            return True\n        return True\n",
            ),
        ),
    ),
    Guard(
        "new-sessions",
        "a session whose server has become read-only is not used again",
        "address-moves",
        "nothing was stored for",
        (
            Patch(
                WRITER,
                "            if not halves:\n",
                "            if False:\n",
            ),
            Patch(
                "heartbeat_app/storage/db/engine.py",
                '    event.listen(engine, "checkout", sessions.require_writable)\n',
                "",
            ),
        ),
    ),
    Guard(
        "halving",
        "of a batch with a row that PostgreSQL does not take only that row is refused",
        "rows-at-fault",
        "the first ones are read",
        (
            Patch(
                WRITER,
                "        halves = suspected.records > 1\n",
                "        halves = False\n",
            ),
        ),
    ),
    Guard(
        "in-parts",
        "what is too much at once for a slow database is written in parts",
        "very-slow-database",
        "all is stored",
        (
            Patch(
                WRITER,
                "        part, probed = self._next_part(trouble, rest)\n",
                "        part, probed = rest, False\n",
            ),
        ),
    ),
    Guard(
        "memory-bound",
        "no more is read than a bound of bytes that wait to be stored",
        "slow-database",
        "memory is beyond",
        (
            Patch(
                "heartbeat_app/lane/lane.py",
                "        return len(partition.waiting) < MAX_WAITING_CHUNKS"
                " and waiting_bytes < limit\n",
                "        return True\n",
            ),
        ),
    ),
    Guard(
        "recovery",
        "a rebalance that waits for the database for long ends when it comes back",
        "database-away-at-a-rebalance",
        "a worker had to be started again",
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
        "it was not noticed",
        (
            Patch(
                "heartbeat_app/worker/watchdog.py",
                "            await self.app.crash(StandstillError(stalled))\n",
                "            pass\n",
            ),
        ),
    ),
    Guard(
        "watched-look",
        "a worker whose event loop or interpreter is blocked ends itself",
        "loop-blocked",
        "it was not noticed",
        (
            Patch(
                "heartbeat_app/worker/watchdog.py",
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
        "a worker had to be started again",
        (HANGING,),
    ),
    Guard(
        "lock-time-out",
        "who waits for a row that a frozen worker holds finds out within 5 s",
        "frozen-inside-copy",
        "the other worker reads all partitions",
        (Patch(ENGINE, "LOCK_TIMEOUT_MS = 5_000", "LOCK_TIMEOUT_MS = 3_600_000"),),
    ),
    Guard(
        "statement-time-out",
        "a statement that never returns is given up and tried again",
        "statement-never-returns",
        "says 'QueryCanceled'",
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
        "limit-on-days",
        "no number of days that are made up fills the database with partitions",
        "too-many-days",
        "days were made",
        (
            Patch(
                "heartbeat_app/storage/days/days.py",
                "MAX_DAYS = 2_500",
                "MAX_DAYS = 1_000_000",
            ),
        ),
    ),
    Guard(
        "counted-once-more",
        "a beat that came after a day was checked is not dropped with the day",
        "day-dropped",
        "beats that were to go",
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
        "rows were never sent",
        (
            Patch(
                "heartbeat_app/storage/operator/erase.py",
                "LOCK TABLE erased_customers IN ACCESS EXCLUSIVE MODE",
                "LOCK TABLE erased_customers IN SHARE ROW EXCLUSIVE MODE",
            ),
        ),
    ),
)  # fmt: skip
