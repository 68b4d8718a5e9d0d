"""Commands with odd files, streams and limits end in a sentence and a true status."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from heartbeat_app.demo.env_file import ensure_env_file
from heartbeat_app.demo.preflight import FILES
from testkit.servers import PROJECT, Topic, child_environ, free_port, wait_until
from tests.typed import FAUST, HEARTBEAT_APP, Done, typed, typing

pytestmark = pytest.mark.acceptance

# Nothing listens on port 1; no command below connects.
ENVIRON = {
    "POSTGRESQL_USERNAME": "nobody",
    "POSTGRESQL_PASSWORD": "secret",
    "POSTGRESQL_DATABASE": "nowhere",
    "POSTGRESQL_PORT": "1",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "SHELL": "/bin/bash",
}
NO_DATABASE = {**ENVIRON, **dict.fromkeys(list(ENVIRON)[:3], "")}

HEADER = "customer_id,timestamp,heart_rate\n"


def in_shell(
    environ: Mapping[str, str], line: str, *, cwd: Path = PROJECT, seconds: float = 60
) -> Done:
    """Run `heartbeat_app …` with what the shell does to its streams and limits."""
    done = subprocess.run(
        ["bash", "-c", line.replace("heartbeat_app", shlex.join(HEARTBEAT_APP), 1)],
        cwd=cwd,
        env=child_environ(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def is_sentence(done: Done) -> bool:
    everything = done.out + done.err
    return not re.search("Traceback|raised exception|Exception ignored", everything)


# What each of Faust's commands and our own that connect to nothing prints, without any
# setting of the database.
PRINTED = {
    "agents": "store_heartbeats",
    "tables": "name",
    "models": "Heartbeat",
    "model Heartbeat": "heart_rate   a whole number from 1 to 300",
    "model heartbeat_app.domain.models.Heartbeat": "customer_id",
    "--json model Heartbeat": '"field": "timestamp"',
    "completion": "_HEARTBEAT_APP_COMPLETE=bash_complete",
    "completion zsh": "#compdef heartbeat_app",
    "completion fish": "complete ",
    "clean-versions": "",
    "reset": "",
    "--version": "heartbeat_app, version 0.1.0 (Faust 0.15.3)",
    "--help": "worker",
    "send --help": "--speed",
}
# How the others end.
ENDED = {
    "model nobody": (2, "There is no model 'nobody'; `heartbeat_app models` lists"),
    "completion tcsh": (2, "Invalid value for 'SHELL'"),
    "livecheck": (2, "is not associated with LiveCheck"),
    "worker": (1, "POSTGRESQL_USERNAME is not set"),
    "books": (1, "POSTGRESQL_PASSWORD is not set"),
    "partitions": (1, "POSTGRESQL_DATABASE is not set"),
    "dead-letters list": (1, "POSTGRESQL_DATABASE is not set"),
    "export -": (1, "POSTGRESQL_DATABASE is not set"),
    "erase --yes anna": (1, "POSTGRESQL_DATABASE is not set"),
    "export --from 2026-01-02T00:00:00Z --to 2026-01-01T00:00:00Z -": (
        2,
        "--from 2026-01-02T00:00:00+00:00 does not lie before --to 2026-01-01T00:00",
    ),
    "export --from 2026-01-01T01:00:00+01:00 --to 2026-01-01T00:00:00Z -": (
        2,
        "does not lie before",
    ),
}


@pytest.mark.parametrize("words", PRINTED)
def test_each_command_works_without_the_database(words: str) -> None:
    done = typed(NO_DATABASE, *shlex.split(words))
    assert (done.status, done.err) == (0, "")
    assert PRINTED[words] in done.out


@pytest.mark.parametrize("words", ENDED)
def test_or_ends_in_a_sentence(words: str) -> None:
    done = typed(NO_DATABASE, *shlex.split(words))
    status, why = ENDED[words]
    assert done.status == status, done
    assert why in done.err
    assert is_sentence(done)


def test_every_command_of_faust_is_in_the_tables() -> None:
    listed = typed(ENVIRON, "--help").out.partition("Commands:")[2]
    names = set(re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE))
    tried = {word for line in [*PRINTED, *ENDED] for word in line.split()}
    assert names - tried == {"demo"}


def test_faust_knows_the_same_commands() -> None:
    environ = {**NO_DATABASE, "WEB_PORT": ""}
    done = typed(environ, "model", "Heartbeat", program=FAUST)
    assert (done.status, done.err) == (0, "")
    done = typed(environ, "worker", program=FAUST)
    assert done.status == 1
    assert "POSTGRESQL_USERNAME is not set" in done.err
    assert is_sentence(done)


@pytest.mark.parametrize(
    ("stream", "why"),
    [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_a_standard_output_that_takes_nothing(stream: str, why: str) -> None:
    for words in PRINTED:
        if PRINTED[words]:
            done = in_shell(NO_DATABASE, f"heartbeat_app {words} {stream}")
            assert done.status == 1, words
            assert done.err == f"Error: Cannot write standard output: {why}.\n"


def test_nobody_reads_any_further() -> None:
    done = in_shell(
        ENVIRON, "set -o pipefail; heartbeat_app completion | (exec <&-; sleep 0)"
    )
    assert done.status in {0, 1}  # whoever is faster
    assert done.err == ""


def test_what_was_sent_is_told_where_standard_output_is_full(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    """It needs no setting of the database, and may name the broker as Faust does."""
    topic.make()
    file = tmp_path / "a.csv"
    file.write_text(HEADER + "anna,2026-01-01T00:00:00Z,72\nbad\n")
    only_kafka = {
        name: f"kafka://{value}" if name == "KAFKA_BOOTSTRAP_SERVERS" else value
        for name, value in environ.items()
        if not name.startswith("POSTGRESQL")
    }
    done = in_shell(only_kafka, f"heartbeat_app send {file} > /dev/full")
    assert done.status == 1
    assert f"Kafka acknowledged 1 beat in {topic.name}." in done.err
    assert f"{file}, line 3: " in done.err
    assert "1 beat before it was acknowledged" in done.err
    assert "Cannot write standard output: No space left on device." in done.err
    assert is_sentence(done)
    done = in_shell(only_kafka, f"heartbeat_app send --skip-bad {file} >&-")
    assert done.status == 1
    assert "Kafka acknowledged 1 beat" in done.err
    assert topic.count() == 2


def test_tables_are_not_told_where_standard_output_is_full(
    environ: dict[str, str], topic: Topic, tmp_path: Path
) -> None:
    topic.make()
    for words in ("books", "books --json", "partitions", "dead-letters list"):
        done = in_shell(environ, f"heartbeat_app {words} > /dev/full")
        assert done.status == 1
        assert done.err == (
            "Error: Cannot write standard output: No space left on device.\n"
        )
    done = in_shell(environ, f"heartbeat_app export {tmp_path}/a.csv > /dev/full")
    assert done.status == 1
    assert "Wrote 0 beats" in done.err
    assert (tmp_path / "a.csv").read_text().rstrip() == HEADER.rstrip()


def is_ready(environ: Mapping[str, str]) -> bool:
    page = f"http://127.0.0.1:{environ['WEB_PORT']}/health/ready"
    try:
        with urllib.request.urlopen(page, timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("streams", [">&- 2>&- <&-", "> /dev/full"])
def test_a_worker_needs_nobody_to_read_it(
    environ: dict[str, str], tmp_path: Path, streams: str
) -> None:
    """As a daemon of old is started; what it logs is no part of any connection."""
    line = f"exec heartbeat_app worker -l info {streams}".replace(
        "heartbeat_app", shlex.join(HEARTBEAT_APP), 1
    )
    worker = subprocess.Popen(
        ["bash", "-c", line],
        cwd=PROJECT,
        env=child_environ(environ),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: worker.poll() is not None or is_ready(environ), "it is ready"
        )
        assert worker.poll() is None
    finally:
        worker.terminate()
        assert worker.wait(20) == 0


@pytest.mark.parametrize("limit", [16, 24, 40])
def test_few_open_files(limit: int) -> None:
    done = in_shell(ENVIRON, f"ulimit -n {limit}; heartbeat_app books")
    assert done.status == 1
    assert is_sentence(done)


# The demo, before it starts anything


class Folder:
    """A copy of what the demo needs to begin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in ("alembic.ini", ".env.example"):
            shutil.copy(PROJECT / part, path / part)
        self.ports = {
            "POSTGRESQL_PORT": str(free_port()),
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
            "WEB_PORT": str(free_port()),
        }

    def demo(self, before: str = "", after: str = "") -> Done:
        done = in_shell(
            {**ENVIRON, **self.ports},
            f"{before} heartbeat_app demo {after}",
            cwd=self.path,
        )
        assert is_sentence(done), done
        assert "--fresh" not in done.out + done.err
        return done


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_folder_of_the_data_is_a_file(folder: Folder) -> None:
    (folder.path / ".heartbeat").touch()
    done = folder.demo()
    assert done.status == 1
    assert "/.heartbeat is no folder. Move it away" in done.out


