"""Grafana finds the data sources, dashboards and alert rules, and they are readable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, BinaryExpr, MatrixSelector, VectorSelector

from heartbeat_app.storage.db.roles import READER
from testkit import dashboards
from testkit.dashboards import ALERTING, DATA_SOURCES, POSTGRESQL, PROMETHEUS, Json
from tests import counted
from tests.deploy import containers
from tests.deploy.colours import KINDS_OF_SIGHT, distance
from tests.deploy.composefile import PROJECT

PROVISIONING = PROJECT / "grafana" / "provisioning"
DASHBOARDS = dashboards.load()
RULES = dashboards.rules()
PANELS = [
    (name, panel) for name, each in DASHBOARDS.items() for panel in each["panels"]
]
SCRAPED = yaml.safe_load((PROJECT / "prometheus/prometheus.yml").read_text())
SCHEMA = json.loads(
    (Path(__file__).parent / "schema" / "grafana-12.4.10.json").read_text()
)

# defaultDashboard of @grafana/schema 12.4.10
SCHEMA_VERSION_OF_GRAFANA_12_4 = 42

# Told apart at a glance; Grafana's own green and red are 8 apart for some people.
APART = 20
# Perceptually even, and made for all kinds of colour vision.
EVEN_SCHEMES = {"Cividis", "Viridis"}
# Grafana's own palettes have colours that some people cannot tell apart.
COLOUR_MODES = {"fixed", "thresholds"}


def listed(service: str, key: str) -> list[str]:
    """A list of a service of compose."""
    found = containers.service(service)[key]
    assert isinstance(found, list)
    return found


all_dashboards = pytest.mark.parametrize("name", DASHBOARDS)
all_panels = pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=[f"{name}: {p['title']}" for name, p in PANELS]
)
all_rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["title"]))


@pytest.fixture(params=DATA_SOURCES, ids=lambda each: str(each["name"]))
def data_source(request: pytest.FixtureRequest) -> Json:
    found = request.param
    assert isinstance(found, dict)
    return found


def test_the_data_sources_reach_servers_of_compose(data_source: Json) -> None:
    host, port = data_source["url"].removeprefix("http://").split(":")
    image = {POSTGRESQL: "postgres", PROMETHEUS: "prom/prometheus"}[data_source["uid"]]
    assert str(containers.service(host)["image"]).partition(":")[0] == image
    assert port == {"postgresql": "5432", "prometheus": "9090"}[host]
    assert set(listed("grafana", "networks")) & set(listed(host, "networks"))


def test_the_database_is_the_default_and_can_only_be_read() -> None:
    (default,) = [each for each in DATA_SOURCES if each.get("isDefault")]
    assert default["uid"] == POSTGRESQL
    assert default["user"] == READER


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "datasources/heartbeats.yml",
            {"POSTGRESQL_DATABASE", "POSTGRESQL_READER_PASSWORD"},
        ),
        ("alerting/heartbeats.yml", {"ALERT_WEBHOOK_URL"}),
        ("dashboards/heartbeats.yml", set()),
    ],
)
def test_what_is_taken_from_the_environment_is_there(
    file: str, expected: set[str]
) -> None:
    provisioned = yaml.safe_load((PROVISIONING / file).read_text())
    # The queries of rules are taken as they are written.
    for group in provisioned.get("groups", []):
        for rule in group["rules"]:
            del rule["data"]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(provisioned))) == expected
    assert expected <= containers.environment("grafana").keys()


def test_the_files_lie_where_grafana_looks_for_them() -> None:
    (provider,) = yaml.safe_load(
        (PROVISIONING / "dashboards/heartbeats.yml").read_text()
    )["providers"]
    folder = provider["options"]["path"]
    mounted = listed("grafana", "volumes")
    assert f"./grafana/dashboards:{folder}:ro" in mounted
    for kind in ("alerting", "dashboards", "datasources"):
        inside = f"/etc/grafana/provisioning/{kind}"
        assert f"./grafana/provisioning/{kind}:{inside}:ro" in mounted
    home = "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    assert containers.environment("grafana")[home] == f"{folder}/overview.json"
    assert "overview" in DASHBOARDS


def violations(part: str, value: object) -> list[str]:
    """What about the value is not as the published type says."""
    wanted = {**SCHEMA, "$ref": f"#/properties/{part}"}
    validator = jsonschema.Draft7Validator(wanted)
    return [f"{part} {e.json_path}: {e.message}" for e in validator.iter_errors(value)]


@all_dashboards
def test_a_dashboard_is_of_grafanas_published_types(name: str) -> None:
    """Those of @grafana/schema of the release that compose has."""
    image = str(containers.service("grafana")["image"])
    assert image == "grafana/grafana:12.4.10"
    assert DASHBOARDS[name]["schemaVersion"] == SCHEMA_VERSION_OF_GRAFANA_12_4
    assert violations("dashboard", DASHBOARDS[name]) == []


@all_panels
def test_a_panel_is_of_its_published_types(name: str, panel: Json) -> None:
    kind = panel["type"]
    assert violations(kind, panel["options"]) == []
    config = panel["fieldConfig"]
    custom = dict(config["defaults"].get("custom", {}))
    if custom:
        assert violations(f"{kind}Custom", custom) == []
    for override in config["overrides"]:
        for each in override["properties"]:
            whole, _, inside = each["id"].partition("custom.")
            if inside:
                changed = {**custom, inside: each["value"]}
                assert violations(f"{kind}Custom", changed) == []
            else:
                changed = {whole: each["value"]}
                field_config = {"defaults": changed, "overrides": []}
                sample = {**panel, "fieldConfig": field_config}
                dashboard = {**DASHBOARDS[name], "panels": [sample]}
                assert violations("dashboard", dashboard) == []


def test_the_schema_finds_what_is_wrong() -> None:
    good = DASHBOARDS["overview"]
    chart = good["panels"][4]
    assert violations("dashboard", {**good, "timzone": "utc"})
    assert violations("dashboard", {**good, "panels": [{**chart, "gridPos": {}}]})
    assert violations("timeseriesCustom", {"drawStyle": "dots"})
    assert violations("table", {"showHeader": True, "sorted": []})


def test_the_dashboards() -> None:
    assert {each["uid"]: each["title"] for each in DASHBOARDS.values()} == {
        # The uid of the only dashboard that there was once: links stay valid.
        "heartbeats": "Heartbeats: Overview",
        "heartbeats-customer": "Heartbeats: Customer",
        "heartbeats-pipeline": "Heartbeats: Pipeline",
    }
    titles = [panel["title"] for panel in DASHBOARDS["overview"]["panels"]]
    assert "Heartbeat Rate Over Time" in titles


@all_dashboards
def test_a_dashboard_is_set_up_like_the_others(name: str) -> None:
    dashboard = DASHBOARDS[name]
    # A person sees their own clock; the queries are about instants.
    # Days are those of UTC, as in the API: steps of a day are shown as such.
    assert dashboard["timezone"] == "utc"
    assert dashboard["refresh"] in dashboard["timepicker"]["refresh_intervals"]
    assert dashboard["time"]["to"] == "now"
    assert dashboard["description"]
    # What an export has, and what is another Grafana's.
    noise = {"id", "__inputs", "__elements", "__requires", "iteration", "gnetId"}
    assert not dashboard.keys() & noise
    assert not re.search(r'"pluginVersion"|"\$\{DS_', json.dumps(dashboard))
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(set(titles)) == len(dashboard["panels"])


@all_dashboards
def test_the_dashboards_lead_to_each_other(name: str) -> None:
    dashboard = DASHBOARDS[name]
    (link,) = dashboard["links"]
    assert link["type"] == "dashboards"
    assert link["keepTime"], "the range that somebody chose goes with them"
    assert set(link["tags"]) <= set(dashboard["tags"])
    uids = {each["uid"]: each for each in DASHBOARDS.values()}
    for uid, asked in re.findall(r'"/d/([\w-]+)\?([^"]*)"', json.dumps(dashboard)):
        # An id may hold what separates parameters.
        assert re.findall(r"=\$\{[\w.]+(.)", asked) == [":"]
        assert "${__value.raw:percentencode}" in asked
        listed = {each["name"] for each in uids[uid]["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", asked)) <= listed


@all_dashboards
def test_the_variables_of_queries_are_those_of_the_dashboard(name: str) -> None:
    dashboard = DASHBOARDS[name]
    listed = {each["name"] for each in dashboard["templating"]["list"]}
    used = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked = target.get("rawSql") or target["expr"]
            used |= set(re.findall(r"\$\{?([a-z]\w*)", asked))
            # In quotes, as Grafana fills in a single text.
            assert asked.count("$customer") == asked.count("'$customer'")
    assert used == listed


@all_panels
def test_a_panel_asks_one_data_source(name: str, panel: Json) -> None:
    types = {each["uid"]: each["type"] for each in DATA_SOURCES}
    wanted = {"type": types[panel["datasource"]["uid"]], **panel["datasource"]}
    assert panel["datasource"] == wanted
    assert [target["datasource"] for target in panel["targets"]] == [wanted]


@all_panels
def test_a_panel_explains_itself(name: str, panel: Json) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"].endswith(".")
    assert defaults["noValue"]
    if panel["type"] in ("timeseries", "stat", "barchart"):
        assert defaults["unit"]
    if panel["type"] == "heatmap":
        assert panel["options"]["cellValues"]["unit"]
        assert panel["options"]["yAxis"]["axisLabel"]


@all_panels
def test_a_gap_is_no_line(name: str, panel: Json) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    assert not custom.get("spanNulls")
    assert not custom.get("insertNulls")


def colours(panel: Json) -> Iterator[list[str]]:
    """Colours that have to be told apart: those of lines, and of each threshold.

    The upper and the lower end of a band are one thing.
    """
    config = panel["fieldConfig"]
    values: list[Any] = [config["defaults"]]
    lines = {}
    for override in config["overrides"]:
        properties = {each["id"]: each["value"] for each in override["properties"]}
        if "color" in properties:
            colour = properties["color"]["fixedColor"]
            name = override["matcher"]["options"]
            lines[properties.get("custom.fillBelowTo", name)] = colour
        values.append(properties)
    yield list(lines.values())
    for each in values:
        yield [step["color"] for step in each.get("thresholds", {}).get("steps", [])]


@all_panels
@pytest.mark.parametrize("sight", KINDS_OF_SIGHT)
def test_colours_can_be_told_apart(sight: str, name: str, panel: Json) -> None:
    for some in colours(panel):
        for one, other in combinations(some, 2):
            assert distance(one, other, sight) >= APART, (one, other)


def test_what_cannot_be_told_apart_is_found() -> None:
    """Grafana's green and red, and a hundred of black to white."""
    assert distance("#73BF69", "#F2495C") > 100
    assert distance("#73BF69", "#F2495C", "deuteranopia") < APART / 2
    assert distance("#000000", "#FFFFFF") == pytest.approx(100, abs=0.1)


