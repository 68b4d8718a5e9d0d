"""What people do to the tables while beats flow: restore, migrate, erase, drop."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

from prove.backup import Backup
from prove.feed import BAD, REPEATED
from prove.scenario import scenario
from prove.scenarios.postgres import (
    execute,
    holding,
    require_logged,
    require_no_restart,
)
from prove.world import World
from testkit.oracle import BASE, Record, Row


@scenario("restored from an older backup while the workers run", quick=True)
def restored_from_a_backup(world: World) -> None:
    feed = world.stream()
    world.ledger_went_back = True
    for _ in range(2):
        world.pause(1.0, 2.0)
        backup = Backup(world)
        world.wait_for_more("more than is in the backup")
        world.pause(1.0, 3.0)
        backup.restore()
        world.did("restored from an older backup")
        world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "Reading again from the ledger's offset")


@scenario("restored from an older backup while no worker runs")
def restored_while_stopped(world: World) -> None:
    feed = world.stream()
    world.ledger_went_back = True
    for _ in range(2):
        backup = Backup(world)
        world.wait_for_more("more than is in the backup")
        world.pause(1.0, 3.0)
        for worker in world.workers:
            world.stop_worker(worker)
        backup.restore()
        world.did("restored from an older backup")
        for worker in world.workers:
            worker.start()
        world.wait_for_more("it goes on")
    feed.stop()
    require_no_restart(world)


@scenario("the id sequence set back, to ids that are taken at the same instant")
def sequence_set_back(world: World) -> None:
    feed = world.stream()
    for number in range(3):
        world.pause(1.0, 2.0)
        feed.stop()
        world.wait_until_read()
        # An id and its instant are a key, too: only beats of one instant can clash.
        instant = BASE - timedelta(days=1, seconds=number)
        # More than a batch of the others tries at once, in each of its ways.
        crowd = [(f"first-{each}", instant, 60) for each in range(60)]
        feed.send_beats(crowd, partition=0)
        world.wait_until(lambda: world.lag() == 0, "the crowd is stored")
        lowest = world.scalar(
            'SELECT min(id) FROM heartbeats WHERE "timestamp" = :instant',
            instant=instant,
        )
        execute(world, f"SELECT setval('heartbeats_id_seq', {lowest}, false)")
        world.did("the id sequence set back to ids that are taken")
        others = [(f"second-{each}", instant, 61) for each in range(6)]
        feed.send_beats(others, partition=0)
        feed.start()
    world.wait_for_more("it goes on")
    execute(world, "SELECT setval('heartbeats_id_seq', 1, false)")
    world.did("the id sequence set back to 1")
    world.wait_for_more("it goes on")
    feed.stop()
    require_no_restart(world)


@scenario("migrations while beats flow: Alembic, columns, indexes, a table locked")
def migrated_meanwhile(world: World) -> None:
    feed = world.stream()
    for to in ("0004", "0003"):
        world.run_alembic("downgrade", to)
        world.did("alembic downgrade, and upgrade after up to 3 s")
        world.pause(0.0, 3.0)
        world.run_alembic("upgrade", "head")
    for statement in (
        "ALTER TABLE heartbeats ADD COLUMN more INTEGER DEFAULT 7",
        "ALTER TABLE partition_ledger ADD COLUMN more TEXT",
        "CREATE INDEX more ON heartbeats (heart_rate)",
    ):
        with holding(world, statement) as migration:
            world.pause(1.0, 7.0)
            migration.commit()
        world.did("a column or an index added, in a transaction of up to 7 s")
        world.pause(0.0, 1.0)
    execute(
        world,
        "ALTER TABLE heartbeats ALTER COLUMN more SET NOT NULL",
        "ALTER TABLE heartbeats ALTER COLUMN more DROP DEFAULT",
    )
    world.did("a column that no insert fills, for 2 to 4 s")
    world.pause(2.0, 4.0)
    execute(world, "ALTER TABLE heartbeats DROP COLUMN more")
    world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "NotNullViolation")
    require_no_restart(world)


# What is to be there no more


def waits_for(world: World, table: str) -> bool:
    """Whether a session waits until it may use the table."""
    return bool(
        world.scalar(
            "SELECT count(*) FROM pg_locks WHERE NOT granted"
            " AND relation = CAST(:table AS regclass)",
            table=table,
        )
    )


def erase(world: World, customer: str) -> None:
    """Erase a customer while a batch is inserted that can be neither seen nor ended."""
    stored = "SELECT count(*) FROM heartbeats WHERE customer_id = :customer"
    world.wait_until(
        lambda: world.scalar(stored, customer=customer) > 100, "beats are stored"
    )
    with holding(world, "LOCK TABLE ingest_minute IN EXCLUSIVE MODE"):
        world.wait_until(lambda: waits_for(world, "ingest_minute"), "a batch waits")
        erasing = world.start_command("erase", customer, "--yes")
        world.wait_until(
            lambda: erasing.poll() is not None or waits_for(world, "erased_customers"),
            "the erasure waits for the batch, or has not waited",
        )
    said, _ = erasing.communicate(timeout=60)
    world.require(erasing.returncode == 0, f"erase: {said}")
    world.did("a customer erased while the customer's beats flow")


@scenario("customers erased while their beats flow, some of them about to be committed")
def customer_erased(world: World) -> None:
    customer = "to-be-erased-0"

    def theirs() -> Iterator[Row]:
        for number in count():
            yield customer, BASE - timedelta(days=1, milliseconds=number), 60

    def with_theirs() -> Iterator[Record]:
        made = world.oracle.make(10**9, bad=BAD, repeated=REPEATED)
        for one in world.oracle.beats_to_go(theirs()):
            yield one
            for _ in range(3):
                yield next(made)

    for _ in range(2):
        world.start_worker()
    feed = world.feed(rate=2_000)
    feed.start(with_theirs())
    erase(world, customer)
    world.pause(2.0, 4.0)
    customer = "to-be-erased-1"
    erase(world, customer)
    world.workers[0].kill()
    world.did("kill -9 of a worker")
    world.workers[0].start()
    world.pause(2.0, 4.0)
    customer = "to-be-erased-2"
    erase(world, customer)
    world.pause(2.0, 4.0)
    feed.stop()
    refused = world.scalar(
        "SELECT count(*) FROM dead_letters WHERE reason = 'customer_erased'"
        " AND num_nulls(key, value) = 2"
    )
    world.note("refused of those who were erased", f"{refused:,}")
    world.require(refused > 100, "hardly a beat came after its customer was erased")
    require_no_restart(world)


@scenario("a day dropped by the retention, to which beats come until it is")
def day_dropped(world: World) -> None:
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day -= timedelta(days=3_600)
    table = f"heartbeats_{day:%Y_%m_%d}"
    late = ((f"late-{each % 7}", day + timedelta(seconds=each), 60) for each in count())
    feed = world.stream(workers=1)

    def send_late(beats: int, *, refused: bool = False) -> None:
        feed.stop()
        rows = [next(late) for _ in range(beats)]
        if refused:
            reason = "timestamp_past_retention"
            feed.send_records(world.oracle.beats(rows, partition=0, refused=reason))
        else:
            feed.send_records(world.oracle.beats_to_go(rows, partition=0))
        world.wait_until_read()
        feed.start()

    def is_rolled_up() -> bool:
        marks = (
            "SELECT count(*) FROM rollup_marks WHERE since < :day + interval '1 day'"
        )
        return not world.scalar(marks, day=day)

    send_late(2_000)
    world.wait_until(is_rolled_up, "the day is rolled up")
    # The worker has counted the day when it finds that it cannot detach it.
    with holding(world, f"SELECT FROM {table} LIMIT 1"):
        world.environ["RETENTION_DAYS"] = "3500"
        world.run_alembic("upgrade", "head")
        world.wait_until(
            lambda: "but in use" in world.workers[0].log(), "the day is to be dropped"
        )
        send_late(500)
        world.did("beats of a day that was found right, and about to be detached", 500)
        world.wait_until(is_rolled_up, "the day is rolled up again")
    is_dropped = "SELECT count(*) FROM dropped_days WHERE dropped_at IS NOT NULL"
    world.wait_until(lambda: world.scalar(is_dropped), "it is dropped", seconds=240.0)
    world.did("a day dropped")
    require_logged(world, "beats had come in meanwhile")
    send_late(300, refused=True)
    world.did("beats of a day that was dropped", 300)
    feed.stop()
    left = world.scalar(
        "SELECT sum(count) FROM heartbeats_minute"
        " WHERE minute < :day + interval '1 day'",
        day=day,
    )
    world.require(left == 2_500, f"its roll-ups hold {left} beats, not 2500")
    require_no_restart(world)
