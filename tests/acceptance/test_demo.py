"""`scripts/demo`, as a newcomer types it: in a fresh copy of the project."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from heartbeat_app.config import variables
from heartbeat_app.demo.env_file import ensure_env_file
from heartbeat_app.embedded import kafka_jars
from heartbeat_app.env_file import read_env_file
from heartbeat_app.exceptions import EmbeddedServerError
from testkit.servers import PROJECT, free_port, wait_until

pytestmark = pytest.mark.acceptance

KEPT = re.compile(r"Kept ([\d,]+) heartbeats, the books balance\.")
STATUS = re.compile(r"stored ([\d,]+)")

PARTS = (
    "heartbeat_app",
    "alembic",
    "scripts",
    "alembic.ini",
    "setup.cfg",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    ".env.example",
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Copy:
    """A fresh copy of the project, on ports of its own."""

    def __init__(self, folder: Path, user: str | None = None) -> None:
        self.folder = folder
        self.user = user
        ignore = shutil.ignore_patterns("__pycache__")
        folder.mkdir(parents=True)
        for part in PARTS:
            source = PROJECT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignore)
            else:
                shutil.copy(source, folder / part)
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in variables()},
            "POSTGRESQL_PORT": str(free_port()),
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
            "WEB_PORT": str(free_port()),
        }

    def start(self, *arguments: str, **more: str) -> Demo:
        return Demo(self, ["scripts/demo", *arguments], more)

    def start_with_our_python(self, *arguments: str, **more: str) -> Demo:
        """Without a .venv of its own, which takes long to make."""
        command = [sys.executable, "-m", "heartbeat_app", "demo", *arguments]
        return Demo(self, command, {"PYTHONPATH": str(self.folder), **more})

    def count_rows(self) -> int:
        """As psql over TCP sees it, with what .env says."""
        env = read_env_file(self.folder / ".env", {})
        with (
            closing(
                psycopg2.connect(
                    host="localhost",
                    port=self.environment["POSTGRESQL_PORT"],
                    user=env["POSTGRESQL_USERNAME"],
                    password=env["POSTGRESQL_PASSWORD"],
                    dbname=env["POSTGRESQL_DATABASE"],
                )
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT count(*) FROM heartbeats")
            found = cursor.fetchone()
            assert found is not None
            return int(found[0])

    def processes(self) -> list[psutil.Process]:
        """Everything that runs here: servers, worker, demo, pip."""
        places = {str(self.folder)}
        home = self.folder / ".heartbeat" / "postgres" / "home"
        if home.is_symlink():
            places.add(str(home.readlink()))
        found = []
        for process in psutil.process_iter():
            try:
                told = [process.cwd(), *process.cmdline()]
                gone = process.status() == psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if not gone and any(place in text for place in places for text in told):
                found.append(process)
        return found


class Demo:
    """A demo that runs, and all that it has said so far."""

    def __init__(self, copy: Copy, command: list[str], more: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.longest_silence = 0.0
        self.silent_before = ""
        identity: dict[str, Any] = (
            {"user": copy.user, "group": "nogroup", "extra_groups": []}
            if copy.user
            else {}
        )
        self.process = subprocess.Popen(
            command,
            cwd=copy.folder,
            env={**copy.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **identity,
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        last = time.monotonic()
        for line in self.process.stdout:
            now = time.monotonic()
            if now - last > self.longest_silence:
                self.longest_silence, self.silent_before = now - last, line
            last = now
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def stored(self) -> int:
        """As the last status line says."""
        found = STATUS.findall(self.output)
        return int(found[-1].replace(",", "")) if found else 0

    def wait_for(self, text: str, *, seconds: float = 60) -> None:
        wait_until(
            lambda: text in self.output or not self.runs(), text, seconds=seconds
        )
        assert text in self.output, self.output

    def wait_for_more_beats(self, *, than: int = 0) -> None:
        wait_until(lambda: self.stored > than or not self.runs(), "beats are stored")
        assert self.stored > than, self.output

    def runs(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, *, seconds: float = 90) -> int:
        """Wait for its end; its exit status."""
        try:
            status = self.process.wait(seconds)
        finally:
            if self.runs():
                self.process.kill()
            self._thread.join()
            assert self.process.stdout is not None
            self.process.stdout.close()
        return status

    def kept(self) -> int:
        """What the last line says, when all is well."""
        found = KEPT.fullmatch(self.lines[-1])
        assert found, self.output
        return int(found[1].replace(",", ""))


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Copy]:
    """A fresh copy of an ordinary user, who need not be the one who runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="heartbeat-demo-"))
    copy = Copy(folder / "project", user=_ordinary_user())
    # The packages come from the network, as for everyone; Kafka's files are here.
    cache = folder / "m2"
    for jar in kafka_jars.kafka_jars(print):
        target = cache / jar.relative_to(kafka_jars.cache_folder())
        target.parent.mkdir(parents=True)
        shutil.copy(jar, target)
    copy.environment.update(HOME=str(folder), M2_REPO=str(cache))
    if copy.user:
        subprocess.run(["chown", "-R", f"{copy.user}:", folder], check=True)
    yield copy
    for process in copy.processes():
        process.kill()
    shutil.rmtree(folder)


