"""Workers that are killed, frozen, joined and left."""

from __future__ import annotations

import signal

from prove.scenario import scenario
from prove.world import World
from testkit.servers import Worker

# Frozen for longer than the session time-out of the group (12 s).
FROZEN_SECONDS = 16.0


def kill_workers(world: World, kills: int, *, low: float, high: float) -> None:
    """kill -9 of a random one of two workers at random moments."""
    feed = world.stream(workers=2, rate=2_000)
    workers = world.workers
    for _ in range(kills):
        world.pause(low, high)
        victim = world.choice.choice(workers)
        victim.kill()
        world.did("kill -9 of a worker")
        world.pause(0.0, 0.5)
        victim.start()
    feed.stop()


@scenario("two workers, kill -9 of a random one at random moments")
def killed_fifty_times(world: World) -> None:
    kill_workers(world, 50, low=0.1, high=4.0)


@scenario("two workers, kill -9 of a random one at random moments", quick=True)
def killed(world: World) -> None:
    world.workers_roll_up = True
    kill_workers(world, 5, low=0.1, high=3.0)


@scenario("SIGTERM of a random one of two workers, under load", quick=True)
def stopped(world: World) -> None:
    feed = world.stream(workers=2, rate=3_000)
    workers = world.workers
    for _ in range(6):
        world.pause(0.5, 3.0)
        victim = world.choice.choice(workers)
        world.stop_worker(victim)
        world.did("SIGTERM of a worker")
        victim.start()
    feed.stop()


@scenario(
    "a worker frozen (SIGSTOP) for longer than the session time-out wakes with an "
    "open batch, while another has its partitions",
    quick=True,
)
def frozen(world: World) -> None:
    feed = world.stream(workers=1, rate=3_000)
    [first] = world.workers
    second = world.start_worker()
    world.pause(1.0, 3.0)
    for victim in (first, second):
        freeze_with_open_batch(world, victim)
        world.did("SIGSTOP of a worker for 16 s, then SIGCONT")
        world.pause(FROZEN_SECONDS, FROZEN_SECONDS)
        victim.resume()
        world.pause(2.0, 4.0)
    feed.stop()


def freeze_with_open_batch(world: World, worker: Worker) -> None:
    """SIGSTOP while one of its sessions is in a transaction."""
    open_batch = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE state LIKE 'idle in transaction%' AND client_port = ANY(:ports)"
    )
    for _ in range(200):
        worker.pause()
        # What PostgreSQL works on ends by itself; what it waits for stays open.
        world.pause(0.05, 0.05)
        if world.scalar(open_batch, ports=world.ports_of(worker)):
            return
        worker.resume()
        world.pause(0.0, 0.05)
    raise AssertionError("the worker was never frozen inside a batch")


@scenario("three workers that join and leave every few seconds")
def joining_and_leaving(world: World) -> None:
    feed = world.stream(workers=3, rate=2_000)
    workers = world.workers
    for _ in range(20):
        world.pause(0.5, 3.0)
        victim = world.choice.choice(workers)
        if world.choice.random() < 0.5:
            victim.kill()
            world.did("kill -9 of a worker")
        else:
            world.stop_worker(victim)
            world.did("SIGTERM of a worker")
        world.pause(0.0, 2.0)
        victim.start()
        world.did("a worker joins")
    feed.stop()


@scenario("all three workers killed at once, again and again")
def all_killed_at_once(world: World) -> None:
    feed = world.stream(workers=3, rate=3_000)
    workers = world.workers
    for _ in range(3):
        world.pause(0.5, 4.0)
        for worker in workers:
            assert worker.process is not None
            worker.process.send_signal(signal.SIGKILL)
        for worker in workers:
            worker.kill()
        world.did("kill -9 of all three workers")
        for worker in workers:
            worker.start()
        world.wait_for_more("it goes on")
    feed.stop()