@all_panels
def test_colours_are_chosen_here(name: str, panel: Json) -> None:
    """A name is of Grafana's own palette, and the colour differs with the theme."""
    text = json.dumps(panel)
    named = re.findall(r'"(?:fixedColor|color|fill)": "([^"#]+)"', text)
    assert named == []
    modes = set(re.findall(r'"color": \{"mode": "([\w-]+)"', text)) - {"scheme"}
    assert modes <= COLOUR_MODES
    if panel["type"] == "heatmap":
        assert panel["options"]["color"]["scheme"] in EVEN_SCHEMES
    if panel["type"] == "timeseries" and panel["datasource"]["uid"] == PROMETHEUS:
        (target,) = panel["targets"]
        names = {o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]}
        assert names == {target["legendFormat"]}


@all_dashboards
def test_the_panels_fill_the_width_and_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(24) for y in range(height)}


def test_there_is_a_rule_for_each_of_these() -> None:
    assert [rule["title"] for rule in RULES] == [
        "Nothing stored for 60 s",
        "Lag not shrinking",
        "Worker not ready",
        "Books off",
        "Records lost before they were read",
        "Refusals above 1 %",
        "Disk for less than 7 days",
    ]
    assert len({rule["uid"] for rule in RULES}) == len(RULES)


@all_rules
def test_a_rule_is_complete(rule: Json) -> None:
    """What Grafana's file format knows; what is not known is left out unsaid."""
    assert rule.keys() == {
        "uid", "title", "condition", "for", "keepFiringFor", "noDataState",
        "execErrState",
        "dashboardUid", "panelId", "labels", "annotations", "data",
    }  # fmt: skip
    # A question without an answer is an alarm, too.
    assert rule["noDataState"] == rule["execErrState"] == "Alerting"
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    # What comes and goes is one alarm: it is over after some time without.
    assert seconds(rule["keepFiringFor"]) >= 300
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    asked, condition = rule["data"]
    for each in rule["data"]:
        assert each["refId"] == each["model"]["refId"]
    assert asked["datasourceUid"] in {each["uid"] for each in DATA_SOURCES}
    assert asked["relativeTimeRange"] == {"from": 600, "to": 0}
    assert condition["refId"] == rule["condition"]
    assert condition["datasourceUid"] == "__expr__"
    assert condition["model"]["type"] == "threshold"
    assert condition["model"]["expression"] == asked["refId"]
    (limit,) = condition["model"]["conditions"]
    assert limit["evaluator"]["type"] in ("gt", "lt")


