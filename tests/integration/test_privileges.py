"""The worker's role does its work, and may do nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.domain.validation import Rules
from heartbeat_app.embedded.postgres_home import installed_programs
from heartbeat_app.storage.days.days import MAX_DAYS, ensure_days
from heartbeat_app.storage.days.partitions import read_partitions
from heartbeat_app.storage.days.retention import Kept as Retained
from heartbeat_app.storage.days.retention import Retention
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.catalog import existing_days
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.db.tables import LOCKS
from heartbeat_app.storage.operator.replay import replay
from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.read.reads import read_recent
from heartbeat_app.storage.rollup.ingest import Hours
from heartbeat_app.storage.rollup.rollup import Job, read_backlog
from heartbeat_app.storage.write import dead_letters
from heartbeat_app.storage.write.writer import Writer
from testkit.servers import Servers, alembic
from tests.storing import (
    START,
    Kept,
    batch_of,
    beat,
    beats,
    day_table,
    rows_of,
    store,
)

pytestmark = pytest.mark.integration

NOT_ALLOWED = "42501"
WRITTEN = (
    "heartbeats", "partition_ledger", "dead_letters", "ingest_minute", "rollup_marks",
)  # fmt: skip
# The database's functions write these, or the owner.
READ = (
    "heartbeats_minute", "heartbeats_hour", "heartbeats_minute_all",
    "heartbeats_hour_all", "ingest_hour", "dropped_days", "dropped_dead_letters",
    "retention", *LOCKS, "erased_customers", "alembic_version",
)  # fmt: skip
FUNCTIONS = (
    "detach_day", "drop_day", "drop_dead_letters", "drop_rollup_month",
    "finish_detaching", "make_day", "make_rollup_month", "roll_up_hour",
    "roll_up_ingest", "roll_up_minutes", "settle_marks", "take_lock",
)  # fmt: skip
TODAY = START.date()


@pytest.fixture
def worker(settings: Settings) -> Iterator[Engine]:
    """Connects as a worker does."""
    engine = make_engine(settings, application_name="worker", pool_size=2)
    yield engine
    engine.dispose()


def refused(connection: Connection, statement: str) -> str | None:
    """The SQLSTATE that a statement ends with."""
    with pytest.raises(DBAPIError) as caught, connection.begin_nested():
        connection.execute(text(statement))
    return errors.sqlstate(caught.value)


def test_all_that_a_worker_and_the_commands_do_works(
    worker: Engine, kept: Kept, make_writer: Callable[..., Writer]
) -> None:
    writer = make_writer(clock=lambda: START)
    writer.write(batch_of(beats(3)))
    new_day = beat(at=START - timedelta(days=3))
    written = store(
        writer,
        batch_of([*beats(5), beat(rate=99), None, beat("w", rate=0), new_day], asked=3),
    )
    assert (written.stored, written.duplicate, written.dead) == (3, 3, 3)
    kept.do(
        "UPDATE dead_letters SET value = convert_to("
        '\'{"customer_id": "r", "timestamp": "2026-01-02T00:00:00Z", '
        "\"heart_rate\": 70}', 'UTF8') WHERE reason = 'not_json'"
    )
    now = datetime.now(UTC)
    rules = Rules.at(now, max_future_seconds=300, retention_days=None)
    assert replay(worker, rules, now, dry_run=True).outcomes["stored"] == 1
    assert replay(worker, rules, now).outcomes["stored"] == 1
    assert len(kept.beats()) == 7
    books = read_books(worker, deep=True)
    assert books.balanced
    assert books.rows is not None
    assert books.rows.counted == 7
    assert Job(worker).run_pass()
    with worker.connect() as connection:
        assert read_backlog(connection).minutes == 0
    kept.do(
        "INSERT INTO retention VALUES ('heartbeats', 1), ('heartbeats_minute', 20),"
        " ('heartbeats_hour', 20), ('dead_letters', 10000)"
    )
    later = START + timedelta(days=100)
    retained = Retained(1, 20, 20, 10000)
    Retention(worker, retained, clock=lambda: later).run_round()
    assert kept.beats() == []
    found = read_partitions(worker)
    assert (found.dropped_days, found.dropped_rows) == (3, 7)
    assert [each.month for each in found.months] == [date(2026, 4, 1)] * 2
    assert read_books(worker, deep=True).balanced
    read_recent(worker)
    [letter, *_] = dead_letters.list_letters(worker, limit=1)
    assert dead_letters.get_letter(worker, letter.id)
    assert sum(dead_letters.count_by_reason(worker).values()) == 3


def test_it_has_these_rights_and_cannot_hand_them_on(kept: Kept) -> None:
    found = kept.all(
        "SELECT table_name, privilege_type, is_grantable"
        " FROM information_schema.role_table_grants WHERE grantee = 'worker'"
    )
    assert set(found) == {(table, "SELECT", "NO") for table in (*WRITTEN, *READ)}


def columns_with(kept: Kept, *, privilege: str) -> dict[str, str]:
    """The columns of each table that the worker has a privilege on."""
    found = kept.all(
        "SELECT table_name, string_agg(column_name, ' ' ORDER BY ordinal_position)"
        " FROM information_schema.column_privileges"
        " JOIN information_schema.columns"
        " USING (table_schema, table_name, column_name)"
        " WHERE grantee = 'worker' AND privilege_type = :privilege"
        " GROUP BY table_name",
        privilege=privilege,
    )
    return {row[0]: row[1] for row in found}


def test_it_may_insert_these_columns_only(kept: Kept) -> None:
    """No ids of its own, no counts in the ledger that nobody counted."""
    counted = "consumed stored duplicate dead"
    assert columns_with(kept, privilege="INSERT") == {
        "heartbeats": "customer_id timestamp heart_rate",
        "dead_letters": "topic topic_id partition offset key value headers reason"
        " detail first_seen record_size record_sha256 customer_ids last_offset",
        "partition_ledger": "topic topic_id partition first_offset next_offset"
        " end_offset updated_at",
        "ingest_minute": f"topic_id partition minute batches {counted}"
        " delay_sum_seconds delay_max_seconds delay_histogram write_seconds"
        " delay_min_seconds",
        "rollup_marks": "since until",
    }


def test_it_may_change_these_columns_only(kept: Kept) -> None:
    counted = "consumed stored duplicate dead"
    assert columns_with(kept, privilege="UPDATE") == {
        "dead_letters": "replayed_at replay_outcome",
        "partition_ledger": f"next_offset end_offset {counted} missing gap"
        " updated_at unreadable",
        "ingest_minute": f"batches {counted} delay_sum_seconds delay_max_seconds"
        " delay_histogram write_seconds delay_min_seconds",
    }


@pytest.mark.parametrize("table", [*WRITTEN, *READ])
def test_it_may_neither_delete_nor_change_a_table(
    worker: Engine, kept: Kept, writer: Writer, table: str
) -> None:
    writer.write(batch_of([*beats(2), None]))
    before = kept.everything()
    with worker.connect() as connection:
        if table in READ:
            assert refused(connection, f"INSERT INTO {table} SELECT") == NOT_ALLOWED
        for statement in (
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
            f"DROP TABLE {table} CASCADE",
            f"ALTER TABLE {table} ADD COLUMN mine INTEGER",
            f"ALTER TABLE {table} OWNER TO CURRENT_USER",
            f"CREATE INDEX mine ON {table} ((1))",
            f"CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION f()",
            f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
        ):
            assert refused(connection, statement) == NOT_ALLOWED, statement
    assert kept.everything() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE heartbeats SET heart_rate = 1",
        "UPDATE partition_ledger SET topic_id = 'other'",
        "UPDATE partition_ledger SET first_offset = 0",
        "UPDATE dead_letters SET value = NULL",
        "UPDATE dead_letters SET reason = 'other'",
        "UPDATE ingest_minute SET minute = now()",
        "UPDATE ingest_hour SET stored = 0",
        "INSERT INTO erased_customers (key, digest, begun_at) VALUES ('', '', now())",
        "UPDATE erased_customers SET digest = ''",
        "SELECT setval('heartbeats_id_seq', 1)",
        'INSERT INTO heartbeats (id, customer_id, "timestamp", heart_rate)'
        " VALUES (9223372036854775807, 'c', now(), 70)",
        "INSERT INTO partition_ledger (topic, topic_id, partition, first_offset,"
        " next_offset, end_offset, gap, updated_at)"
        " VALUES ('t', 'other', 0, 0, 100, 100, 100, now())",
        "INSERT INTO rollup_marks (since, until, marked_at) VALUES"
        " ('2026-01-01', '2026-01-02', '2000-01-01')",
        "DELETE FROM alembic_version",
        "LOCK TABLE rollups_lock IN SHARE MODE",
        "SELECT lo_from_bytea(0, 'mine')",
        "CREATE TABLE mine ()",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS INTEGER LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE mine",
        "CREATE DATABASE mine",
        "CREATE EXTENSION dblink",
        "COPY heartbeats TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "ALTER SYSTEM SET port = 1",
        "CREATE OR REPLACE FUNCTION make_day(DATE) RETURNS BOOLEAN"
        " LANGUAGE sql AS 'SELECT true'",
        "DROP FUNCTION make_day(DATE)",
        "ALTER FUNCTION make_day(DATE) RESET search_path",
    ],
)
def test_it_may_not(worker: Engine, statement: str) -> None:
    with worker.connect() as connection:
        assert refused(connection, statement) in {
            NOT_ALLOWED,
            "25001",  # not in a transaction block: even less
        }, statement


def test_a_day_is_reached_through_the_table_only(
    worker: Engine, writer: Writer, kept: Kept
) -> None:
    writer.write(batch_of(beats(2)))
    day = day_table(TODAY)
    with worker.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM heartbeats")) == 2
        for statement in (
            f"SELECT * FROM {day}",
            f"INSERT INTO {day} SELECT * FROM heartbeats",
            f"DROP TABLE {day}",
            f"TRUNCATE {day}",
            f"ALTER TABLE heartbeats DETACH PARTITION {day}",
        ):
            assert refused(connection, statement) == NOT_ALLOWED, statement
    assert kept.beats() == rows_of(beats(2))


# The function that makes a day


def test_it_makes_a_day_and_says_whether_it_was_there(worker: Engine) -> None:
    with worker.begin() as connection:
        for expected in (True, False):
            assert connection.scalar(text("SELECT make_day('2026-01-01')")) is expected
        assert existing_days(connection) == {TODAY}


@pytest.mark.parametrize(
    "day",
    ["1999-12-31", "10000-01-01", "infinity", "-infinity", "0044-03-15 BC", None],
)
def test_it_makes_days_of_beats_only(worker: Engine, kept: Kept, day: str) -> None:
    with worker.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text("SELECT make_day(:day)"), {"day": day})
    assert errors.sqlstate(caught.value) == "22023"
    assert (
        kept.all("SELECT FROM pg_inherits WHERE inhparent = 'heartbeats'::regclass")
        == []
    )


def test_it_takes_its_words_from_nobody(worker: Engine, kept: Kept) -> None:
    """A caller's own tables and functions of the same names are not what it finds."""
    with worker.begin() as connection:
        for statement in (
            "CREATE TEMPORARY TABLE heartbeats (mine TEXT)",
            "CREATE TEMPORARY TABLE pg_inherits (inhparent OID, inhrelid OID)",
            "CREATE TEMPORARY TABLE pg_class (oid OID, relname NAME)",
            "CREATE TEMPORARY TABLE heartbeats_2026_01_01 (mine TEXT)",
            "SET LOCAL search_path = pg_temp, public, pg_catalog",
            "SET LOCAL timezone = 'Pacific/Kiritimati'",
            "SET LOCAL datestyle = 'SQL, DMY'",
            "SELECT public.make_day('2026-01-01'::date)",
            # Would be made again, if it were looked for in the caller's table.
            "SELECT public.make_day('2026-01-01'::date)",
        ):
            connection.execute(text(statement))
    assert kept.all(
        "SELECT inhrelid::regclass::text, pg_get_expr(relpartbound, pg_class.oid)"
        " FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
        " WHERE inhparent = 'public.heartbeats'::regclass"
    ) == [
        (
            "heartbeats_2026_01_01",
            "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-01-02 00:00:00+00')",
        )
    ]