def _ordinary_user() -> str | None:
    """None: ourselves, who are ordinary, or who have no Python for others."""
    if os.geteuid() != 0:
        return None
    try:
        subprocess.run(
            ["python3.11", "-c", "import venv"],
            user="nobody",
            group="nogroup",
            extra_groups=[],
            check=True,
        )
    except (OSError, LookupError, subprocess.CalledProcessError):
        return None
    return "nobody"


@pytest.fixture(scope="module")
def installed(newcomer: Copy) -> Copy:
    """The same after its first run, for tests that can run in any order."""
    if not (newcomer.folder / ".env").exists():
        assert newcomer.start("--seconds", "1").end(seconds=240) == 0
    return newcomer


def test_no_network_at_the_first_start_is_explained(newcomer: Copy) -> None:
    demo = newcomer.start(
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_CACHE_DIR="1",
        PIP_INDEX_URL=f"http://127.0.0.1:{free_port()}/simple",
    )
    assert demo.end() == 1
    assert "The first start needs the network" in demo.output


def test_a_newcomer_needs_one_command(newcomer: Copy) -> None:
    demo = newcomer.start("--seconds", "4")
    demo.wait_for("stored", seconds=240)
    demo.wait_for_more_beats()
    assert newcomer.count_rows() > 0
    port = newcomer.environment["POSTGRESQL_PORT"]
    assert f"psql -h localhost -p {port} -U admin -d heartbeat_db" in demo.output
    page = f"http://127.0.0.1:{newcomer.environment['WEB_PORT']}/live/"
    # The status ends with it; below are only figures.
    assert re.search(rf"^Page: {page}\n\d\d:\d\d:\d\d  stored", demo.output, re.M)
    assert re.search(r"refused 0 .*lag .*p50 .*p95 ", demo.output)
    assert demo.end() == 0
    assert 2_000 <= demo.kept() <= 10_000
    # Far more than a busy machine adds, far less than an installation takes in silence.
    assert demo.longest_silence < 10, demo.silent_before
    assert newcomer.processes() == []
    env = newcomer.folder / ".env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert len(read_env_file(env, {})["POSTGRESQL_PASSWORD"]) > 20
    assert ".heartbeat/" in (PROJECT / ".gitignore").read_text().splitlines()


def test_ctrl_c_stops_everything_and_the_next_run_goes_on(installed: Copy) -> None:
    """In a terminal, where Ctrl-C goes to every process of the foreground."""
    log = (installed.folder / ".heartbeat" / "install.log").stat()
    screen = Terminal(installed)
    screen.wait_for("stored")
    wait_until(lambda: installed.count_rows() > 0, "rows")
    before = installed.count_rows()
    wait_until(lambda: installed.count_rows() > before, "more rows")
    begin = time.monotonic()
    screen.press(b"\x03")
    assert screen.end() == 0
    assert time.monotonic() - begin < 10
    assert installed.processes() == []
    kept = KEPT.findall(screen.text)
    assert int(kept[-1].replace(",", "")) > before
    assert screen.text.rstrip().endswith("the books balance.")
    assert (installed.folder / ".heartbeat" / "install.log").stat() == log


class Terminal:
    """A terminal in which the demo runs."""

    def __init__(self, copy: Copy) -> None:
        self.text = ""
        master, slave = pty.openpty()
        program = (
            "import fcntl, os, sys, termios;"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "os.execvp(sys.argv[1], sys.argv[1:])"
        )
        identity: dict[str, Any] = (
            {"user": copy.user, "group": "nogroup", "extra_groups": []}
            if copy.user
            else {}
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "scripts/demo"]
            if not copy.user
            else ["python3.11", "-c", program, "scripts/demo"],
            cwd=copy.folder,
            env={**copy.environment, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            **identity,
        )
        os.close(slave)
        self._master = master
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self.text += data.decode(errors="replace")
        except OSError:  # what Linux says when the other side is closed
            return

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.text or self._process.poll() is not None, text)
        assert text in self.text, self.text

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def end(self) -> int:
        try:
            return self._process.wait(30)
        finally:
            self._thread.join()
            os.close(self._master)


