"""Expands a query of a dashboard to the SQL that Grafana sends to PostgreSQL.

After Grafana 12's pkg/tsdb/grafana-postgresql-datasource/macros.go, the few that
sqleng/sql_engine.go fills in for all databases, and the variables that the browser
fills in before. A macro or variable that is not known is an error, as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

_MACRO = re.compile(r"\$([_a-zA-Z0-9]+)\(([^)]*)\)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([a-z]\w*))")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}

# roundInterval() of @grafana/data: up to, not including, so many milliseconds a point
# the step is that.
_STEPS = (
    (1_500, "1s"), (3_500, "2s"), (7_500, "5s"), (12_500, "10s"), (17_500, "15s"),
    (25_000, "20s"), (45_000, "30s"), (90_000, "1m"), (210_000, "2m"),
    (450_000, "5m"), (750_000, "10m"), (1_050_000, "15m"), (1_500_000, "20m"),
    (2_700_000, "30m"), (5_400_000, "1h"), (9_000_000, "2h"), (16_200_000, "3h"),
    (32_400_000, "6h"), (86_400_000, "12h"), (604_800_000, "1d"),
    (1_814_400_000, "7d"), (3_628_800_000, "30d"),
)  # fmt: skip
LONGEST_STEP = "365d"

# Points of a chart as wide as a screen, where the panel does not say.
DEFAULT_POINTS = 1_500


@dataclass(frozen=True)
class View:
    """What a person looks at: a range of time, in steps as wide as Grafana chose.

    Attributes:
        variables: The dashboard's, as they are chosen.
    """

    start: datetime
    end: datetime
    interval: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        start: datetime,
        end: datetime,
        *,
        points: int = DEFAULT_POINTS,
        least: str = "1s",
        variables: Mapping[str, str] | None = None,
    ) -> View:
        """Choose the step as Grafana does.

        Arguments:
            points: maxDataPoints of the panel.
            least: The panel's smallest step, else the data source's.
        """
        step = interval(end - start, points)
        if _seconds(step) < _seconds(least):
            step = least
        return cls(start, end, step, variables or {})

    @property
    def step_seconds(self) -> float:
        """How wide a step is."""
        return _seconds(self.interval)


def interval(span: timedelta, points: int) -> str:
    """The step that makes about so many points of a span."""
    milliseconds = span / timedelta(milliseconds=1) / points
    for below, step in _STEPS:
        if milliseconds < below:
            return step
    return LONGEST_STEP


def expand(query: str, view: View) -> str:
    """The SQL as PostgreSQL gets it."""
    query = _VARIABLE.sub(lambda name: _value(name[1] or name[2], view), query)
    query = query.replace("$__interval_ms", f"{view.step_seconds * 1000:.0f}")
    query = query.replace("$__interval", view.interval)
    query = query.replace("$__unixEpochFrom()", _epoch(view.start))
    query = query.replace("$__unixEpochTo()", _epoch(view.end))
    expanded = _MACRO.sub(lambda call: _macro(call[1], call[2], view), query)
    if "$__" in expanded:
        raise ValueError(f"a macro without its parentheses in {expanded!r}")
    return expanded


def _value(name: str, view: View) -> str:
    """For between the quotes of a text, where there are any.

    Only a variable that may have several values would bring its own quotes.
    """
    if name not in view.variables:
        raise ValueError(f"unknown variable {name!r}")
    return view.variables[name].replace("'", "''")


def _macro(name: str, inside: str, view: View) -> str:
    arguments = [argument.strip(" ") for argument in inside.split(",")]
    start, end = _rfc3339(view.start), _rfc3339(view.end)
    match name:
        case "__timeFilter":
            return f"{arguments[0]} BETWEEN '{start}' AND '{end}'"
        case "__timeFrom":
            return f"'{start}'"
        case "__timeTo":
            return f"'{end}'"
        case "__timeGroup":
            width = f"{_seconds(arguments[1].strip(chr(39))):g}"
            return f"floor(extract(epoch from {arguments[0]})/{width})*{width}"
        case "__timeGroupAlias":
            return _macro("__timeGroup", inside, view) + ' AS "time"'
    raise ValueError(f"unknown macro {name!r}")


def _seconds(interval: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(\w+)", interval).groups()  # type: ignore[union-attr]
    return float(number) * _UNIT_SECONDS[unit]


def _epoch(instant: datetime) -> str:
    """Go's Unix(): whole seconds, the fraction cut off."""
    return str(int(instant.timestamp()))


def _rfc3339(instant: datetime) -> str:
    """Go's RFC3339Nano: UTC, the fraction without trailing zeros."""
    text = instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".") + "Z"
