"""A worker that stands still while the database is well: noticed, ended, replaced."""

from __future__ import annotations

import os
import time
from pathlib import Path

import prove.stuck
from prove.scenario import scenario
from prove.world import World

NOTICED_WITHIN_SECONDS = 60.0


def stand_still(world: World, part: str) -> None:
    """Make a part stand still under load; wait until the worker has ended itself."""
    order = world.folder / "stuck"
    before = os.environ.get("PYTHONPATH")
    path = [str(Path(prove.stuck.__file__).parent), *([before] if before else [])]
    worker = world.start_worker(
        PROVE_STUCK=str(order), PYTHONPATH=os.pathsep.join(path)
    )
    world.may_end.add(worker)
    feed = world.feed(rate=1_000)
    feed.start()
    world.wait_until(world.consumed, "the stream has begun")
    world.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    world.pause(0.0, 2.0)
    new = order.with_suffix(".new")
    new.write_text(part)
    new.rename(order)
    world.wait_until(lambda: not order.exists(), "the part stands still", seconds=5)
    began, unready = time.monotonic(), 0.0
    while worker.is_running():
        waited = time.monotonic() - began
        # A loop that is blocked answers nobody, which is not ready either.
        if not unready and worker.get("/health/ready", seconds=1.0)[0] != 200:
            unready = waited
        if waited > NOTICED_WITHIN_SECONDS + 15:
            break
        time.sleep(0.2)
    ended = time.monotonic() - began
    world.did(f"a worker whose {part} stands still")
    world.note("not ready after", f"{unready:.0f} s")
    world.note("ended after", f"{ended:.0f} s")
    world.require(unready, "it stayed ready")
    world.require(
        ended <= NOTICED_WITHIN_SECONDS, f"it was not noticed within {ended:.0f} s"
    )
    if not worker.is_running():
        assert worker.process is not None
        world.require(worker.process.poll() != 0, "it ended with status 0")
    else:
        worker.kill()
    world.supervise()
    world.wait_for_more("its successor goes on")
    feed.stop()


@scenario("the agent's task ends without a word")
def agent_dead(world: World) -> None:
    stand_still(world, "agent")


@scenario("what the agent waits for never comes")
def agent_waits(world: World) -> None:
    stand_still(world, "agent's await")


@scenario("nothing is fetched after a rebalance (Faust's recovery zombie)", quick=True)
def recovery_zombie(world: World) -> None:
    stand_still(world, "flow")


@scenario("the consumer's thread is blocked")
def consumer_stuck(world: World) -> None:
    stand_still(world, "consumer")


@scenario("the consumer's task that fetches has ended")
def fetching_ended(world: World) -> None:
    stand_still(world, "fetching")


@scenario("the threads that write are blocked")
def writers_blocked(world: World) -> None:
    stand_still(world, "writers")


@scenario("a thread that writes hangs in its transaction")
def transaction_hangs(world: World) -> None:
    stand_still(world, "transaction")


@scenario("all helper threads are blocked")
def helpers_blocked(world: World) -> None:
    stand_still(world, "helpers")


@scenario("the event loop is blocked")
def loop_blocked(world: World) -> None:
    stand_still(world, "loop")


@scenario("the interpreter is blocked: no thread of Python's runs")
def python_blocked(world: World) -> None:
    stand_still(world, "Python")
