"""To come."""

from prove.scenario import scenario
from prove.world import World


@scenario("x", quick=True)
def database_stopped(world: World) -> None:
    world.start_worker()
    feed = world.feed(rate=2_000)
    feed.start()
    world.wait_until(world.consumed, "the stream has begun")
    world.pause(1.0, 3.0)
    world.postgres.stop()
    world.pause(4.0, 8.0)
    world.postgres.start()
    world.wait_for_more("on")
    feed.stop()
