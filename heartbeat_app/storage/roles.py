"""Who may do what in the database: the worker, and Grafana, which only reads.

`alembic upgrade` calls `ensure_roles` each time, so a changed password arrives, and
what an administrator had to make by hand is granted at the next upgrade. Only the
owner, who runs the migrations, may change or remove tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from psycopg2 import Error
from psycopg2.extensions import encrypt_password
from psycopg2.sql import SQL, Composable, Identifier, Literal
from sqlalchemy import Connection

from heartbeat_app.config import Settings
from heartbeat_app.storage.sessions import PINNED
from heartbeat_app.storage.tables import erased_customers, metadata

# Alembic's, so that it is shown beside what the migrations say.
log = logging.getLogger("alembic.roles")

READER = "heartbeat_reader"

# A query of a dashboard takes below a second; one that somebody typed must not hold up
# the server for ever. The planner thinks that those are dear, and compiling them would
# take longer than they do.
READER_SETTINGS = {
    "statement_timeout": "30s",
    "jit": "off",
    # Grafana asks for none of these itself.
    **{
        name: PINNED[name]
        for name in (
            "bytea_output", "datestyle", "extra_float_digits", "intervalstyle",
            "search_path", "standard_conforming_strings", "timezone",
            "transform_null_equals",
        )
    },
}  # fmt: skip

# What the worker's statements need. Where only some columns are named, the others stay
# as they were written: which offsets a row is about, what was received and why it was
# refused.
WORKER = (
    "GRANT SELECT, INSERT ON heartbeats TO {role}",
    "GRANT USAGE ON SEQUENCE heartbeats_id_seq TO {role}",
    "GRANT EXECUTE ON FUNCTION make_day(DATE) TO {role}",
    "GRANT SELECT, INSERT, UPDATE (next_offset, end_offset, consumed, stored, "
    "duplicate, dead, missing, gap, unreadable, updated_at) ON partition_ledger "
    "TO {role}",
    "GRANT SELECT, INSERT, UPDATE (replayed_at, replay_outcome) ON dead_letters "
    "TO {role}",
    "GRANT USAGE ON SEQUENCE dead_letters_id_seq TO {role}",
    # Roll-ups are what the beats give: only the functions write them, and only they
    # take marks away, or what is older than it is kept.
    "GRANT SELECT ON heartbeats_minute, heartbeats_hour, heartbeats_minute_all, "
    "heartbeats_hour_all, ingest_hour, dropped_days, dropped_dead_letters, retention "
    "TO {role}",
    "GRANT SELECT, INSERT ON rollup_marks TO {role}",
    "GRANT USAGE ON SEQUENCE rollup_marks_id_seq TO {role}",
    "GRANT EXECUTE ON FUNCTION make_rollup_month(DATE), "
    "roll_up_minutes(TIMESTAMPTZ, TIMESTAMPTZ), roll_up_hour(TIMESTAMPTZ), "
    "roll_up_ingest(TIMESTAMPTZ, TIMESTAMPTZ), "
    "settle_marks(BIGINT[], TIMESTAMPTZ, TIMESTAMPTZ), detach_day(DATE, BIGINT), "
    "drop_day(DATE), drop_rollup_month(TEXT, DATE), finish_detaching(), "
    "drop_dead_letters(TIMESTAMPTZ, INTEGER) TO {role}",
    "GRANT SELECT, INSERT, UPDATE (batches, consumed, stored, duplicate, dead, "
    "delay_sum_seconds, delay_max_seconds, delay_histogram, write_seconds, "
    "delay_min_seconds) "
    "ON ingest_minute TO {role}",
    "GRANT SELECT ON erased_customers TO {role}",
    # Beats that may be there already go through a temporary table.
    "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role}",
    "GRANT USAGE ON SCHEMA public TO {role}",
)

READ = (
    "GRANT SELECT ON {tables} TO {role}",
    "GRANT CONNECT ON DATABASE {database} TO {role}",
    "GRANT USAGE ON SCHEMA public TO {role}",
)

FORGET = (
    "REVOKE ALL ON DATABASE {database} FROM {role}",
    "REVOKE ALL ON SCHEMA public FROM {role}",
)

# PostgreSQL lets everybody make temporary tables, and before version 15 real ones.
NOBODY = (
    "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
)

EVERYBODY_MAY_CREATE = "SELECT has_schema_privilege('public', 'public', 'CREATE')"
IS_THERE = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)"
IS_SUPERUSER = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s AND rolsuper)"
MAY_CREATE_ROLES = (
    "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
)
# SQLSTATEs
NOT_ALLOWED = "42501"
# "Tuple concurrently updated", and a role that another session has just made.
CHANGED_MEANWHILE = {"XX000", "42710", "23505"}
ATTEMPTS = 20  # each that fails means that another migration is done with the role


def ensure_roles(connection: Connection, settings: Settings) -> None:
    """Make the roles where the owner may, and grant what each needs.

    All tables have to be there. What cannot be done is said, and is no error: an
    administrator may do it, and the next call finds it done.

    Arguments:
        connection: The owner's, in a transaction.
    """
    roles = _Roles(connection)
    roles.run(NOBODY)
    if roles.everybody_may_create():
        log.warning(
            "Everybody may create objects in the schema public, and only its owner can "
            "take that back: let them REVOKE CREATE ON SCHEMA public FROM PUBLIC, in "
            "this database."
        )
    owner = settings.owner.postgresql_username
    if settings.postgresql_username == owner:
        log.info(
            "The worker connects as %s, who owns the tables. For a role that may do "
            "less, set POSTGRESQL_OWNER_USERNAME and POSTGRESQL_OWNER_PASSWORD.",
            owner,
        )
    elif roles.ensure(
        settings.postgresql_username,
        settings.postgresql_password,
        "POSTGRESQL_PASSWORD",
    ):
        roles.run(WORKER, role=settings.postgresql_username)
    if settings.postgresql_reader_password is None:
        log.info("POSTGRESQL_READER_PASSWORD is not set: no role %s is made.", READER)
    elif roles.ensure(
        READER,
        settings.postgresql_reader_password,
        "POSTGRESQL_READER_PASSWORD",
        READER_SETTINGS,
    ):
        roles.run(READ, role=READER)


def forget_roles(connection: Connection, settings: Settings) -> None:
    """Take back what is left when the tables are gone; others may use the roles."""
    roles = _Roles(connection)
    for role in {settings.postgresql_username, READER}:
        if role != settings.owner.postgresql_username and roles.knows(role):
            roles.run(FORGET, role=role)


class _Roles:
    """Statements about roles, whose names and passwords come from the settings.

    psycopg2 quotes them: SQLAlchemy has no means for names in such statements.
    """

    def __init__(self, connection: Connection) -> None:
        self._raw: Any = connection.connection.dbapi_connection
        self._database = Identifier(connection.engine.url.database or "")
        # Nobody but workers needs to find out who was erased.
        self._tables = SQL(", ").join(
            Identifier(name)
            for name in metadata.tables
            if name != erased_customers.name
        )

    def run(self, statements: Sequence[str], role: str = "") -> None:
        """Run statements with the names filled in."""
        for statement in statements:
            self._execute(
                SQL(statement).format(
                    role=Identifier(role),
                    database=self._database,
                    tables=self._tables,
                )
            )

    def knows(self, role: str) -> bool:
        """Whether the server has the role."""
        return self._ask(IS_THERE, role)

    def everybody_may_create(self) -> bool:
        """Whether the schema is open, as it was before PostgreSQL 15."""
        return self._ask(EVERYBODY_MAY_CREATE)

    def ensure(
        self,
        role: str,
        password: str,
        variable: str,
        defaults: Mapping[str, str] | None = None,
    ) -> bool:
        """Make a role or give it its password; whether it is there now.

        Arguments:
            variable: Where the password comes from.
            defaults: PostgreSQL's settings that its sessions begin with.
        """
        there = self.knows(role)
        if not there and not self._ask(MAY_CREATE_ROLES):
            log.warning(
                "The owner may not create roles: no role %s is made. Let an "
                "administrator make it, with LOGIN and the password of %s, and run "
                "`alembic upgrade head` again, which grants what it needs.",
                role,
                variable,
            )
            return False
        if self._ask(IS_SUPERUSER, role):
            log.warning(
                "The role %s is a superuser, who may do everything in all databases. "
                "Take that from it (ALTER ROLE … NOSUPERUSER), or name another one.",
                role,
            )
        # Only the verifier travels, so that no log of the server holds the password.
        verifier = encrypt_password(password, role, self._raw, "scram-sha-256")

        def wanted() -> Iterator[Composable]:
            yield SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                SQL("ALTER" if self.knows(role) else "CREATE"),
                Identifier(role),
                Literal(verifier),
            )
            for name, value in (defaults or {}).items():
                yield SQL("ALTER ROLE {} SET {} = {}").format(
                    Identifier(role), Identifier(name), Literal(value)
                )

        if not self._try(wanted):
            log.warning(
                "The role %s was made by another owner: it gets what it needs in this "
                "database, but keeps its password, whatever %s says.",
                role,
                variable,
            )
        return True

    def _try(self, statements: Callable[[], Iterable[Composable]]) -> bool:
        """Run them all or none; False where the owner may not.

        Roles are the server's: the migrations of its other databases may change the
        same one at the same time, and then PostgreSQL lets one of them fail.
        """
        for attempts_left in reversed(range(ATTEMPTS)):
            self._execute(SQL("SAVEPOINT roles"))
            try:
                for statement in statements():
                    self._execute(statement)
            except Error as error:
                self._execute(SQL("ROLLBACK TO SAVEPOINT roles"))
                if error.pgcode == NOT_ALLOWED:
                    return False
                if error.pgcode not in CHANGED_MEANWHILE or not attempts_left:
                    raise
                continue
            self._execute(SQL("RELEASE SAVEPOINT roles"))
            break
        return True

    def _execute(self, statement: Composable) -> None:
        with self._raw.cursor() as cursor:
            cursor.execute(statement)

    def _ask(self, query: str, *values: str) -> bool:
        with self._raw.cursor() as cursor:
            cursor.execute(query, values)
            return bool(cursor.fetchone()[0])
