"""`heartbeat_app send`: every beat of a recording into the topic, acknowledged."""

from __future__ import annotations

import csv
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from sqlalchemy import Engine, text

from heartbeat_app.domain import models
from heartbeat_app.domain.models import Heartbeat
from testkit.servers import (
    PROJECT,
    Servers,
    Topic,
    Worker,
    child_environ,
    free_port,
    wait_until,
)
from tests.typed import FAUST, HEARTBEAT_APP, typed, typing

pytestmark = pytest.mark.acceptance

RECORDINGS = sorted((PROJECT / "tests" / "recordings").glob("*.csv"))
ROWS = 5159 + 3507 + 337
HEADER = "customer_id,timestamp,heart_rate\n"


def messages(topic: Topic) -> list[Message]:
    """Everything in the topic, in the order of Kafka's time stamps."""
    config = {**topic.config, "group.id": "none", "enable.partition.eof": True}
    consumer = Consumer(config)
    partitions = consumer.list_topics(topic.name).topics[topic.name].partitions
    consumer.assign(
        [TopicPartition(topic.name, partition, 0) for partition in partitions]
    )
    found: list[Message] = []
    ended = 0
    while ended < len(partitions):
        message = consumer.poll(20)
        assert message is not None, "Kafka gives no records"
        if message.error() is None:
            found.append(message)
        else:
            ended += 1
    consumer.close()
    return sorted(found, key=lambda message: message.timestamp()[1])


def beats(topic: Topic) -> list[Heartbeat]:
    return [models.decode(value_of(message)) for message in messages(topic)]


def arrived(topic: Topic) -> int:
    """How many beats the topic holds so far."""
    try:
        return topic.count()
    except KafkaException:  # a new topic may not have its leaders yet
        return 0


def value_of(message: Message) -> bytes:
    value = message.value()
    assert isinstance(value, bytes)
    return value


def write(path: Path, *lines: str) -> str:
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return str(path)


def expected_rows() -> list[tuple[str, datetime, int]]:
    """The rows of all recordings, read by nothing of ours."""
    rows = []
    for path in RECORDINGS:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                instant = datetime.fromisoformat(row["timestamp"])
                rows.append((row["customer_id"], instant, int(row["heart_rate"])))
    return sorted(rows)


def stored_rows(engine: Engine) -> list[tuple[str, datetime, int]]:
    with engine.connect() as connection:
        found = connection.execute(
            text('SELECT customer_id, "timestamp", heart_rate FROM heartbeats')
        )
        return sorted((row[0], row[1], row[2]) for row in found)


def consumed(engine: Engine) -> int:
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT sum(consumed) FROM partition_ledger"))
        return int(found or 0)


def test_recordings_are_stored_exactly_once_however_often_they_are_sent(
    environ: dict[str, str],
    topic: Topic,
    engine: Engine,
    make_worker: Callable[..., Worker],
) -> None:
    topic.make()
    files = [str(path) for path in RECORDINGS]
    for program in (HEARTBEAT_APP, FAUST, HEARTBEAT_APP):
        done = typed(environ, "send", *files, program=program)
        assert (done.status, done.out) == (
            0,
            f"Kafka acknowledged {ROWS:,} beats in {topic.name}.\n",
        ), done.err
    worker = make_worker().start()
    wait_until(lambda: consumed(engine) == 3 * ROWS, "all are consumed")
    assert stored_rows(engine) == expected_rows()
    assert typed(environ, "send", files[0]).status == 0
    wait_until(lambda: consumed(engine) > 3 * ROWS, "they are consumed again")
    done = typed(environ, "books", "--deep")
    assert done.status == 0, done.err
    assert f"= {ROWS:,} stored +" in done.out
    assert worker.stop() == 0
    assert stored_rows(engine) == expected_rows()


