"""The migration makes what the tables say, from PostgreSQL 15 on, and undoes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, String, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from heartbeat_app.config import Settings, load_settings
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import database_url, make_engine
from heartbeat_app.storage.db.tables import (
    DELAY_BOUNDS_SECONDS,
    FIRST_DELAY_BUCKETS,
    WIDER_DELAY_BUCKETS,
    metadata,
)
from heartbeat_app.storage.read.books import Rows, read_books
from heartbeat_app.storage.read.customers import list_customers, list_latest
from heartbeat_app.storage.rollup.rollup import Job
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from testkit.servers import (
    OWNER,
    PROJECT,
    Servers,
    alembic,
    child_environ,
    engine_of,
    run,
)
from tests import debian_postgres
from tests.storing import (
    START,
    TOPIC,
    TOPIC_ID,
    Kept,
    batch_of,
    beat,
    beats,
    rows_of,
    store,
)

pytestmark = pytest.mark.integration

READER = "heartbeat_reader"
TABLES = (
    "heartbeats",
    "partition_ledger",
    "dead_letters",
    "ingest_minute",
    "ingest_hour",
    "heartbeats_minute",
    "heartbeats_hour",
    "heartbeats_minute_all",
    "heartbeats_hour_all",
    "rollup_marks",
    "dropped_days",
    "dropped_dead_letters",
    "retention",
)
EMPTY = {
    "rollup_marks", "dropped_days", "dropped_dead_letters", "retention", "ingest_hour"
}  # fmt: skip
PLACES = len(DELAY_BOUNDS_SECONDS) + 1 + WIDER_DELAY_BUCKETS
# Place, counted from 0, lower and upper bound of each bucket, in order.
INFINITY = float("inf")
WIDER = [(10.0, 30.0), (30.0, 60.0), (60.0, 300.0), (300.0, 3600.0), (3600.0, INFINITY)]
WRITTEN = [
    (n if n < FIRST_DELAY_BUCKETS else n + WIDER_DELAY_BUCKETS, *bounds)
    for n, bounds in enumerate(pairwise([0.0, *DELAY_BOUNDS_SECONDS, INFINITY]))
]
BUCKETS = sorted(
    [*WRITTEN, *((FIRST_DELAY_BUCKETS + n, *each) for n, each in enumerate(WIDER))],
    key=lambda bucket: (bucket[2], bucket[1]),
)


@pytest.fixture
def empty(servers: Servers, name: str) -> Iterator[dict[str, str]]:
    """The settings of an application whose database was never migrated."""
    servers.make_database(name)
    yield servers.environ(name, name)
    servers.drop_database(name)


def settings_of(environ: Mapping[str, str]) -> Settings:
    return load_settings(environ, Path("/nonexistent"))


def relations(engine: Engine) -> set[str]:
    """All that there is in the schema: tables, sequences, indexes, functions."""
    found = Kept(engine).all(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    )
    return {row[0] for row in found}


def store_some(settings: Settings) -> None:
    """One batch of everything: new days, duplicates, a conflict, refused, rejected."""
    engine = make_engine(settings, application_name="writer", pool_size=2)
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0})
    writer = Writer(engine)
    writer.write(batch_of(beats(3)))
    other_day = beat(at=START - timedelta(days=400))
    items = [*beats(5), beat(rate=99), None, beat("w", rate=0), other_day]
    written = store(writer, batch_of(items, asked=3))
    assert (written.stored, written.duplicate, written.dead) == (3, 3, 3)
    kept = Kept(engine)
    assert kept.beats() == rows_of([*beats(5), other_day])
    assert kept.letters() == [
        (8, "conflict"),
        (9, "not_json"),
        (10, "rejected_by_database"),
    ]
    assert kept.minutes() == 6  # the second in parts, to find the one at fault
    assert Job(engine).run_pass()
    assert read_books(engine, deep=True).rows == Rows(6, 0)
    engine.dispose()


# Up and down


def test_it_goes_up_down_and_up_again_and_leaves_nothing(
    empty: dict[str, str],
) -> None:
    engine = engine_of(settings_of(empty))
    alembic(empty, "upgrade", "head")
    made = relations(engine)
    assert set(TABLES) <= made
    store_some(settings_of(empty))
    assert "heartbeats_2026_01_01" in relations(engine)
    alembic(empty, "downgrade", "base")
    assert relations(engine) == {"alembic_version", "alembic_version_pkc"}
    alembic(empty, "upgrade", "head")
    assert relations(engine) == made
    store_some(settings_of(empty))
    engine.dispose()


def test_the_tables_are_what_the_code_says_also_with_days(
    environ: dict[str, str], settings: Settings
) -> None:
    assert "No new upgrade operations detected" in alembic(environ, "check")
    store_some(settings)
    assert "No new upgrade operations detected" in alembic(environ, "check")


def test_a_drift_is_seen(environ: dict[str, str], kept: Kept) -> None:
    kept.do("ALTER TABLE dead_letters ALTER reason TYPE VARCHAR(20)")
    drift = run(environ, sys.executable, "-m", "alembic", "check", status=255)
    assert "dead_letters" in drift


def test_it_can_be_read_before_it_is_run(empty: dict[str, str]) -> None:
    """What `--sql` prints makes the same tables."""
    printed = printed_sql(empty, "upgrade", "head")
    assert empty["POSTGRESQL_PASSWORD"] not in printed
    assert "%%" not in printed  # psql takes it as it is
    assert empty["POSTGRESQL_OWNER_PASSWORD"] not in printed
    engine = engine_of(settings_of(empty))
    assert relations(engine) == set()
    kept = Kept(engine)
    kept.do(printed.replace("%", "%%"))  # which psycopg2 takes for one
    assert "No new upgrade operations detected" in alembic(empty, "check")
    store_some(settings_of(alone(empty)))
    alembic(empty, "upgrade", "head")  # the rights of the roles are not printed
    kept.do("TRUNCATE heartbeats, dead_letters, partition_ledger, ingest_minute")
    store_some(settings_of(empty))
    kept.do(printed_sql(empty, "downgrade", "0010:base").replace("%", "%%"))
    assert relations(engine) == {"alembic_version", "alembic_version_pkc"}
    engine.dispose()


def printed_sql(environ: Mapping[str, str], *arguments: str) -> str:
    """The SQL alone, without what is logged."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments, "--sql"],
        cwd=PROJECT,
        env=child_environ(environ),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_database_that_cannot_hold_every_name_is_refused(
    servers: Servers, name: str
) -> None:
    servers.administer(
        f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'LATIN1'"
        " LOCALE_PROVIDER libc LOCALE 'C'"
    )
    environ = servers.environ(name, name)
    printed = run(
        environ, sys.executable, "-m", "alembic", "upgrade", "head", status=255
    )
    assert "FAILED: The database is encoded in LATIN1" in printed
    servers.drop_database(name)


