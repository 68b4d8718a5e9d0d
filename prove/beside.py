"""Ordinary agents beside the lane against stock Faust: what is lost, what is repeated.

    python -m prove.beside --rounds 10

The same app runs as a `LaneApp` and as a `faust.App`, in turns, while workers join,
stop and are killed. A record is lost when the group has committed it and nobody has
processed it, and repeated when it was processed more than once.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from heartbeat_app.embedded.kafka import KafkaServer
from testkit.servers import Topic, Worker, free_port, wait_until

PARTITIONS = 4
TOPICS = ("singles", "pairs")


@dataclass
class KafkaOnly:
    """What `Topic` asks of the servers."""

    kafka: KafkaServer

    @property
    def bootstrap_servers(self) -> str:
        """Its one broker."""
        return self.kafka.bootstrap_servers


class Round:
    """One app's topics, group and workers, from the first to the last record."""

    def __init__(
        self, kafka: KafkaServer, folder: Path, name: str, *, lane: bool, **options: Any
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.name = name
        self.singles = f"{name}-singles"
        self.servers = f"127.0.0.1:{kafka.port}"
        self.options: dict[str, Any] = {
            "folder": str(folder), "servers": self.servers, "name": name,
            "lane": lane, "seconds": 0.02, "partitions": PARTITIONS, **options,
        }  # fmt: skip
        for each in (name, *(f"{name}-{topic}" for topic in TOPICS)):
            Topic(KafkaOnly(kafka), each).make(PARTITIONS)  # type: ignore[arg-type]
        self.sent = 0
        self.stuck = False
        self.workers: list[Worker] = []

    def worker(self, label: str) -> Worker:
        """A worker that is not started yet; keeps its port when started again."""
        options = {**self.options, "worker": label}
        worker = Worker({"BESIDE": json.dumps(options)}, self.folder / f"{label}.log")
        self.workers.append(worker)
        return worker

    def start(self, worker: Worker) -> None:
        """Start it and wait until it takes part."""
        ready = worker.log().count("Worker ready") if worker.log_path.exists() else 0
        self.launch(worker)
        worker.wait_until(
            lambda: worker.log().count("Worker ready") > ready, "it is ready"
        )

    def launch(self, worker: Worker) -> None:
        """Start it, without waiting for it."""
        worker.start(sys.executable, "-m", "prove.beside_app", "worker", "-l", "info")

    def send(self, count: int) -> None:
        """Send so many records to each topic, and wait until Kafka has them."""
        producer = self._producer()
        for _ in range(count):
            self._send_one(producer)
        assert producer.flush(30) == 0

    def _producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self.servers,
                "linger.ms": 5,
                "acks": "all",
                # As Faust's producer and routes do, not by librdkafka's default.
                "partitioner": "murmur2_random",
            }
        )

    def _send_one(self, producer: Producer) -> None:
        value = str(self.sent).encode()
        for topic in (self.name, *(f"{self.name}-{each}" for each in TOPICS)):
            producer.produce(topic, value, value)
        self.sent += 1

    @contextmanager
    def sending(self, per_second: float) -> Iterator[None]:
        """Send to both topics meanwhile, so many records a second to each."""
        producer = self._producer()
        stop = threading.Event()

        def send() -> None:
            began = time.monotonic()
            while not stop.wait(0.05):
                due = int((time.monotonic() - began) * per_second)
                while self.sent < due:
                    self._send_one(producer)
                producer.poll(0)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            assert producer.flush(30) == 0

    def lag(self) -> int:
        """Offsets of the ordinary topic that the group has not committed."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": self.name})
        wanted = [TopicPartition(self.singles, each) for each in range(PARTITIONS)]
        lag = 0
        for committed in consumer.committed(wanted, timeout=10):
            end = consumer.get_watermark_offsets(committed, timeout=10)[1]
            lag += end - max(0, committed.offset)
        consumer.close()
        return lag

    def rows(self, name: str) -> list[list[Any]]:
        """What was kept under a name, in the order of keeping."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def end(self) -> None:
        """Kill whatever still runs."""
        for worker in self.workers:
            worker.end()

    def settle(self) -> None:
        """Wait until all is committed and nothing comes any more.

        A group whose commits are stuck is started again, as its operator would.
        """
        try:
            wait_until(self._is_read, "all is committed", seconds=60, pause=0.5)
        except AssertionError:
            self.stuck = True
            running = [worker for worker in self.workers if worker.is_running()]
            for worker in running:
                interrupt(worker)
            self.start(running[0])
            wait_until(self._is_read, "all is committed", seconds=120, pause=0.5)
        if self.options["lane"]:
            wait_until(lambda: len(self.rows("lane")) >= self.sent, "the lane has all")

    def _is_read(self) -> bool:
        try:
            return self.lag() == 0
        except KafkaException:  # it is busy
            return False


def interrupt(worker: Worker) -> None:
    """SIGINT, as Ctrl-C does, and wait for its end."""
    assert worker.process is not None
    worker.process.send_signal(signal.SIGINT)
    worker.process.wait(30)


