"""`heartbeat_app books` and `heartbeat_app dead-letters`, as a user types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from heartbeat_app.config import Settings
from heartbeat_app.kafka.client import Admin
from heartbeat_app.storage.rollup.rollup import Job
from testkit.servers import PROJECT, Topic, free_port, run, wait_until
from tests.booked import Shelf, execute, record
from tests.typed import FAUST, HEARTBEAT_APP, typed

pytestmark = pytest.mark.acceptance

# Prints Faust's and our commands, and the help of ours, as a terminal of 80 columns
# shows it.
PRINT_HELP = """
import importlib
import json
import click
from heartbeat_app.worker.application import MODULES
from faust.cli.faust import cli

OURS = [name for name in MODULES if name.startswith("heartbeat_app.cli.")]
OURS.remove("heartbeat_app.cli.faust_commands")
for name in OURS:
    importlib.import_module(name)
width = {"terminal_width": 80, "max_content_width": 80}

def helps(context):
    yield context.command_path, context.get_help()
    for name in getattr(context.command, "commands", ()):
        command = context.command.get_command(context, name)
        if command.callback.__module__ in OURS:
            yield from helps(click.Context(command, context, name, **width))

print(json.dumps(dict(helps(click.Context(cli, None, "heartbeat_app", **width)))))
"""


def test_the_documents_show_the_commands_help(environ: dict[str, str]) -> None:
    helps: dict[str, str] = json.loads(run(environ, sys.executable, "-c", PRINT_HELP))
    main = helps.pop("heartbeat_app")
    for command in (
        "worker",
        "demo",
        "send",
        "books",
        "partitions",
        "export",
        "erase",
        "dead-letters",
    ):
        assert re.search(rf"^  {command} +\S", main, re.MULTILINE), command
    text = (PROJECT / "docs" / "reference" / "commands.md").read_text()
    shown = re.findall(r"```text\n(Usage: .*?)\n```", text, re.DOTALL)
    assert sorted(shown) == sorted(helps.values())


@pytest.mark.parametrize("words", [[], ["--help"], ["books", "--help"], ["--version"]])
def test_who_only_looks_needs_no_settings(words: list[str], tmp_path: Path) -> None:
    """Beside no .env, as a newcomer would."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME")}
    done = subprocess.run(
        [*HEARTBEAT_APP, *words],
        cwd=tmp_path,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    # click shows the help of who typed nothing, and says that it is not enough.
    shown = done.stdout if words else done.stderr
    assert shown.startswith(("Usage: heartbeat_app ", "heartbeat_app, version "))
    assert done.returncode == (0 if words else 2)


def topic_id(settings: Settings, topic: Topic) -> str:
    """The id of the topic, as soon as all its partitions have leaders."""
    wait_until(lambda: topic.count() >= 0, "the topic is ready")
    return Admin(settings).topic_ids([topic.name])[topic.name]


def books_json(environ: dict[str, str], *options: str) -> tuple[int, Any]:
    done = typed(environ, "books", "--json", *options)
    assert "Traceback" not in done.err
    return done.status, json.loads(done.out)


def test_books_with_nothing_read_yet(environ: dict[str, str], topic: Topic) -> None:
    done = typed(environ, "books")
    assert done.status == 0, done.err
    assert "Nothing was read yet." in done.out
    assert f"Kafka has no topic {topic.name} (HEARTBEATS_TOPIC)" in done.err


def test_books_that_balance(
    environ: dict[str, str], topic: Topic, settings: Settings, engine: Engine
) -> None:
    topic.make(partitions=2, **{"message.timestamp.type": "LogAppendTime"})
    topic.produce([record(), record(), b"{", record(), record()], partition=0)
    topic.produce([record()], partition=1)
    shelf = Shelf(engine, topic=topic.name, topic_id=topic_id(settings, topic))
    shelf.book(record(), record(), b"{")
    done = typed(environ, "--quiet", "books", "--deep", program=FAUST)
    assert (done.status, done.err) == (0, "")
    words = done.out.splitlines()
    assert words[0] == f"Topic {topic.name} (id {topic_id(settings, topic)})"
    assert words[2].split() == ["0", "0", "3", "3", "1", "1", "1", "0", "0", "0", "2"]
    assert words[3].split() == ["1", "1"]  # not read yet: only its lag is known
    assert words[6].split() == ["all", "3", "1", "1", "1", "0", "0", "0", "3"]
    assert words[7] == "1 row in heartbeats, 0 of them stored by replay."
    assert "Kafka was read again: 3 offsets were verified." in words
    assert words[-1] == (
        "The books balance: 3 consumed = 1 stored + 1 duplicate + 1 dead; lag 3."
    )
    status, found = books_json(environ, "--deep")
    assert status == 0
    assert (found["balanced"], found["kafka_checked"]) == (True, True)
    assert found["total"] == {
        "consumed": 3, "stored": 1, "duplicate": 1, "dead": 1, "missing": 0, "gap": 0,
        "unreadable": 0, "lag": 3, "rows": 1, "replayed": 0, "dropped": 0, "erased": 0,
    }  # fmt: skip
    first, second = found["partitions"]
    assert (first["next_offset"], first["log_end"], first["lag"]) == (3, 5, 2)
    assert (second["next_offset"], second["log_end"], second["lag"]) == (None, 1, 1)


def test_books_that_do_not_balance(
    environ: dict[str, str], topic: Topic, settings: Settings, engine: Engine
) -> None:
    """Ahead of the log by two, and a dead letter is gone."""
    topic.make(partitions=1)
    topic.produce([record()])
    shelf = Shelf(engine, topic=topic.name, topic_id=topic_id(settings, topic))
    shelf.book(record(), record(), None)
    execute(engine, "DELETE FROM dead_letters")
    done = typed(environ, "books")
    assert done.status == 1
    assert "The books do not balance:" in done.err
    assert "dead 1, but counted dead letters are 0; off by -1." in done.err
    assert "next offset is 3, but the log ends at 1; off by +2." in done.err
    status, found = books_json(environ)
    assert (status, found["balanced"], len(found["problems"])) == (1, False, 2)


def test_books_of_a_topic_that_was_made_again(
    environ: dict[str, str], topic: Topic, settings: Settings, engine: Engine
) -> None:
    topic.make(partitions=1)
    topic.produce([record()])
    shelf = Shelf(engine, topic=topic.name, topic_id="the-old-one")
    shelf.book(*([record()] * 100))
    status, found = books_json(environ)
    assert (status, found["problems"], found["total"]["lag"]) == (0, [], 1)


def test_books_while_kafka_is_away(environ: dict[str, str], engine: Engine) -> None:
    Shelf(engine).book(record())
    server = f"127.0.0.1:{free_port()}"
    environ = {**environ, "KAFKA_BOOTSTRAP_SERVERS": server}
    done = typed(environ, "books")
    assert done.status == 1
    assert f"Kafka at {server} does not answer" in done.err
    assert "The books balance in PostgreSQL" in done.err
    assert " 1 " in done.out
    status, found = books_json(environ)
    assert status == 1
    assert (found["balanced"], found["kafka_checked"]) == (True, False)
    assert server in found["kafka_error"]


@pytest.mark.parametrize(
    "command", [["books"], ["partitions"], ["dead-letters", "list"]]
)
def test_says_that_postgresql_is_away(
    environ: dict[str, str], command: list[str]
) -> None:
    port = str(free_port())
    done = typed({**environ, "POSTGRESQL_PORT": port}, *command)
    assert done.status == 1
    assert f"PostgreSQL at 127.0.0.1:{port}, database " in done.err
    assert "does not answer" in done.err
    assert "Traceback" not in done.err


def test_says_that_the_tables_are_missing(environ: dict[str, str]) -> None:
    done = typed({**environ, "POSTGRESQL_DATABASE": "postgres"}, "dead-letters", "list")
    assert done.status == 1
    assert "Run `alembic upgrade head`." in done.err


def test_partitions(environ: dict[str, str], engine: Engine) -> None:
    assert typed(environ, "partitions").out == "There are no days yet.\n"
    shelf = Shelf(engine)
    shelf.book(record(), record("bert"), record(timestamp="2025-12-01T10:00:00Z"))
    Job(engine).run_pass()
    shelf.book(record("carl"))
    # A session tells what it wrote when it ends, if not before; were that after
    # ANALYZE, the statistics would count its rows twice.
    engine.dispose()
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    options = {"isolation_level": "AUTOCOMMIT"}  # each look is a new one
    with engine.connect().execution_options(**options) as connection:
        wait_until(lambda: connection.scalar(text(others)) == 0, "no other session")
    execute(engine, "ANALYZE")
    execute(
        engine, "INSERT INTO dropped_days VALUES ('2025-11-30', 1200, now(), now())"
    )
    # What counts is what the owner wrote into the database.
    execute(engine, "INSERT INTO retention VALUES ('heartbeats', 30)")
    done = typed(environ, "partitions")
    assert (done.status, done.err) == (0, "")
    lines = [re.split(r"  +", line.strip()) for line in done.out.splitlines()]
    assert lines[0] == ["day", "rows about", "size", "rolled up", "state", "dropped on"]
    assert lines[1][0:2] == ["2025-12-01", "1"]
    assert lines[1][3:] == ["1", "rolled up", "2026-01-02"]
    assert lines[2][0:2] == ["2026-01-01", "3"]
    assert lines[2][3:] == ["2", "1 minute to roll up", "2026-02-02"]
    months = [(line[0], line[1], line[-1]) for line in lines[5:9]]
    assert months == [
        ("heartbeats_minute", "2025-12", "never"),
        ("heartbeats_minute", "2026-01", "never"),
        ("heartbeats_hour", "2025-12", "never"),
        ("heartbeats_hour", "2026-01", "never"),
    ]
    assert done.out.endswith("Dropped by the retention: 1 day with 1,200 beats.\n")
    found = json.loads(typed(environ, "partitions", "--json").out)
    assert found["dropped_rows"] == 1200
    [_, day] = found["days"]
    assert day.pop("bytes") > 8192
    assert day == {
        "day": "2026-01-01", "rows": 3, "rolled_up": 2, "marked_minutes": 1,
        "drop_on": "2026-02-02", "rolled_up_completely": False,
    }  # fmt: skip


def test_dead_letters_from_list_to_replay(
    environ: dict[str, str], engine: Engine
) -> None:
    assert "There are no dead letters." in typed(environ, "dead-letters", "list").out
    # Valid by now: what was "too early" in the books' year of 2026.
    shelf = Shelf(engine)
    early = record(timestamp="2026-01-01T13:00:00Z")
    assert datetime.now(UTC) > datetime(2026, 1, 1, 13, tzinfo=UTC)
    shelf.book(early, b'{"\x1b[2J', None, key=b"anna")

    listed = typed(environ, "dead-letters", "list")
    assert listed.status == 0, listed.err
    assert "timestamp_in_future" in listed.out
    assert "beats[0]@1" in listed.out
    assert "3 of 3 dead letters: 1 empty, 1 not_json, 1 timestamp_in_future." in (
        listed.out
    )
    only = typed(environ, "dead-letters", "list", "--reason", "empty", "--limit", "1")
    assert "beats[0]@2" in only.out
    assert "beats[0]@0" not in only.out
    found = json.loads(typed(environ, "dead-letters", "list", "--json").out)
    assert [letter["offset"] for letter in found["letters"]] == [2, 1, 0]

    letter_id = str(found["letters"][1]["id"])
    shown = typed(environ, "dead-letters", "show", letter_id)
    assert '{"\\x1b[2J' in shown.out
    assert "\x1b" not in shown.out
    whole = json.loads(typed(environ, "dead-letters", "show", letter_id, "--json").out)
    assert (whole["key"], whole["value"]) == ("anna", '{"\x1b[2J')
    assert typed(environ, "dead-letters", "show", "999").status == 1

    replay = ["dead-letters", "replay"]
    dry = typed(environ, *replay, "--dry-run")
    assert dry.out == (
        "A replay of 3 dead letters would give: 1 stored, 1 refused: empty, "
        "1 refused: not_json. Nothing was changed.\n"
    )
    done = typed(environ, *replay, "--reason", "timestamp_in_future")
    assert (done.status, done.out) == (0, "Replayed 1 dead letter: 1 stored.\n")
    done = typed(environ, *replay, "--reason", "timestamp_in_future")
    assert done.out == "There is nothing to replay.\n"
    wrong = typed(environ, *replay, "--reason", "boredom")
    assert wrong.status == 2
    assert "'timestamp_in_future'" in wrong.err


def test_a_replay_takes_todays_settings(
    environ: dict[str, str], engine: Engine
) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    Shelf(engine).book(record(timestamp=tomorrow))
    command = ["dead-letters", "replay"]
    done = typed(environ, *command)
    assert "1 refused: timestamp_in_future" in done.out
    done = typed({**environ, "MAX_FUTURE_SECONDS": "90000"}, *command)
    assert done.out == "Replayed 1 dead letter: 1 stored.\n"
