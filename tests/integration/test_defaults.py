"""The core on a database whose every default is turned: what a statement means, what
its answer looks like and how long it may take is the session's own.

The tests are those of the modules below, with their fixtures; only the database and the
test's own look at it differ.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import Engine, pool, text

from heartbeat_app.config import Settings, load_settings
from heartbeat_app.storage.db.engine import make_engine, make_migration_engine
from heartbeat_app.storage.db.sessions import PINNED
from testkit.servers import Servers, alembic, engine_of
from tests.typed import typed

from . import (
    test_dead_letters,
    test_erase,
    test_export,
    test_history,
    test_ingest_hours,
    test_retention,
    test_rollup,
    test_writer,
    test_writer_together,
)

pytestmark = pytest.mark.integration

TURNED = {
    "array_nulls": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "enable_hashjoin": "off",
    "enable_indexscan": "off",
    "enable_partition_pruning": "off",
    "escape_string_warning": "off",
    "exit_on_error": "on",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "1s",
    "idle_session_timeout": "500ms",
    "intervalstyle": "sql_standard",
    "jit_above_cost": "0",
    "lc_messages": "C",
    "lock_timeout": "1ms",
    "plan_cache_mode": "force_generic_plan",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "search_path": "elsewhere",
    "standard_conforming_strings": "off",
    "statement_timeout": "200ms",
    "synchronous_commit": "off",
    "timezone": "Asia/Kathmandu",
    "transaction_timeout": "500ms",
    "transform_null_equals": "on",
}
TEMPLATE = "turned_template"
# What the tests' own sessions rely on.
PLAIN = {
    **PINNED,
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


def turn(servers: Servers, database: str) -> None:
    """Turn the database's defaults, and half of them for its roles, which go before."""
    engine = servers.admin_engine()
    with engine.connect() as connection:
        for at, (name, value) in enumerate(TURNED.items()):
            connection.exec_driver_sql(
                f"ALTER DATABASE \"{database}\" SET {name} = '{value}'"
            )
            if at % 2:
                connection.exec_driver_sql(
                    f'ALTER ROLE {servers.postgres.username} IN DATABASE "{database}"'
                    f" SET {name} = '{value}'"
                )
    engine.dispose()


def make_turned(servers: Servers, database: str, template: str | None = None) -> None:
    """Make a database with other defaults, and tables of our names elsewhere."""
    servers.make_database(database, template)
    if template is None:
        settings = load_settings(
            servers.environ(database, "none"), Path("/nonexistent")
        )
        engine = engine_of(settings)
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA elsewhere"))
            for name in ("heartbeats", "dead_letters", "partition_ledger"):
                connection.execute(text(f"CREATE TABLE elsewhere.{name} (x INTEGER)"))
        engine.dispose()
    turn(servers, database)


@pytest.fixture(scope="module")
def turned(servers: Servers) -> Iterator[str]:
    """A database that was migrated with all of them turned."""
    make_turned(servers, TEMPLATE)
    alembic(servers.environ(TEMPLATE, "none"), "upgrade", "head")
    yield TEMPLATE
    servers.drop_database(TEMPLATE)


@pytest.fixture
def name(turned: str) -> str:
    """Of the test's database, which is a copy of the turned one."""
    return f"turned-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def environ(servers: Servers, name: str, turned: str) -> Iterator[dict[str, str]]:
    """The settings of the test's own application, its database turned."""
    make_turned(servers, name, turned)
    yield servers.environ(name, name)
    servers.drop_database(name)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """The test's own look at it, which knows PostgreSQL as it comes."""
    options = " ".join(
        f"-c {setting}={value.replace(' ', chr(92) + ' ')}"
        for setting, value in PLAIN.items()
        if setting != "client_encoding"
    )
    engine = engine_of(
        settings, connect_args={"options": options, "client_encoding": "utf8"}
    )
    yield engine
    engine.dispose()