def test_it_takes_no_function_of_the_schema_for_postgresqls(
    worker: Engine, kept: Kept
) -> None:
    """Where everybody may still create in it, as before PostgreSQL 15."""
    kept.do("GRANT CREATE ON SCHEMA public TO worker")
    with worker.begin() as connection:
        connection.execute(
            text(
                # The exact types, where PostgreSQL's own takes a timestamp.
                "CREATE FUNCTION public.to_char(DATE, TEXT) RETURNS TEXT LANGUAGE sql"
                " AS $$ SELECT 'mine' $$"
            )
        )
        connection.execute(text("SELECT make_day('2026-01-01')"))
        assert existing_days(connection) == {TODAY}


def test_their_search_path_is_fixed_and_only_the_worker_may_call_them(
    kept: Kept,
) -> None:
    """All that have the owner's rights."""
    found = kept.all(
        "SELECT proname, proconfig, proacl::text FROM pg_proc WHERE prosecdef"
        " AND pronamespace = 'public'::regnamespace ORDER BY proname"
    )
    assert tuple(row.proname for row in found) == FUNCTIONS
    for row in found:
        assert "search_path=pg_catalog, pg_temp" in row.proconfig
        assert row.proacl == "{owner=X/owner,worker=X/owner}"


def test_days_wait_for_each_other(worker: Engine, kept: Kept) -> None:
    with worker.begin() as connection:
        connection.execute(text("SELECT make_day('2026-01-01')"))
        with ThreadPoolExecutor(1) as aside:
            second = aside.submit(ensure_days, worker, [date(2026, 1, 1)])
            kept.waits("worker")
            assert not second.done()
            connection.commit()
            second.result(10)


