"""The Dockerfile: linted, and what it promises that a linter does not know."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.deploy import containers, dockerfile
from tests.deploy.composefile import PROJECT


def last(instruction: str) -> list[str]:
    """The arguments of an instruction in the stage that becomes the image."""
    return [text for name, text in dockerfile.stages()[-1] if name == instruction]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--no-color", dockerfile.DOCKERFILE], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_all_stages_begin_with_the_same_debian() -> None:
    images = [stage[0][1].split()[0] for stage in dockerfile.stages()]
    assert images == ["debian:bookworm-slim"] * 2


def test_it_runs_as_a_user_that_is_not_root() -> None:
    (user,) = last("USER")
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user)


def test_the_volumes_of_secrets_belong_to_that_user() -> None:
    """Docker gives a new volume the owner of the folder that it is mounted on."""
    (user,) = last("USER")
    uid, gid = user.split(":")
    folders = " ".join([containers.TOKEN_FOLDER, *containers.PASSWORD_FOLDERS])
    assert f"install -d -o {uid} -g {gid} {folders}" in last("RUN")


def test_it_runs_the_worker_without_a_shell() -> None:
    """A shell between Docker and the worker would keep SIGTERM to itself."""
    (command,) = last("CMD")
    assert json.loads(command) == ["heartbeat_app", "worker", "-l", "info"]
    assert last("ENTRYPOINT") == []


def test_it_is_built_from_what_is_pinned_and_without_extras() -> None:
    (pip,) = (
        text
        for name, text in dockerfile.stages()[0]
        if name == "RUN" and "pip --python" in text
    )
    assert pip.endswith("install --no-cache-dir -c constraints.txt .")


def test_it_knows_nothing_of_the_machine_that_builds_it() -> None:
    text = dockerfile.DOCKERFILE.read_text()
    assert not re.search(r"(?i)proxy|index-url|trusted-host|pip_|://", text)
    assert not [
        name for stage in dockerfile.stages() for name, _ in stage if name == "ARG"
    ]


def test_only_named_files_are_sent_to_the_build() -> None:
    lines = [
        line
        for line in (PROJECT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert let_in == {
        "alembic",
        "alembic.ini",
        "constraints.txt",
        "heartbeat_app",
        "LICENSE",
        "pyproject.toml",
        "README.md",
        "setup.cfg",
    }
    assert all((PROJECT / name).exists() for name in let_in)
