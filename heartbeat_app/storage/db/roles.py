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
from heartbeat_app.storage.db.sessions import PINNED
from heartbeat_app.storage.db.tables import LOCKS, erased_customers, metadata

# Alembic's, so that it is shown beside what the migrations say.
log = logging.getLogger("alembic.roles")

READER = "heartbeat_reader"

# A query of a dashboard takes below a second; one that somebody typed must not hold up
# the server for ever. The planner thinks that those are dear, and compiling them would
# take longer than they do. A session may set these anew, and even the role's defaults,
# which PostgreSQL cannot forbid: each upgrade sets them back.
READER_SETTINGS = {
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",
    "default_transaction_read_only": "on",
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
# Only superusers set these, and so the role cannot lift them. What a failing statement
# says may be as long as one likes, and would fill the disk with PostgreSQL's log.
READER_BOUNDS = {"temp_file_limit": "256MB", "log_min_messages": "fatal"}
# Grafana takes five.
READER_CONNECTIONS = 10

# What the worker's statements need, column by column: the others stay as they were
# written, or get their default. Ids are the sequences': the live page looks at none
# that is lower than the highest one, and so at none after one that a worker chose.
WORKER = (
    "REVOKE ALL ON {all_tables} FROM {role}",
    'GRANT SELECT, INSERT (customer_id, "timestamp", heart_rate) ON heartbeats '
    "TO {role}",
    "GRANT USAGE ON SEQUENCE heartbeats_id_seq TO {role}",
    "GRANT EXECUTE ON FUNCTION make_day(DATE) TO {role}",
    # A new row begins at an offset, with nothing counted: ledger_accounts_for_….
    "GRANT SELECT, INSERT (topic, topic_id, partition, first_offset, next_offset, "
    "end_offset, updated_at), UPDATE (next_offset, end_offset, consumed, stored, "
    "duplicate, dead, missing, gap, unreadable, updated_at) ON partition_ledger "
    "TO {role}",
    'GRANT SELECT, INSERT (topic, topic_id, partition, "offset", key, value, headers, '
    "reason, detail, first_seen, record_size, record_sha256, customer_ids, "
    "last_offset), UPDATE (replayed_at, replay_outcome) ON dead_letters TO {role}",
    "GRANT USAGE ON SEQUENCE dead_letters_id_seq TO {role}",
    # Roll-ups are what the beats give: only the functions write them, and only they
    # take marks away, or what is older than it is kept.
    "GRANT SELECT ON heartbeats_minute, heartbeats_hour, heartbeats_minute_all, "
    "heartbeats_hour_all, ingest_hour, dropped_days, dropped_dead_letters, retention "
    "TO {role}",
    "GRANT SELECT, INSERT (since, until) ON rollup_marks TO {role}",
    "GRANT USAGE ON SEQUENCE rollup_marks_id_seq TO {role}",
    "GRANT EXECUTE ON FUNCTION make_rollup_month(DATE), "
    "roll_up_minutes(TIMESTAMPTZ, TIMESTAMPTZ), roll_up_hour(TIMESTAMPTZ), "
    "roll_up_ingest(TIMESTAMPTZ, TIMESTAMPTZ), "
    "settle_marks(BIGINT[], TIMESTAMPTZ, TIMESTAMPTZ), detach_day(DATE, BIGINT), "
    "drop_day(DATE), drop_rollup_month(TEXT, DATE), finish_detaching(), "
    "drop_dead_letters(TIMESTAMPTZ, INTEGER), take_lock(TEXT) TO {role}",
    "GRANT SELECT, INSERT (topic_id, partition, minute, batches, consumed, stored, "
    "duplicate, dead, delay_sum_seconds, delay_max_seconds, delay_histogram, "
    "write_seconds, delay_min_seconds), UPDATE (batches, consumed, stored, "
    "duplicate, dead, delay_sum_seconds, delay_max_seconds, delay_histogram, "
    "write_seconds, delay_min_seconds) ON ingest_minute TO {role}",
    "GRANT SELECT ON erased_customers, alembic_version, partitions_lock, "
    "rollups_lock, ingest_lock, retention_lock TO {role}",
    # For a dump of what is no partition.
    "GRANT SELECT ON SEQUENCE heartbeats_id_seq, dead_letters_id_seq, "
    "rollup_marks_id_seq, erased_customers_id_seq TO {role}",
    # Beats that may be there already go through a temporary table.
    "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role}",
    "GRANT USAGE ON SCHEMA public TO {role}",
)

READ = (
    "REVOKE ALL ON {all_tables} FROM {role}",
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

# Everybody may keep large objects, as big as the disk, in no table that one could be
# kept from, and write what they like into the WAL. Nothing here needs that.
# PostgreSQL's own functions are a superuser's.
WRITING_FUNCTIONS = [
    "lo_creat", "lo_create", "lo_from_bytea", "lo_open", "lo_put", "lo_truncate",
    "lo_truncate64", "lowrite", "pg_logical_emit_message",
]  # fmt: skip
# With their arguments, which differ between versions.
OPEN_FUNCTIONS = """
SELECT string_agg(oid::REGPROCEDURE::TEXT, ', ' ORDER BY oid) FROM pg_proc
WHERE pronamespace = 'pg_catalog'::REGNAMESPACE AND proname = ANY(%s)
  AND has_function_privilege('public', oid, 'EXECUTE')
"""
NO_WRITING_FUNCTIONS = "REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC"
# Everybody may connect to the server's other databases, and keep temporary tables and
# large objects there.
OPEN_DATABASES = """
SELECT string_agg(quote_ident(datname), ', ' ORDER BY datname),
       bool_and(datname IN ('postgres', 'template1'))
FROM pg_database
WHERE datname <> current_database() AND datallowconn
  AND has_database_privilege('public', oid, 'CONNECT')
"""
NO_OTHER_DATABASES = "REVOKE CONNECT ON DATABASE {} FROM PUBLIC"
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
    if left := roles.close_functions():
        log.info(
            "Every role may write large objects here and messages into the WAL, and "
            "only a superuser can take that back: let one run %s, in this database.",
            left,
        )
    if left := roles.close_databases():
        log.info(
            "Every role may connect to other databases of this server, and keep "
            "temporary tables and large objects there. Where nobody needs that, let a "
            "superuser run %s.",
            left,
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
    ):
        roles.run(READ, role=READER)
        if not roles.limit(READER, READER_CONNECTIONS, READER_SETTINGS):
            log.warning(
                "The role %s was made by another owner, who sets its limits.",
                READER,
            )
        elif not roles.set_defaults(READER, READER_BOUNDS.items()):
            for name, value in READER_BOUNDS.items():
                log.info(
                    "Only a superuser can bound what %s may fill of the disk: let one "
                    "run ALTER ROLE %s SET %s = '%s'.",
                    READER,
                    READER,
                    name,
                    value,
                )


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
            if name not in (erased_customers.name, *LOCKS)
        )
        self._all_tables = SQL(", ").join(map(Identifier, metadata.tables))

    def run(self, statements: Sequence[str], role: str = "") -> None:
        """Run statements with the names filled in."""
        for statement in statements:
            self._execute(
                SQL(statement).format(
                    role=Identifier(role),
                    database=self._database,
                    tables=self._tables,
                    all_tables=self._all_tables,
                )
            )

    def knows(self, role: str) -> bool:
        """Whether the server has the role."""
        return self._ask(IS_THERE, role)

    def everybody_may_create(self) -> bool:
        """Whether the schema is open, as it was before PostgreSQL 15."""
        return self._ask(EVERYBODY_MAY_CREATE)

    def close_functions(self) -> str:
        """Have nobody write outside of tables; the statement that the owner may not
        run, or none."""
        (found,) = self._row(OPEN_FUNCTIONS, WRITING_FUNCTIONS)
        return self._unless_run(NO_WRITING_FUNCTIONS, found) if found else ""

    def close_databases(self) -> str:
        """Have nobody connect to databases in which nothing is kept from them; the
        statement that was not run, or none.

        Those that every server has are closed where there are no others: a server
        that is shared is its administrator's.
        """
        found, ours_alone = self._row(OPEN_DATABASES)
        if not found:
            return ""
        return self._unless_run(NO_OTHER_DATABASES, found, run=bool(ours_alone))

    def _unless_run(self, statement: str, names: str, *, run: bool = True) -> str:
        """Run a statement with names that PostgreSQL itself quoted; it, if not run."""
        wanted = SQL(statement).format(SQL(names))
        done = run and self._try(lambda: [wanted])
        return "" if done else str(wanted.as_string(self._raw))

    def limit(self, role: str, connections: int, defaults: Mapping[str, str]) -> bool:
        """Limit a role; False where it is another owner's.

        Arguments:
            defaults: PostgreSQL's settings that its sessions begin with, whatever the
                role itself has set.
        """
        reset = [
            SQL("ALTER ROLE {} RESET ALL"),
            SQL("ALTER ROLE {} IN DATABASE {} RESET ALL"),
        ]
        limit = SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(
            Identifier(role), Literal(connections)
        )
        return self._try(
            lambda: [
                limit,
                *(each.format(Identifier(role), self._database) for each in reset),
            ]
        ) and self.set_defaults(role, defaults.items())

    def set_defaults(self, role: str, defaults: Iterable[tuple[str, str]]) -> bool:
        """Set what a role's sessions begin with; False where the owner may not."""
        return self._try(
            lambda: [
                SQL("ALTER ROLE {} SET {} = {}").format(
                    Identifier(role), Identifier(name), Literal(value)
                )
                for name, value in defaults
            ]
        )

    def ensure(self, role: str, password: str, variable: str) -> bool:
        """Make a role or give it its password; whether it is there now.

        Arguments:
            variable: Where the password comes from.
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
        return bool(self._row(query, *values)[0])

    def _row(self, query: str, *values: object) -> Any:
        with self._raw.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchone()