# The role that may only read


@pytest.fixture
def clean_roles(servers: Servers) -> Iterator[Engine]:
    """An administrator's engine; the roles of these tests are gone afterwards."""
    admin = servers.admin_engine()
    drop_roles(admin)
    yield admin
    drop_roles(admin)
    admin.dispose()


def drop_roles(admin: Engine) -> None:
    with admin.connect() as connection:
        for role in (
            READER, "plain_owner", "maker", "plain_worker", '"odd ""worker %s; --"',
            "too_mighty", "changing",
        ):  # fmt: skip
            # Another test's database may need it.
            with suppress(DBAPIError):
                connection.execute(text(f"DROP ROLE IF EXISTS {role}"))


def reads(settings: Settings, password: str) -> Engine:
    """An engine of the reader."""
    url = database_url(settings).set(username=READER, password=password)
    # Its sessions are read-only, which no session of the application's may be.
    return create_engine(url.update_query_dict({"target_session_attrs": "any"}))


def grants(kept: Kept) -> set[tuple[str, str]]:
    """What the reader may do, by table, in this database."""
    found = kept.all(
        "SELECT table_name, privilege_type FROM information_schema.role_table_grants"
        " WHERE grantee = :reader",
        reader=READER,
    )
    return {(row[0], row[1]) for row in found}


