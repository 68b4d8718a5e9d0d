"""Grafana finds the data source and the dashboard, and the dashboard is readable."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from heartbeat_app.storage.roles import READER
from tests.deploy import containers
from tests.deploy.composefile import PROJECT

PROVISIONING = PROJECT / "grafana" / "provisioning"
DASHBOARD = json.loads((PROJECT / "grafana/dashboards/heartbeats.json").read_text())
PANELS = DASHBOARD["panels"]

# Told apart with any kind of colour vision: Okabe and Ito, https://jfly.uni-koeln.de/color/
OKABE_ITO = {
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
}

# defaultDashboard of @grafana/schema 12.4.10
SCHEMA_VERSION_OF_GRAFANA_12_4 = 42


@pytest.fixture(scope="module")
def data_source() -> dict[str, Any]:
    files = yaml.safe_load((PROVISIONING / "datasources/heartbeats.yml").read_text())
    (found,) = files["datasources"]
    assert isinstance(found, dict)
    return found


def test_the_data_source_reaches_the_database_of_compose(
    data_source: dict[str, Any],
) -> None:
    host, port = data_source["url"].split(":")
    assert containers.service(host)["image"] == "postgres:18"
    assert port == "5432"
    assert data_source["isDefault"]


def test_the_data_source_can_only_read(data_source: dict[str, Any]) -> None:
    assert data_source["user"] == READER


def test_what_the_data_source_takes_from_the_environment_is_there(
    data_source: dict[str, Any],
) -> None:
    wanted = set(re.findall(r"\$(\w+)", json.dumps(data_source)))
    assert wanted == {"POSTGRESQL_DATABASE", "POSTGRESQL_READER_PASSWORD"}
    assert wanted <= containers.environment("grafana").keys()


def test_the_dashboard_lies_where_grafana_looks_for_it() -> None:
    (provider,) = yaml.safe_load(
        (PROVISIONING / "dashboards/heartbeats.yml").read_text()
    )["providers"]
    folder = provider["options"]["path"]
    mounted = containers.service("grafana")["volumes"]
    assert isinstance(mounted, list)
    assert f"./grafana/dashboards:{folder}:ro" in mounted
    home = "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    assert containers.environment("grafana")[home] == f"{folder}/heartbeats.json"


def test_links_to_the_dashboard_and_its_data_stay_valid(
    data_source: dict[str, Any],
) -> None:
    assert DASHBOARD["uid"] == "heartbeats"
    assert "id" not in DASHBOARD, "a number of one Grafana, not of the dashboard"
    wanted = {"type": data_source["type"], "uid": data_source["uid"]}
    for panel in PANELS:
        assert panel["datasource"] == wanted
        assert [target["datasource"] for target in panel["targets"]] == [wanted]


def test_the_dashboard_is_written_for_the_grafana_of_compose() -> None:
    assert str(containers.service("grafana")["image"]).startswith(
        "grafana/grafana:12.4."
    )
    assert DASHBOARD["schemaVersion"] == SCHEMA_VERSION_OF_GRAFANA_12_4


def test_the_panels() -> None:
    assert [panel["title"] for panel in PANELS] == [
        "Heartbeat Rate Over Time",
        "Beats Per Second",
        "Delay From Beat To Row",
        "Lag",
        "Refused By Reason",
        "Latest Per Customer",
    ]
    assert PANELS[0]["type"] == "timeseries"
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert DASHBOARD["timezone"] == "browser"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"]
    assert defaults["noValue"]
    if panel["type"] == "timeseries":
        assert defaults["unit"]


def test_colours_can_be_told_apart_by_everyone() -> None:
    used = set(re.findall(r"#[0-9A-Fa-f]{6}", json.dumps(PANELS)))
    assert used <= OKABE_ITO
    named = re.findall(r'"(?:fixedColor|color)": "([^"#]+)"', json.dumps(PANELS))
    assert named == [], "a colour of Grafana's own palette"


def test_each_line_of_a_chart_has_a_colour_of_its_own() -> None:
    for panel in PANELS:
        if panel["type"] == "timeseries":
            (target,) = panel["targets"]
            lines = set(re.findall(r'AS "(\w+)"', target["rawSql"])) - {"time"}
            coloured = {
                override["matcher"]["options"]
                for override in panel["fieldConfig"]["overrides"]
                if "color" in {p["id"] for p in override["properties"]}
            }
            assert coloured == lines, panel["title"]


def test_the_panels_fill_the_width_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
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
