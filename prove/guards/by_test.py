"""The guards without which a test fails, as what they stop comes too seldom."""

from __future__ import annotations

from prove.guards.guard import Guard, Patch
from prove.guards.patches import AGENT, ENGINE, FETCH, FORGET, WRITER

BY_TEST = (
    Guard(
        "forget-what-is-stale",
        "what was read before a seek or a rebalance is neither written nor done",
        "tests/unit/test_lane_agent.py"
        "::test_what_is_stale_is_neither_handed_on_nor_done",
        "assert [[",
        (FORGET,),
    ),
    Guard(
        "no-seek-while-reassigned",
        "partitions that become another's are not taken back by a late seek",
        "tests/unit/test_fetch.py"
        "::test_a_seek_while_the_group_assigns_anew_brings_nothing_back",
        "assert not {",
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
        "is None",
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
        "is not <",
        (
            Patch(
                "heartbeat_app/kafka/client.py",
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
        "RecursionError",
        (
            Patch(
                "heartbeat_app/domain/validation.py",
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
        "assert [[",
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
        "refused-in-pages",
        "refused records of a megabyte do not make a statement that PostgreSQL ends "
        "the session for",
        "tests/integration/test_every_byte.py"
        "::test_large_refused_records_are_kept_a_few_at_a_time",
        "assert 3145",
        (
            Patch(
                "heartbeat_app/storage/write/dead_letters.py",
                "        if size >= MAX_STATEMENT_BYTES:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "one-rolls-up",
        "nobody writes roll-ups beside another, over what a newer look gave",
        "tests/integration/test_rollup.py"
        "::test_nobody_writes_roll_ups_beside_another",
        "DID NOT RAISE",
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
        "in-order",
        "the batches of a partition are handled one after the other",
        "tests/unit/test_lane_agent.py"
        "::test_one_that_fails_is_tried_again_before_the_next",
        "assert [",
        (
            Patch(
                AGENT,
                "            if not chunks or tp in self._busy:\n",
                "            if not chunks:\n",
            ),
        ),
    ),
    Guard(
        "own-epoch",
        "what is done of before a seek says nothing of what was read after it",
        "tests/unit/test_lane_consumer.py"
        "::test_what_a_seek_overtook_leaves_the_books_of_the_new_chunk_alone",
        "assert",
        (
            Patch(
                "heartbeat_app/lane/consumer.py",
                "            if self.lane.is_current(chunk.tp, chunk.epoch):\n",
                "            if True:\n",
            ),
        ),
    ),
    Guard(
        "only-from-the-ledger",
        "nothing is taken of a partition before the ledger's offset was sought",
        "tests/unit/test_fetch.py"
        "::test_after_a_rebalance_nothing_is_taken_before_the_seek",
        ".truncated",
        (
            Patch(
                FETCH,
                "        if id(state) != id(self._sought.get(tp)):\n"
                "            return None",
                "        if False:\n            return None",
            ),
        ),
    ),
    Guard(
        "overtaken",
        "a fetch that a seek overtook is not taken",
        "tests/unit/test_fetch.py"
        "::test_what_a_seek_overtook_is_dropped",
        "is None",
        (
            Patch(
                FETCH,
                "if not result.check_assignment(aiotp):",
                "if False:",
            ),
        ),
    ),
    Guard(
        "checksums",
        "a batch in which a bit flipped is not read",
        "tests/unit/test_records.py"
        "::test_a_bit_that_flipped_is_no_record",
        "assert None",
        (
            Patch(
                "heartbeat_app/lane/unpack.py",
                "    if fetched._check_crcs and not batch.validate_crc():\n",
                "    if False:\n",
            ),
        ),
    ),
    Guard(
        "marker-compacted-away",
        "a transaction's batch without its marker does not stop the reading",
        "tests/unit/test_records.py"
        "::test_a_marker_that_compaction_took_is_a_gap",
        "KafkaError",
        (
            Patch(
                "heartbeat_app/lane/unpack.py",
                "        if type(error) is KafkaError:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "compiled",
        "Faust's pure Python twin, which acknowledges what is stale, is not run",
        "tests/integration/test_lane.py"
        "::test_pure_python_is_refused",
        "it ends",
        (
            Patch(
                "heartbeat_app/lane/app.py",
                "        if None in compiled:\n",
                "        if False:\n",
            ),
        ),
    ),
    Guard(
        "failed-is-not-committed",
        "a transaction in which a statement failed does not pass for stored",
        "tests/integration/test_transactions.py"
        "::test_a_failed_statement_does_not_pass_for_committed",
        "DID NOT RAISE",
        (
            Patch(
                "heartbeat_app/storage/db/transactions.py",
                "if status() == TRANSACTION_STATUS_INERROR:",
                "if False:",
            ),
        ),
    ),
    Guard(
        "lost-is-not-committed",
        "a transaction whose session was lost does not pass for stored",
        "tests/integration/test_transactions.py"
        "::test_a_lost_session_does_not_pass_for_committed",
        "DID NOT RAISE",
        (
            Patch(
                "heartbeat_app/storage/db/transactions.py",
                "if status() != TRANSACTION_STATUS_IDLE:  # open, or lost",
                "if status() == 2:  # TRANSACTION_STATUS_INTRANS",
            ),
        ),
    ),
    Guard(
        "rolled-back",
        "no connection goes back to its pool with a transaction open",
        "tests/integration/test_transactions.py"
        "::test_a_statement_that_fails_rolls_it_back",
        "assert",
        (
            Patch(
                "heartbeat_app/storage/db/transactions.py",
                "                    run(connection, [ROLLBACK])\n",
                "                    pass\n",
            ),
        ),
    ),
    Guard(
        "read-committed-always",
        "a statement sees what the lock before it waited for, whatever the default is",
        "tests/integration/test_transactions.py"
        "::test_each_statement_sees_what_it_waited_for",
        "serializable",
        (
            Patch(
                "heartbeat_app/storage/db/sessions.py",
                '    "default_transaction_isolation": "read committed",\n',
                "",
            ),
        ),
    ),
    Guard(
        "hold-off-first",
        "who was erased is read in a later look than the lock is waited for",
        "tests/integration/test_erase.py"
        "::test_an_erasure_waits_for_what_is_being_stored",
        "assert",
        (
            Patch(
                "heartbeat_app/storage/write/opening.py",
                "            HOLD_OFF_ERASURES,\n",
                "",
            ),
        ),
    ),
    Guard(
        "erased-read-anew",
        "a restored database may have other erasures under the same ids",
        "tests/integration/test_erase.py"
        "::test_a_restored_database_has_other_erasures_under_the_same_ids",
        "assert",
        (
            Patch(
                WRITER,
                "            self._erased = Erased()\n            if not halves:\n",
                "            if not halves:\n",
            ),
        ),
    ),
    Guard(
        "days-looked-up-anew",
        "a day that is gone is made again",
        "tests/integration/test_days.py"
        "::test_a_day_that_was_dropped_is_made_again",
        "heartbeats",
        (
            Patch(
                WRITER,
                "                self._known_days.clear()  # dropped behind our back\n",
                "                pass\n",
            ),
        ),
    ),
    Guard(
        "dropped-stays-dropped",
        "beats of a day that the retention dropped do not bring it back",
        "tests/integration/test_retention.py"
        "::test_beats_of_a_dropped_day_are_refused_whatever_the_settings_say",
        "assert",
        (
            Patch(
                WRITER,
                "            dropped = new & days.dropped_days(connection)\n",
                "            dropped = set()\n",
            ),
        ),
    ),
    Guard(
        "books-add-up",
        "a batch whose records are not all accounted for is not stored",
        "tests/integration/test_writer.py"
        "::test_what_does_not_add_up_is_not_stored",
        "ledger_balances",
        (
            Patch(
                "heartbeat_app/storage/write/ledger.py",
                'if counts["consumed"] != sorted_out or min(counts.values()) < 0:',
                "if False:",
            ),
        ),
    ),
    Guard(
        "ledger-balances",
        "the database itself refuses books that do not add up",
        "tests/integration/test_writer.py"
        "::test_the_database_itself_refuses_books_that_are_off",
        "DID NOT RAISE",
        (
            Patch(
                "alembic/versions/0001_heartbeats.py",
                '"consumed = stored + duplicate + dead"',
                '"consumed >= 0"',
            ),
            Patch(
                "alembic/versions/0001_heartbeats.py",
                '"next_offset - first_offset = consumed + missing + gap"',
                '"consumed >= 0"',
            ),
        ),
    ),
    Guard(
        "settled-by-id",
        "what is marked during a pass of the roll-ups is rolled up by the next",
        "tests/integration/test_rollup.py"
        "::test_what_comes_at_any_moment_of_a_pass_is_not_forgotten",
        "assert",
        (
            Patch(
                "alembic/versions/0002_rollups.py",
                "        WHERE id = ANY (ids) AND since < up_to AND until > settled\n",
                "        WHERE since < up_to AND until > settled\n",
            ),
        ),
    ),
    Guard(
        "not-before-its-time",
        "no day is dropped that is to be kept, whatever a worker asks for",
        "tests/integration/test_retention.py"
        "::test_the_database_itself_refuses_to_drop_what_is_to_be_kept",
        "is to be kept",
        (
            Patch(
                "alembic/versions/0002_rollups.py",
                "    IF (day + 1 + kept + 1 <= CURRENT_DATE) IS NOT TRUE THEN\n",
                "    IF FALSE THEN\n",
            ),
        ),
    ),
    Guard(
        "not-before-rolled-up",
        "no day is dropped that is not rolled up",
        "tests/integration/test_retention.py"
        "::test_a_day_is_not_dropped_before_it_is_rolled_up",
        "DID NOT RAISE",
        (
            Patch(
                "alembic/versions/0002_rollups.py",
                "    IF EXISTS (SELECT FROM public.rollup_marks\n"
                "               WHERE since < day + 1 AND until > day) THEN\n",
                "    IF FALSE THEN\n",
            ),
        ),
    ),
    Guard(
        "erased-or-dropped",
        "what an erasure deletes is not counted as dropped, too",
        "tests/integration/test_erase.py"
        "::test_a_day_that_is_being_dropped_is_counted_once",
        "assert",
        (
            Patch(
                "heartbeat_app/storage/operator/erase.py",
                "                .where(dropped_days.c.day == day)\n"
                "                .with_for_update()\n",
                "                .where(dropped_days.c.day == day)\n",
            ),
        ),
    ),
    Guard(
        "no-customer-in-errors",
        "an error that is logged names no customer",
        "tests/integration/test_writer_outages.py"
        "::test_errors_hold_no_password_and_no_customer",
        "assert 'hidden'",
        (
            Patch(
                ENGINE,
                "hide_parameters=True,",
                "",
            ),
        ),
    ),
)  # fmt: skip