def test_what_lies_in_a_log_s_place_is_named(folder: Folder) -> None:
    (folder.path / ".heartbeat" / "lock").mkdir(parents=True)
    done = folder.demo()
    assert done.status == 1
    assert "/.heartbeat/lock: Is a directory." in done.out


def test_few_open_files_are_named_with_the_limit(folder: Folder) -> None:
    done = folder.demo("ulimit -n 64;")
    assert done.status == 1
    assert "A process may have 64 files open here" in done.out
    assert f"ulimit -n {FILES}" in done.out


def test_what_the_demo_cannot_say_on_a_full_standard_output(folder: Folder) -> None:
    done = folder.demo("ulimit -n 64;", "> /dev/full")
    assert done.status == 1
    assert "A process may have 64 files open here" in done.err


@pytest.mark.parametrize("kind", ["dangling", "folder", "latin", "unreadable"])
def test_an_env_file_that_is_none(folder: Folder, kind: str) -> None:
    """It is left alone, and named."""
    env = folder.path / ".env"
    if kind == "dangling":
        env.symlink_to("gone")
        why = f"{env.name} is a link to gone, which does not exist"
    elif kind == "folder":
        env.mkdir()
        why = ".env cannot be read: Is a directory"
    elif kind == "latin":
        env.write_bytes(b"POSTGRESQL_PASSWORD=\xe9\n")
        why = ".env, line 1, is not UTF-8"
    else:
        env.write_text("A='secret\n")
        why = ".env, line 1, has no closing '"
    assert not ensure_env_file(folder.path)
    for words in ("demo", "books", "--version"):
        done = in_shell(ENVIRON, f"heartbeat_app {words}", cwd=folder.path)
        assert done.status == 1
        assert why in done.err
        assert "secret" not in done.err
        assert is_sentence(done)


def test_ctrl_c_while_a_command_begins_is_no_trace() -> None:
    """The interpreter itself has some 20 ms, which are not ours."""
    for delay in (0.1, 0.2, 0.4, 0.7):
        with typing(ENVIRON, "--help") as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert b"Traceback" not in err, err
        assert process.returncode in {0, 1, 130}


@pytest.mark.parametrize("words", ["books", "partitions", "dead-letters list"])
def test_ctrl_c_while_a_command_waits_gives_the_shells_status(words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        with typing({**ENVIRON, "POSTGRESQL_PORT": port}, *words.split()) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            connection.close()  # else libpq waits for its whole time limit
            _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
