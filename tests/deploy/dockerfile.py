"""Reads the Dockerfile into its instructions."""

from __future__ import annotations

import json
import re

from tests.deploy.composefile import PROJECT

DOCKERFILE = PROJECT / "Dockerfile"


def stages() -> list[list[tuple[str, str]]]:
    """Instruction and argument, in order, of each stage; continued lines joined."""
    found: list[list[tuple[str, str]]] = []
    lines = [
        line
        for line in DOCKERFILE.read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, argument = line.strip().partition(" ")
            if instruction == "FROM":
                found.append([])
            found[-1].append((instruction, argument.strip()))
    return found


def health_check() -> list[str]:
    """The command that Docker runs to see whether the worker does its work."""
    (argument,) = (text for name, text in stages()[-1] if name == "HEALTHCHECK")
    command = json.loads(argument.partition("CMD ")[2])
    assert isinstance(command, list)
    return command