def joins_and_stops(play: Round) -> None:
    """A second worker joins and gets SIGINT, three times."""
    first, second = play.worker("a"), play.worker("b")
    play.start(first)
    with play.sending(45.0):
        time.sleep(3)
        for _ in range(3):
            play.start(second)
            time.sleep(4)
            interrupt(second)
            time.sleep(3)
    play.settle()


def kills(play: Round) -> None:
    """A worker is killed and comes straight back, three times."""
    first, second = play.worker("a"), play.worker("b")
    play.start(first)
    play.start(second)
    with play.sending(45.0):
        time.sleep(3)
        for _ in range(2):
            second.kill()
            play.start(second)
            time.sleep(6)
        first.kill()
        play.start(first)
        time.sleep(6)
    play.settle()


def quick_succession(play: Round) -> None:
    """While a backlog grows, a worker joins and stops, again and again."""
    first, second = play.worker("a"), play.worker("b")
    choice = random.Random(play.name.rpartition("-")[2])  # the same in both kinds
    play.start(first)
    with play.sending(80.0):
        time.sleep(choice.uniform(1, 4))
        for _ in range(3):
            before = second.log().count("(Re-)joining") if second.process else 0
            play.launch(second)
            wait_until(
                lambda before=before: second.log().count("(Re-)joining") > before,  # type: ignore[misc]
                "it joins",
            )
            time.sleep(choice.uniform(0, 3))
            interrupt(second)
            time.sleep(choice.uniform(0, 2))
    play.settle()


PLAYS: dict[str, Callable[[Round], None]] = {
    "joins-and-stops": joins_and_stops,
    "kills": kills,
    "quick-succession": quick_succession,
}


@dataclass
class Sums:
    """What rounds of one kind of app gave."""

    rounds: int = 0
    sent: int = 0
    lost: int = 0
    repeated: int = 0
    stuck: int = 0
    lane_wrong: int = 0

    def add(self, other: Sums) -> None:
        """Add another's."""
        for each in fields(self):
            value = getattr(self, each.name) + getattr(other, each.name)
            setattr(self, each.name, value)

    def __str__(self) -> str:
        return (
            f"{self.rounds:>3} rounds, {self.sent:>7,} sent, {self.lost:>4,} lost, "
            f"{self.repeated:>5,} repeated, {self.stuck:>2} stuck; "
            f"{self.lane_wrong} lost or repeated of the lane's topic"
        )


def judge(play: Round) -> Sums:
    """Count what was lost and repeated."""
    times = Counter(int(row[1]) for row in play.rows("singles"))
    lane = Counter(int(row[1]) for row in play.rows("lane"))
    wrong = sum(abs(lane[number] - 1) for number in range(play.sent))
    return Sums(
        rounds=1,
        sent=play.sent,
        lost=sum(number not in times for number in range(play.sent)),
        repeated=sum(count - 1 for count in times.values()),
        stuck=play.stuck,
        lane_wrong=wrong if play.options["lane"] else 0,
    )


@click.command()
@click.option("--rounds", default=10, show_default=True, help="Of each kind and play.")
@click.option("--play", "plays", type=click.Choice(list(PLAYS)), multiple=True)
@click.option("--at-once", default=2, show_default=True, help="Rounds side by side.")
@click.option("--seconds", default=0.02, show_default=True, help="A record takes.")
@click.option("--folder", type=Path, help="Keep the logs there.")
def main(
    rounds: int,
    plays: tuple[str, ...],
    at_once: int,
    seconds: float,
    folder: Path | None,
) -> None:
    """Run both kinds in turns; status 1 if the lane's app did worse than stock's."""
    folder = folder or Path(tempfile.mkdtemp(prefix="beside."))
    kafka = KafkaServer(folder / "kafka", port=free_port())
    kafka.launch()
    kafka.wait_until_ready()

    def run(name: str, kind: str, number: int) -> Sums:
        label = f"{name}-{kind}-{number}"
        lane = kind == "lane"
        play = Round(kafka, folder / label, label, lane=lane, seconds=seconds)
        try:
            PLAYS[name](play)
        except Exception as error:
            print(f"{label}: {error!r}", flush=True)
            raise
        finally:
            play.end()
        got = judge(play)
        print(f"{label:28} {got}", flush=True)
        return got

    work = [
        (name, kind, number)
        for number in range(rounds)
        for name in plays or PLAYS
        for kind in ("lane", "stock")
    ]
    sums: defaultdict[str, Sums] = defaultdict(Sums)
    try:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [(each, pool.submit(run, *each)) for each in work]
            for (name, kind, _), future in futures:
                for into in (f"{name} {kind}", kind):
                    sums[into].add(future.result())
    finally:
        kafka.stop()
    for into, total in sums.items():
        print(f"{into:28} {total}")
    lane, stock = (sums[kind].lost + sums[kind].repeated for kind in ("lane", "stock"))
    sys.exit(lane > stock or sums["lane"].lane_wrong > 0)


if __name__ == "__main__":
    main()