def test_what_is_killed_comes_back_and_nothing_stays_behind(installed: Copy) -> None:
    killed = installed.start()
    killed.wait_for_more_beats()
    other = installed.start()
    assert other.end() == 1
    assert f"in use by process {killed.process.pid}" in other.output

    # The worker alone: it is started again, and that is told.
    worker = int(re.findall(r"Worker: process (\d+)", killed.output)[-1])
    psutil.Process(worker).kill()
    killed.wait_for("The worker ended by itself (signal SIGKILL)")
    killed.wait_for("Started the worker again")

    # The demo: all goes with it, and the next one finds its way.
    killed.signal(signal.SIGKILL)
    killed.end()
    if sys.platform == "linux":
        wait_until(lambda: not installed.processes(), "all end", seconds=20)
    demo = installed.start()
    demo.wait_for_more_beats(than=killed.stored)
    assert f"process {killed.process.pid}) did not end in order" in demo.output
    demo.signal(signal.SIGTERM)
    assert demo.end(seconds=10) == 0
    assert demo.kept() >= demo.stored
    assert installed.processes() == []


@pytest.mark.parametrize(
    "setting", ["POSTGRESQL_PORT", "KAFKA_BOOTSTRAP_SERVERS", "WEB_PORT"]
)
def test_a_taken_port_is_named_at_once(installed: Copy, setting: str) -> None:
    port = int(installed.environment[setting].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        demo = installed.start()
        assert demo.end(seconds=20) == 1
    assert f"Port {port} on 127.0.0.1" in demo.output
    assert setting in demo.output
    assert not re.search(
        "^(Starting|Making|Downloading) .*(Kafka|PostgreSQL)", demo.output
    )


def test_servers_elsewhere_are_not_what_the_demo_is_for(installed: Copy) -> None:
    demo = installed.start(KAFKA_BOOTSTRAP_SERVERS="broker.example.com:9092")
    assert demo.end() == 1
    assert "KAFKA_BOOTSTRAP_SERVERS is 'broker.example.com:9092'" in demo.output


def test_fresh_asks_before_it_deletes(installed: Copy) -> None:
    demo = installed.start("--fresh")
    assert demo.end() == 1
    assert "Nothing was deleted" in demo.output


def test_a_fresh_start_and_a_server_that_dies(installed: Copy) -> None:
    demo = installed.start("--fresh", "--yes")
    demo.wait_for_more_beats()
    assert re.search(r"stored 0 ", demo.output)
    for process in installed.processes():
        if "kafka.Kafka" in process.cmdline():
            process.kill()
    assert demo.end(seconds=20) == 1
    assert "Kafka ended by itself" in demo.output
    assert re.search(r"Kept [\d,]+ heartbeats", demo.lines[-1])
    assert installed.processes() == []


def test_python_311_is_asked_for_by_name(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "project")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "mkdir", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    demo = copy.start(PATH=str(tools))
    assert demo.end() == 1
    assert "Python 3.11 is needed and was not found" in demo.output
    assert "apt install python3.11" in demo.output


@as_root
def test_root_in_a_closed_folder_until_the_disk_is_full(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    copy = Copy(closed / "project")
    ensure_env_file(copy.folder)
    for folder in (closed, copy.folder):
        folder.chmod(0o700)
    data = copy.folder / ".heartbeat"
    data.mkdir(mode=0o700)
    above = [copy.folder, *copy.folder.parents]
    modes = [folder.stat().st_mode for folder in above]
    if psutil.virtual_memory().available < 4e9 or subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=1200m,mode=0700", "tmpfs", data]
    ):
        pytest.skip("no small disk can be made here")
    try:
        filling = data / "filling"
        _fill(filling, leave=500_000_000)
        demo = copy.start_with_our_python()
        assert demo.end() == 1
        assert "is nearly full" in demo.output
        filling.unlink()

        demo = copy.start_with_our_python()
        demo.wait_for_more_beats()
        assert [folder.stat().st_mode for folder in above] == modes
        _fill(filling, leave=100_000_000)
        assert demo.end() == 1
        assert "is nearly full" in demo.output
        assert demo.kept() > 0
        assert copy.processes() == []
    finally:
        place = data / "postgres" / "home"
        if place.is_symlink():
            shutil.rmtree(place.readlink())
        subprocess.run(["umount", data], check=True)


def _fill(file: Path, *, leave: int) -> None:
    size = shutil.disk_usage(file.parent).free - leave
    with file.open("wb") as writing:
        os.posix_fallocate(writing.fileno(), 0, size)


def test_an_env_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POSTGRESQL_PASSWORD=mine\n")
    assert not ensure_env_file(tmp_path)
    assert (tmp_path / ".env").read_text() == "POSTGRESQL_PASSWORD=mine\n"


def test_no_example_for_the_env_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"\.env\.example"):
        ensure_env_file(tmp_path)


def test_the_example_holds_every_setting_and_no_secret() -> None:
    text = (PROJECT / ".env.example").read_text()
    named = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    assert set(named) == set(variables())
    secret = {n for n, field in variables().items() if field.metadata["secret"]}
    assert not any(named[name] for name in secret)
