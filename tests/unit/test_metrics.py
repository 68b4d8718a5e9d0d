"""The metrics are what the batches were, and docs/reference/metrics.md has them all."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from sqlalchemy.exc import OperationalError

from heartbeat_app.domain.validation import Reason
from heartbeat_app.exceptions import ApartError, LedgerWentBackError
from heartbeat_app.kafka.policy import What
from heartbeat_app.storage.rollup.rollup import Backlog
from heartbeat_app.storage.write.writer import Written
from heartbeat_app.worker.metrics import CAUSES, Metrics, cause_of
from heartbeat_app.worker.watchdog import Health
from testkit.servers import PROJECT
from tests.counted import BATCH, HEALTH, POLICIES, metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


def families(metrics: Metrics, accept: str = "") -> dict[str, Metric]:
    body, content_type = metrics.expose(accept)
    parse: Any = parse_openmetrics if "openmetrics" in content_type else parse_text
    return {family.name: family for family in parse(body.decode())}


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(sample, labels)


def test_a_batch_is_counted_once_by_what_became_of_its_records() -> None:
    found = metrics()
    where = {"topic": "beats", "partition": "0"}
    assert value(found, "heartbeat_app_records_consumed_total", **where) == 10
    assert value(found, "heartbeat_app_beats_stored_total", **where) == 7
    assert value(found, "heartbeat_app_beats_duplicate_total", **where) == 1
    assert value(found, "heartbeat_app_records_missing_total", **where) == 3
    for reason in ("not_json", "conflict"):
        dead = value(found, "heartbeat_app_records_dead_total", **where, reason=reason)
        assert dead == 1
    assert value(found, "heartbeat_app_batch_records_sum") == 10
    assert value(found, "heartbeat_app_transaction_seconds_bucket", le="0.02") == 0
    assert value(found, "heartbeat_app_transaction_seconds_bucket", le="0.05") == 1


def test_what_is_an_alarm_is_there_at_0_before_it_happens() -> None:
    found = Metrics(lambda: HEALTH, lambda: None, dict)
    for name in ("records_missing", "offsets_unexplained"):
        [sample] = families(found)[f"heartbeat_app_{name}"].samples
        assert (sample.value, sample.labels["partition"]) == (0, "0")
    # Also where a batch has nothing but such offsets.
    found.count("beats", 0, Written(unexplained=5))
    [sample] = families(found)["heartbeat_app_offsets_unexplained"].samples
    assert sample.value == 5


def test_each_setting_of_a_topic_is_told() -> None:
    def fault(what: str) -> float | None:
        where = {"topic": "beats", "what": what}
        return value(metrics(), "heartbeat_app_topic_policy_fault", **where)

    assert {what.value: fault(what.value) for what in What} == {
        "compacted": 1, "retention": 0, "message_size": 0, "timestamp_type": 0,
        "unclean_election": 0,
    }  # fmt: skip
    unknown = Metrics(lambda: HEALTH, lambda: None, dict)
    assert families(unknown)["heartbeat_app_topic_policy_fault"].samples == []


def test_a_batch_that_was_stored_before_counts_nothing() -> None:
    found = metrics(backlog=None)  # the time goes on
    before = found.expose("")[0].decode()
    found.count("beats", 0, Written())
    after = found.expose("")[0].decode()
    assert only_ours(after) == only_ours(before)


def only_ours(exposed: str) -> list[str]:
    return [line for line in exposed.splitlines() if line.startswith("heartbeat_app")]


def test_the_delay_takes_over_the_batches_histograms() -> None:
    found = metrics()
    found.count("beats", 1, BATCH)

    def below(bound: str) -> float | None:
        return value(found, "heartbeat_app_delay_seconds_bucket", le=bound)

    assert [below("0.001"), below("0.002"), below("31536000.0")] == [2, 6, 6]
    assert below("+Inf") == value(found, "heartbeat_app_delay_seconds_count") == 14
    assert value(found, "heartbeat_app_delay_seconds_sum") == 19.0


def test_the_lag_is_that_of_the_partitions_at_hand() -> None:
    where = {"topic": "beats", "partition": "0"}
    assert value(metrics(), "heartbeat_app_lag_records", **where) == 7
    assert value(metrics(), "heartbeat_app_lag_seconds", **where) == 1.5
    assert value(metrics(), "heartbeat_app_ready") == 1
    away = metrics(Health(("Kafka does not answer",), None))
    assert value(away, "heartbeat_app_lag_records", **where) is None
    assert value(away, "heartbeat_app_ready") == 0


def test_the_backlog_of_the_roll_ups_is_told_while_it_is_known() -> None:
    assert value(metrics(), "heartbeat_app_rollup_backlog") == 12
    seconds = value(metrics(), "heartbeat_app_rollup_backlog_seconds")
    assert seconds is not None
    assert 90 <= seconds < 3_600
    done = metrics(backlog=Backlog(0, None))
    assert value(done, "heartbeat_app_rollup_backlog_seconds") == 0
    away = metrics(backlog=None)
    assert value(away, "heartbeat_app_rollup_backlog") is None


class Sqlstate(psycopg2.OperationalError):
    pgcode = "57P03"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Sqlstate("starting up"), "57"),
        (OperationalError("SELECT", {}, Sqlstate("starting up")), "57"),
        (
            OperationalError("SELECT", {}, psycopg2.OperationalError()),
            "OperationalError",
        ),
        (LedgerWentBackError("here", 1, None), "LedgerWentBackError"),
        (OSError("none of the known ones"), "other"),
    ],
)
def test_retries_have_few_causes(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause
    assert cause in CAUSES


def test_every_counter_is_there_before_it_counts() -> None:
    """Prometheus sees no increase in what is 4 when it appears."""
    found = Metrics(lambda: HEALTH, lambda: None, lambda: POLICIES)
    before = series(found)
    assert {value for name, value in before.items() if "_total{" in name} == {"0.0"}
    counted = metrics()
    for reason in Reason:
        refused = replace(BATCH, reasons={reason: 2})
        counted.count("beats", 0, refused)
    counted.count_retry(OSError("none of the known ones"))
    assert series(counted).keys() - {"heartbeat_app_rollup_backlog"} <= {
        *before,
        "heartbeat_app_rollup_backlog_seconds",
    }


def series(metrics: Metrics) -> dict[str, str]:
    """Values by names with their labels."""
    lines = metrics.expose("")[0].decode().splitlines()
    return dict(
        line.rsplit(" ", 1) for line in lines if line.startswith("heartbeat_app")
    )


def test_batches_that_go_apart_are_no_retry() -> None:
    found = metrics()
    before = families(found)["heartbeat_app_retries"].samples
    found.count_retry(ApartError("They need new days."))
    assert families(found)["heartbeat_app_retries"].samples == before


@pytest.mark.parametrize("accept", ["", "text/plain", OPENMETRICS])
def test_prometheus_reads_both_formats(accept: str) -> None:
    """The parsers refuse what promtool does: types, suffixes, buckets, order."""
    found = families(metrics(), accept)
    assert found["heartbeat_app_delay_seconds"].type == "histogram"
    for name, family in found.items():
        assert family.documentation, name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        for sample in family.samples:
            assert not sample.name.endswith("_created")


@pytest.mark.parametrize("name", ["heartbeat_app_records_dead", "process_open_fds"])
def test_names_follow_prometheus_conventions(name: str) -> None:
    found = families(metrics())
    assert name in found
    for family in found.values():
        assert (family.type == "counter") == any(
            sample.name.endswith("_total") for sample in family.samples
        )
        # Base units only.
        assert not re.search(r"_(ms|millis|minutes|hours|kb|mb|percent)$", family.name)


def test_the_docs_name_every_metric_and_no_other() -> None:
    text = (PROJECT / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", text, re.MULTILINE)
    told = {
        name: (type, set(re.findall(r"`(\w+)`", labels))) for name, type, labels in rows
    }
    process = set(re.findall(r"`(process_\w+)`", text))
    exposed = {}
    for family in families(metrics()).values():
        suffix = "_total" if family.type == "counter" else ""
        exposed[family.name + suffix] = (
            family.type,
            family.samples[0].labels.keys() - {"le"},
        )
    assert {name for name in exposed if name.startswith("process_")} == process
    ours = {n: told for n, told in exposed.items() if not n.startswith("process_")}
    assert told == ours


def test_the_docs_ask_only_for_metrics_that_there_are() -> None:
    text = (PROJECT / "docs" / "reference" / "metrics.md").read_text()
    asked = set(re.findall(r"\bheartbeat_app_\w+", text.split("## Scraping")[1]))
    samples = {
        sample.name
        for family in families(metrics()).values()
        for sample in family.samples
    }
    assert asked
    assert asked <= samples


def test_openmetrics_is_what_a_scraper_gets_that_asks_for_it() -> None:
    assert metrics().expose("")[1].startswith("text/plain")
    assert metrics().expose(OPENMETRICS)[1].startswith("application/openmetrics-text")
