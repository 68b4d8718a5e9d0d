"""How to connect to PostgreSQL, with limits on every wait."""

from __future__ import annotations

from sqlalchemy import URL, Engine, create_engine

from heartbeat_app.config import Settings

# A worker must be able to stop within 10 s whatever the database does, so no single
# wait may be longer than about that; retries are made in place (see agents.py).
CONNECT_TIMEOUT_SECONDS = 5
LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 60_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000


def database_url(settings: Settings) -> URL:
    """The URL of the database; hides its password when printed."""
    return URL.create(
        "postgresql+psycopg2",
        username=settings.postgresql_username,
        password=settings.postgresql_password,
        host=settings.postgresql_host,
        port=settings.postgresql_port,
        database=settings.postgresql_database,
        query={"sslmode": settings.postgresql_sslmode},
    )


def make_engine(
    settings: Settings, *, application_name: str, pool_size: int = 1
) -> Engine:
    """An engine whose connections never wait without a limit; connects lazily."""
    options = (
        f"-c timezone=UTC"
        f" -c lock_timeout={LOCK_TIMEOUT_MS}"
        f" -c statement_timeout={STATEMENT_TIMEOUT_MS}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS}"
    )
    return create_engine(
        database_url(settings),
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # customers' data have no place in an error's text
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        connect_args={
            "application_name": application_name,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": options,
            # Whatever PGCLIENTENCODING says: there is no beat that UTF-8 cannot hold.
            "client_encoding": "utf8",
            # A peer that went silent is given up after about 10 s.
            "keepalives": 1,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        },
    )
