"""Three brokers, of which one at a time goes away: killed, stopped, frozen."""

from __future__ import annotations

import time

from heartbeat_app.embedded.kafka import KafkaServer
from prove.scenario import scenario
from prove.world import TOPIC, World
from testkit.cluster import View, node_of

RATE = 1_500
# So long what was fetched already is still being stored.
FETCHED_SECONDS = 2.0
# Beats are stored again in all partitions so long after a broker has gone, as
# docs/how-to/deployment.md says.
KILLED_SECONDS = 30.0
STOPPED_SECONDS = 20.0
FROZEN_SECONDS = 45.0


def view_of(world: World) -> View:
    """Look at the cluster."""
    return View(world.brokers)


def victims(world: World, view: View) -> list[tuple[str, KafkaServer]]:
    """Who has the most to lose, asked as it comes to each: by role."""
    group = world.environ["KAFKA_GROUP_ID"]
    leader = view.leader(TOPIC, world.choice.randrange(world.oracle.partitions))
    coordinator = view.coordinator(group)
    assert leader
    assert coordinator
    return [("a leader", leader), ("the coordinator", coordinator)]


def until_all_stored(world: World, topic_id: str, seconds: float) -> float:
    """Seconds until each partition is stored well beyond where it stands now.

    What was fetched before does not count. Complains when that takes longer than it
    may.

    Arguments:
        topic_id: Asked beforehand: who asks a cluster in trouble waits.
    """
    began = time.monotonic()
    time.sleep(FETCHED_SECONDS)
    before = world.next_offsets(topic_id)
    world.wait_until(
        lambda: all(
            offset > before[partition]
            for partition, offset in world.next_offsets(topic_id).items()
        ),
        "all partitions are stored again",
        seconds=max(seconds, 150.0),
    )
    took = time.monotonic() - began
    world.require(took <= seconds, f"stored again after {took:.0f} s only")
    return took


def note_longest(world: World, what: str, took: list[float]) -> None:
    """Add the times to the report."""
    world.note(what, ", ".join(f"{each:.1f} s" for each in took))


@scenario(
    "three brokers under load: each stopped and started in turn (a rolling restart), "
    "then a leader and the group's coordinator killed (kill -9)",
    cluster=True,
)
def brokers_restarted(world: World) -> None:
    view = view_of(world)
    feed = world.stream(rate=RATE)
    topic_id = world.topic_id()
    stopped, killed = [], []
    for broker in world.brokers:
        view.wait_until_whole()
        broker.stop()
        world.did("a broker stopped, started and waited for")
        stopped.append(until_all_stored(world, topic_id, STOPPED_SECONDS))
        broker.start()
    for role in range(2):
        view.wait_until_whole()
        name, victim = victims(world, view)[role]
        world.pause(0.0, 2.0)
        victim.kill()
        world.did(f"kill -9 of {name}")
        killed.append(until_all_stored(world, topic_id, KILLED_SECONDS))
        victim.start()
    view.wait_until_whole()
    feed.stop()
    note_longest(world, "all partitions stored again after a stop", stopped)
    note_longest(world, "all partitions stored again after a kill", killed)


@scenario(
    "three brokers under load, one at a time frozen (SIGSTOP) for 40 s: a leader, the "
    "group's coordinator, each of them once",
    cluster=True,
)
def brokers_frozen(world: World) -> None:
    view = view_of(world)
    feed = world.stream(rate=RATE)
    topic_id = world.topic_id()
    took = []
    frozen: set[int] = set()
    for role in (0, 1, 2):
        view.wait_until_whole()
        if role < 2:
            name, victim = victims(world, view)[role]
        else:
            name = "another broker"
            others = [each for each in world.brokers if node_of(each) not in frozen]
            victim = world.choice.choice(others or world.brokers)
        frozen.add(node_of(victim))
        began = time.monotonic()
        victim.pause()
        world.did(f"SIGSTOP of {name} for 40 s, then SIGCONT")
        took.append(until_all_stored(world, topic_id, FROZEN_SECONDS))
        time.sleep(max(0.0, began + 40.0 - time.monotonic()))
        victim.resume()
        world.wait_for_more("it goes on")
    view.wait_until_whole()
    feed.stop()
    note_longest(world, "all partitions stored again after a freeze", took)
