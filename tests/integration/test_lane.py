"""The lane in a Faust app of its own: promises, and traps of Faust that it closes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    Producer,
    TopicPartition,
)

from testkit.servers import Servers, Topic, Worker, wait_until

pytestmark = pytest.mark.integration


class LaneWorker(Worker):
    """A worker of testkit/lane_app.py."""

    def __init__(self, servers: Servers, name: str, folder: Path, **options: Any):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.name = name
        self.servers = f"127.0.0.1:{servers.kafka.port}"
        self.options = {
            "folder": str(folder), "servers": self.servers, "name": name, **options,
        }  # fmt: skip
        super().__init__({"LANE_APP": json.dumps(self.options)}, folder / "log")

    def start(self, *command: str) -> LaneWorker:
        super().start(
            sys.executable, "-m", "testkit.lane_app", "worker", "-l", "info",
        )  # fmt: skip
        return self

    def rows(self, name: str) -> list[Any]:
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        # The worker may be in the middle of writing the last line.
        whole, _, _ = text.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def values(self) -> list[str]:
        return [value for _, _, value in self.rows("stored")]

    def wait_for(self, values: list[str], *, seconds: float = 40.0) -> None:
        self.wait_until(
            lambda: sorted(self.values()) == sorted(values),
            f"{len(values)} values, no more, no less",
            seconds=seconds,
        )

    def committed(self, partition: int = 0, topic: str = "") -> int:
        """The group's committed offset, -1001 where there is none."""
        consumer = Consumer(
            {"bootstrap.servers": self.servers, "group.id": f"{self.name}-lane"}
        )
        wanted = [TopicPartition(topic or self.name, partition)]
        offset: int = consumer.committed(wanted, timeout=10)[0].offset
        consumer.close()
        return offset


@pytest.fixture
def make_lane(
    servers: Servers, name: str, tmp_path: Path
) -> Iterator[Callable[..., LaneWorker]]:
    made: list[LaneWorker] = []

    def make(**options: Any) -> LaneWorker:
        made.append(LaneWorker(servers, name, tmp_path / "lane", **options))
        return made[-1]

    for each in (name, f"{name}-singles"):
        Topic(servers, each).make(partitions=1)
    yield make
    for worker in made:
        worker.end()


def values(count: int, start: int = 0) -> list[bytes]:
    return [b"v%d" % number for number in range(start, start + count)]


def texts(count: int, start: int = 0) -> list[str]:
    return [value.decode() for value in values(count, start)]


