"""PostgreSQL 18 on one machine: real, with passwords, on a port of its own."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from heartbeat_app.embedded import postgres_home
from heartbeat_app.embedded.processes import (
    Progress,
    SystemUser,
    end_strays,
    run_to_end,
)
from heartbeat_app.embedded.server import EmbeddedServer
from heartbeat_app.exceptions import EmbeddedServerError

_CONFIG: Mapping[str, str] = {
    # TCP only: a socket in /tmp would clash with other servers, and the path of one
    # in the data folder may be longer than the 107 bytes that a socket may have.
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    # A statement that fails, and what PostgreSQL says of the row that it failed for,
    # hold records, which have no place in a log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    # Every role may NOTIFY, into files of 8 GB together where somebody does not read
    # them. Nothing here does: the least that there is.
    "max_notify_queue_pages": "64",
}


class PostgresServer(EmbeddedServer):
    """PostgreSQL 18 with one superuser and one database, scram-sha-256 for all.

    `config` are settings of the server (`{"fsync": "off"}`), which hold from the
    next start on. Run as root, the server runs as a system user of its own, see
    `postgres_home`.
    """

    name: ClassVar[str] = "PostgreSQL"
    port_setting: ClassVar[str] = "POSTGRESQL_PORT"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast shutdown"

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        username: str,
        password: str,
        database: str,
        host: str = "127.0.0.1",
        config: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(data_dir, host=host, port=port, progress=progress)
        self.username = username
        self.password = password
        self.database = database
        self.config = dict(config or {})
        self._user: SystemUser | None = None
        self._programs: Path | None = None

    @property
    def home(self) -> Path:
        return postgres_home.current(self.data_dir)

    @property
    def _cluster(self) -> Path:
        return self.home / "data"

    @property
    def psql(self) -> Path:
        """The client that came with the server."""
        return postgres_home.installed_programs() / "psql"

    def wait_until_ready(self) -> None:
        super().wait_until_ready()
        try:
            self._ensure_database()
        except BaseException:
            self.kill()
            raise

    def _prepare(self) -> None:
        if not self.password:
            raise EmbeddedServerError(
                f"{self.name} needs a password: set POSTGRESQL_PASSWORD in .env."
            )
        self._user = postgres_home.system_user()
        postgres_home.ensure(self.data_dir)
        self._programs = postgres_home.usable_programs(self._user, self._progress)
        if not (self._cluster / "PG_VERSION").exists():
            self._initialize()
        # PostgreSQL's own lock file may name a stranger by now, and then it would not
        # start. Ours is the folder's lock; without the file PostgreSQL does not see
        # what is left of a killed server, so that has to be gone first.
        end_strays("postgres", self._cluster.resolve())
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        self._write_config()

    def _initialize(self) -> None:
        """initdb into a folder beside, so that an interrupted one leaves nothing."""
        assert self._programs is not None
        unfinished = self.home / "data.new"
        postgres_home.empty_folder(unfinished, owner=self._user)
        password_file = self.home / "initdb.password"
        try:
            # Never on the command line: everyone on the machine reads that.
            password_file.unlink(missing_ok=True)
            fd = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                if self._user:
                    os.fchown(fd, self._user.uid, self._user.gid)
                file.write(self.password + "\n")
            run_to_end(
                [
                    str(self._programs / "initdb"),
                    f"--pgdata={unfinished}",
                    f"--username={self.username}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    # The same order of text on every machine.
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                ],
                cwd=self.home,
                user=self._user,
                what=f"Making the database files of {self.name}",
                progress=self._progress,
            )
        finally:
            password_file.unlink(missing_ok=True)
        with (unfinished / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude '../server.conf'\n")
        unfinished.rename(self._cluster)

    def _write_config(self) -> None:
        settings = {
            **_CONFIG,
            "listen_addresses": self.host,
            "port": str(self.port),
            **self.config,
        }
        lines = []
        for key, value in settings.items():
            quoted = value.replace("\\", "\\\\").replace("'", "''")
            lines.append(f"{key} = '{quoted}'\n")
        path = self.home / "server.conf"
        path.write_text("".join(lines))
        path.chmod(0o644)

    def _command(self) -> Sequence[str]:
        assert self._programs is not None
        # The server itself and not pg_ctl, which lets it go as a daemon: as our
        # child it ends with us, and its end is seen at once.
        return [str(self._programs / "postgres"), "-D", str(self._cluster)]

    def _run_as(self) -> SystemUser | None:
        return self._user

    def _answers(self) -> bool:
        assert self._programs is not None
        return (
            subprocess.run(
                [
                    str(self._programs / "pg_isready"),
                    "--quiet",
                    f"--host={self.host}",
                    f"--port={self.port}",
                    "--timeout=2",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.home,
            ).returncode
            == 0
        )

    def _ensure_database(self) -> None:
        import psycopg2
        from psycopg2 import sql

        try:
            connection = psycopg2.connect(
                host=self.host,
                port=self.port,
                user=self.username,
                password=self.password,
                dbname="postgres",
                connect_timeout=10,
            )
        except psycopg2.OperationalError as exc:
            raise self.failure(
                f"does not let {self.username} in: {str(exc).strip()}",
                way_on=f"The data in {self.data_dir} was made with another user or "
                "password than .env names now. Put the old ones back into .env, or "
                "start anew with --fresh.",
            ) from exc
        try:
            connection.autocommit = True  # CREATE DATABASE runs in no transaction
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", (self.database,)
                )
                if cursor.fetchone() is None:
                    cursor.execute(
                        sql.SQL("CREATE DATABASE {}").format(
                            sql.Identifier(self.database)
                        )
                    )
        finally:
            connection.close()

    def _remove_home(self) -> None:
        postgres_home.remove(self.data_dir)
