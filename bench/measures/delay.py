"""From produce to a row that a reader sees, at 1,000 beats a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg2.extensions import connection as Connection

from bench.contender import Contender, Task
from bench.formats import WRITERS
from bench.judge import Spread, percentile
from bench.measures.setting import Setting
from bench.pictures import Bar, bars
from bench.run import RunFailedError
from heartbeat_app.domain.models import Heartbeat
from testkit.servers import Topic

OURS = "ours"
PICTURE = "bench-delay.svg"
BEATS_A_SECOND = 1000
CUSTOMERS = 100
# Their beats are looked for: 100 a second, in all partitions.
WATCHED = [f"customer-{number:04d}" for number in range(0, CUSTOMERS, 10)]
POLL_SECONDS = 0.001
# From the first row on, until the program is warm.
WARM_UP_SECONDS = 10.0
FIRST_ROW_SECONDS = 60.0
# How long beats are looked for that did not come yet.
LATEST_SECONDS = 30.0

PREPARE = """
PREPARE seen (text[], timestamptz) AS
SELECT customer_id, "timestamp" FROM heartbeats
WHERE customer_id = ANY($1) AND "timestamp" >= $2
"""


def measure(setting: Setting) -> dict[str, Any]:
    """p50 and p99 of each contender that stores as records come, by round."""
    failed: dict[str, str] = {}
    rounds: list[dict[str, Any]] = []
    who = {}
    for number in range(1, setting.rounds + 1):
        figures = {}
        for each in setting.in_order_of(number):
            if not each.can_stream or each.name in failed:
                continue
            who[each.name] = each.title
            setting.progress.tell(f"Round {number}: delay of {each.title}")
            try:
                delays = _run(setting, each)
            except RunFailedError as error:
                failed[each.name] = str(error).splitlines()[0]
                setting.progress.tell(str(error))
                continue
            figures[each.name] = {
                "samples": len(delays),
                "p50_ms": round(percentile(delays, 0.5) * 1000, 1),
                "p99_ms": round(percentile(delays, 0.99) * 1000, 1),
            }
            setting.progress.tell(f"  {figures[each.name]}")
        rounds.append(figures)
    return {
        "seconds": setting.records / BEATS_A_SECOND,
        "titles": who,
        "rounds": rounds,
        "failed": failed,
    }


def _run(setting: Setting, contender: Contender) -> list[float]:
    stage = setting.stage
    name = stage.new_name(f"delay-{contender.name}")
    today = datetime.now(UTC).date()
    engine = stage.new_database(name, days=[today, today + timedelta(days=1)])
    if contender.table_sql is not None:
        raw = engine.raw_connection()
        raw.cursor().execute(contender.table_sql)
        raw.commit()
        raw.close()
    Topic(stage.servers, name).make()
    beats = Beats(setting, contender, name)
    contender.start(Task(stage, name, name, 0, name, live=True))
    reader: Any = engine.raw_connection()
    try:
        beats.start()
        return _watch(contender, reader.driver_connection, beats, setting)
    finally:
        beats.stop()
        contender.stop()
        reader.close()
        stage.drop_database(engine)


class Beats(threading.Thread):
    """Sends 1,000 beats a second until it is stopped, and remembers the watched ones.

    A beat's timestamp is the instant at which it is handed to the producer.
    """

    def __init__(self, setting: Setting, contender: Contender, topic: str) -> None:
        super().__init__(daemon=True)
        self._topic = topic
        self._write = WRITERS[contender.format]
        # No waiting for others to be sent along.
        self._producer = setting.stage.producer(**{"linger.ms": 0})
        self._ended = threading.Event()
        self.waiting: dict[tuple[str, datetime], None] = {}
        self.lock = threading.Lock()

    def run(self) -> None:
        began = time.perf_counter()
        sent = 0
        while not self._ended.is_set():
            due = int((time.perf_counter() - began) * BEATS_A_SECOND)
            while sent < due:
                self._send(sent)
                sent += 1
            self._producer.poll(0)
            time.sleep(0.001)
        self._producer.flush(10)

    def _send(self, number: int) -> None:
        customer = f"customer-{number % CUSTOMERS:04d}"
        beat = Heartbeat(customer, datetime.now(UTC), 60 + number % 41)
        if customer in WATCHED:
            with self.lock:
                self.waiting[customer, beat.timestamp] = None
        key, value = self._write(beat)
        self._producer.produce(self._topic, value, key)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join()


def _watch(
    contender: Contender, reader: Connection, beats: Beats, setting: Setting
) -> list[float]:
    """Delays of the watched beats that were sent while it was measured, in seconds."""
    seconds = setting.records / BEATS_A_SECOND
    reader.autocommit = True
    cursor = reader.cursor()
    cursor.execute(PREPARE)
    asked = time.monotonic()
    begin: datetime | None = None
    end: datetime | None = None
    delays: list[float] = []
    while True:
        with beats.lock:
            waiting = list(beats.waiting)
        if end is not None and begin is not None:
            left = [at for _, at in waiting if begin <= at < end]
            if not left and datetime.now(UTC) > end:
                return delays
            if datetime.now(UTC) > end + timedelta(seconds=LATEST_SECONDS):
                raise RunFailedError(
                    f"{contender.title}: {len(left)} beats were not stored within "
                    f"{LATEST_SECONDS:g} s"
                )
        elif time.monotonic() > asked + FIRST_ROW_SECONDS:
            raise RunFailedError(
                f"{contender.title} stored nothing within {FIRST_ROW_SECONDS:g} s:\n"
                f"{contender.log()}"
            )
        if not contender.is_running():
            raise RunFailedError(f"{contender.title} ended:\n{contender.log()}")
        if waiting:
            oldest = min(at for _, at in waiting)
            cursor.execute("EXECUTE seen (%s, %s)", (WATCHED, oldest))
            found = cursor.fetchall()
            now = datetime.now(UTC)
            if found and begin is None:
                begin = now + timedelta(seconds=WARM_UP_SECONDS)
                end = begin + timedelta(seconds=seconds)
            with beats.lock:
                for customer, at in found:
                    if (customer, at) not in beats.waiting:
                        continue
                    del beats.waiting[customer, at]
                    if begin is not None and end is not None and begin <= at < end:
                        delays.append((now - at).total_seconds())
        time.sleep(POLL_SECONDS)


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """A table, the shortest delay first."""
    rounds = figures["rounds"]

    def spread(name: str, value: str) -> Spread:
        return Spread.of([each[name][value] for each in rounds if name in each])

    names = [name for name in figures["titles"] if any(name in each for each in rounds)]
    names.sort(key=lambda name: spread(name, "p50_ms").median)
    lines = [
        "## Delay",
        "",
        f"{BEATS_A_SECOND:,} beats a second for {figures['seconds']:g} s, "
        f"{len(rounds)} rounds. From the instant at which a beat is handed to the "
        "producer until a reader, who asks about every millisecond, sees its row; for "
        f"one beat in ten, after {WARM_UP_SECONDS:g} s of warming up. Contenders that "
        "wait for a batch to fill wait the time that their settings name as live.",
        "",
        f"![Delay](images/{PICTURE})",
        "",
        "| | p50 ms | p99 ms |",
        "|---|---|---|",
    ]
    for name in names:
        title = figures["titles"][name]
        lines.append(
            f"| {f'**{title}**' if name == OURS else title} "
            f"| {spread(name, 'p50_ms').words(1)} | {spread(name, 'p99_ms').words(1)} |"
        )
    if figures["failed"]:
        lines += ["", "Not counted:", ""]
        lines += [f"- {name}: {why}" for name, why in figures["failed"].items()]
    return [*lines, ""]


def pictures(figures: dict[str, Any]) -> Mapping[str, str]:
    """The p99 as bars."""
    rows = []
    for name, title in figures["titles"].items():
        found = [each[name]["p99_ms"] for each in figures["rounds"] if name in each]
        if found:
            spread = Spread.of(found)
            rows.append(
                Bar(title, spread.median, spread.low, spread.high, name == OURS)
            )
    rows.sort(key=lambda bar: bar.value)
    title = f"Produce to visible row at {BEATS_A_SECOND:,} beats a second"
    return {PICTURE: bars(title, "p99, ms", rows)}
