"""SQL is never built from input: read from the source."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = sorted(
    [
        *(PROJECT / "heartbeat_app").rglob("*.py"),
        *(PROJECT / "alembic").rglob("*.py"),
    ]
)

# What takes SQL as a text. `execute` takes SQLAlchemy's own expressions, too.
TAKES_SQL = {
    "text", "SQL", "DDL", "literal_column", "exec_driver_sql", "execute", "executemany",
    "scalar", "scalars", "copy_expert", "copy_in", "mogrify",
}  # fmt: skip

# A text that is put together, and begins as a statement or holds a part of one.
SQL = re.compile(
    r"^\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|TRUNCATE|GRANT|REVOKE|COPY"
    r"|SET|WITH|LOCK|CALL|DO)\s"
    r"|\s(FROM|WHERE|INTO|VALUES|TABLE|ON CONFLICT|ORDER BY|RETURNING)\s",
)

# Put together from constants of the same module: file, and the source of the text.
ALLOWED = {
    **{
        ("alembic/versions/0010_limits.py", source): "of constants of the migrations"
        for source in (
            "REPLACE_IN_FUNCTIONS.format(before=before, after=after)",
            "made.replace('CREATE FUNCTION', 'CREATE OR REPLACE FUNCTION')",
        )
    },
    ("heartbeat_app/storage/read/compare.py", "READ"): "a constant of erasures",
    (
        "heartbeat_app/storage/operator/erase_check.py",
        "query",
    ): "psycopg2 quotes the table's name, which the catalog gave",
    (
        "heartbeat_app/storage/write/beats.py",
        "SELECT_KNOWN.format(days=' OR '.join([ON_THAT_DAY] * len(some)))",
    ): "as many times the same condition as there are days, whose bounds are "
    "parameters",
    **{
        (
            "heartbeat_app/storage/db/prepared.py",
            source,
        ): "of statements that are written down where they are made, see below"
        for source in (
            "each.statement.prepare",
            "'; '.join([each.statement.execution if isinstance(each, Bound) "
            "else each.sql for each in statements])",
        )
    },
}


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def constants(tree: ast.Module) -> set[str]:
    """Names that a module binds once, to a text that is written down there."""
    bound: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    bound.setdefault(target.id, []).append(node.value)
        elif isinstance(
            node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr
        ) and isinstance(node.target, ast.Name):
            bound.setdefault(node.target.id, []).append(None)
    return {
        name
        for name, [first, *others] in bound.items()
        if first is not None and not others and is_constant(first)
    }


def put_together(tree: ast.Module) -> Iterator[ast.expr]:
    """Texts that are made of parts: f-strings, %, +, format, join, replace."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            if any(isinstance(part, ast.FormattedValue) for part in node.values):
                yield node
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            if any(map(is_constant, (node.left, node.right))):
                yield node
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"format", "format_map", "join", "replace"}
            and is_constant(node.func.value)
        ):
            yield node


def written(node: ast.AST) -> str:
    """The parts of a text that are written down, in their order."""
    return " ".join(
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    )


def built(source: str, name: str = "") -> list[str]:
    """What in a module is SQL that is not written down as it is."""
    tree = ast.parse(source)
    known = constants(tree)
    found = [
        ast.unparse(node) for node in put_together(tree) if SQL.search(written(node))
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func
        function = (
            called.attr if isinstance(called, ast.Attribute)
            else called.id if isinstance(called, ast.Name)
            else ""
        )  # fmt: skip
        if function not in TAKES_SQL:
            continue
        first = node.args[0]
        formatted = (
            isinstance(first, ast.Call)
            and isinstance(first.func, ast.Attribute)
            and first.func.attr in {"format", "format_map", "replace"}
            # psycopg2's own SQL(…).format() quotes what it fills in.
            and isinstance(first.func.value, ast.Name)
        )
        if formatted or isinstance(first, ast.JoinedStr | ast.BinOp):
            found.append(ast.unparse(first))
        elif function in {"text", "SQL", "DDL", "literal_column", "exec_driver_sql"}:
            chosen = (
                [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
            )
            for each in chosen:
                named = isinstance(each, ast.Name) and each.id in known
                if not is_constant(each) and not named:
                    found.append(ast.unparse(each))
    return sorted({each for each in found if (name, each) not in ALLOWED})


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sql_is_written_down(path: Path) -> None:
    name = name_of(path)
    found = built(path.read_text(), name)
    if name == "heartbeat_app/storage/db/roles.py":
        # The statements are constants above it; psycopg2 fills in quoted names, or
        # those that PostgreSQL has quoted.
        assert found == ["names", "statement"]
        assert path.read_text().count("SQL(statement).format(") == 2
    else:
        assert found == []


def prepared(source: str) -> tuple[list[ast.Call], list[ast.Call]]:
    """What is made of `Prepared` and `Plain`, and what of it is written down."""

    def is_prepared(node: ast.AST | None) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"Prepared", "Plain"}
        )

    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if is_prepared(node)]
    written = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and is_prepared(node.value)
    ]
    return (
        [node for node in calls if isinstance(node, ast.Call)],
        [
            node
            for node in written
            if isinstance(node, ast.Call)
            and not node.keywords
            and len(node.args) == (1 if ast.unparse(node.func) == "Plain" else 3)
            and is_constant(node.args[0])
            and is_constant(node.args[-1])
        ],
    )