def test_a_restart_of_the_database_wakes_nobody() -> None:
    """For so long, not only at one look; a Prometheus is back sooner."""
    for group in ALERTING["groups"]:
        assert group["folder"] == "Heartbeats"
        for rule in group["rules"]:
            asked = rule["data"][0]["datasourceUid"]
            least = 30 if asked == POSTGRESQL else 20
            assert seconds(rule["for"]) >= max(least, seconds(group["interval"]))


def test_it_is_noticed_within_90_s_that_nothing_is_stored() -> None:
    """And not within 60 s, though scrapes and looks come when they come."""
    group = ALERTING["groups"][0]
    rule = group["rules"][0]
    assert rule["title"] == "Nothing stored for 60 s"
    asked, condition = (each["model"] for each in rule["data"])
    question = promql_parser.parse(asked["expr"])
    (counted_over,) = (e for e in inside(question) if isinstance(e, MatrixSelector))
    assert counted_over.vector_selector.name == "heartbeat_app_beats_stored_total"
    span = counted_over.range.total_seconds()
    scrape = seconds(SCRAPED["global"]["scrape_interval"])
    assert span >= 4 * scrape, "a scrape that fails looks as if nothing was stored"
    # The last scrape that saw the count grow, and the one before, are up to one apart.
    assert span - scrape + seconds(rule["for"]) >= 60
    assert span + seconds(group["interval"]) + seconds(rule["for"]) <= 90
    # One number for all workers, also where there is none: 0, and that fires.
    assert isinstance(question, BinaryExpr)
    assert isinstance(question.lhs, AggregateExpr)
    assert question.lhs.modifier is None
    assert str(question.rhs) == "vector(0)"
    (limit,) = condition["conditions"]
    assert limit["evaluator"] == {"type": "lt", "params": [1]}


def seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


@all_rules
def test_a_rule_leads_to_the_panel_that_shows_it(rule: Json) -> None:
    shown = {
        (each["uid"], panel["id"])
        for each in DASHBOARDS.values()
        for panel in each["panels"]
    }
    assert (rule["dashboardUid"], rule["panelId"]) in shown


def test_the_books_are_the_same_in_the_panel_and_in_the_rule() -> None:
    panel, rule = (q for q in dashboards.queries() if q.title.startswith("Books"))
    assert rule.where == "alerting"
    assert panel.sql.strip() == rule.sql.strip()


def test_alerts_go_to_the_webhook() -> None:
    (point,) = ALERTING["contactPoints"]
    (receiver,) = point["receivers"]
    assert receiver["type"] == "webhook"
    assert receiver["settings"]["url"] == "$ALERT_WEBHOOK_URL"
    (policy,) = ALERTING["policies"]
    assert policy["receiver"] == point["name"]
    # Grafana does not start with an empty address.
    assert containers.environment("grafana")["ALERT_WEBHOOK_URL"].startswith("http://")


def test_prometheus_asks_services_of_compose() -> None:
    jobs = {each["job_name"]: each for each in SCRAPED["scrape_configs"]}
    assert jobs.keys() == {"heartbeat_app", "disk"}
    (worker,) = jobs["heartbeat_app"]["dns_sd_configs"]
    assert worker["names"] == ["worker"]
    assert containers.environment("worker")["WEB_PORT"] == str(worker["port"])
    (target,) = jobs["disk"]["static_configs"][0]["targets"]
    assert target == "disk:9100"
    for name in ("worker", "disk", "grafana", "prometheus"):
        assert "metrics" in listed(name, "networks")


