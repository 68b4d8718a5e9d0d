"""PostgreSQL 15 as Debian packages it: the oldest that is supported, and with TLS.

The PostgreSQL of the embedded servers is built without TLS.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2

from testkit.servers import free_port, wait_until

PROGRAMS = Path("/usr/lib/postgresql/15/bin")


def why_not() -> str | None:
    """Why it cannot run here, in words; None where it can."""
    if not (PROGRAMS / "postgres").exists():
        return f"PostgreSQL 15 is not installed in {PROGRAMS} (Debian 12 has it)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL 15 does not run as root; no user postgres is here"
    return None


class DebianPostgres:
    """The server, its superuser `owner`, with passwords for all.

    Arguments:
        certificate: Certificate and key in PEM: it then speaks TLS and nothing else.
        options: Settings of the server.
    """

    username = "owner"
    database = "postgres"

    def __init__(
        self, certificate: tuple[Path, Path] | None = None, **options: str
    ) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(8)
        # Not below pytest's own folder, which the server's user may not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="heartbeat-15-"))
        self._certificate = certificate
        self._options = options
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._who = {
                "user": user.pw_uid,
                "group": user.pw_gid,
                "extra_groups": [],
            }
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """What the server says."""
        return self.folder / "log"

    def start(self) -> None:
        """Make its data, start it and wait until it answers."""
        self._give(self.folder)
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        self._give(password_file)
        quiet: dict[str, Any] = {
            "cwd": self.folder,
            "stdin": subprocess.DEVNULL,
            **self._who,
        }
        subprocess.run(
            [
                PROGRAMS / "initdb", "-D", self.folder / "data", "-U", self.username,
                "-E", "UTF8", "--locale=C", "-A", "scram-sha-256",
                f"--pwfile={password_file}", "-N",
            ],
            check=True, stdout=subprocess.DEVNULL, **quiet,
        )  # fmt: skip
        if self._certificate is not None:
            self._speak_tls_only(*self._certificate)
        with self.log_path.open("wb") as log:
            self._server = subprocess.Popen(
                [
                    PROGRAMS / "postgres", "-D", self.folder / "data",
                    "-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-F",
                    *(f"--{name}={value}" for name, value in self._options.items()),
                ],
                stdout=log, stderr=log, **quiet,
            )  # fmt: skip
        wait_until(self._answers, "PostgreSQL 15 answers", seconds=30)

    def stop(self) -> None:
        """Stop it, without waiting for its clients."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(20)

    def remove_data(self) -> None:
        """Forget all that it kept."""
        shutil.rmtree(self.folder)

    def _give(self, path: Path) -> None:
        if self._who:
            os.chown(path, self._who["user"], self._who["group"])

    def _speak_tls_only(self, certificate: Path, key: Path) -> None:
        for source, name in ((certificate, "server.crt"), (key, "server.key")):
            target = self.folder / "data" / name  # where it looks for them
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
            self._give(target)
        self._options["ssl"] = "on"
        hba = self.folder / "data" / "pg_hba.conf"
        hba.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, self.log_path.read_text()
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(
                host="127.0.0.1",
                port=self.port,
                user=self.username,
                password=self.password,
                dbname=self.database,
                # Its certificate is not the question here.
                sslmode="prefer" if self._certificate is None else "require",
                sslrootcert="/nonexistent",
            ).close()
            return True
        return False