# What the database bounds by itself


def fails_with(kept: Kept, statement: str) -> str | None:
    """The SQLSTATE that a statement of the owner's ends with."""
    with kept._engine.connect() as connection:
        return refused(connection, statement)


def test_the_ledger_goes_forward_only(
    worker: Engine, writer: Writer, kept: Kept
) -> None:
    writer.write(batch_of([*beats(3), None]))
    before = kept.book()
    with worker.connect() as connection:
        for changes in (
            "next_offset = next_offset - 1, consumed = consumed - 1, dead = dead - 1",
            "consumed = consumed - 1, stored = stored - 1, gap = gap + 1",
            "dead = dead - 1, stored = stored + 1",
        ):
            statement = f"UPDATE partition_ledger SET {changes} WHERE stored > 0"
            assert refused(connection, statement) == NOT_ALLOWED, statement
        # Without what it stands for it is not accounted for.
        assert (
            refused(connection, "UPDATE partition_ledger SET next_offset = 100")
            == "23514"
        )
    assert kept.book() == before
    kept.do(
        "UPDATE partition_ledger SET next_offset = first_offset, consumed = 0,"
        " stored = 0, dead = 0"
    )
    assert kept.book().next_offset == 0  # the owner may
    # Whatever session_replication_role a database was left with.
    fires = "SELECT tgenabled FROM pg_trigger WHERE tgname = 'ledger_goes_forward'"
    assert kept.all(fires) == [("A",)]


