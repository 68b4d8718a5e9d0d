"""Imports point downwards only, and the centre is pure; read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import heartbeat_app

PACKAGE = "heartbeat_app"
FOLDER = Path(heartbeat_app.__file__).parent

# From the bottom up. A part may import what is in the lines below it, and from its
# own line where that is said. What is not named is at the edge: commands, pages,
# timers and what starts them.
LAYERS = (
    ("exceptions",),
    ("env_file", "output"),
    ("config",),
    ("models", "validation", "batches", "excerpts"),
    ("lane", "storage", "kafka", "embedded", "waiting", "policy"),
    # They know nothing of each other: the one checks what the other made.
    ("log_reader", "reference"),
    ("deep",),
    (
        "topics",
        "recordings",
        "synthetic",
        "audit",
        "watchdog",
        "maintenance",
        "access",
        "connections",
        "live",
    ),
    ("metrics",),
    ("application",),
)
EDGE = len(LAYERS)

# validation and excerpts need models, and batches both; connections knows which pages
# are open. No parts of any other layer are neighbours.
NEIGHBOURS = {
    ("connections", "access"),
    ("validation", "models"),
    ("batches", "models"),
    ("batches", "validation"),
    ("excerpts", "models"),
}

# What a part must never import, whatever it is layered on.
FORBIDDEN = {
    "models": {"faust", "sqlalchemy", "psycopg2", "os", "time", "asyncio", "socket"},
    "validation": {"faust", "sqlalchemy", "psycopg2", "os", "time", "asyncio"},
    "batches": {"faust", "sqlalchemy", "psycopg2", "os", "time", "asyncio", "socket"},
    "excerpts": {"faust", "sqlalchemy", "psycopg2", "os", "time", "asyncio", "socket"},
    "lane": {"sqlalchemy", "psycopg2", "alembic"},
    "storage": {"faust", "mode", "aiokafka", "confluent_kafka"},
    "embedded": {"faust", "mode", "sqlalchemy"},
    "exceptions": {"faust", "sqlalchemy", "psycopg2"},
}


def part_of(module: str) -> str:
    """The part of the application: the file or package right below the top."""
    return module.split(".")[1] if "." in module else "__init__"


def layer_of(part: str) -> int:
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    return EDGE


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(FOLDER.rglob("*.py")):
        relative = path.relative_to(FOLDER).with_suffix("")
        parts = [part for part in relative.parts if part != "__init__"]
        yield ".".join([PACKAGE, *parts]), ast.parse(path.read_text(), str(path))


MODULES = dict(modules())


def imports(name: str) -> set[str]:
    """Full names of all that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_imports(name: str) -> set[str]:
    """The parts of the application that a module imports."""
    return {
        part_of(imported)
        for imported in imports(name)
        if imported.startswith(f"{PACKAGE}.")
    }


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards_only(name: str) -> None:
    part = part_of(name)
    for imported in own_imports(name) - {part}:
        downwards = layer_of(imported) < layer_of(part)
        neighbours = (part, imported) in NEIGHBOURS
        at_the_edge = layer_of(imported) == layer_of(part) == EDGE
        assert downwards or neighbours or at_the_edge, f"{name} imports {imported}"


@pytest.mark.parametrize("name", MODULES)
def test_a_part_knows_nothing_that_is_not_its_business(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(name)}
    assert not roots & FORBIDDEN.get(part_of(name), set())


def test_the_lane_knows_nothing_of_heartbeats() -> None:
    for name in MODULES:
        if part_of(name) == "lane":
            assert own_imports(name) <= {"lane", "exceptions"}, name


def test_storage_knows_neither_the_lane_nor_the_application() -> None:
    for name in MODULES:
        if part_of(name) == "storage":
            below = {"models", "validation", "batches", "excerpts"}
            below |= {"config", "exceptions"}
            assert own_imports(name) <= below | {"storage"}, name


@pytest.mark.parametrize("part", ["models", "validation", "batches", "excerpts"])
def test_the_centre_reads_no_clock_and_does_no_io(part: str) -> None:
    tree = MODULES[f"{PACKAGE}.{part}"]
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & {"now", "utcnow", "today", "read_text", "write_text", "environ"}
    assert not called & {"open", "print", "input"}


def test_every_layer_is_there() -> None:
    parts = {part_of(name) for name in MODULES}
    named = {part for parts_of_layer in LAYERS for part in parts_of_layer}
    assert named <= parts
