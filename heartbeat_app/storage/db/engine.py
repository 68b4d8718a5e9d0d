"""How to connect to PostgreSQL, with limits on every wait."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import psycopg2.extensions
from sqlalchemy import URL, Engine, Pool, create_engine, event

from heartbeat_app.config import Settings
from heartbeat_app.storage.db.sessions import Sessions, break_off

# Every wait has a limit. The longest is a statement's; a worker that stops breaks off
# what still waits after 3 s (worker/agents.py). lane/agent.py tries again what failed.
CONNECT_TIMEOUT_SECONDS = 5
# libpq gives each candidate its own time, 2 s at least: so long may all of up to three
# take that neither answer nor refuse.
ALL_CANDIDATES_SECONDS = 6
LEAST_CONNECT_SECONDS = 2
LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 35_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
# Earlier versions of libpq know no other order, and refuse to be told.
_IN_ORDER = (
    {"load_balance_hosts": "disable"}
    if psycopg2.extensions.libpq_version() >= 160_000
    else {}
)


def database_url(settings: Settings) -> URL:
    """The URL of the database; hides its password when printed.

    Of several candidates libpq takes the first that takes writes. One alone has to do
    so, too: what an address leads to may be a standby by now.
    """
    hosts, ports = zip(*settings.postgresql_servers, strict=True)
    where: dict[str, Any] = {"host": hosts[0], "port": int(ports[0])}
    several: dict[str, str] = {}
    if len(hosts) > 1:  # a URL has room for one
        where, several = {}, {"host": ",".join(hosts), "port": ",".join(ports)}
    return URL.create(
        "postgresql+psycopg2",
        username=settings.postgresql_username,
        password=settings.postgresql_password,
        database=settings.postgresql_database,
        query={
            "sslmode": settings.postgresql_sslmode,
            "target_session_attrs": "read-write",
            **several,
        },
        **where,
    )


def connect_timeout(settings: Settings) -> int:
    """Seconds that a candidate has to answer and let us in."""
    share = ALL_CANDIDATES_SECONDS // len(settings.postgresql_servers)
    return min(CONNECT_TIMEOUT_SECONDS, max(LEAST_CONNECT_SECONDS, share))


def pool_timeout(settings: Settings) -> int:
    """Seconds to wait for a connection while all of the pool are in use or being made.

    Longer than one takes to be made or to fail: only then is its own reason told.
    """
    return connect_timeout(settings) * len(settings.postgresql_servers) + 1


def make_engine(
    settings: Settings,
    *,
    application_name: str,
    pool_size: int = 1,
    statement_timeout_ms: int | None = None,
) -> Engine:
    """An engine whose connections never wait without a limit; connects lazily.

    Arguments:
        statement_timeout_ms: STATEMENT_TIMEOUT_MS unless given.
    """
    return _engine(
        settings,
        application_name,
        {
            "statement_timeout": f"{statement_timeout_ms or STATEMENT_TIMEOUT_MS}ms",
            "lock_timeout": f"{LOCK_TIMEOUT_MS}ms",
            "idle_in_transaction_session_timeout": (
                f"{IDLE_IN_TRANSACTION_TIMEOUT_MS}ms"
            ),
        },
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout(settings),
    )


def make_migration_engine(settings: Settings, *, poolclass: type[Pool]) -> Engine:
    """An engine for the migrations, which take as long as they take.

    How long they wait for a lock stays the database's or the caller's choice.
    """
    return _engine(
        settings,
        "heartbeat_app alembic",
        {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"},
        poolclass=poolclass,
    )


def _engine(
    settings: Settings, application_name: str, limits: Mapping[str, str], **pool: Any
) -> Engine:
    connect_args = {
        "application_name": application_name,
        "connect_timeout": connect_timeout(settings),
        # Whatever PGHOSTADDR and PGLOADBALANCEHOSTS say: these servers, in this order.
        "hostaddr": "",
        **_IN_ORDER,
        # Whatever PGCLIENTENCODING says: there is no beat that UTF-8 cannot hold.
        "client_encoding": "utf8",
        # A peer that went silent is given up after about 10 s; one that is too
        # busy to take what was sent to it gets more time, see SLOW_SECONDS.
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    engine = create_engine(
        database_url(settings),
        hide_parameters=True,  # customers' data have no place in an error's text
        # Nothing here is an hstore; to look for its type took each new connection
        # three round trips.
        use_native_hstore=False,
        connect_args=connect_args,
        **pool,
    )
    # Before SQLAlchemy asks a new connection for what it needs to know.
    sessions = Sessions(engine, connect_args, limits)
    event.listen(engine, "do_connect", sessions.connect)
    event.listen(engine, "connect", sessions.begin, insert=True)
    event.listen(engine, "checkout", sessions.require_writable)
    return engine


class Uses:
    """The connections of an engine that are in use, and since when.

    The limits above are the server's own, or those of a network that is gone. A server
    that hangs, or a proxy that swallows everything, keeps none of them and does not
    close the connection either: only breaking it off helps.

    Arguments:
        by_statement: Since when means since the last answer, not since it was taken
            from the pool: for transactions that may take long, but whose statements
            may not.
    """

    def __init__(self, engine: Engine, *, by_statement: bool = False) -> None:
        # psycopg2's connections; times of time.monotonic().
        self._since: dict[Any, float] = {}
        # Before SQLAlchemy itself asks a new connection for the server's version.
        event.listen(engine, "connect", self._begin, insert=True)
        event.listen(engine, "checkout", self._begin)
        if by_statement:
            event.listen(engine, "after_cursor_execute", self._go_on)
        for ending in ("checkin", "invalidate", "close"):
            event.listen(engine, ending, self._end)

    def _begin(self, connection: Any, *_: object) -> None:
        self._since[connection] = time.monotonic()

    def _go_on(self, _: object, cursor: Any, *__: object) -> None:
        self._begin(cursor.connection)

    def _end(self, connection: Any, *_: object) -> None:
        self._since.pop(connection, None)

    def cancel(self) -> None:
        """Ask the server to end the statements that run; they raise in their threads.

        Also those whose answer nobody would wait for: a connection that is broken off
        lets its statement run on.
        """
        for connection in list(self._since):
            with suppress(psycopg2.Error):
                connection.cancel()

    def break_off(self, *, after_seconds: float = 0.0) -> int:
        """Break off what waits for longer, from another thread; it raises there.

        Returns how many connections that were.
        """
        now, broken = time.monotonic(), 0
        for connection, since in list(self._since.items()):
            if now - since < after_seconds:
                continue
            if connection.closed:  # it failed while it was made
                self._end(connection)
            elif break_off(connection):
                broken += 1
        return broken


def end_waits(limits: Iterable[tuple[Uses, float]], log: Any) -> None:
    """Break off what waits for longer than its limit in seconds, and say so."""
    for uses, limit in limits:
        if broken := uses.break_off(after_seconds=limit):
            log.warning(
                "PostgreSQL did not answer for %g s: broke off %d connections, to "
                "ask again on new ones.",
                limit,
                broken,
            )
