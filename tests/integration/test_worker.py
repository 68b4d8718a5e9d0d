"""A worker of the application: what it is made of, its pages, its timer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from heartbeat_app.simulator.synthetic import SyntheticCustomers
from testkit.oracle import Oracle
from testkit.servers import PROJECT, Servers, Topic, Worker, run, wait_until

pytestmark = pytest.mark.integration


def count(engine: Engine, table: str = "heartbeats") -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def values(oracle: Oracle, records: int, *, bad: float = 0.0) -> list[bytes | None]:
    return [value for _, _, value in oracle.make(records, bad=bad)]


INVENTORY = """
import json
from heartbeat_app.worker.application import app
from faust.cli.faust import cli
app.finalize(); app.discover(); app.worker_init_post_autodiscover()
print(json.dumps({
    "agents": sorted(app.agents),
    "tasks": sorted(task.__wrapped__.__name__ for task in app._app_tasks),
    "pages": sorted(app.web.reverse_names.values()),
    "commands": sorted(cli.commands),
    "idle": app.conf.broker_max_poll_interval,
    "session": app.conf.broker_session_timeout,
}))
"""


def test_faust_finds_all_parts(environ: dict[str, str]) -> None:
    found = json.loads(run(environ, sys.executable, "-c", INVENTORY))
    assert found["agents"] == ["store_heartbeats"]
    assert found["tasks"] == ["send_synthetic_beats"]
    assert {"/health/live", "/health/ready", "/stats/", "/live/", "/live/events"} <= (
        set(found["pages"])
    )
    assert {
        "worker",
        "demo",
        "send",
        "books",
        "export",
        "erase",
        "dead-letters",
    } <= set(found["commands"])
    assert found["idle"] >= 86_400
    assert 10 <= found["session"] <= 15


def test_faust_knows_the_commands_too(environ: dict[str, str]) -> None:
    printed = run(environ, "faust", "-A", "heartbeat_app", "--help")
    for command in (
        "worker",
        "demo",
        "send",
        "books",
        "export",
        "erase",
        "dead-letters",
    ):
        assert command in printed
    assert run(environ, "faust", "-A", "heartbeat_app", "books", "--json")


def test_what_is_imported_is_never_searched_for_garbage(
    environ: dict[str, str],
) -> None:
    program = """
import atexit, gc, sys
from heartbeat_app.__main__ import main

atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 100_000))
atexit.register(lambda: print([each["collections"] for each in gc.get_stats()][2]))
sys.argv[1:] = ["partitions", "--help"]
main()
"""
    printed = run(environ, sys.executable, "-c", program)
    assert printed.splitlines()[-2:] == ["0", "True True"]


def test_a_wrong_setting_is_named(environ: dict[str, str]) -> None:
    wrong = {**environ, "WEB_PORT": "many", "POSTGRESQL_DATABASE": ""}
    for command in (["heartbeat_app"], ["faust", "-A", "heartbeat_app"]):
        printed = run(wrong, *command, "worker", status=1)
        assert "WEB_PORT is 'many'; allowed is a whole number" in printed
        assert "Traceback" not in printed
        printed += run({**wrong, "WEB_PORT": "6066"}, *command, "worker", status=1)
        assert "POSTGRESQL_DATABASE is not set" in printed
        assert environ["POSTGRESQL_PASSWORD"] not in printed


@pytest.mark.parametrize(
    "names", [("KAFKA_SSL_CAFILE",), ("KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE")]
)
def test_a_file_that_is_no_certificate_is_named(
    environ: dict[str, str], tmp_path: Path, names: tuple[str, ...]
) -> None:
    file = tmp_path / "client.pem"
    file.write_text("-----BEGIN NOTHING-----")
    files = dict.fromkeys(names, str(file))
    wrong = {**environ, "KAFKA_SECURITY_PROTOCOL": "SSL", **files}
    printed = run(wrong, "heartbeat_app", "books", status=1)
    for name in names:
        assert f"{name} is '{file}'" in printed
    assert "Traceback" not in printed


def test_the_pages_count_records(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    oracle = Oracle(seed=1, partitions=1)
    topic.produce(values(oracle, 3_000, bad=0.01))
    worker = make_worker(RETENTION_DAYS="3650").start()
    worker.wait_until(lambda: count(engine) == len(oracle.rows), "the beats are stored")
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    assert worker.get("/health/live") == (200, {"alive": True})

    sensor = worker.get("/")[1]["Sensor0"]
    assert sensor["messages_received_by_topic"][topic.name] == 3_000
    assert sensor["events_total"] == 3_000
    assert (sensor["messages_active"], sensor["events_active"]) == (0, 0)

    worker.wait_until(lambda: worker.get("/stats/")[0] == 200, "the database answers")
    _, stats = worker.get("/stats/")
    assert stats["consumed"] == 3_000
    assert stats["stored"] == len(oracle.rows)
    assert stats["dead"] == len(oracle.refused) == sum(stats["refused"].values())
    assert stats["balanced"] is True
    # As the watchdog saw it last, which looks every second.
    worker.wait_until(lambda: worker.get("/stats/")[1]["lag"] == 0, "no lag is told")
    assert stats["stored_per_second"] > 0
    assert stats["delay_p50_seconds"] <= stats["delay_p95_seconds"]
    assert [each["partition"] for each in stats["partitions"]] == [0]

    # Without a token anybody may read them: they name nobody, stored or refused.
    customers = {customer_id for customer_id, _ in oracle.rows}
    for path in ("/", "/stats/", "/assignment/", "/metrics", "/health/ready"):
        told = worker.page(path)
        assert not [each for each in customers if each in told], path


def test_settings_of_the_topic_that_do_not_suit_are_told(
    environ: dict[str, str], topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    """At the start and when they change; the worker is ready all the same."""
    topic.make(partitions=1, **{"cleanup.policy": "compact"})
    worker = make_worker().start()

    def warnings() -> set[str]:
        status, told = worker.get("/health/ready")
        return (
            {each.split()[2] for each in told["warnings"]} if status == 200 else set()
        )

    worker.wait_until(
        lambda: warnings() == {"cleanup.policy", "message.timestamp.type"},
        "what does not suit is told",
    )
    fault = "heartbeat_app_topic_policy_fault"
    told = {k[-1]: v for k, v in worker.metrics().items() if k[0] == fault}
    assert {what for what, value in told.items() if value} == {
        "compacted", "timestamp_type",
    }  # fmt: skip
    printed = run(environ, "heartbeat_app", "books")
    assert f"Warning: Topic {topic.name}: cleanup.policy is compact" in printed
    topic.configure({"cleanup.policy": "delete", "retention.ms": "3600000"})
    worker.wait_until(
        lambda: warnings() == {"retention.ms", "message.timestamp.type"},
        "the change is noticed",
    )
    assert worker.log().count("cleanup.policy is compact") == 1
    assert worker.log().count("retention.ms is 3,600,000, less than a day") == 1
    assert "its settings suit again (compacted)" in worker.log()


def test_a_topic_that_a_worker_makes_suits(
    topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker().start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    worker.wait_until(
        lambda: any(k[0].endswith("policy_fault") for k in worker.metrics()),
        "Kafka has told the settings",
    )
    assert worker.get("/health/ready")[1]["warnings"] == []


def test_lag_is_of_the_topic_that_is_read(
    environ: dict[str, str],
    servers: Servers,
    topic: Topic,
    engine: Engine,
    make_worker: Callable[..., Worker],
) -> None:
    """After a change of HEARTBEATS_TOPIC with a backlog, everywhere alike."""
    topic.make(partitions=1)
    oracle = Oracle(seed=1, partitions=1)
    topic.produce(values(oracle, 50))
    worker = make_worker().start()
    worker.wait_until(lambda: count(engine) == len(oracle.rows), "the beats are stored")
    assert worker.stop() == 0
    topic.produce(values(oracle, 70))
    new = Topic(servers, f"{topic.name}-new")
    new.make(partitions=1)
    worker = make_worker(HEARTBEATS_TOPIC=new.name).start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    assert worker.get("/health/ready")[1]["lag"] == 0
    worker.wait_until(lambda: worker.get("/stats/")[0] == 200, "the database answers")
    _, stats = worker.get("/stats/")
    assert stats["lag"] == 0
    assert {row["topic"]: row["is_read"] for row in stats["partitions"]} == {
        topic.name: False, new.name: True,
    }  # fmt: skip
    assert worker.metrics()["heartbeat_app_lag_records", "0", new.name] == 0
    printed = run({**environ, "HEARTBEATS_TOPIC": new.name}, "heartbeat_app", "books")
    assert "; lag 0." in printed
    assert "no longer read" in printed
    assert f"{topic.name}[0]" in printed
    assert "70 of its records were never read" in printed


def test_a_page_answers_at_once_while_the_database_does_not(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    worker = make_worker().start()
    worker.wait_until(lambda: worker.get("/stats/")[0] == 200, "the database answers")
    with engine.begin() as other:
        other.execute(text("LOCK TABLE partition_ledger IN ACCESS EXCLUSIVE MODE"))
        for _ in range(3):
            began = time.monotonic()
            status, told = worker.get("/stats/")
            assert (status, set(told)) == (503, {"ready", "reasons", "lag"})
            assert time.monotonic() - began < 2.0  # it waits for a lock for 5 s
    worker.wait_until(lambda: worker.get("/stats/")[0] == 200, "it answers again")


def test_the_pages_ask_for_the_token(
    environ: dict[str, str], topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    """All that there are, those of Faust's debug mode too, but two for supervisors."""
    pages = json.loads(run(environ, sys.executable, "-c", INVENTORY))["pages"]
    topic.make(partitions=1)
    token = "the-token-of-this-test"
    worker = make_worker(WEB_TOKEN=token).start(
        sys.executable, "-m", "heartbeat_app", "--debug", "worker", "-l", "info",
    )  # fmt: skip
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    closed = {*pages, "/", "/graph/", "/assignment/"} - {
        "/health/live",
        "/health/ready",
    }
    assert len(closed) >= 4
    for page in closed:
        assert worker.get(page)[0] == 401, page
    for page in ("/stats/", "/", "/assignment/"):
        status, told = worker.get(page, Authorization=f"Bearer {token}")
        assert (status, bool(told)) == (200, True), page
    assert token not in worker.log()