def test_what_it_may_still_do_to_the_books_is_what_the_docs_say(
    worker: Engine, writer: Writer, kept: Kept
) -> None:
    """A gap that is none: `audit --deep` and the alert on gaps tell it."""
    writer.write(batch_of(beats(3)))
    with worker.begin() as connection:
        connection.execute(
            text(
                "UPDATE partition_ledger"
                " SET next_offset = next_offset + 100, gap = gap + 100"
                " WHERE partition = 0"
            )
        )
    assert kept.book().gap == 100


@pytest.mark.parametrize(
    "instant",
    ["'infinity'", "'-infinity'", "'0044-03-15 12:00:00+00 BC'", "'1999-12-31 UTC'"],
)
def test_no_instant_is_beyond_what_can_be_read(
    worker: Engine, writer: Writer, kept: Kept, instant: str
) -> None:
    writer.write(batch_of([beat(), None]))
    with worker.connect() as connection:
        for statement, state in (
            (f"INSERT INTO heartbeats (customer_id, timestamp, heart_rate)"
             f" VALUES ('c', {instant}, 70)", "23514"),
            (f"INSERT INTO rollup_marks (since, until)"
             f" VALUES ({instant}, '2026-01-01 UTC')", "23514"),
            (f"INSERT INTO rollup_marks (since, until)"
             f" VALUES ('2026-01-01 UTC', {instant})", "23514"),
            (f"INSERT INTO ingest_minute (topic_id, partition, minute,"
             f" delay_sum_seconds, delay_max_seconds, delay_histogram, write_seconds)"
             f" VALUES ('t', 0, {instant}, 0, 0, '{{}}', 0)", "23514"),
            (f"INSERT INTO dead_letters (topic, topic_id, partition, \"offset\","
             f" headers, reason, detail, first_seen)"
             f" VALUES ('t', 't', 0, 9, '[]', 'r', 'd', {instant})", "23514"),
            (f"UPDATE dead_letters SET replayed_at = {instant}", "23514"),
            (f"UPDATE partition_ledger SET updated_at = {instant}", "23514"),
            (f"SELECT make_day({instant}::DATE)"
             if "12:00" not in instant else "SELECT make_day('0044-03-15 BC')",
             "22023"),
        ):  # fmt: skip
            assert refused(connection, statement) == state, statement


