"""Kafka that goes away and comes back, and logs that are not what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import (
    Consumer,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.cimpl import NewPartitions
from sqlalchemy import text

from prove.feed import Feed
from prove.late import LateCoordinator
from prove.scenario import scenario
from prove.world import PARTITIONS, TOPIC, World
from testkit.oracle import BASE, good
from testkit.servers import Worker, free_port

FELL_OUT = "records fell out of the log before they were read"
# A fetch that waits at the broker is answered within 1.5 s. What is sent later is not
# yet on its way to a worker that is frozen.
FETCH_WAITS_SECONDS = 4.0


@contextmanager
def flowing(world: World, *, workers: int = 2, rate: float = 2_000) -> Iterator[Feed]:
    """Workers that read what is sent meanwhile."""
    feed = world.stream(workers=workers, rate=rate)
    try:
        yield feed
    finally:
        feed.stop()


def keys_between(
    world: World, begins: dict[int, int], ends: dict[int, int]
) -> dict[int, list[bytes]]:
    """Each partition's keys at these offsets, read with a consumer of our own."""
    keys: dict[int, list[bytes]] = {partition: [] for partition in ends}
    consumer = Consumer({**world.topic.config, "group.id": "keys"})
    try:
        for partition, end in ends.items():
            position = begins.get(partition, 0)
            consumer.assign([TopicPartition(TOPIC, partition, position)])
            while position < end:
                for message in consumer.consume(10_000, timeout=0.5):
                    if message.error():
                        raise KafkaException(message.error())
                    position = int(message.offset() or 0) + 1
                    if position <= end:
                        key = message.key()
                        assert isinstance(key, bytes)
                        keys[partition].append(key)
    finally:
        consumer.close()
    return keys


# Kafka itself


def restart_kafka(world: World, *, kill: bool) -> None:
    if kill:
        world.kafka.kill()
        world.did("kill -9 of Kafka")
    else:
        world.kafka.stop()
        world.did("Kafka stopped and started")
    world.pause(0.0, 5.0)
    world.kafka.start()
    world.wait_for_more("it goes on")


@scenario("Kafka stopped and started, again and again")
def kafka_restarted(world: World) -> None:
    with flowing(world):
        for _ in range(2):
            world.pause(1.0, 3.0)
            restart_kafka(world, kill=False)


@scenario("kill -9 of Kafka, again and again")
def kafka_killed(world: World) -> None:
    with flowing(world):
        for _ in range(5):
            world.pause(0.5, 4.0)
            restart_kafka(world, kill=True)


@scenario("Kafka frozen (SIGSTOP) for 30 s")
def kafka_frozen(world: World) -> None:
    with flowing(world):
        world.pause(1.0, 3.0)
        for _ in range(2):
            world.kafka.pause()
            world.did("SIGSTOP of Kafka for 30 s, then SIGCONT")
            world.pause(30.0, 30.0)
            world.kafka.resume()
            world.wait_for_more("it goes on")


@scenario("Kafka frozen for up to 11 s again and again, while workers join and leave")
def kafka_stutters(world: World) -> None:
    with flowing(world, workers=3):
        for _ in range(6):
            victim = world.choice.choice(world.workers)
            victim.kill()
            world.did("kill -9 of a worker")
            world.pause(0.0, 1.0)
            victim.start()
            world.pause(0.0, 4.0)
            world.kafka.pause()
            world.did("SIGSTOP of Kafka for 3 to 11 s, then SIGCONT")
            world.pause(3.0, 11.0)
            world.kafka.resume()
            world.pause(0.0, 5.0)