def test_the_reader_may_read_and_nothing_else(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    password = "re'ad %s \\er"
    environ = {**empty, "POSTGRESQL_READER_PASSWORD": password}
    printed = alembic(environ, "upgrade", "head")
    assert password not in printed
    assert "SCRAM" not in printed
    settings = settings_of(empty)
    store_some(settings)
    Kept(engine_of(settings)).do(
        f'ALTER DATABASE "{settings.postgresql_database}"'
        " SET standard_conforming_strings = off"
    )
    engine = reads(settings, password)
    with engine.connect() as connection:
        # Grafana's queries mean what they say, whatever the database's defaults are.
        assert connection.scalar(text("SHOW standard_conforming_strings")) == "on"
        assert connection.scalar(text("SHOW timezone")) == "UTC"
        for table in TABLES:
            # Days that were made after the role are read, too.
            found = connection.scalar(text(f"SELECT count(*) FROM {table}"))
            assert bool(found) == (table not in EMPTY)
        connection.execute(text("SELECT delay_quantile(ARRAY[1]::bigint[], 0.5)"))
    for statement in (
        "INSERT INTO heartbeats VALUES (DEFAULT, 'c', '2026-01-01Z', 70)",
        "UPDATE partition_ledger SET next_offset = 0",
        "DELETE FROM dead_letters",
        "TRUNCATE ingest_minute",
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
        "SELECT make_day('2030-01-01')",
    ):
        with engine.connect() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            with pytest.raises(ProgrammingError) as caught:
                connection.execute(text(statement))
        assert errors.sqlstate(caught.value) == "42501"
    engine.dispose()


def test_going_down_only_revokes(clean_roles: Engine, empty: dict[str, str]) -> None:
    environ = {**empty, "POSTGRESQL_READER_PASSWORD": "one"}
    alembic(environ, "upgrade", "head")
    engine = engine_of(settings_of(empty))
    kept = Kept(engine)
    assert grants(kept) == {(table, "SELECT") for table in TABLES}
    alembic(environ, "downgrade", "base")
    assert grants(kept) == set()
    reader = reads(settings_of(empty), "one")
    with reader.connect() as connection:  # others may use the role
        connection.execute(text("SELECT 1"))
    # Made again, the role that is there gets the password of now.
    alembic({**empty, "POSTGRESQL_READER_PASSWORD": "two"}, "upgrade", "head")
    reader.dispose()
    with pytest.raises(OperationalError):
        reader.connect()
    reader = reads(settings_of(empty), "two")
    with reader.connect() as connection:
        connection.execute(text("SELECT count(*) FROM heartbeats"))
    reader.dispose()
    engine.dispose()


def test_without_a_password_no_reader_is_made(empty: dict[str, str]) -> None:
    printed = alembic(empty, "upgrade", "head")
    assert "POSTGRESQL_READER_PASSWORD is not set: no role heartbeat_reader" in printed
    engine = engine_of(settings_of(empty))
    assert grants(Kept(engine)) == set()
    engine.dispose()


def owned_by(
    admin: Engine, environ: Mapping[str, str], role: str, may: str = ""
) -> dict[str, str]:
    """The settings of an owner of the database that is no superuser."""
    database = environ["POSTGRESQL_DATABASE"]
    with admin.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'pw' {may}"))
        connection.execute(text(f'ALTER DATABASE "{database}" OWNER TO {role}'))
    return {
        **environ,
        "POSTGRESQL_OWNER_USERNAME": role,
        "POSTGRESQL_OWNER_PASSWORD": "pw",
        "POSTGRESQL_READER_PASSWORD": "secret",
    }


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """The same for a set-up with one role, which owns the tables and writes them."""
    return {
        **environ,
        "POSTGRESQL_USERNAME": environ["POSTGRESQL_OWNER_USERNAME"],
        "POSTGRESQL_PASSWORD": environ["POSTGRESQL_OWNER_PASSWORD"],
        **dict.fromkeys(OWNER, ""),
    }


def give_back(admin: Engine, environ: Mapping[str, str]) -> None:
    """Let an administrator own the database, so that its owner can be dropped."""
    url = admin.url.set(database=environ["POSTGRESQL_DATABASE"])
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    role = environ["POSTGRESQL_OWNER_USERNAME"]
    with engine.connect() as connection:
        connection.execute(text(f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
        connection.execute(text(f"DROP OWNED BY {role}"))
    engine.dispose()


def test_one_role_may_be_both_without_any_special_right(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    environ = owned_by(clean_roles, empty, "plain_owner")
    printed = alembic(alone(environ), "upgrade", "head")
    assert "The worker connects as plain_owner, who owns the tables" in printed
    assert "The owner may not create roles: no role heartbeat_reader is made" in printed
    store_some(settings_of(alone(environ)))
    alembic(alone(environ), "downgrade", "base")
    give_back(clean_roles, environ)


def test_a_schema_that_is_open_to_everybody_is_told(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    """It belongs to somebody else where the cluster is older than PostgreSQL 15."""
    environ = owned_by(clean_roles, empty, "plain_owner")
    words = "Everybody may create objects in the schema public"
    url = clean_roles.url.set(database=empty["POSTGRESQL_DATABASE"])
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SCHEMA public OWNER TO CURRENT_USER"))
        connection.execute(text("GRANT ALL ON SCHEMA public TO PUBLIC"))
        assert words in alembic(alone(environ), "upgrade", "head")
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        connection.execute(text("GRANT CREATE ON SCHEMA public TO plain_owner"))
        assert words not in alembic(alone(environ), "upgrade", "head")
        connection.execute(text("ALTER SCHEMA public OWNER TO pg_database_owner"))
    engine.dispose()
    alembic(alone(environ), "downgrade", "base")
    give_back(clean_roles, environ)


def test_what_an_administrator_makes_later_is_granted_then(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    environ = owned_by(clean_roles, empty, "plain_owner") | {
        "POSTGRESQL_USERNAME": "plain_worker"
    }
    printed = alembic(environ, "upgrade", "head")
    for role, variable in (
        ("plain_worker", "POSTGRESQL_PASSWORD"),
        (READER, "POSTGRESQL_READER_PASSWORD"),
    ):
        assert (
            f"The owner may not create roles: no role {role} is made. Let an "
            f"administrator make it, with LOGIN and the password of {variable}"
        ) in printed
    with clean_roles.connect() as connection:
        connection.execute(
            text(
                "CREATE ROLE plain_worker LOGIN PASSWORD"
                f" '{environ['POSTGRESQL_PASSWORD']}'"
            )
        )
    printed = alembic(environ, "upgrade", "head")
    assert "The role plain_worker was made by another owner" in printed
    store_some(settings_of(environ))
    alembic(environ, "downgrade", "base")
    give_back(clean_roles, environ)


def test_an_owner_who_may_make_roles_shares_a_reader_made_by_another(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    with clean_roles.connect() as connection:
        with suppress(DBAPIError):
            connection.execute(text(f"CREATE ROLE {READER} LOGIN"))
        connection.execute(text(f"ALTER ROLE {READER} PASSWORD 'theirs'"))
    environ = owned_by(clean_roles, empty, "maker", "CREATEROLE") | {
        "POSTGRESQL_USERNAME": 'odd "worker %s; --',
        "POSTGRESQL_PASSWORD": "p'w %s",
    }
    printed = alembic(environ, "upgrade", "head")
    assert f"The role {READER} was made by another owner" in printed
    assert "secret" not in printed
    assert "SCRAM" not in printed
    engine = reads(settings_of(empty), "theirs")
    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM heartbeats"))
    engine.dispose()
    store_some(settings_of(environ))
    alembic(environ, "downgrade", "base")
    give_back(clean_roles, environ)


def test_a_worker_who_is_a_superuser_is_told(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    with clean_roles.connect() as connection:
        connection.execute(text("CREATE ROLE too_mighty SUPERUSER LOGIN"))
    printed = alembic({**empty, "POSTGRESQL_USERNAME": "too_mighty"}, "upgrade", "head")
    assert "The role too_mighty is a superuser" in printed


def test_another_password_reaches_the_roles_with_the_next_upgrade(
    clean_roles: Engine, empty: dict[str, str]
) -> None:
    environ = {**empty, "POSTGRESQL_USERNAME": "changing"}
    for password in ("one", "two"):
        changed = {
            **environ,
            "POSTGRESQL_PASSWORD": password,
            "POSTGRESQL_READER_PASSWORD": f"read {password}",
        }
        alembic(changed, "upgrade", "head")
        store = make_engine(settings_of(changed), application_name="worker")
        with store.connect() as connection:
            connection.execute(text("SELECT 1"))
        store.dispose()
        reader = reads(settings_of(changed), f"read {password}")
        with reader.connect() as connection:
            assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        reader.dispose()


# Functions


def one_hot(place: int, count: int = 1) -> list[int]:
    return [count if index == place else 0 for index in range(PLACES)]


def quantile(
    kept: Kept,
    histogram: list[int] | None,
    q: float,
    shortest: float | None = None,
    longest: float | None = None,
) -> float | None:
    [(found,)] = kept.all(
        "SELECT delay_quantile(CAST(:histogram AS BIGINT[]), :q,"
        " CAST(:shortest AS FLOAT8), CAST(:longest AS FLOAT8))",
        histogram=histogram,
        q=q,
        shortest=shortest,
        longest=longest,
    )
    return None if found is None else float(found)


def test_the_database_knows_the_bounds_of_the_code(kept: Kept) -> None:
    for place, low, high in BUCKETS:
        assert quantile(kept, one_hot(place), 0.0) == low
        assert quantile(kept, one_hot(place), 1.0) == (high if high < INFINITY else low)


def test_beats_that_are_about_as_late_show_as_late_as_they_are(kept: Kept) -> None:
    """20,000 beats of 309 to 311 s; and of two days, and of more than a year."""
    for late in (310.0, 2 * 86_400.0 - 90.0, 400 * 86_400.0):
        bucket = sum(bound < late for bound in DELAY_BOUNDS_SECONDS)
        histogram = one_hot(WRITTEN[bucket][0], 20_000)
        for q in (0.0, 0.5, 0.95, 1.0):
            found = quantile(kept, histogram, q, late - 1, late + 1)
            assert found == pytest.approx(late - 1 + 2 * q)


def test_nothing_has_no_quantile(kept: Kept) -> None:
    nothings: list[list[int] | None] = [[0] * PLACES, [], None]
    for nothing in nothings:
        assert quantile(kept, nothing, 0.5) is None
        assert quantile(kept, nothing, 0.5, 1.0, 2.0) is None


def test_who_asks_as_ever_is_answered(kept: Kept) -> None:
    """Workers of a version before, with their 18 buckets."""
    for asked, found in (
        ([0] * 9 + [4] + [0] * 8, 0.75),  # 0.5 to 1 s
        ([0] * 16 + [4, 0], 1950.0),  # 300 to 3,600 s
        ([0] * 17 + [1], 3600.0),
    ):
        [(answer,)] = kept.all(
            "SELECT delay_quantile(CAST(:asked AS BIGINT[]), 0.5)", asked=asked
        )
        assert answer == pytest.approx(found)


HISTOGRAMS = st.lists(st.integers(0, 10**12), min_size=PLACES, max_size=PLACES)


@hypothesis_settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(histogram=HISTOGRAMS, q=st.floats(0, 1))
@example(histogram=one_hot(0, 3), q=5e-324)
@example(histogram=one_hot(5, 10**12), q=1e-300)
@example(histogram=[1] * PLACES, q=0.9)
def test_any_quantile_is_what_counting_gives(
    kept: Kept, histogram: list[int], q: float
) -> None:
    total = sum(histogram)
    found = quantile(kept, histogram, q)
    if total == 0:
        assert found is None
        return
    running = 0
    before = 0.0
    for place, least, most in BUCKETS:
        if not histogram[place]:
            continue
        running += histogram[place]
        low, high = max(least, before), most
        if running >= q * total:
            break
        before = high if high < INFINITY else before
    share = (q * total - running + histogram[place]) / histogram[place]
    expected = low if high == INFINITY else low + (high - low) * share
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_histograms_add_up(kept: Kept) -> None:
    [(added, shorter, nothing, summed, none)] = kept.all(
        "SELECT histogram_add(ARRAY[1, 2, 3]::bigint[], ARRAY[10, 0, 5]::bigint[]),"
        " histogram_add('{}', ARRAY[1, 2]::bigint[]),"
        " histogram_add(NULL, ARRAY[1]::bigint[]),"
        " (SELECT histogram_sum(h) FROM (VALUES (ARRAY[1, 2]::bigint[]),"
        "   (ARRAY[3, 4]::bigint[]), (ARRAY[5, 6]::bigint[])) AS v(h)),"
        " (SELECT histogram_sum(delay_histogram) FROM ingest_minute)"
    )
    assert (added, shorter, nothing) == ([11, 2, 8], [1, 2], [1])
    assert (summed, none) == ([9, 12], [])


# The order of text

# Of each table with customers.
ORDERS = """
SELECT relname, collname
FROM pg_class
JOIN pg_attribute ON attrelid = pg_class.oid AND attname = 'customer_id'
JOIN pg_collation ON pg_collation.oid = attcollation
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
"""


def orders(kept: Kept) -> dict[str, str]:
    return dict(kept.all(ORDERS))


def test_customers_are_ordered_by_the_bytes_of_their_ids(
    settings: Settings, kept: Kept, engine: Engine
) -> None:
    """In all there is, days and months too, and as the tables of the code say."""
    store_some(settings)
    found = orders(kept)
    assert set(found.values()) == {"C"}
    assert {"heartbeats_2026_01_01", "heartbeats_minute_2026_01"} < set(found)
    assert found.keys() & metadata.tables.keys() == {
        name
        for name, table in metadata.tables.items()
        if "customer_id" in table.c
        and isinstance(kind := table.c.customer_id.type, String)
        and kind.collation == "C"
    }


def test_what_is_there_is_put_into_that_order(empty: dict[str, str]) -> None:
    """Detached days too, which come back as soon as beats of theirs do."""
    alembic(empty, "upgrade", "head")
    settings = settings_of(empty)
    engine = engine_of(settings)
    kept = Kept(engine)
    store_some(settings)
    alembic(empty, "downgrade", "0005")
    assert set(orders(kept).values()) == {"default"}
    kept.do("ALTER TABLE heartbeats DETACH PARTITION heartbeats_2026_01_01")
    alembic(empty, "upgrade", "head")
    assert set(orders(kept).values()) == {"C"}
    writing = make_engine(settings, application_name="writer", pool_size=2)
    Writer(writing).write(batch_of(beats(6), offsets=range(100, 106), missing=87))
    writing.dispose()
    assert kept.beats() == rows_of([*beats(6), beat(at=START - timedelta(days=400))])
    engine.dispose()


def test_what_a_backslash_once_hid_is_put_right(empty: dict[str, str]) -> None:
    """0002 and 0006 as they were, where standard_conforming_strings was off."""
    alembic(empty, "upgrade", "head")
    settings = settings_of(empty)
    engine = engine_of(settings)
    kept = Kept(engine)
    store_some(settings)
    alembic(empty, "downgrade", "0007")
    [[function]] = kept.all("SELECT pg_get_functiondef('drop_rollup_month'::REGPROC)")
    kept.do(
        "TRUNCATE rollup_marks, heartbeats_minute_all",
        "ALTER TABLE heartbeats DETACH PARTITION heartbeats_2026_01_01",
        "ALTER TABLE heartbeats_2026_01_01"
        ' ALTER customer_id TYPE VARCHAR(255) COLLATE "default"',
        function.replace("[0-9][0-9]", r"\d\d").replace("%", "%%"),
        f'ALTER DATABASE "{settings.postgresql_database}"'
        " SET standard_conforming_strings = off",
    )
    with_backslashes = (
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::REGNAMESPACE"
        " AND strpos(prosrc, chr(92)) > 0"
    )
    assert kept.all(with_backslashes) == [("drop_rollup_month",)]
    alembic(empty, "upgrade", "head")
    assert kept.all(with_backslashes) == []
    assert set(orders(kept).values()) == {"C"}
    day = (START - timedelta(days=400)).replace(hour=0)
    assert kept.all("SELECT since, until FROM rollup_marks") == [
        (day, day + timedelta(days=1))
    ]
    engine.dispose()


# The oldest PostgreSQL


@pytest.fixture(scope="module")
def oldest() -> Iterator[dict[str, str]]:
    """The settings of an application on it."""
    if (why := debian_postgres.why_not()) is not None:
        pytest.skip(why)
    server = debian_postgres.DebianPostgres()
    try:
        server.start()
        yield {
            "POSTGRESQL_HOST": "127.0.0.1",
            "POSTGRESQL_PORT": str(server.port),
            "POSTGRESQL_USERNAME": "worker",
            "POSTGRESQL_PASSWORD": "the worker's",
            "POSTGRESQL_OWNER_USERNAME": server.username,
            "POSTGRESQL_OWNER_PASSWORD": server.password,
            "POSTGRESQL_DATABASE": server.database,
        }
    finally:
        server.stop()
        server.remove_data()


def test_it_runs_on_the_oldest_postgresql(oldest: dict[str, str]) -> None:
    environ = {**oldest, "POSTGRESQL_READER_PASSWORD": "reader"}
    settings = settings_of(environ)
    engine = engine_of(settings)
    kept = Kept(engine)
    assert kept.all("SHOW server_version_num")[0][0].startswith("15")
    alembic(environ, "upgrade", "head")
    store_some(settings)
    assert "No new upgrade operations detected" in alembic(environ, "check")
    assert quantile(kept, one_hot(9, 4), 0.5) == pytest.approx(0.75)
    reader = reads(settings, "reader")
    with reader.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM heartbeats")) == 6
    reader.dispose()
    alembic(environ, "downgrade", "base")
    assert relations(engine) == {"alembic_version", "alembic_version_pkc"}
    alembic(environ, "upgrade", "head")
    store_some(settings)
    engine.dispose()


def test_a_database_that_orders_text_as_people_do(oldest: dict[str, str]) -> None:
    """There `a` comes before `B`; here not, neither in an index nor for a reader."""
    environ = {**oldest, "POSTGRESQL_DATABASE": "english"}
    url = database_url(settings_of(oldest).owner)
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(
            text(
                "CREATE DATABASE english TEMPLATE template0"
                " LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"
            )
        )
    admin.dispose()
    alembic(environ, "upgrade", "head")
    settings = settings_of(environ)
    engine = make_engine(settings, application_name="writer", pool_size=2)
    kept = Kept(engine)
    assert kept.all("SELECT 'a' < 'B', 'ß' < 't'") == [(True, True)]
    customers = ["a", "B", "ß", "t", "Z", "a-b", "ab", "A"]
    PostgresLedger(engine).open(TOPIC, TOPIC_ID, {0: 0})
    writer = Writer(engine)
    each = [beat(customer) for customer in customers]
    assert writer.write(batch_of(each)).stored == len(each)
    again = [*reversed(each), *each, beat("new")]
    written = writer.write(batch_of(again, offsets=range(8, 8 + len(again))))
    assert (written.stored, written.duplicate) == (1, 2 * len(each))
    in_order = sorted([*customers, "new"], key=str.encode)
    assert list_customers(engine, after="", limit=100) == in_order
    assert list_customers(engine, after="a", limit=2) == ["a-b", "ab"]
    latest = list_latest(engine, since=START, after="a", limit=100)
    assert [each.customer_id for each in latest] == in_order[in_order.index("a") + 1 :]
    by_index = kept.all("SELECT customer_id FROM heartbeats ORDER BY 1")
    assert [customer for (customer,) in by_index] == in_order
    assert Job(engine).run_pass()
    assert read_books(engine, deep=True).rows == Rows(9, 0)
    assert list_customers(engine, after="", limit=100) == in_order
    engine.dispose()