def test_a_beat_lands_where_fausts_producer_puts_its_key(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make(partitions=7)
    names = [f"customer-{n:04}" for n in range(200)] + ["ü", "💓", " ", "a" * 255]
    lines = [f"{name},2026-01-01T00:00:00.5+01:00,72" for name in names]
    done = typed(environ, "send", write(tmp_path / "all.csv", *lines))
    assert done.status == 0, done.err
    found = messages(topic)
    assert len(found) == len(names)
    for message in found:
        beat = models.decode(value_of(message))
        assert beat.timestamp == datetime(2025, 12, 31, 23, 0, 0, 500_000, UTC)
        key = beat.customer_id.encode()
        assert message.key() == key
        every = list(range(7))
        assert message.partition() == DefaultPartitioner()(key, every, every)
    assert {message.partition() for message in found} == set(range(7))


def test_reads_standard_input(environ: dict[str, str], topic: Topic) -> None:
    topic.make()
    content = b"".join(path.read_bytes() for path in RECORDINGS)
    done = typed(environ, "send", "-", stdin=content)
    assert done.status == 0, done.err
    assert f"acknowledged {ROWS:,} beats" in done.out


def test_sends_a_line_of_standard_input_when_it_comes(
    environ: dict[str, str], topic: Topic
) -> None:
    topic.make(partitions=1)
    with typing(environ, "send", "-") as process:
        assert process.stdin is not None
        process.stdin.write(f"{HEADER}anna,2026-01-01T00:00:00Z,72\n".encode())
        process.stdin.flush()
        wait_until(lambda: arrived(topic) == 1, "the beat is there", seconds=20)
        process.stdin.write(b"anna,2026-01-01T00:00:01Z,73\n")
        out, _ = process.communicate(timeout=20)
    assert b"acknowledged 2 beats" in out


def test_keeps_the_gaps_at_a_speed(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make(partitions=1)
    walk = [f"walk,2019-01-01T00:00:{second:02}Z,72" for second in (0, 5, 10, 20)]
    ride = ["ride,2026-01-01T00:00:00Z,99", "ride,2026-01-01T00:00:15Z,99"]
    files = write(tmp_path / "walk.csv", *walk), write(tmp_path / "ride.csv", *ride)
    assert typed(environ, "send", "--speed", "10", *files).status == 0
    found = messages(topic)
    names = [models.decode(value_of(message)).customer_id for message in found]
    assert sorted(names[:2]) == ["ride", "walk"]  # both begin at once
    assert names[2:] == ["walk", "walk", "ride", "walk"]
    times = [message.timestamp()[1] / 1000 for message in found]
    assert [t - times[0] for t in times] == pytest.approx(
        [0, 0, 0.5, 1.0, 1.5, 2.0], abs=0.25
    )


def test_can_begin_now_as_somebody_else(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    file = write(
        tmp_path / "old.csv",
        "anna,1990-01-01T00:00:00.250Z,72",
        "anna,1990-01-01T00:01:00Z,73",
    )
    before = datetime.now(UTC)
    done = typed(environ, "send", "--start-now", "--as", "bert", file)
    assert done.status == 0, done.err
    first, second = sorted(beats(topic), key=lambda beat: beat.timestamp)
    assert first.customer_id == second.customer_id == "bert"
    assert before <= first.timestamp <= datetime.now(UTC)
    assert second.timestamp - first.timestamp == timedelta(seconds=59.75)
    assert "MAX_FUTURE_SECONDS" not in done.err


def test_tells_when_beats_lie_too_far_ahead(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    lines = [f"anna,2019-01-01T00:{minute:02}:00Z,72" for minute in range(10)]
    done = typed(environ, "send", "--start-now", write(tmp_path / "a.csv", *lines))
    assert done.status == 0, done.err
    assert done.err.count("MAX_FUTURE_SECONDS") == 1


def test_stops_at_a_bad_line_and_says_what_was_acknowledged(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    lines = [f"anna,2026-01-01T00:00:{second:02}Z,72" for second in range(20)]
    lines[15] = lines[15].replace(",72", ",0")
    file = write(tmp_path / "walk.csv", *lines)
    done = typed(environ, "send", file)
    assert done.status == 1
    assert f"{file}, line 17: heart_rate is 0; allowed is 1 to 300." in done.err
    assert "15 beats before it were acknowledged" in done.err
    assert "--skip-bad" in done.err
    assert len(beats(topic)) == 15


def test_passes_over_bad_lines_when_told_and_names_each(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    lines = [f"anna,2026-01-01T00:00:{second:02}Z,72" for second in range(20)]
    for number in (3, 4, 19):
        lines[number] = "nonsense"
    done = typed(environ, "send", "--skip-bad", write(tmp_path / "walk.csv", *lines))
    assert done.status == 0
    assert re.findall(r"walk\.csv, line (\d+): ", done.err) == ["5", "6", "21"]
    assert "acknowledged 17 beats" in done.out
    assert "Passed over 3 bad lines." in done.out
    assert len(beats(topic)) == 17


def test_what_is_no_recording_is_refused(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    tcx = next((PROJECT / "tests" / "recordings").glob("*.tcx"))
    done = typed(environ, "send", "--skip-bad", str(tcx))
    assert done.status == 1
    assert f"{tcx}, line 1, has 65,536 characters or more" in done.err
    assert "Traceback" not in done.err
    assert typed(environ, "send", str(tmp_path / "nowhere.csv")).status == 2
    assert typed(environ, "send", "-", "-").status == 2
    assert topic.count() == 0


def test_names_a_topic_that_is_not_there_and_does_not_make_it(
    environ: dict[str, str], topic: Topic
) -> None:
    done = typed(environ, "send", str(RECORDINGS[0]), seconds=15)
    assert done.status == 1
    assert f"has no topic {topic.name} (HEARTBEATS_TOPIC)" in done.err
    assert topic.name not in topic.admin.list_topics(timeout=10).topics


def test_says_within_10_s_that_kafka_does_not_answer(environ: dict[str, str]) -> None:
    server = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    done = typed(
        {**environ, "KAFKA_BOOTSTRAP_SERVERS": server}, "send", str(RECORDINGS[0])
    )
    assert time.monotonic() - began < 15  # 10 s on a machine with nothing else to do
    assert done.status == 1
    assert f"Kafka at {server} does not answer" in done.err
    assert "Connection refused" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_in_a_long_gap_and_says_what_was_acknowledged(
    environ: dict[str, str], topic: Topic, tmp_path: Path, number: signal.Signals
) -> None:
    topic.make()
    lines = [f"anna,2026-01-01T00:00:{second:02}Z,72" for second in range(25)]
    file = write(tmp_path / "a.csv", *lines, "anna,2026-01-01T01:00:00Z,72")
    with typing(environ, "send", "--speed", "50", file) as process:
        wait_until(lambda: arrived(topic) == 25, "the beats before the gap are there")
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    assert b"Stopped. Kafka acknowledged 25 beats in " in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_at_full_speed_and_says_what_was_acknowledged(
    environ: dict[str, str], topic: Topic, tmp_path: Path, number: signal.Signals
) -> None:
    topic.make()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    lines = (
        f"c{n % 1000},{(begin + timedelta(milliseconds=n)).isoformat()},72"
        for n in range(1_000_000)
    )
    file = write(tmp_path / "big.csv", *lines)
    with typing(environ, "send", file) as process:
        wait_until(lambda: arrived(topic) > 1000, "some beats are there")
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    found = re.search(rb"Stopped. Kafka acknowledged ([\d,]+) beats", out)
    assert found is not None, out
    assert int(found[1].replace(b",", b"")) == topic.count() < 1_000_000


def test_ctrl_c_stops_while_it_waits_for_a_line(
    environ: dict[str, str], topic: Topic
) -> None:
    topic.make()
    with typing(environ, "send", "-") as process:
        assert process.stdin is not None
        process.stdin.write(f"{HEADER}anna,2026-01-01T00:00:00Z,72\n".encode())
        process.stdin.flush()
        wait_until(lambda: arrived(topic) == 1, "the beat is there")
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert process.stdout is not None
        assert b"Stopped. Kafka acknowledged 1 beat " in process.stdout.read()
    assert process.returncode == 130


def test_ctrl_c_stops_while_kafka_is_away(
    environ: dict[str, str], topic: Topic, servers: Servers
) -> None:
    topic.make()
    with typing(environ, "send", "--speed", "50", str(RECORDINGS[0])) as process:
        wait_until(lambda: arrived(topic) > 20, "some beats are there")
        servers.kafka.pause()
        try:
            time.sleep(0.5)  # something is on its way
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=10)
        finally:
            servers.kafka.resume()
    assert process.returncode == 130
    assert b"may have arrived or not" in out


def test_goes_on_when_kafka_was_away(
    environ: dict[str, str], topic: Topic, servers: Servers
) -> None:
    topic.make()
    with typing(environ, "send", "--speed", "500", str(RECORDINGS[1])) as process:
        wait_until(lambda: arrived(topic) > 100, "some beats are there")
        servers.kafka.pause()
        threading.Timer(3, servers.kafka.resume).start()
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert b"acknowledged 5,159 beats" in out
    assert topic.count() == 5159  # not one twice


def test_tells_how_far_it_is_in_lines_where_there_is_no_terminal(
    environ: dict[str, str], topic: Topic
) -> None:
    topic.make()
    arguments = ["send", "--speed", "1500", str(RECORDINGS[1])]
    done = typed(environ, *arguments)
    assert done.status == 0
    assert re.search(r"^Sending: [\d,]+ beats acknowledged \(\d+%\)$", done.err, re.M)
    assert done.out.count("\n") == 1
    assert typed(environ, "--quiet", *arguments).err == ""


def test_shows_a_bar_on_a_terminal(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [*HEARTBEAT_APP, "send", "--skip-bad", "--speed", "1500", *map(str, RECORDINGS),
         write(tmp_path / "bad.csv", "nonsense")],
        cwd=PROJECT,
        env={**child_environ(environ), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(mine, 65536)
        except OSError:  # the other side is closed
            break
    os.close(mine)
    assert process.wait(20) == 0
    words = shown.decode()
    assert "━" in words
    assert "Passed over" in words
    assert f"Kafka acknowledged {ROWS:,} beats" in words
