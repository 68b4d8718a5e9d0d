"""Each room imports only what its row allows; read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import heartbeat_app

PACKAGE = "heartbeat_app"
FOLDER = Path(heartbeat_app.__file__).parent
DOCS = FOLDER.parent / "docs" / "explanation" / "architecture.md"

# A room is a folder, or a module right below the top. A row names the rooms that it may
# import, all of which stand above it.
MAY_IMPORT: dict[str, set[str]] = {
    "exceptions": set(),
    "env_file": {"exceptions"},
    "config": {"env_file", "exceptions"},
    "terminal": {"exceptions"},
    "domain": set(),
    "simulator": {"domain"},
    "lane": {"exceptions"},
    "kafka": {"config", "exceptions"},
    "storage": set(),
    "storage/db": {"config", "domain", "exceptions"},
    "storage/rollup": {"storage/db"},
    "storage/days": {"config", "domain", "storage/db", "storage/rollup"},
    "storage/write": {
        "domain", "exceptions", "storage/db", "storage/days", "storage/rollup",
    },
    "storage/operator": {
        "domain", "exceptions", "storage/db", "storage/days", "storage/rollup",
        "storage/write",
    },
    "storage/read": {
        "config", "exceptions", "storage/db", "storage/days", "storage/rollup",
        "storage/write",
    },
    "audit": {"kafka", "storage/read"},
    "live": {"kafka", "storage/db", "storage/read"},
    "embedded": {"exceptions"},
    "demo": {
        "audit", "config", "embedded", "env_file", "exceptions", "kafka", "storage/db",
        "storage/read", "terminal",
    },
    "web": {"domain", "exceptions", "storage/db", "storage/read", "storage/write"},
    "worker": {
        "config", "domain", "exceptions", "kafka", "lane", "live", "simulator",
        "storage/days", "storage/db", "storage/read", "storage/rollup",
        "storage/write", "web",
    },
    "cli": {
        "audit", "config", "demo", "domain", "exceptions", "kafka", "storage/days",
        "storage/db", "storage/operator", "storage/read", "storage/write", "terminal",
        "worker",
    },
}  # fmt: skip

# The pages are given the app by its module, which protects them. Nothing else may.
UPWARDS = {("web", "worker")}
# What starts it all.
TOP = {"__init__", "__main__"}

# Libraries that a room must never import.
FORBIDDEN = {
    "domain": {"faust", "sqlalchemy", "psycopg2", "os", "time", "asyncio", "socket"},
    "lane": {"sqlalchemy", "psycopg2", "alembic"},
    "storage": {"faust", "mode", "aiokafka", "confluent_kafka"},
    "embedded": {"faust", "mode", "sqlalchemy"},
    "exceptions": {"faust", "sqlalchemy", "psycopg2"},
}
# How the domain would read a clock, or do I/O.
CLOCKS = {"now", "utcnow", "today", "read_text", "write_text", "environ"}
FILES = {"open", "print", "input"}


def room_of(module: str) -> str:
    """The room of a module, or of a name in it, by its full name."""
    parts = module.split(".")[1:]
    if len(parts) > 1 and parts[0] == "storage" and f"storage/{parts[1]}" in MAY_IMPORT:
        return f"storage/{parts[1]}"
    return parts[0] if parts else "__init__"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        names = [part for part in parts if part != "__init__"]
        yield ".".join([PACKAGE, *names]), ast.parse(path.read_text(), str(path))


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
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imported_rooms(room: str) -> dict[str, str]:
    """The other rooms that a room imports, each with a module that does it."""
    return {
        room_of(imported): name
        for name in MODULES
        if room_of(name) == room
        for imported in imports(name)
        if imported.startswith(f"{PACKAGE}.") and room_of(imported) != room
    }


def test_every_module_is_in_a_room() -> None:
    assert {room_of(name) for name in MODULES} == {*MAY_IMPORT, *TOP}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_its_row_names_and_no_more(room: str) -> None:
    found = imported_rooms(room)
    allowed = MAY_IMPORT[room] | {to for of, to in UPWARDS if of == room}
    assert set(found) == allowed, found


def test_a_row_names_only_rooms_above_it() -> None:
    above: set[str] = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= above, room
        above.add(room)


@pytest.mark.parametrize("name", MODULES)
def test_a_room_uses_no_library_that_is_not_its_business(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(name)}
    assert not roots & FORBIDDEN.get(room_of(name).split("/")[0], set())


@pytest.mark.parametrize("name", [n for n in MODULES if room_of(n) == "domain"])
def test_the_domain_reads_no_clock_and_does_no_io(name: str) -> None:
    tree = MODULES[name]
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & CLOCKS
    assert not called & FILES


def test_the_docs_show_the_rooms_with_their_sentences_and_their_imports() -> None:
    rows = re.findall(
        r"^\| `([a-z_/]+?)(?:/|\.py)` \| (.+) \| (.*) \|$", DOCS.read_text(), re.M
    )
    shown = {
        room: (words, set(re.findall(r"`([a-z_/]+)`", names)))
        for room, words, names in rows
    }
    for room, allowed in MAY_IMPORT.items():
        tree = MODULES[".".join([PACKAGE, *room.split("/")])]
        sentence = (ast.get_docstring(tree) or "").partition("\n")[0]
        assert shown.pop(room) == (sentence, allowed), room
    assert not shown