def test_a_header_may_have_any_name(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    """aiokafka raises where it is not UTF-8: for ever, since it is read again."""
    topic.make(partitions=1)
    good = values(Oracle(seed=1, partitions=1), 3)
    topic.produce(good[:1])
    topic.produce_with_header(good[1] or b"", b"\xff\xfe", partition=0)
    topic.produce_with_header(b"no beat", b"\xff\xfe", partition=0)
    topic.produce(good[2:])
    worker = make_worker(RETENTION_DAYS="3650").start()
    worker.wait_until(lambda: count(engine) == 3, "the beats are stored")
    with engine.connect() as connection:
        headers = connection.scalar(text("SELECT headers FROM dead_letters"))
    assert headers == [[{"base64": "//4="}, {"base64": "gA=="}]]


def test_a_partition_that_is_blocked_does_not_hold_up_the_others(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=2)
    worker = make_worker(RETENTION_DAYS="3650").start()
    worker.wait_until(lambda: count(engine, "partition_ledger") == 2, "the books begin")
    good = values(Oracle(seed=1, partitions=1), 20)
    lock = "SELECT 1 FROM partition_ledger WHERE partition = 0 FOR UPDATE"
    with engine.connect() as blocking:
        blocking.execute(text(lock))
        topic.produce(good[:10], partition=0)
        worker.wait_until(lambda: waiting_for_a_lock(engine), "it waits for the row")
        topic.produce(good[10:], partition=1)
        worker.wait_until(
            lambda: count(engine) == 10, "the other one is stored", seconds=4
        )
        blocking.rollback()
    worker.wait_until(lambda: count(engine) == 20, "all is stored")


def test_prometheus_gets_what_the_batches_were(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    worker = make_worker(RETENTION_DAYS="3650", WEB_TOKEN="the-token-of-this-test")
    worker.start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")

    def metric(*key: str) -> float:
        return worker.metrics(Authorization="Bearer the-token-of-this-test").get(key, 0)

    where = ("0", topic.name)
    assert metric("heartbeat_app_lag_records", *where) == 0
    oracle = Oracle(seed=1, partitions=1)
    with engine.connect() as blocking:
        blocking.execute(text("SELECT 1 FROM partition_ledger FOR UPDATE"))
        topic.produce(values(oracle, 3_000, bad=0.01))
        worker.wait_until(
            lambda: metric("heartbeat_app_lag_records", *where) == 3_000, "the lag"
        )
        worker.wait_until(
            lambda: metric("heartbeat_app_lag_seconds", *where) > 2, "they wait"
        )
        # A lock that is not free in time; after that it ends the session.
        worker.wait_until(
            lambda: metric("heartbeat_app_retries_total", "55") > 0, "it tries again"
        )
        blocking.rollback()
    worker.wait_until(lambda: count(engine) == len(oracle.rows), "the beats are stored")
    worker.wait_until(
        lambda: metric("heartbeat_app_lag_records", *where) == 0, "it has caught up"
    )
    assert metric("heartbeat_app_lag_seconds", *where) == 0
    assert metric("heartbeat_app_ready") == 1
    consumed, stored, duplicate = (
        metric(f"heartbeat_app_{each}_total", *where)
        for each in ("records_consumed", "beats_stored", "beats_duplicate")
    )
    assert (consumed, stored) == (3_000, len(oracle.rows))
    found = worker.metrics(Authorization="Bearer the-token-of-this-test")
    dead = {
        k[2]: v for k, v in found.items() if k[0].endswith("records_dead_total") and v
    }
    assert (
        dead
        == worker.get("/stats/", Authorization="Bearer the-token-of-this-test")[1][
            "refused"
        ]
    )
    assert consumed == stored + duplicate + sum(dead.values())
    assert found["heartbeat_app_delay_seconds_count",] == stored
    assert found["heartbeat_app_batch_records_sum",] == 3_000


def waiting_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        )


def test_books_that_are_off_make_it_unready(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    topic.produce(values(Oracle(seed=1, partitions=1), 10))
    worker = make_worker().start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    with engine.begin() as connection:
        connection.execute(
            text(
                'INSERT INTO dead_letters (topic, topic_id, "partition", "offset",'
                " headers, reason, detail, first_seen)"
                " SELECT topic, topic_id, 0, 5, '[]', 'empty', '', now()"
                " FROM partition_ledger"
            )
        )
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 503, "it is not")
    assert "the books are off" in worker.get("/health/ready")[1]["reasons"][0]


def test_a_log_that_lost_its_end_waits_for_a_person(
    topic: Topic,
    engine: Engine,
    environ: dict[str, str],
    make_worker: Callable[..., Worker],
) -> None:
    """And goes on after the statements of docs/how-to/troubleshooting.md."""
    topic.make(partitions=1)
    oracle = Oracle(seed=1, partitions=1)
    topic.produce(values(oracle, 100, bad=0.01))
    worker = make_worker(RETENTION_DAYS="3650").start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    worker.wait_until(lambda: count(engine) == len(oracle.rows), "all is stored")
    assert worker.stop() == 0
    ahead = "UPDATE partition_ledger SET next_offset = 200, gap = gap + 100"
    with engine.begin() as connection:
        connection.execute(text(ahead))

    worker.start()
    worker.wait_for_log("the log ends before offset 200")
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 503, "it is not ready")
    topic.produce([next(oracle.make(1))[2] for _ in range(150)])
    worker.wait_until(
        lambda: "ends before" in str(worker.get("/health/ready")[1]), "it says why"
    )
    assert count(engine) < len(oracle.rows), "records that took others' offsets"
    assert worker.stop() == 0

    page = (PROJECT / "docs" / "how-to" / "troubleshooting.md").read_text()
    statements = page.partition("      BEGIN;")[2].partition("      COMMIT;")[0]
    statements = statements.replace("'heartbeats'", f"'{topic.name}'")
    with engine.begin() as connection:
        connection.exec_driver_sql(statements.replace("= 2;", "= 0;"))
    worker.start()
    worker.wait_until(lambda: count(engine) == len(oracle.rows), "all is stored")
    assert worker.stop() == 0
    run(environ, "heartbeat_app", "books")