def test_prometheus_reads_that_configuration() -> None:
    config = "--config.file=/etc/prometheus/prometheus.yml"
    assert config in containers.command("prometheus")
    assert "./prometheus:/etc/prometheus:ro" in listed("prometheus", "volumes")


def test_the_disk_that_is_watched_is_the_databases() -> None:
    (volume,) = listed("disk", "volumes")
    name, path, mode = volume.split(":")
    assert f"{name}:{path}" in listed("postgresql", "volumes")
    assert mode == "ro"
    asked = [text for _, text in dashboards.promql() if "node_filesystem" in text]
    assert asked
    for text in asked:
        assert set(re.findall(r'mountpoint="([^"]+)"', text)) == {path}


def metrics_known() -> dict[str, set[str]]:
    """The labels of each metric, those that Prometheus gives all of them included."""
    known = {"up": set(), "node_filesystem_avail_bytes": {"device", "mountpoint"}}
    for metric in counted.metrics().registry.collect():
        for sample in metric.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels | {"instance", "job"} for name, labels in known.items()}


def inside(expression: Any) -> Iterator[Any]:
    """An expression, and all that it consists of."""
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    yield from found


def mistakes(question: str) -> list[str]:
    """Which metrics there are not, and which labels they have not.

    Raises:
        ValueError: It is no PromQL, or its types do not fit.
    """
    known = metrics_known()
    found = []
    for part in inside(promql_parser.parse(question)):
        selected = [each for each in inside(part) if isinstance(each, VectorSelector)]
        if isinstance(part, VectorSelector):
            labels = [each.name for each in part.matchers.matchers]
            if part.name not in known:
                found.append(f"{part.name}: no such metric")
        elif isinstance(part, AggregateExpr) and part.modifier:
            labels = part.modifier.labels
        elif isinstance(part, BinaryExpr) and part.modifier and part.modifier.matching:
            labels = part.modifier.matching.labels
        else:
            continue
        found += [
            f"{each.name}: no label {label}"
            for each in selected
            for label in labels
            if label not in known.get(each.name or "", labels)
        ]
    return found


def documented() -> Iterator[tuple[str, str]]:
    """What docs/reference/metrics.md proposes to ask."""
    (block,) = re.findall(
        r"```promql\n(.*?)```",
        (PROJECT / "docs/reference/metrics.md").read_text(),
        re.DOTALL,
    )
    for line in block.splitlines():
        if not line.startswith("#"):
            yield "docs/reference/metrics.md", line


@pytest.mark.parametrize(("where", "question"), [*dashboards.promql(), *documented()])
def test_prometheus_can_answer(where: str, question: str) -> None:
    assert mistakes(question) == []


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("rate(heartbeat_app_red[1m])", "heartbeat_app_red: no such metric"),
        ("heartbeat_app_ready{topic='t'}", "heartbeat_app_ready: no label topic"),
        ("sum by (le) (up)", "up: no label le"),
        ("up * on(cause) heartbeat_app_retries_total", "up: no label cause"),
    ],
)
def test_what_prometheus_cannot_answer_is_found(question: str, words: str) -> None:
    assert mistakes(question) == [words]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("sum(up", "unclosed left parenthesis"),
        ("rate(up)", "expected type matrix"),
        ("rates(up[1m])", "unknown function"),
    ],
)
def test_what_is_no_question_to_prometheus_is_found(question: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mistakes(question)