def test_statements_to_prepare_are_written_down() -> None:
    count = 0
    for path in SOURCES:
        calls, written = prepared(path.read_text())
        assert calls == [] or len(calls) == len(written), path
        count += len(calls)
    assert count >= 5


@pytest.mark.parametrize(
    "source",
    [
        "A = Prepared('a', ('TEXT',), f'SELECT {b}')",
        "A = Prepared(name, ('TEXT',), 'SELECT 1')",
        "A = Prepared('a', ('TEXT',), sql=given)",
        "def f(): return Prepared('a', (), 'SELECT 1')",
        "A = Plain(f'LOCK TABLE {b}')",
        "def f(sql): return Plain(sql)",
    ],
)
def test_a_statement_that_is_not_written_down_is_found(source: str) -> None:
    calls, written = prepared(source)
    assert len(calls) > len(written)


def test_what_is_allowed_is_still_there() -> None:
    for name, source in ALLOWED:
        tree = ast.parse((PROJECT / name).read_text())
        assert source in [
            ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr)
        ]


@pytest.mark.parametrize(
    "source",
    [
        "c.execute(f'SELECT * FROM {table}')",
        "c.execute('SELECT * FROM ' + table)",
        "c.execute('SELECT * FROM %s' % table)",
        "c.execute('SELECT * FROM {}'.format(table))",
        "text('SELECT ' + columns)",
        "text(statement)",
        "statement = input(); text(statement)",
        "A = 'SELECT 1'; A = input(); text(A)",
        "A = 'SELECT 1'; A += input(); text(A)",
        "c.exec_driver_sql(given)",
        "query = f'DELETE FROM t WHERE id = {i}'",
        "query = 'UPDATE t SET a = ' + a",
        "SQL(f'ALTER ROLE {name}')",
        "literal_column(column)",
        "where = f' WHERE a = {a} '",
    ],
)
def test_what_is_built_is_found(source: str) -> None:
    assert built(source)


@pytest.mark.parametrize(
    "source",
    [
        "c.execute('SELECT %s', (value,))",
        "c.execute(select(t).where(t.c.a == value))",
        "A = 'SELECT 1'\ntext(A)",
        "text('SELECT :a')",
        "print(f'Stored {n} beats')",
    ],
)
def test_what_is_written_down_is_not_found(source: str) -> None:
    assert built(source) == []


# A literal with a backslash means what the session's standard_conforming_strings says,
# unless it is E'…'. The sessions set that; a person's psql or Grafana may not.
LITERAL = re.compile(r"(?<![A-Za-z])(E?)'((?:[^']|'')*)'", re.IGNORECASE)


def depends_on_backslashes(sql: str) -> list[str]:
    return [
        match[0] for match in LITERAL.finditer(sql) if "\\" in match[2] and not match[1]
    ]


def texts_of(path: Path) -> Iterator[str]:
    if path.suffix == ".json":
        yield from strings_in(json.loads(path.read_text()))
    elif path.suffix == ".yml":
        yield path.read_text()
    else:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def strings_in(found: object) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict | list):
        for each in found.values() if isinstance(found, dict) else found:
            yield from strings_in(each)


@pytest.mark.parametrize(
    "path",
    [*SOURCES, *sorted((PROJECT / "grafana").rglob("*.json")),
     *sorted((PROJECT / "grafana").rglob("*.yml"))],
    ids=name_of,
)  # fmt: skip
def test_no_literal_depends_on_how_a_session_reads_a_backslash(path: Path) -> None:
    found = [
        literal
        for sql in texts_of(path)
        if SQL.search(sql) or " ~ " in sql
        for literal in depends_on_backslashes(sql)
    ]
    assert found == []


def test_a_literal_that_depends_on_it_is_seen() -> None:
    assert depends_on_backslashes(r"SELECT a ~ '^b_\d$', E'\\d', 'c'") == [r"'^b_\d$'"]
