"""The worker's role does its work, and may do nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.storage import dead_letters, errors
from heartbeat_app.storage.books import read_books
from heartbeat_app.storage.days import ensure_days, existing_days
from heartbeat_app.storage.engine import make_engine
from heartbeat_app.storage.partitions import read_partitions
from heartbeat_app.storage.reads import read_recent
from heartbeat_app.storage.replay import replay
from heartbeat_app.storage.retention import Kept as Retained
from heartbeat_app.storage.retention import Retention
from heartbeat_app.storage.rollup import Job, read_backlog
from heartbeat_app.storage.writer import Writer
from heartbeat_app.validation import Rules
from tests.servers import Servers, alembic
from tests.storing import (
    START,
    Kept,
    batch_of,
    beat,
    beats,
    day_table,
    rows_of,
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
    "retention", "erased_customers",
)  # fmt: skip
FUNCTIONS = (
    "detach_day", "drop_day", "drop_dead_letters", "drop_rollup_month",
    "finish_detaching", "make_day", "make_rollup_month", "roll_up_hour",
    "roll_up_ingest", "roll_up_minutes", "settle_marks",
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
    written = writer.write(
        batch_of([*beats(5), beat(rate=99), None, beat("w", rate=0), new_day], asked=3)
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
    assert set(found) == {
        *((table, "SELECT", "NO") for table in (*WRITTEN, *READ)),
        *((table, "INSERT", "NO") for table in WRITTEN),
    }


def test_it_may_change_these_columns_only(kept: Kept) -> None:
    found = kept.all(
        "SELECT table_name, string_agg(column_name, ' ' ORDER BY ordinal_position)"
        " FROM information_schema.column_privileges"
        " JOIN information_schema.columns"
        " USING (table_schema, table_name, column_name)"
        " WHERE grantee = 'worker' AND privilege_type NOT IN ('SELECT', 'INSERT')"
        " GROUP BY table_name"
    )
    counted = "consumed stored duplicate dead"
    assert dict(found) == {
        "dead_letters": "replayed_at replay_outcome",
        "partition_ledger": f"next_offset end_offset {counted} missing gap"
        " updated_at unreadable",
        "ingest_minute": f"batches {counted} delay_sum_seconds delay_max_seconds"
        " delay_histogram write_seconds",
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
        "SELECT * FROM alembic_version",
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
