"""A backup of a world's database, to be put in its place later."""

from __future__ import annotations

import subprocess

from prove.world import DATABASE, World


class Backup:
    """What pg_dump takes, whoever writes meanwhile."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._file = world.folder / "backup"
        self._run("pg_dump", "-Fc", "-f", str(self._file), DATABASE)

    def restore(self) -> None:
        """Put the backup in the place of the database, whoever is connected.

        Beside it first: `pg_restore --clean` cannot drop what partitions inherit, and
        a worker must not see a ledger that has no rows yet.
        """
        self._psql("CREATE DATABASE restored")
        self._run("pg_restore", "-d", "restored", str(self._file))
        self._psql(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        self._psql(f"ALTER DATABASE restored RENAME TO {DATABASE}")

    def _psql(self, statement: str) -> None:
        self._run("psql", "-v", "ON_ERROR_STOP=1", "-c", statement, "postgres")

    def _run(self, program: str, *arguments: str) -> None:
        server = self._world.postgres
        done = subprocess.run(
            [server.psql.with_name(program), *arguments],
            env={
                "PGHOST": "127.0.0.1",
                "PGPORT": str(server.port),
                "PGUSER": server.username,
                "PGPASSWORD": server.password,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