def test_the_roll_ups_survive_whatever_is_marked(
    worker: Engine, writer: Writer, kept: Kept
) -> None:
    """Eight thousand years of marks, in one row and in many; also from before."""
    writer.write(batch_of(beats(3)))
    kept.do("ALTER TABLE rollup_marks DROP CONSTRAINT rollup_marks_bounds")
    kept.do(
        "INSERT INTO rollup_marks (since, until) VALUES ('-infinity', 'infinity'),"
        " ('0044-03-15 BC', '0043-03-15 BC'), ('infinity', '-infinity')"
    )
    with worker.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO rollup_marks (since, until)"
                " VALUES ('2000-01-01 UTC', '9999-01-01 UTC')"
            )
        )
        assert read_backlog(connection).minutes > 4e9
        assert [day.marked_minutes for day in read_partitions(worker).days] == [1440]
    for _ in range(3):
        Job(worker).run_pass()
    assert kept.all('SELECT "count" FROM heartbeats_hour') == [(3,)]
    assert [day.marked_minutes for day in read_partitions(worker).days] == [0]
    with worker.connect() as connection:
        assert read_backlog(connection).minutes == 0


def test_days_are_made_up_to_a_limit(worker: Engine, kept: Kept) -> None:
    """Those around today always: the database's own clock says which they are."""
    with worker.connect() as connection:
        assert refused(connection, "SELECT make_day(current_date + 369)") == "54000"
        assert (
            refused(connection, "SELECT make_rollup_month(current_date + 63)")
            == "54000"
        )
    # Few enough to be made here.
    [(made,)] = kept.all("SELECT pg_get_functiondef('make_day(date)'::REGPROCEDURE)")
    assert made.count("2500 <= ") == 1
    assert MAX_DAYS == 2500
    kept.do(made.replace("2500 <= ", "3 <= ").replace("%", "%%"))
    with worker.begin() as connection:
        for day in range(1, 4):
            connection.execute(text(f"SELECT make_day('2020-01-0{day}')"))
        assert refused(connection, "SELECT make_day('2020-01-04')") == "54000"
        for near in range(-2, 3):
            assert connection.scalar(text(f"SELECT make_day(current_date + {near})"))
        assert not connection.scalar(text("SELECT make_day('2020-01-03')"))


# Grafana's role


@pytest.fixture
def reader(servers: Servers, environ: dict[str, str]) -> Iterator[Engine]:
    """Connects as Grafana does, and as who found out its password."""
    alembic({**environ, "POSTGRESQL_READER_PASSWORD": "reading"}, "upgrade", "head")
    url = make_url(
        f"postgresql+psycopg2://heartbeat_reader:reading@127.0.0.1:"
        f"{servers.postgres.port}/{environ['POSTGRESQL_DATABASE']}"
    )
    engine = create_engine(url, pool_size=12, max_overflow=0)
    yield engine
    engine.dispose()
    servers.administer("ALTER ROLE heartbeat_reader RESET ALL")


