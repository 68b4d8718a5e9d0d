"""A standby of an embedded PostgreSQL, and how it takes the primary's place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg2

from heartbeat_app.config import load_settings
from heartbeat_app.embedded import postgres_home
from heartbeat_app.embedded.postgres import PostgresServer
from heartbeat_app.embedded.server import run_to_end
from prove.proxy import Proxy
from prove.world import World
from testkit.servers import engine_of, free_port

# From the promotion to the first beat that is stored.
STORING_WITHIN_SECONDS = 10.0


class Standby(PostgresServer):
    """A server with a copy of another's data, which it gets all changes of.

    Arguments:
        primary: Runs.
        port: Its own.
        source_port: Where it reaches the primary, if not directly.
    """

    def __init__(
        self,
        data_dir: Path,
        primary: PostgresServer,
        *,
        port: int | None = None,
        source_port: int | None = None,
    ) -> None:
        source = (
            f"host=127.0.0.1 port={source_port or primary.port} "
            f"user={primary.username} password={primary.password}"
        )
        super().__init__(
            data_dir,
            port=port or free_port(),
            username=primary.username,
            password=primary.password,
            database=primary.database,
            config={
                **primary.config,
                "primary_conninfo": source,
                # Silence is no reason to begin anew: what it lacks it goes on lacking.
                "wal_receiver_timeout": "0",
            },
        )
        self._primary = primary

    def _initialize(self) -> None:
        assert self._programs is not None
        unfinished = self.home / "data.new"
        postgres_home.empty_folder(unfinished, owner=self._user)
        run_to_end(
            [
                str(self._programs / "pg_basebackup"),
                f"--pgdata={unfinished}",
                "--host=127.0.0.1",
                f"--port={self._primary.port}",
                f"--username={self.username}",
                "--checkpoint=fast",
                "--no-sync",
            ],
            cwd=self.home,
            user=self._user,
            what="Copying the primary",
            progress=self._progress,
            environment={"PGPASSWORD": self.password},
        )
        signal = unfinished / "standby.signal"
        signal.touch(mode=0o600)
        if self._user:
            os.chown(signal, self._user.uid, self._user.gid)
        unfinished.rename(self._cluster)

    def promote(self) -> None:
        """Make it a primary; returns when it takes writes."""
        assert self._programs is not None
        run_to_end(
            [
                str(self._programs / "pg_ctl"), "promote", "--wait",
                f"--pgdata={self._cluster}",
            ],
            cwd=self.home,
            user=self._user,
            what="Promoting the standby",
            progress=self._progress,
        )  # fmt: skip


class Pair:
    """A world's primary and its standby, which take turns.

    Replication is asynchronous, and by a way of its own, which can be cut: a standby
    then lacks what was stored last.
    """

    def __init__(self, world: World, *, ports: tuple[int, int]) -> None:
        self._world = world
        self._ports = ports
        self._made = 0
        self.standby = self._follow()

    def _follow(self) -> Standby:
        """Make a standby of the present primary, at the port that is free."""
        world = self._world
        self._way = Proxy(world.postgres.port)
        world.at_end(self._way.close)
        self._way.__enter__()
        [port] = set(self._ports) - {world.postgres.port}
        standby = Standby(
            world.folder / f"standby-{self._made}",
            world.postgres,
            port=port,
            source_port=self._way.port,
        )
        self._made += 1
        world.at_end(standby.remove_data)
        world.at_end(standby.kill)
        standby.start()
        return standby

    def cut_off(self) -> None:
        """Let the standby get nothing more."""
        self._way.silence()

    def lacks(self, stored: Mapping[int, int]) -> int:
        """How many offsets the standby does not have of what the primary stored."""
        connection = connect_to(self.standby)
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT partition, next_offset FROM partition_ledger")
            had = dict(cursor.fetchall())
        connection.close()
        return sum(offset - had.get(each, 0) for each, offset in stored.items())

    def promote(self, stored: Mapping[int, int]) -> float:
        """Promote the standby, which becomes the world's; when that was.

        Arguments:
            stored: What the primary stored in the end.
        """
        world = self._world
        lacks = self.lacks(stored)
        world.require(lacks > 0, "the standby lacked nothing: nothing was proved")
        self.standby.promote()
        promoted = time.monotonic()
        world.note(
            f"promotion {self._made}",
            f"the standby lacked the last {lacks:,} offsets",
        )
        world.postgres = self.standby
        return promoted

    def require_storing(self, promoted: float) -> None:
        """Complain unless the first beat is soon stored; note when that was."""
        world = self._world
        connection = connect_to(self.standby)
        connection.autocommit = True
        query = "SELECT sum(consumed) FROM partition_ledger"
        with connection.cursor() as cursor:

            def consumed() -> int:
                cursor.execute(query)
                return int(cursor.fetchone()[0])

            before = consumed()
            while consumed() == before:
                world.supervise()
                if time.monotonic() - promoted > 120.0:
                    break
                time.sleep(0.02)
        connection.close()
        seconds = time.monotonic() - promoted
        world.note(
            f"stored again after promotion {self._made}", f"{seconds:.1f} s later"
        )
        world.require(
            seconds <= STORING_WITHIN_SECONDS,
            f"nothing was stored for {seconds:.1f} s after the promotion",
        )

    def follow_again(self) -> None:
        """Have a new standby follow the one that was promoted."""
        self.standby = self._follow()


def connect_to(server: PostgresServer) -> Any:
    """A connection to this server itself."""
    return psycopg2.connect(
        host="127.0.0.1",
        port=server.port,
        user=server.username,
        password=server.password,
        dbname=server.database,
    )


def settle_at(world: World, **where: str) -> None:
    """Have the workers, the commands and the world itself connect there."""
    world.environ.update(where)
    world.engine.dispose()
    settings = load_settings(world.environ, Path("/nonexistent"))
    world.engine = engine_of(settings, pool_pre_ping=True)
    world.at_end(world.engine.dispose)