def test_a_fetch_comes_as_one_chunk_and_every_record_once(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    topic.produce(values(5_000))
    worker = make_lane().start()
    worker.wait_for(texts(5_000))
    assert len(worker.rows("chunks")) < 20
    assert worker.values() == texts(5_000)  # in order
    assert worker.stop() == 0


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_read(
    make_lane: Callable[..., LaneWorker], topic: Topic, codec: str
) -> None:
    topic.produce(values(500), config={"compression.type": codec})
    worker = make_lane().start()
    worker.wait_for(texts(500))


def test_a_handler_that_raises_gets_the_same_chunk_again(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """Faust acknowledges what an agent raised on, and restarts the agent."""
    topic.produce(values(100))
    worker = make_lane(failures=4).start()
    worker.wait_for(texts(100))
    topic.produce(values(100, start=100))
    worker.wait_for(texts(200))
    assert worker.log().count("told to fail") == 4
    assert "Agent" not in worker.log().partition("told to fail")[2].partition("v99")[0]
    wait_until(lambda: worker.committed() == 200, "all is committed")


def test_a_chunk_in_hand_at_the_stop_is_not_committed(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """A stream that acknowledges by itself does so for what is cancelled, too."""
    worker = make_lane()
    (worker.folder / "hold").touch()
    topic.produce(values(100))
    worker.start()
    worker.wait_until(
        lambda: (worker.folder / "ledger.json").exists(), "the partition is assigned"
    )
    worker.wait_for_log("Worker ready")
    wait_until(lambda: worker.is_running(), "it runs")
    assert worker.stop() == 0
    assert worker.committed() <= 0
    (worker.folder / "hold").unlink()
    worker.start()
    worker.wait_for(texts(100))


def test_what_the_group_has_committed_does_not_count(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """The ledger knows nothing: everything is read, whatever Kafka thinks."""
    topic.produce(values(100))
    worker = make_lane()
    consumer = Consumer(
        {"bootstrap.servers": worker.servers, "group.id": f"{worker.name}-lane"}
    )
    consumer.commit(offsets=[TopicPartition(worker.name, 0, 60)], asynchronous=False)
    consumer.close()
    worker.start()
    worker.wait_for(texts(100))


def test_what_the_group_has_committed_becomes_the_ledgers_and_is_told(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """Also where nothing comes any more, so that lag monitors outside are right."""
    topic.produce(values(100))
    worker = make_lane().start()
    worker.wait_for(texts(100))
    assert worker.stop() == 0
    group = f"{worker.name}-lane"
    partition = TopicPartition(worker.name, 0, 30)  # as Kafka's own tool resets it
    [reset] = topic.admin.alter_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group, [partition])]
    ).values()
    reset.result()
    assert worker.committed() == 30
    before = len(worker.log())
    worker.start()
    wait_until(lambda: worker.committed() == 100, "the ledger's offset is committed")
    worker.wait_until(
        lambda: "are not the ledger's" in worker.log()[before:], "the line is logged"
    )
    [line] = re.findall(r"are not the ledger's.*", worker.log()[before:])
    assert f"which are taken: {worker.name}[0]: 30, the ledger 100" in line
    assert worker.stop() == 0
    assert worker.values() == texts(100)


def test_a_ledger_that_went_back_is_followed(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """In many chunks, which Faust would drop as read before."""
    topic.produce(values(5_000), config={"batch.num.messages": 100})
    worker = make_lane(conf={"consumer_max_fetch_size": 2_000}).start()
    worker.wait_for(texts(5_000))
    assert len(worker.rows("chunks")) > 20
    path = worker.folder / "ledger.json"
    (key,) = json.loads(path.read_text())
    (worker.folder / "stored").unlink()
    path.write_text(json.dumps({key: 100}))
    topic.produce(values(1, start=5_000))
    worker.wait_for(texts(4_901, start=100))
    assert worker.values() == texts(4_901, start=100)


def test_a_ledger_that_went_back_is_followed_where_nothing_more_comes(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """As the ledger of a promoted standby that lacks what was stored last."""
    topic.produce(values(100))
    worker = make_lane().start()
    worker.wait_for(texts(100))
    path = worker.folder / "ledger.json"
    (key,) = json.loads(path.read_text())
    (worker.folder / "stored").unlink()
    path.write_text(json.dumps({key: 60}))
    worker.wait_for(texts(40, start=60))
    assert "The ledger went back" in worker.log()
    assert worker.stop() == 0
    assert worker.values() == texts(40, start=60)


def test_transaction_markers_and_aborted_records_are_gaps(
    make_lane: Callable[..., LaneWorker], topic: Topic, servers: Servers
) -> None:
    """Committed over by the position after them, and never read."""
    worker = make_lane()
    producer = Producer(
        {"bootstrap.servers": worker.servers, "transactional.id": worker.name}
    )
    producer.init_transactions()
    for commit in (True, False, True, False):
        producer.begin_transaction()
        for value in values(10, start=0 if commit else 1000):
            producer.produce(topic.name, value + b"%d" % commit)
        if commit:
            producer.commit_transaction()
        else:
            producer.flush()
            producer.abort_transaction()
    worker.start()
    expected = [f"{text}1" for text in texts(10)] * 2
    worker.wait_for(expected)
    # 4 markers, and the 20 aborted records: read over, not lag.
    worker.wait_until(
        lambda: [row[2] for row in worker.rows("chunks")][-1:] == [44],
        "all is read over",
    )
    wait_until(lambda: worker.committed() == 44, "the markers are committed over")
    chunks = worker.rows("chunks")
    assert sum(row[3] for row in chunks) == 0  # nothing is missing
    assert [row[1] for row in chunks] == [0, *[row[2] for row in chunks[:-1]]]


def test_records_that_fell_out_of_the_log_are_missing(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    topic.produce(values(100))
    worker = make_lane().start()
    worker.wait_for(texts(100))
    assert worker.stop() == 0
    topic.produce(values(100, start=100))
    topic.admin.delete_records([TopicPartition(topic.name, 0, 150)])
    wait_until(lambda: _begin(worker) == 150, "the records are deleted")
    worker.start()
    worker.wait_for(texts(100) + texts(50, start=150))
    assert [row[3] for row in worker.rows("chunks") if row[3]] == [50]


def _begin(worker: LaneWorker) -> int:
    consumer = Consumer({"bootstrap.servers": worker.servers, "group.id": "none"})
    begin: int = consumer.get_watermark_offsets(TopicPartition(worker.name, 0))[0]
    consumer.close()
    return begin


def test_a_slow_lookup_is_not_the_end_of_the_worker(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """Faust takes a time-out of its recovery for a stop, and idles for ever."""
    topic.produce(values(100))
    conf = {"broker_session_timeout": 6.0, "broker_request_timeout": 6.5}
    worker = make_lane(conf=conf)
    (worker.folder / "ledger-away").touch()
    worker.start()
    worker.wait_for_log("Seek stream partitions to committed offsets")
    # Longer than broker_request_timeout; there is nothing to wait for but time.
    time.sleep(8)
    assert worker.is_running()
    (worker.folder / "ledger-away").unlink()
    worker.wait_for(texts(100))


def test_a_worker_that_waits_stays_in_its_group(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """aiokafka leaves the group when nothing was fetched for max_poll_interval."""
    topic.produce(values(100))
    conf = {"broker_session_timeout": 6.0, "broker_max_poll_interval": 6.0}
    worker = make_lane(conf=conf)
    (worker.folder / "hold").touch()
    worker.start()
    worker.wait_for_log("Worker ready")
    # More chunks than may wait, so that there is no room to fetch for.
    for start in range(100, 600, 100):
        topic.produce(values(100, start=start))
        time.sleep(0.3)
    time.sleep(10)
    assert worker.is_running()
    (worker.folder / "hold").unlink()
    worker.wait_for(texts(600))
    assert worker.log().count("Joined group") == 1


def test_waiting_chunks_are_bounded(
    make_lane: Callable[..., LaneWorker], topic: Topic
) -> None:
    """What was read while the agent was held up comes in few, growing chunks."""
    worker = make_lane()
    (worker.folder / "hold").touch()
    worker.start()
    worker.wait_for_log("Worker ready")
    for start in range(0, 2_000, 100):
        topic.produce(values(100, start=start))
        time.sleep(0.05)
    (worker.folder / "hold").unlink()
    worker.wait_for(texts(2_000))
    # Two that waited, one that aiokafka had fetched; the rest came at once.
    assert len(worker.rows("chunks")) <= 5


def test_an_ordinary_agent_works_as_faust_documents_it(
    make_lane: Callable[..., LaneWorker], servers: Servers, topic: Topic, name: str
) -> None:
    """Single values, acknowledged one by one, also the one it raised on."""
    singles = Topic(servers, f"{name}-singles")
    singles.produce([b"a", b"b", b"raise", b"c"])
    topic.produce(values(100))
    worker = make_lane().start()
    path = worker.folder / "singles"
    worker.wait_until(
        lambda: path.exists() and path.read_text().split() == ["a", "b", "raise", "c"],
        "single values in order",
    )
    worker.wait_for(texts(100))
    wait_until(lambda: worker.committed(topic=singles.name) == 4, "all is committed")
    assert worker.stop() == 0
    singles.produce([b"d"])
    worker.start()
    worker.wait_until(
        lambda: path.read_text().split() == ["a", "b", "raise", "c", "d"],
        "it goes on at the committed offset",
    )


def test_pure_python_is_refused(make_lane: Callable[..., LaneWorker]) -> None:
    """Without its compiled modules Faust acknowledges what it skips."""
    worker = make_lane()
    worker.environ["NO_CYTHON"] = "1"
    worker.start()
    wait_until(lambda: not worker.is_running(), "it ends")
    assert "compiled modules" in worker.log()
