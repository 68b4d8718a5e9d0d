"""Faults at random, for as long as asked."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import text

from heartbeat_app.embedded.server import EmbeddedServer
from prove.scenarios.postgres import holding, make_read_only
from prove.world import World


def random_faults(world: World, *, seconds: float) -> None:
    """Choose one fault after the other by the world's seed, while beats flow."""
    feed = world.stream(workers=3, rate=1_500)
    faults = list(FAULTS)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        fault = world.choice.choice(faults)
        fault(world)
        world.pause(0.0, 5.0)
        # Between two faults it has to get on, however far it is behind.
        world.wait_for_more("it goes on after a fault")
    feed.stop()
    world.note("faults for", f"{seconds / 60:.0f} minutes")


def kill_worker(world: World) -> None:
    world.choice.choice(world.workers).kill()
    world.did("kill -9 of a worker")


def stop_worker(world: World) -> None:
    worker = world.choice.choice(world.workers)
    if worker.is_running():
        world.stop_worker(worker)
        worker.start()
        world.did("SIGTERM of a worker, started again")


def freeze_worker(world: World) -> None:
    worker = world.choice.choice(world.workers)
    if worker.is_running():
        worker.pause()
        world.pause(0.5, 20.0)
        worker.resume()
        world.did("SIGSTOP of a worker for up to 20 s")


def kill_postgres(world: World) -> None:
    kill_server(world, world.postgres)


def kill_kafka(world: World) -> None:
    kill_server(world, world.kafka)


def kill_server(world: World, server: EmbeddedServer) -> None:
    server.kill()
    world.pause(0.0, 5.0)
    server.start()
    world.did(f"kill -9 of {server.name}")


def stop_postgres(world: World) -> None:
    world.postgres.stop()
    world.pause(0.0, 10.0)
    world.postgres.start()
    world.did("PostgreSQL stopped and started")


def freeze_postgres(world: World) -> None:
    freeze_server(world, world.postgres)


def freeze_kafka(world: World) -> None:
    freeze_server(world, world.kafka)


def freeze_server(world: World, server: EmbeddedServer) -> None:
    server.pause()
    world.pause(0.5, 20.0)
    server.resume()
    world.did(f"SIGSTOP of {server.name} for up to 20 s")


def end_sessions(world: World) -> None:
    for _ in range(5):
        with world.engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'heartbeat_app%'"
                )
            )
        world.pause(0.1, 1.0)
    world.did("all sessions terminated, five times")


def lock_ledger(world: World) -> None:
    with world.engine.connect() as connection:
        connection.execute(text("SELECT 1 FROM partition_ledger FOR UPDATE"))
        world.pause(1.0, 20.0)
        connection.rollback()
    world.did("the ledger locked for up to 20 s")


def lock_table(world: World) -> None:
    with holding(world, "LOCK TABLE heartbeats IN ACCESS EXCLUSIVE MODE"):
        world.pause(1.0, 20.0)
    world.did("heartbeats locked for up to 20 s")


def kill_all_workers(world: World) -> None:
    for worker in world.workers:
        worker.kill()
    world.did("kill -9 of all workers")


def add_column(world: World) -> None:
    for statement in (
        "ALTER TABLE heartbeats ADD COLUMN more INTEGER DEFAULT 7",
        "ALTER TABLE heartbeats DROP COLUMN more",
    ):
        with holding(world, statement) as migration:
            world.pause(0.0, 5.0)
            migration.commit()
    world.did("a column added and dropped, each in a transaction of up to 5 s")


FAULTS: tuple[Callable[[World], None], ...] = (
    kill_worker, stop_worker, freeze_worker, kill_postgres, stop_postgres,
    freeze_postgres, end_sessions, lock_ledger, kill_kafka, freeze_kafka,
    kill_all_workers, lock_table, make_read_only, add_column,
)  # fmt: skip
