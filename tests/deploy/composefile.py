"""Reads docker-compose.yml as Compose does, with its variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
COMPOSE_FILE = PROJECT / "docker-compose.yml"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")


class MissingVariable(Exception):
    """A variable that `${NAME:?words}` asks for is not set."""


def load(environ: Mapping[str, str]) -> dict[str, Any]:
    """The project as the containers would see it.

    Rules: https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md
    """
    project = _fill_in(yaml.safe_load(COMPOSE_FILE.read_text()), environ)
    assert isinstance(project, dict)
    for service in project["services"].values():
        # A name without a value takes that of the same variable outside, if any.
        service["environment"] = {
            name: environ.get(name) if value is None else value
            for name, value in service.get("environment", {}).items()
            if value is not None or name in environ
        }
    return project


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Replace `$NAME`, `${NAME}`, `${NAME:-default}` and the like, nested too."""
    filled, rest = "", text
    while rest:
        before, dollar, rest = rest.partition("$")
        filled += before
        if not dollar:
            break
        if rest.startswith("$"):
            filled, rest = filled + "$", rest[1:]
        elif rest.startswith("{"):
            end = _closing_brace(rest)
            filled += _braced(rest[1:end], environ)
            rest = rest[end + 1 :]
        elif name := _NAME.match(rest):
            filled += environ.get(name[0], "")
            rest = rest[name.end() :]
        else:
            raise ValueError(f"a lone $ in {text!r}; $$ stands for a dollar sign")
    return filled


def _fill_in(node: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return interpolate(node, environ)
    if isinstance(node, list):
        return [_fill_in(item, environ) for item in node]
    if isinstance(node, dict):
        return {key: _fill_in(value, environ) for key, value in node.items()}
    return node


def _closing_brace(text: str) -> int:
    depth = 0
    for index, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing brace in ${text!r}")


def _braced(inside: str, environ: Mapping[str, str]) -> str:
    name = _NAME.match(inside)
    if name is None:
        raise ValueError(f"no variable's name in ${{{inside}}}")
    value = environ.get(name[0])
    if name.end() == len(inside):
        return value or ""
    operator = _OPERATOR.match(inside, name.end())
    if operator is None:
        raise ValueError(f"an unknown operator in ${{{inside}}}")
    word = inside[operator.end() :]
    # With the colon an empty value counts as none.
    present = bool(value) if operator[0].startswith(":") else value is not None
    if operator[0].endswith("+"):
        return interpolate(word, environ) if present else ""
    if present:
        assert value is not None
        return value
    if operator[0].endswith("?"):
        raise MissingVariable(f"{name[0]}: {interpolate(word, environ)}")
    return interpolate(word, environ)