@scenario(
    "the group's coordinator answers up to 14 s late (joins, heartbeats, commits), "
    "while workers join and leave"
)
def coordinator_late(world: World) -> None:
    with LateCoordinator(world.choice.randrange(2**32)) as late:
        # The workers' own way to Kafka; everyone else's stays as it was.
        port = free_port()
        plain = world.kafka.bootstrap_servers
        controller = free_port()
        world.kafka.controller_port = controller
        world.kafka.config.update({
            "listeners": f"PLAINTEXT://{plain},LATE://127.0.0.1:{port},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{plain},LATE://127.0.0.1:{late.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,LATE:PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
        })  # fmt: skip
        late.target = port
        world.kafka.stop()
        world.kafka.start()
        for _ in range(2):
            world.start_worker(KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{late.port}")
        feed = world.feed(rate=2_000)
        feed.start()
        world.wait_until(world.consumed, "the stream has begun")
        late.seconds = 14.0
        for _ in range(4):
            world.pause(5.0, 15.0)
            victim = world.choice.choice(world.workers)
            victim.kill()
            world.did("kill -9 of a worker")
            victim.start()
        world.pause(10.0, 20.0)
        feed.stop()
        world.did("answers of the coordinator delayed", late.delayed)
        world.note("longest delay", f"{late.longest:.1f} s")
        late.seconds = 0.0
        world.settled_within = 180.0
        world.wait_until_read()
        for worker in world.workers:
            world.stop_worker(worker)


# Topics


def remake_topic(world: World, worker: Worker, count: int) -> None:
    """Delete the topic and make it again, with so many records in it."""
    # What was taken from the new topic before its id was known is read again.
    world.exact = False
    feed = world.feed()
    feed.send_recordings()
    feed.send(20_000)
    world.wait_until_read()
    pid = worker.pid
    # What it had acknowledged of the old topic is committed for that name.
    world.ledger_went_back = True
    world.topic.delete()
    world.topic.make(PARTITIONS)
    world.did(f"topic of 20,000 records deleted, made again with {count:,}")
    feed = world.feed()
    feed.send(count)
    world.wait_until_read()
    world.require(worker.is_running() and worker.pid == pid, "the worker ended")
    # A rebalance may be quicker than the watch, which says that it was made again.
    said = ("was deleted and made again", "going on at 0 of")
    log = worker.log().partition("going on at 0 of")[2]
    world.require(any(words in log for words in said), "the log does not say it")


@scenario("the topic deleted and made again with fewer records, the worker running")
def topic_remade_smaller(world: World) -> None:
    remake_topic(world, world.start_worker(), 7_000)


@scenario(
    "the topic deleted and made again with as many records, the worker running",
    quick=True,
)
def topic_remade_same(world: World) -> None:
    remake_topic(world, world.start_worker(), 20_000)


@scenario("the topic deleted and made again with more records, the worker running")
def topic_remade_larger(world: World) -> None:
    remake_topic(world, world.start_worker(), 60_000)


@scenario(
    "the topic deleted and made again with more records while the worker is frozen: "
    "its next fetch is answered from the new topic",
    quick=True,
)
def topic_remade_unseen(world: World) -> None:
    world.exact = False
    worker = world.start_worker()
    feed = world.feed()
    feed.send_recordings()
    feed.send(10_000)
    world.wait_until_read()
    worker.pause()
    world.pause(FETCH_WAITS_SECONDS, FETCH_WAITS_SECONDS)
    world.topic.delete()
    world.topic.make(PARTITIONS)
    world.feed().send(40_000)
    world.did("topic deleted and made again while the worker was frozen")
    # What it had acknowledged of the old topic is committed for that name.
    world.ledger_went_back = True
    worker.resume()


@scenario("the topic deleted and made again under load, before all of it was read")
def topic_remade_under_load(world: World) -> None:
    world.exact = False
    # What was acknowledged of an old topic is committed for that name.
    world.ledger_went_back = True
    workers = [world.start_worker() for _ in range(2)]
    world.feed().send(10_000)
    world.wait_until_read()
    lost = 0
    for number in range(20):
        if number >= 3 and lost:
            break
        begins, old = world.next_offsets(), world.topic_id()
        # Or else they would have read everything by the time it is deleted.
        for worker in workers:
            worker.pause()
        # Only what is new and good can be told from what was read in time.
        world.feed().send(60_000, bad=0.0, repeated=0.0)
        keys = keys_between(world, begins, world.ends())
        for worker in workers:
            worker.resume()
        world.pause(0.0, 0.3)
        world.topic.delete()
        world.did("topic deleted in mid-stream and made again")
        world.topic.make(PARTITIONS)
        world.feed().send(10_000)
        world.wait_until_read()
        for partition, reached in world.next_offsets(old).items():
            unread = keys[partition][max(0, reached - begins[partition]) :]
            lost += world.oracle.forgive(unread)
        world.wait_until(lambda: all(w.is_running() for w in workers), "both run")
    world.require(lost, "all were read in time: nothing was proved")
    world.note("deleted before they were read", f"{lost:,}")


@scenario("partitions added while beats flow, twice")
def partitions_added(world: World) -> None:
    for _ in range(2):
        world.start_worker()
    world.feed().send_recordings()
    for partitions in (6, 11):
        feed = world.feed(rate=3_000)
        feed.start()
        world.pause(2.0, 4.0)
        new = [NewPartitions(TOPIC, partitions)]
        world.topic.admin.create_partitions(new)[TOPIC].result()
        world.did("partitions added under load")
        world.pause(0.0, 2.0)
        feed.stop()
        world.oracle.partitions = partitions
        # From now on into the new ones, too.
        world.wait_until(lambda: len(world.ends()) == partitions, "they are there")  # noqa: B023 (waited for here)
    world.feed(rate=5_000).send(30_000)
    world.wait_until_read()
    world.require(len(world.next_offsets()) == 11, "not all partitions are read")


# Records that are gone before they are read


def delete_everything(world: World) -> None:
    deleted = world.topic.admin.delete_records(
        [TopicPartition(TOPIC, each, end) for each, end in world.ends().items()]
    )
    for future in deleted.values():
        future.result()


def lose(world: World, count: int, *, bad: float) -> None:
    """Send records that will be deleted before anyone reads them."""
    begins = world.ends()
    # Whatever comes twice cannot be forgiven.
    world.feed().send(count, bad=bad, repeated=0.0)
    for unread in keys_between(world, begins, world.ends()).values():
        world.missing += world.oracle.forgive(unread)


def require_said(world: World, worker: Worker, said: int) -> None:
    """Complain unless it goes on and has said once more what was missing."""
    world.wait_until_read()
    world.require(worker.is_running(), "the worker ended")
    world.require(
        worker.log().count(FELL_OUT) > said, f"no line of the log says {FELL_OUT!r}"
    )


@scenario(
    "records deleted ahead of a worker that is stopped, and ahead of one that is "
    "frozen: counted as missing, said, not fatal",
    quick=True,
)
def records_deleted(world: World) -> None:
    worker = world.start_worker()
    world.feed().send_recordings()
    for way in ("stopped", "frozen"):
        world.feed().send(10_000)
        world.wait_until_read()
        if way == "stopped":
            world.stop_worker(worker)
        else:
            worker.pause()
            world.pause(FETCH_WAITS_SECONDS, FETCH_WAITS_SECONDS)
        lose(world, world.choice.randint(1_000, 9_000), bad=0.002)
        delete_everything(world)
        world.did(f"unread records deleted, the worker {way}")
        world.feed().send(5_000)
        said = worker.log().count(FELL_OUT)
        if way == "stopped":
            worker.start()
        else:
            worker.resume()
        require_said(world, worker, said)
    world.note("deleted before they were read", f"{world.missing:,}")


@scenario("records deleted while two workers are reading them")
def records_deleted_under_load(world: World) -> None:
    workers = [world.start_worker() for _ in range(2)]
    world.feed().send(5_000)
    world.wait_until_read()
    for number in range(20):
        if number >= 4 and world.missing:
            break
        begins = world.ends()
        for worker in workers:
            worker.pause()
        # More than Kafka's answers hold that are on their way to frozen workers.
        world.feed().send(200_000, bad=0.0, repeated=0.0)
        keys = keys_between(world, begins, world.ends())
        for worker in workers:
            worker.resume()
        world.pause(0.0, 0.3)
        # Or else on some machines they would have read everything by then.
        for worker in workers:
            worker.pause()
        reached = world.next_offsets()
        delete_everything(world)
        for worker in workers:
            worker.resume()
        world.did("records deleted while two workers were reading them")
        world.feed().send(5_000)
        world.wait_until_read()
        # Nobody can tell beforehand which: as many as the books call missing, but only
        # what follows on the last of a partition that is there, and was not there yet.
        with world.engine.connect() as connection:
            rows = connection.execute(
                text('SELECT customer_id, "timestamp" FROM heartbeats')
            )
            stored = {(row[0], row[1]) for row in rows}
        for partition, sent in keys.items():
            there = [world.oracle.keys[key] in stored for key in sent]
            last = len(there) - there[::-1].index(True) if any(there) else 0
            known = max(last, reached[partition] - begins[partition])
            world.missing += world.oracle.forgive(sent[known:])
    world.require(world.missing, "all were read in time: nothing was proved")
    world.note("deleted before they were read", f"{world.missing:,}")
    for worker in workers:
        world.require(worker.is_running(), "a worker ended")


@scenario(
    "the topic's retention takes records that a stopped worker has not read",
    kafka={
        "log.retention.check.interval.ms": "500",
        "log.initial.task.delay.ms": "500",
    },
)
def retention(world: World) -> None:
    worker = world.start_worker()
    world.feed().send_recordings()
    world.feed().send(10_000)
    world.wait_until_read()
    world.stop_worker(worker)
    lose(world, 20_000, bad=0.002)
    ends = world.ends()
    world.topic.configure({"retention.ms": "1"})
    world.wait_until(lambda: world.begins() == ends, "retention took the records")
    world.did("retention took unread records")
    world.topic.configure({"retention.ms": "604800000"})
    world.feed().send(5_000)
    said = worker.log().count(FELL_OUT)
    worker.start()
    require_said(world, worker, said)
    world.note("deleted before they were read", f"{world.missing:,}")


# Offsets that hold nothing for a reader


@scenario("transactions, committed and aborted, among other records", quick=True)
def transactions(world: World) -> None:
    for _ in range(2):
        world.start_worker()
    producer = Producer({**world.topic.config, "transactional.id": "proof"})
    producer.init_transactions(30)
    world.feed().send_recordings()
    gaps = 0
    for number in range(60):
        aborted = world.choice.random() < 0.4
        producer.begin_transaction()
        count = world.choice.randint(1, 400)
        touched = set()
        if aborted:
            records: list[tuple[int, bytes, bytes | None]] = [
                (each % PARTITIONS, b"aborted", good(f"aborted-{number}", BASE, 70))
                for each in range(count)
            ]
            gaps += count
        else:
            records = list(world.oracle.make(count, bad=0.002, repeated=0.01))
        for partition, key, value in records:
            producer.produce(TOPIC, value, key, partition=partition)
            touched.add(partition)
        producer.flush(30)
        # Meanwhile others send, too: what follows an open transaction has to wait.
        world.feed().send(100)
        if aborted:
            producer.abort_transaction(30)
            world.did("transaction aborted")
        else:
            producer.commit_transaction(30)
            world.did("transaction committed")
        gaps += len(touched)  # a marker each
        if number % 20 == 10:
            victim = world.choice.choice(world.workers)
            victim.kill()
            victim.start()
            world.did("kill -9 of a worker")
    world.wait_until_read()
    booked = world.scalar("SELECT sum(gap) FROM partition_ledger")
    world.require(booked == gaps, f"the books say {booked} gaps, not {gaps}")
    world.note("offsets without a record for a reader", f"{gaps:,}")


UNEXPLAINED = "heartbeat_app_offsets_unexplained_total"


@scenario(
    "a compacted topic: records that compaction removed before they were read",
    kafka={"log.cleaner.backoff.ms": "200"},
)
def compacted(world: World) -> None:
    world.topic.configure({
        "cleanup.policy": "compact",
        "segment.ms": "500",
        "min.cleanable.dirty.ratio": "0.01",
        "min.compaction.lag.ms": "0",
        "max.compaction.lag.ms": "500",
    })  # fmt: skip
    worker = world.start_worker()
    world.feed().send_recordings()
    gaps = 0
    for way in ("stopped", "running"):
        world.wait_until_read()
        if way == "stopped":
            world.stop_worker(worker)
        producer = Producer({**world.topic.config, "linger.ms": 5})
        records = list(world.oracle.make(20_000, bad=0.002, repeated=0.01))
        if way == "stopped":
            for partition, key, _ in records:
                if world.choice.random() < 0.3:
                    # Takes an offset; gone when a later record has its key.
                    away = good("compacted-away", BASE, 70)
                    producer.produce(TOPIC, away, key, partition=partition)
                    gaps += 1
                producer.poll(0)
            producer.flush(30)
        for partition, key, value in records:
            producer.produce(TOPIC, value, key, partition=partition)
            producer.poll(0)
        producer.flush(30)
        if way == "stopped":
            wait_until_compacted(world)
            world.did("records compacted away before they were read", gaps)
            worker.start()
    world.wait_until_read()
    booked = world.scalar("SELECT sum(gap) FROM partition_ledger")
    world.require(booked == gaps, f"the books say {booked} gaps, not {gaps}")
    told = worker.metrics()
    counted = sum(v for k, v in told.items() if k[0] == UNEXPLAINED)
    world.require(counted == gaps, f"the metric says {counted} gaps, not {gaps}")
    world.require("no transaction explains them" in worker.log(), "no line says so")


def wait_until_compacted(world: World) -> None:
    """Wait until no key is in the log twice; it takes a roll of every segment."""

    def done() -> bool:
        # The segment that is written to is never compacted.
        world.feed().send(PARTITIONS, bad=0.0, repeated=0.0)
        found = keys_between(world, {}, world.ends()).values()
        return all(len(keys) == len(set(keys)) for keys in found)

    world.wait_until(done, "the topic is compacted", seconds=90)
