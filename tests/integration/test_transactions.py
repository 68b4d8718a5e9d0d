"""However a transaction ends, its connection goes back to the pool without one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from heartbeat_app.config import Settings
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.db.prepared import Plain, run
from heartbeat_app.storage.db.transactions import BEGIN, COMMIT, transaction
from tests.storing import Kept

pytestmark = pytest.mark.integration

INSERT = Plain("INSERT INTO kept VALUES (1)")
FAIL = Plain("SELECT 1 / 0")
STAYS = Plain("INSERT INTO kept VALUES (2)")


@pytest.fixture
def pool(settings: Settings, kept: Kept) -> Iterator[Engine]:
    """Of one connection, to a database with a table."""
    kept.do("CREATE TABLE kept (number INTEGER)", "GRANT ALL ON kept TO PUBLIC")
    pool = make_engine(settings, application_name="transactions")
    yield pool
    pool.dispose()


Step = Callable[[Connection], object]


def within(pool: Engine, *steps: Step) -> None:
    """A transaction of these steps."""
    with transaction(pool) as connection:
        for step in steps:
            step(connection)


def sent(*statements: Plain) -> Step:
    return lambda connection: run(connection, statements)


def copied(rows: str) -> Step:
    def copy(connection: Connection) -> None:
        cursor: Any = connection.connection.cursor()
        cursor.copy_expert("COPY kept FROM STDIN", io.StringIO(rows))

    return copy


def raised(error: BaseException) -> Step:
    def throw(_: Connection) -> None:
        raise error

    return throw


def swallowed(step: Step) -> Step:
    """A step that fails, where nobody says so."""

    def passed_over(connection: Connection) -> None:
        with pytest.raises((psycopg2.Error, DBAPIError)):
            step(connection)

    return passed_over


def ended(kept: Kept) -> Step:
    """By an administrator, say."""
    return lambda connection: kept.do(
        f"SELECT pg_terminate_backend({pid_of(connection)}, 5000)"
    )


def pid_of(connection: Connection) -> int:
    raw: Any = connection.connection.dbapi_connection
    return int(raw.info.backend_pid)


def session(pool: Engine) -> int:
    """The process of the pool's one session."""
    with pool.connect() as connection:
        return pid_of(connection)


def assert_none_is_open(pool: Engine) -> None:
    """And that what comes next is a transaction of its own."""
    with pool.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        assert raw.info.transaction_status == TRANSACTION_STATUS_IDLE
        assert not raw.autocommit
    within(pool, sent(BEGIN, STAYS, COMMIT))


def numbers(kept: Kept) -> list[int]:
    return [row[0] for row in kept.all("SELECT number FROM kept ORDER BY number")]


def test_it_is_committed_where_its_user_says(pool: Engine, kept: Kept) -> None:
    with transaction(pool) as connection:
        run(connection, [BEGIN, INSERT, COMMIT])
        assert numbers(kept) == [1]
    assert_none_is_open(pool)


def test_it_is_committed_at_its_end_otherwise(pool: Engine, kept: Kept) -> None:
    with transaction(pool) as connection:
        run(connection, [BEGIN, INSERT])
        assert numbers(kept) == []
    assert numbers(kept) == [1]
    assert_none_is_open(pool)


def test_each_statement_sees_what_it_waited_for(
    pool: Engine, engine: Engine, kept: Kept, name: str
) -> None:
    """Whatever the database's default is: an erasure depends on it."""
    kept.do(
        f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'"
    )
    engine.dispose()
    show = Plain("SHOW transaction_isolation")
    assert kept.all("SHOW transaction_isolation") == [("serializable",)]
    with transaction(pool) as connection:
        assert run(connection, [BEGIN, show]).scalar() == "read committed"
    with pool.begin() as connection:  # as for replaying letters, by SQLAlchemy
        assert run(connection, [show]).scalar() == "read committed"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_what_is_raised_rolls_it_back(
    pool: Engine, kept: Kept, error: type[BaseException]
) -> None:
    before = session(pool)
    with pytest.raises(error):
        within(pool, sent(BEGIN, INSERT), raised(error()))
    assert session(pool) == before
    assert_none_is_open(pool)
    assert numbers(kept) == [2]


@pytest.mark.parametrize(
    "statements", [[BEGIN, INSERT, FAIL], [BEGIN, FAIL, INSERT, COMMIT]]
)
def test_a_statement_that_fails_rolls_it_back(
    pool: Engine, kept: Kept, statements: list[Plain]
) -> None:
    with pytest.raises(DBAPIError, match="zero"):
        within(pool, sent(*statements))
    assert_none_is_open(pool)
    assert numbers(kept) == [2]


def test_a_copy_that_fails_rolls_it_back(pool: Engine, kept: Kept) -> None:
    with pytest.raises(psycopg2.DataError):
        within(pool, sent(BEGIN, INSERT), copied("no number\n"))
    assert_none_is_open(pool)
    assert numbers(kept) == [2]


@pytest.mark.parametrize("next_step", [sent(INSERT, COMMIT), copied("3\n")])
def test_of_a_session_that_was_ended_nothing_stays(
    pool: Engine, kept: Kept, next_step: Step
) -> None:
    """SQLAlchemy sees it for its own statements, not for a COPY."""
    before = session(pool)
    with pytest.raises((psycopg2.Error, DBAPIError), match="server closed"):
        within(pool, sent(BEGIN, INSERT), ended(kept), next_step)
    assert session(pool) != before
    assert_none_is_open(pool)
    assert numbers(kept) == [2]


def test_a_failed_statement_does_not_pass_for_committed(
    pool: Engine, kept: Kept
) -> None:
    with pytest.raises(SQLAlchemyError, match="has failed"):
        within(pool, sent(BEGIN, INSERT), swallowed(sent(FAIL)))
    assert_none_is_open(pool)
    assert numbers(kept) == [2]


@pytest.mark.parametrize("unseen", [sent(INSERT), copied("3\n")])
def test_a_lost_session_does_not_pass_for_committed(
    pool: Engine, kept: Kept, unseen: Step
) -> None:
    with pytest.raises((psycopg2.Error, SQLAlchemyError)):
        within(pool, sent(BEGIN, INSERT), ended(kept), swallowed(unseen))
    assert_none_is_open(pool)
    assert numbers(kept) == [2]


def test_a_rollback_that_fails_hides_nothing(pool: Engine, kept: Kept) -> None:
    before = session(pool)
    with pytest.raises(RuntimeError, match="first"):
        within(pool, sent(BEGIN, INSERT), ended(kept), raised(RuntimeError("first")))
    assert session(pool) != before
    assert_none_is_open(pool)
    assert numbers(kept) == [2]