def test_the_timer_runs_on_one_worker_and_says_what_it_sent(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    """Also after the worker that ran it is killed."""
    topic.make(partitions=2)
    more = {"SYNTHETIC_CUSTOMERS": "50", "SYNTHETIC_SEED": "7"}
    first = make_worker(**more).start()
    first.wait_until(lambda: count(engine) >= 150, "three rounds")
    second = make_worker(**more).start()
    second.wait_for_log("Worker ready")
    before = count(engine)
    second.wait_until(lambda: count(engine) >= before + 150, "three rounds of both")
    sending = [w for w in (first, second) if sent_lately(w)]
    assert len(sending) == 1
    with engine.connect() as connection:
        rounds = connection.execute(
            text(
                'SELECT "timestamp", array_agg(heart_rate ORDER BY customer_id)'
                " FROM heartbeats GROUP BY 1 HAVING count(*) = 50 ORDER BY 1"
            )
        ).all()
    moments = [row[0] for row in rounds]
    gaps = [(b - a).total_seconds() for a, b in pairwise(moments)]
    assert min(gaps) > 0.5, "two workers send at the same time"
    customers = SyntheticCustomers(50, seed=7)
    for moment, rates in rounds[:3]:
        assert rates == [beat.heart_rate for beat in customers.beats(moment)]
    assert f"Sent 50 heartbeats {topic.name}[0]@0-" in first.log()
    assert f": {topic.name}[0]@0-" in first.log().partition("Stored")[2]

    sending[0].kill()
    (survivor,) = {first, second} - set(sending)
    lines = survivor.log().count("Sent 50")
    survivor.wait_until(
        lambda: survivor.log().count("Sent 50") > lines, "it takes the timer over"
    )


def sent_lately(worker: Worker) -> bool:
    lines = worker.log().count("Sent 50")
    try:
        wait_until(lambda: worker.log().count("Sent 50") > lines, "sent", seconds=2.5)
    except AssertionError:
        return False
    return True


def test_a_timer_that_fails_does_not_end_the_worker(
    topic: Topic, engine: Engine, make_worker: Callable[..., Worker]
) -> None:
    """Faust crashes the whole worker when a timer raises."""
    topic.make(partitions=1)
    # Kafka refuses the topic's records for as long as they are too large for it.
    topic.configure({"max.message.bytes": "40"})
    worker = make_worker(SYNTHETIC_CUSTOMERS="10").start()
    worker.wait_for_log("Some synthetic heartbeats were not sent")
    topic.configure({"max.message.bytes": "1048588"})
    worker.wait_until(lambda: count(engine) >= 10, "the next rounds are sent")
