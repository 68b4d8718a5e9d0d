"""The dashboards and alert rules as their files have them, and all their queries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import yaml

from testkit.grafana_macros import DEFAULT_POINTS, View, expand
from testkit.servers import PROJECT

GRAFANA = PROJECT / "grafana"
DATA_SOURCES = yaml.safe_load(
    (GRAFANA / "provisioning/datasources/heartbeats.yml").read_text()
)["datasources"]
ALERTING = yaml.safe_load(
    (GRAFANA / "provisioning/alerting/heartbeats.yml").read_text()
)

POSTGRESQL = "heartbeats-postgresql"
PROMETHEUS = "heartbeats-prometheus"

# What Grafana makes of $__rate_interval at least: four scrapes.
LEAST_RATE = "1m"

# How far back people look.
SPANS = {
    "5 min": timedelta(minutes=5),
    "6 h": timedelta(hours=6),
    "7 days": timedelta(days=7),
    "30 days": timedelta(days=30),
    "1 year": timedelta(days=365),
}
# What the panel "Heartbeat Rate Over Time" asked at first.
FIRST_QUERY = (
    'SELECT "timestamp" AS "time", "heart_rate" AS "value" FROM heartbeats'
    ' WHERE $__timeFilter("timestamp") ORDER BY "timestamp" ASC'
)

Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """What is asked of PostgreSQL.

    Attributes:
        where: Of which dashboard or file it is.
        title: Of which panel, variable or rule.
        points, least: How many points are asked for, and how wide they are at least.
        variables: Of its dashboard, as they are chosen at first.
    """

    where: str
    title: str
    sql: str
    points: int = DEFAULT_POINTS
    least: str = "1s"
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.where}: {self.title}"

    def expand(self, start: datetime, end: datetime, **variables: str) -> str:
        """The SQL as PostgreSQL gets it for a range of time."""
        view = View.of(
            start,
            end,
            points=self.points,
            least=self.least,
            variables={**self.variables, **variables},
        )
        return expand(self.sql, view)


def load() -> dict[str, Json]:
    """All dashboards, by the names of their files."""
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def rules() -> list[Json]:
    """All alert rules."""
    return [rule for group in ALERTING["groups"] for rule in group["rules"]]


def queries() -> Iterator[Query]:
    """Every query that PostgreSQL is asked."""
    for name, dashboard in load().items():
        listed = dashboard["templating"]["list"]
        chosen = {each["name"]: each.get("current", {}).get("value") for each in listed}
        variables = {key: value or "customer-0001" for key, value in chosen.items()}
        for each in listed:
            if each["type"] == "query":
                yield Query(name, each["name"], each["query"])
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                if target["datasource"]["uid"] == POSTGRESQL:
                    yield Query(
                        name,
                        panel["title"],
                        target["rawSql"],
                        panel.get("maxDataPoints", DEFAULT_POINTS),
                        panel.get("interval", "1s"),
                        variables,
                    )
    for rule in rules():
        asked = rule["data"][0]
        if asked["datasourceUid"] == POSTGRESQL:
            yield Query("alerting", rule["title"], asked["model"]["rawSql"])


def promql() -> Iterator[tuple[str, str]]:
    """Where Prometheus is asked, and what, as it gets it."""
    for dashboard in load().values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                if target["datasource"]["uid"] == PROMETHEUS:
                    asked = target["expr"].replace("$__rate_interval", LEAST_RATE)
                    yield panel["title"], asked
    for rule in rules():
        query = rule["data"][0]
        if query["datasourceUid"] == PROMETHEUS:
            yield rule["title"], query["model"]["expr"]
