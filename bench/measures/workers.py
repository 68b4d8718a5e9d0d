"""Two workers on the same topic against one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import psutil
from confluent_kafka.admin import AdminClient
from sqlalchemy import text

from bench.beats import WHOLE_DAY, make_beats
from bench.contender import Task
from bench.contenders.ours import Ours
from bench.formats import plain
from bench.judge import Spread, ratios
from bench.measures.setting import Setting
from bench.run import (
    COMMITS,
    RunFailedError,
    Summary,
    Watch,
    expect,
    parameters,
    summary,
)
from bench.stage import PARTITIONS, send
from testkit.servers import Topic, wait_until

NUMBERS = (1, 2)


def measure(setting: Setting) -> dict[str, Any]:
    """Rounds of one and of two workers."""
    expected = expect(setting.stage, make_beats(setting.records))
    rounds = []
    for number in range(1, setting.rounds + 1):
        figures = {}
        for workers in NUMBERS if number % 2 else reversed(NUMBERS):
            setting.progress.tell(f"Round {number}: {workers} of our workers")
            figures[str(workers)] = _run(setting, workers, expected)
            setting.progress.tell(f"  {figures[str(workers)]}")
        rounds.append(figures)
    return {"records": setting.records, "cores": os.cpu_count(), "rounds": rounds}


def _run(setting: Setting, number: int, expected: Summary) -> dict[str, float]:
    """All workers wait with their partitions until the records come, at once.

    The records are one transaction of Kafka's, which readers do not see before its
    commit: no worker begins before the other.
    """
    stage, count = setting.stage, setting.records
    name = stage.new_name(f"workers-{number}")
    engine = stage.new_database(name)
    Topic(stage.servers, name).make(PARTITIONS)
    producer = stage.producer(
        **{"transactional.id": name, "transaction.timeout.ms": 600_000}
    )
    producer.init_transactions()
    producer.begin_transaction()
    with setting.progress.task(f"Loading {name}", count) as advance:
        send(producer, name, map(plain, make_beats(count)), advance)
    workers = [Ours() for _ in range(number)]
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        for index, worker in enumerate(workers):
            log = f"{name}-{index}"
            worker.start(Task(stage, name, name, count, name, log_name=log))
        wait_until(
            lambda: members(stage.bootstrap_servers, name, name) == number,
            f"{number} workers have their partitions",
        )
        wait_until(
            lambda: (
                connection.scalar(text("SELECT count(*) FROM partition_ledger"))
                == PARTITIONS
            ),
            "the books are open",
        )
        psutil.cpu_percent()
        producer.commit_transaction()
        watch = Watch(workers[0], connection, 0)
        began = watch.wait_for_first_row()
        watch.wait_for_all(count, WHOLE_DAY)
        busy = psutil.cpu_percent()
        cpu = sum(worker.usage().cpu_seconds for worker in workers)
    finally:
        for worker in workers:
            worker.stop()
    if summary(connection, WHOLE_DAY) != expected:
        raise RunFailedError(f"{number} workers stored other rows than were sent")
    _, last = connection.execute(COMMITS, parameters(WHOLE_DAY)).one()
    connection.close()
    stage.drop_database(engine)
    return {
        "records_per_second": round(count / (last.timestamp() - began)),
        "machine_busy": round(busy / 100, 2),
        "cpu_seconds": round(cpu, 1),
    }


def members(bootstrap_servers: str, group: str, topic: str) -> int:
    """How many members have partitions of the topic; 0 until all are given out."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    found = admin.describe_consumer_groups([group])[group].result()
    shares = [
        sum(part.topic == topic for part in member.assignment.topic_partitions)
        for member in found.members
    ]
    time.sleep(0.2)
    return len(shares) if sum(shares) == PARTITIONS and all(shares) else 0


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """Two against one, and how busy the machine was."""
    rounds = figures["rounds"]
    rates = [
        {name: run["records_per_second"] for name, run in each.items()}
        for each in rounds
    ]
    lines = [
        "## Two workers",
        "",
        f"{figures['records']:,} records that become visible at once, to workers that "
        f"wait with their partitions; {figures['cores']} cores, which PostgreSQL and "
        f"Kafka share. {len(rounds)} rounds.",
        "",
        "| workers | records/s | cores busy | workers' CPU s |",
        "|---|---|---|---|",
    ]
    for name in map(str, NUMBERS):
        runs = [each[name] for each in rounds]
        rate = Spread.of([run["records_per_second"] for run in runs])
        busy = Spread.of([run["machine_busy"] for run in runs])
        cpu = Spread.of([run["cpu_seconds"] for run in runs])
        lines.append(
            f"| {name} | {rate.words(0)} | {busy.median:.0%} | {cpu.words(1)} |"
        )
    two = Spread.of(ratios(rates, "2", ["1"])).words()
    return [*lines, "", f"Two against one: {two}.", ""]
