"""Expands a query of the dashboard to the SQL that Grafana sends to PostgreSQL.

After Grafana 12's pkg/tsdb/grafana-postgresql-datasource/macros.go and the two
variables that the browser fills in before. A macro that is not known is an error,
as it is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_MACRO = re.compile(r"\$([_a-zA-Z0-9]+)\(([^)]*)\)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class View:
    """What a person looks at: a range of time, in steps as wide as Grafana chose."""

    start: datetime
    end: datetime
    interval: str

    @property
    def step_seconds(self) -> float:
        return _seconds(self.interval)


def expand(query: str, view: View) -> str:
    """The SQL as PostgreSQL gets it."""
    query = query.replace("$__interval_ms", f"{view.step_seconds * 1000:.0f}")
    query = query.replace("$__interval", view.interval)
    expanded = _MACRO.sub(lambda call: _macro(call[1], call[2], view), query)
    if "$__" in expanded:
        raise ValueError(f"a macro without its parentheses in {expanded!r}")
    return expanded


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


def _rfc3339(instant: datetime) -> str:
    """Go's RFC3339Nano: UTC, the fraction without trailing zeros."""
    text = instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".") + "Z"
