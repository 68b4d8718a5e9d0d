"""openapi.json is the code's: its bounds, its names, its version."""

from __future__ import annotations

import ast
import json
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heartbeat_app.domain.models import (
    HIGHEST_HEART_RATE,
    LOWEST_HEART_RATE,
    MAX_CUSTOMER_ID_LENGTH,
)
from heartbeat_app.storage.read.customers import Latest
from heartbeat_app.storage.read.history import MAX_POINTS, RAW, STEPS, Beat, Bucket
from heartbeat_app.storage.read.reads import LastMinute, Recent, Summary
from heartbeat_app.web import parameters

WEB = Path(parameters.__file__).parent
OPENAPI: dict[str, Any] = json.loads((WEB / "openapi.json").read_text())
SCHEMAS = OPENAPI["components"]["schemas"]
GIVEN = OPENAPI["components"]["parameters"]


def test_it_is_of_this_version() -> None:
    assert OPENAPI["openapi"].startswith("3.1.")
    assert OPENAPI["info"]["version"] == version("heartbeat_app")


def test_it_has_every_page_of_the_api_and_no_other() -> None:
    """Read from the source: the module needs the settings, and makes the app."""
    pages = {}
    for node in ast.parse((WEB / "api.py").read_text()).body:
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(node, ast.ClassDef) and isinstance(decorator, ast.Call):
                path = ast.literal_eval(decorator.args[0])
                pages[path.replace(":[^/]+}", "}")] = node
    assert set(OPENAPI["paths"]) == set(pages)
    for path, node in pages.items():
        described = OPENAPI["paths"][path]["get"].get("parameters", [])
        names = {each["$ref"].rsplit("/", 1)[1] for each in described}
        sets = [n for n in ast.walk(node) if isinstance(n, ast.Set)]
        known = {name for each in sets for name in ast.literal_eval(each)}
        if "respond" in ast.unparse(node):
            assert names - {"customer_id"} == known | {"format"}, path


def test_its_bounds_are_the_codes() -> None:
    limit = GIVEN["limit"]["schema"]
    assert (limit["default"], limit["maximum"]) == (
        parameters.DEFAULT_PAGE,
        parameters.MAX_PAGE,
    )
    assert GIVEN["after"]["schema"]["maxLength"] == MAX_CUSTOMER_ID_LENGTH
    assert GIVEN["customer_id"]["schema"]["maxLength"] == MAX_CUSTOMER_ID_LENGTH
    assert GIVEN["step"]["schema"]["enum"] == [RAW, *STEPS]
    assert GIVEN["format"]["schema"]["enum"] == list(parameters.MEDIA_TYPES.values())
    assert SCHEMAS["HeartRate"]["properties"]["points"]["maxItems"] == MAX_POINTS
    assert SCHEMAS["Customers"]["properties"]["customers"]["maxItems"] == (
        parameters.MAX_PAGE
    )
    rate = SCHEMAS["Beat"]["properties"]["heart_rate"]
    assert (rate["minimum"], rate["maximum"]) == (LOWEST_HEART_RATE, HIGHEST_HEART_RATE)
    assert f"{parameters.MAX_LATEST.days} days" in GIVEN["since"]["description"]
    for step in ("minute", "hour"):
        hours = (MAX_POINTS - 1) * STEPS[step].total_seconds() / 3600
        told = f"{hours:.0f} hours" if hours < 100 else f"{hours / 24:.0f} days"
        assert f"`{step}` up to {told}" in GIVEN["step"]["description"]


def test_its_objects_have_the_codes_fields() -> None:
    summary = SCHEMAS["Summary"]["properties"]
    recent: Any = Recent
    for kind, described in (
        (Beat, SCHEMAS["Beat"]),
        (Bucket, SCHEMAS["Bucket"]),
        (Latest, SCHEMAS["LatestBeat"]),
        (Summary, SCHEMAS["Summary"]),
        (LastMinute, summary["last_minute"]),
        (recent, summary["recent"]),
    ):
        names = [field.name for field in fields(kind)]
        assert list(described["properties"]) == described["required"] == names
