"""PgBouncer as Debian packages it, in front of the tests' PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2

from testkit.servers import free_port, wait_until

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def why_not() -> str | None:
    """Why it cannot run here, in words; None where it can."""
    return None if PROGRAM else "PgBouncer is not installed (Debian's pgbouncer)"


class PgBouncer:
    """It, for the roles and the database of an application's settings.

    Arguments:
        environ: The application's settings.
        options: Its own settings, such as pool_mode.
    """

    def __init__(self, environ: Mapping[str, str], **options: str) -> None:
        assert PROGRAM
        self.port = free_port()
        self.environ = {**environ, "POSTGRESQL_PORT": str(self.port)}
        # Not below pytest's own folder, which its user may not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="heartbeat-pgbouncer-"))
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            user = pwd.getpwnam("nobody")
            self._who = {
                "user": user.pw_uid,
                "group": user.pw_gid,
                "extra_groups": [],
            }
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        users = {
            environ[f"POSTGRESQL_{who}USERNAME"]: environ[f"POSTGRESQL_{who}PASSWORD"]
            for who in ("", "OWNER_")
        }
        (self.folder / "users").write_text(
            "".join(f'"{name}" "{password}"\n' for name, password in users.items())
        )
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(self.folder / "users"),
            "default_pool_size": "40",
            **options,
        }
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={environ['POSTGRESQL_PORT']}\n"
            "[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PgBouncer:
        """Start it, and wait until it answers."""
        assert PROGRAM
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, self.folder / "pgbouncer.ini"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._who,
            )
        wait_until(self._answers, "PgBouncer answers", seconds=20)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, without waiting for its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
        shutil.rmtree(self.folder)

    def connect(self) -> Any:
        """A connection of the worker's role."""
        return psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.environ["POSTGRESQL_USERNAME"],
            password=self.environ["POSTGRESQL_PASSWORD"],
            dbname=self.environ["POSTGRESQL_DATABASE"],
        )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with suppress(psycopg2.OperationalError):
            self.connect().close()
            return True
        return False