def test_no_lock_that_a_reader_may_take_stops_a_writer(
    reader: Engine, worker: Engine, writer: Writer, kept: Kept
) -> None:
    every_lock = (
        "SELECT pg_advisory_lock(key) FROM unnest(ARRAY[1751474546, 1919904876,"
        " 1768842085, 1801807216]::BIGINT[]) AS keys(key)"
    )
    with reader.connect() as connection:
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.commit()
        connection.execute(text(every_lock))
        for table in (*WRITTEN, *READ):
            if table not in READ[-6:]:
                connection.execute(text(f"LOCK TABLE {table} IN ACCESS SHARE MODE"))
            for mode in ("ROW SHARE", "SHARE", "ACCESS EXCLUSIVE"):
                statement = f"LOCK TABLE {table} IN {mode} MODE NOWAIT"
                assert refused(connection, statement) == NOT_ALLOWED, statement
        assert writer.write(batch_of(beats(3))).stored == 3
        assert Job(worker).run_pass()
        assert len(kept.all("SELECT FROM heartbeats_hour")) == 1
        assert Hours(worker).run_pass()
        Retention(worker, Retained(None, None, None, None)).run_round()
        with worker.connect() as connection:
            assert datetime.now(UTC).date() in existing_days(connection)
    # Nor is there any left that a writer waits for.
    assert kept.all("SELECT proname FROM pg_proc WHERE prosrc LIKE '%advisory%'"
                    " AND pronamespace = 'public'::REGNAMESPACE") == []  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        *(f"DELETE FROM {table}" for table in WRITTEN),
        "INSERT INTO rollup_marks (since, until) VALUES (now(), now())",
        "SELECT * FROM erased_customers",
        "SELECT make_day(current_date)",
        "SELECT take_lock('rollups')",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE TABLE mine ()",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'mine')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_logical_emit_message(false, 'mine', repeat('x', 1000))",
        "SELECT pg_logical_emit_message(true, 'mine', 'x'::BYTEA)",
        "SET temp_file_limit = -1",
        "SET log_min_messages = log",
        "ALTER ROLE heartbeat_reader SET log_min_messages = log",
        "ALTER ROLE heartbeat_reader SET temp_file_limit = -1",
        "ALTER ROLE heartbeat_reader RESET temp_file_limit",
        "ALTER ROLE heartbeat_reader CONNECTION LIMIT -1",
        "ALTER ROLE heartbeat_reader SUPERUSER",
    ],
)
def test_a_reader_may_not(reader: Engine, statement: str) -> None:
    with reader.connect() as connection:
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.commit()
        assert refused(connection, statement) == NOT_ALLOWED, statement


def test_a_reader_has_few_connections_and_small_files(reader: Engine) -> None:
    with ExitStack() as stack:
        some = [stack.enter_context(reader.connect()) for _ in range(10)]
        with pytest.raises(DBAPIError, match="too many connections for role"):
            stack.enter_context(reader.connect())
        # RESET ALL leaves what only a superuser may set.
        some[0].execute(text("SET TRANSACTION READ WRITE"))
        some[0].execute(text("ALTER ROLE heartbeat_reader RESET ALL"))
        some[0].commit()
    reader.dispose()
    with reader.connect() as connection:
        assert connection.scalar(text("SHOW temp_file_limit")) == "256MB"


def test_a_reader_writes_nothing_into_the_servers_log(
    servers: Servers, reader: Engine
) -> None:
    """Which would fill the disk: what a failing statement says may be any text."""
    with reader.connect() as connection:
        connection.execute(text("DO $$ BEGIN RAISE LOG 'loudly'; END $$"))
        assert refused(connection, "SELECT CAST('very loudly' AS INTEGER)") == "22P02"
        connection.commit()
    said = servers.postgres.log_path.read_text(errors="replace")
    assert "loudly" not in said