CORE: dict[ModuleType, tuple[str, ...]] = {
    test_writer: (
        "test_a_batch_is_stored_and_booked",
        "test_a_batch_written_again_changes_nothing",
        "test_the_environments_encoding_changes_nothing",
        "test_a_beat_lies_in_the_partition_of_its_day_in_utc",
        "test_what_is_there_already_is_a_duplicate",
        "test_the_same_instant_with_another_offset_is_a_duplicate",
        "test_of_two_heart_rates_in_one_batch_the_first_stays",
        "test_a_beat_that_another_session_is_inserting_is_waited_for",
        "test_random_batches_keep_what_a_dictionary_keeps",
        "test_rejected_rows_among_duplicates_and_conflicts_cost_nothing_else",
        "test_a_refused_record_is_kept_as_it_was_received",
        "test_a_minute_adds_up_its_batches",
    ),
    test_writer_together: (
        "test_batches_of_several_partitions_share_a_transaction",
        "test_duplicates_and_conflicts_are_those_of_their_partition",
    ),
    test_dead_letters: (
        "test_keeps_what_was_received",
        "test_stores_what_is_valid_now",
        "test_tells_duplicates_and_conflicts_from_new_ones",
    ),
    test_rollup: (
        "test_a_minute_and_its_hour",
        "test_the_edges_of_days_months_and_hours",
        "test_a_percentile_is_exact",
    ),
    test_retention: (
        "test_an_old_day_goes_and_its_roll_ups_stay",
        "test_months_of_roll_ups_go_the_finer_first",
        "test_minutes_are_not_dropped_before_their_beats",
        "test_old_dead_letters_go_and_the_books_know",
        "test_partitions_are_made_ahead",
    ),
    test_ingest_hours: ("test_hours_that_are_over_are_added_up",),
    test_erase: (
        "test_nothing_of_the_customer_is_left_and_the_books_balance",
        "test_what_comes_again_is_refused_without_its_bytes",
        "test_roll_ups_of_dropped_days_go_too",
        "test_a_detached_day_comes_back_without_the_customer",
    ),
    test_export: ("test_pages_hold_each_beat_once",),
    test_history: (
        "test_single_beats_are_given_as_long_as_they_are_few",
        "test_what_was_dropped_is_answered_by_what_is_left_of_it",
    ),
}


def test_a_session_has_what_it_relies_on(settings: Settings) -> None:
    """Also in its second transaction, and that of the migrations, too."""
    engines = [
        make_engine(settings, application_name="worker"),
        make_migration_engine(settings.owner, poolclass=pool.QueuePool),
    ]
    for engine in engines:
        for _ in range(2):
            with engine.begin() as connection:
                found: dict[str, str] = dict(
                    connection.execute(
                        text(
                            "SELECT lower(name), current_setting(name) FROM pg_settings"
                        )
                    ).all()
                )
            there = {name: found[name].lower() for name in PINNED}
            assert there == {name: value.lower() for name, value in PINNED.items()}
            assert found["synchronous_commit"] == "on"
        assert found["statement_timeout"] in ("35s", "0")
        engine.dispose()


@pytest.mark.parametrize("value", ["local", "remote_apply", "on"])
def test_a_commit_that_waits_for_more_or_for_the_disk_is_the_operator_s_choice(
    servers: Servers, settings: Settings, value: str
) -> None:
    servers.administer(
        f'ALTER DATABASE "{settings.postgresql_database}"'
        f" SET synchronous_commit = {value}"
    )
    engine = make_engine(settings, application_name="worker")
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == value
    engine.dispose()


def test_a_read_only_default_is_said(
    servers: Servers, environ: dict[str, str], settings: Settings
) -> None:
    """Who turned it on means it: nothing is written, and that is told."""
    servers.administer(
        f'ALTER DATABASE "{settings.postgresql_database}"'
        " SET default_transaction_read_only = on"
    )
    done = typed(environ, "erase", "anna", "--yes")
    assert (done.status, done.out) == (1, "")
    assert (
        "takes no writes: default_transaction_read_only is on, or it is a" in done.err
    )


def test_nothing_new_is_passed_over() -> None:
    assert PINNED.keys() <= TURNED.keys()


for _module, _names in CORE.items():
    for _name, _found in vars(_module).items():
        # The fixtures above take the place of those of the same names.
        if _name in _names or type(_found).__name__ == "FixtureFunctionDefinition":
            globals().setdefault(_name, _found)