def test_what_a_reader_sets_for_itself_lasts_until_the_next_upgrade(
    reader: Engine, environ: dict[str, str]
) -> None:
    shown = ("statement_timeout", "default_transaction_read_only",
             "idle_in_transaction_session_timeout")  # fmt: skip
    database = environ["POSTGRESQL_DATABASE"]
    with reader.connect() as connection:
        before = [connection.scalar(text(f"SHOW {name}")) for name in shown]
        connection.commit()
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.commit()
        for where in ("", f'IN DATABASE "{database}"'):
            for name, value in zip(shown, ("0", "off", "0"), strict=True):
                connection.execute(
                    text(f"ALTER ROLE heartbeat_reader {where} SET {name} = {value}")
                )
        connection.commit()
    assert before == ["30s", "on", "1min"]
    reader.dispose()
    with reader.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "0"
    reader.dispose()
    alembic({**environ, "POSTGRESQL_READER_PASSWORD": "reading"}, "upgrade", "head")
    with reader.connect() as connection:
        assert [connection.scalar(text(f"SHOW {name}")) for name in shown] == before


# What nobody can forbid


@pytest.mark.parametrize(
    "setting",
    [
        "SET local_preload_libraries = 'none'",
        "SET default_transaction_read_only = on",
        "PASSWORD 'mine'",
    ],
)
def test_a_role_may_lock_itself_out_until_others_let_it_in(
    settings: Settings,
    servers: Servers,
    environ: dict[str, str],
    worker: Engine,
    setting: str,
) -> None:
    try:
        with worker.begin() as connection:
            connection.execute(text(f"ALTER ROLE CURRENT_USER {setting}"))
        worker.dispose()
        with pytest.raises(DBAPIError):
            worker.connect()
    finally:
        servers.administer("ALTER ROLE worker RESET ALL")
        alembic(environ, "upgrade", "head")
    with worker.connect():
        pass


@pytest.mark.parametrize("count", ["duplicate", "gap"])
def test_a_worker_may_skip_records(
    worker: Engine, writer: Writer, kept: Kept, count: str
) -> None:
    """It has to tell what it read; only Kafka's log knows better."""
    writer.write(batch_of(beats(3)))
    also = "" if count == "gap" else ", consumed = consumed + 100"
    with worker.begin() as connection:
        connection.execute(
            text(
                f"UPDATE partition_ledger SET next_offset = next_offset + 100,"
                f" {count} = {count} + 100{also}"
            )
        )
    assert read_books(worker).balanced


# What the database says of itself


def test_each_table_and_column_says_what_it_is(kept: Kept) -> None:
    assert kept.all(
        "SELECT relname, attname FROM pg_class"
        " LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0"
        " AND NOT attisdropped"
        " WHERE relnamespace = 'public'::REGNAMESPACE AND relkind IN ('r', 'p')"
        " AND NOT relispartition AND relname <> 'alembic_version'"
        " AND (obj_description(pg_class.oid) IS NULL"
        "      OR col_description(pg_class.oid, attnum) IS NULL AND attnum > 0)"
    ) == []  # fmt: skip
    [(about,)] = kept.all(
        "SELECT obj_description('idx_customer_id'::REGCLASS, 'pg_class')"
    )
    assert "Unique, on two columns" in about


def test_a_dump_as_the_worker(servers: Servers, environ: dict[str, str]) -> None:
    """Of what is no partition: those are reached through their tables only."""
    dumped = subprocess.run(
        [installed_programs() / "pg_dump", "-h", "127.0.0.1",
         "-p", str(servers.postgres.port), "-U", "worker",
         environ["POSTGRESQL_DATABASE"]],
        env={"PGPASSWORD": environ["POSTGRESQL_PASSWORD"]},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (dumped.returncode, dumped.stderr) == (0, "")


# What everybody may do


def test_nobody_else_may_make_anything_here(servers: Servers, name: str) -> None:
    """PostgreSQL lets everybody make temporary tables, unless that is taken back."""
    servers.make_database(name)
    environ = servers.environ(name, name)
    alembic(environ, "upgrade", "head")
    admin = servers.admin_engine()
    with admin.connect() as connection:
        [(worker, owner, public)] = connection.execute(
            text(
                "SELECT has_database_privilege('worker', :name, 'TEMPORARY'),"
                " has_database_privilege('owner', :name, 'TEMPORARY'),"
                " (SELECT bool_or(privilege_type IN ('TEMPORARY', 'CREATE'))"
                "  FROM pg_database, aclexplode(datacl)"
                "  WHERE datname = :name AND grantee = 0)"
            ),
            {"name": name},
        ).all()
    assert (worker, owner, public) == (True, True, False)
    admin.dispose()
    servers.drop_database(name)
