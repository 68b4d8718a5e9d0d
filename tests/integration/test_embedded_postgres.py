"""PostgreSQL without Docker: what the demo and all other tests stand on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from socket import SOCK_STREAM
from typing import Any

import psutil
import psycopg2
import pytest

from heartbeat_app.embedded import PostgresServer
from heartbeat_app.embedded.postgres_home import SYSTEM_DIR
from heartbeat_app.exceptions import EmbeddedServerError
from testkit.servers import free_port, wait_until

pytestmark = pytest.mark.integration

PASSWORD = 'it\'s "quoted" \\ ünd länger'

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another")


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., PostgresServer]]:
    """Makes servers that are gone after the test, with the data of this test."""
    made: list[PostgresServer] = []

    def make(data_dir: Path = tmp_path / "postgres", **options: Any) -> PostgresServer:
        options = {"port": free_port(), "password": PASSWORD, **options}
        made.append(
            PostgresServer(data_dir, username="admin", database="beats", **options)
        )
        return made[-1]

    yield make
    for server in made:
        server.kill()
        if server.data_dir.is_relative_to(tmp_path):
            server.remove_data()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    server = PostgresServer(
        tmp_path_factory.mktemp("shared") / "postgres",
        port=free_port(),
        username="admin",
        password=PASSWORD,
        database="beats",
    )
    yield server
    server.stop()
    server.remove_data()


@pytest.fixture
def server(shared: PostgresServer) -> PostgresServer:
    """A running one, for tests that leave its data as it was."""
    shared.start()
    return shared


def ask(server: PostgresServer, query: str, **options: Any) -> Any:
    """The first value of what the query finds, all committed."""
    options = {"password": server.password, "dbname": server.database, **options}
    with (
        closing(
            psycopg2.connect(
                host=server.host, port=server.port, user=server.username, **options
            )
        ) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(query)
        return cursor.fetchone()[0] if cursor.description else None


def processes_of(server: PostgresServer) -> list[psutil.Process]:
    assert server.pid is not None
    top = psutil.Process(server.pid)
    return [top, *top.children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_lets_in_over_tcp_with_the_password_only(server: PostgresServer) -> None:
    assert ask(server, "SHOW server_version").startswith("18.")
    assert ask(server, "SELECT current_database()") == "beats"
    assert ask(server, "SHOW server_encoding") == "UTF8"
    stored = "SELECT rolpassword FROM pg_authid WHERE rolname = current_user"
    assert ask(server, stored).startswith("SCRAM-SHA-256$")
    for wrong in ("wrong", ""):
        with pytest.raises(psycopg2.OperationalError):
            ask(server, "SELECT 1", password=wrong)


def test_listens_on_its_address_and_nowhere_else(server: PostgresServer) -> None:
    listening = {
        tuple(socket.laddr)
        for socket in psutil.Process(server.pid).net_connections("all")
        if socket.laddr and socket.type == SOCK_STREAM
    }
    assert listening == {("127.0.0.1", server.port)}


def test_the_password_is_in_no_file_and_no_process(server: PostgresServer) -> None:
    process = psutil.Process(server.pid)
    assert PASSWORD not in " ".join(process.cmdline())
    assert PASSWORD not in " ".join(process.environ().values())
    for path in server.home.iterdir():
        if path.is_file():
            assert PASSWORD not in path.read_text()


def test_keeps_what_was_committed_over_a_kill_9(server: PostgresServer) -> None:
    ask(server, "CREATE TABLE kept AS SELECT 7 AS seven")
    processes = processes_of(server)
    server.kill()
    assert not server.is_running()
    assert not any(map(lives, processes))
    server.start()
    assert ask(server, "SELECT seven FROM kept") == 7
    ask(server, "DROP TABLE kept")


def test_stops_in_order_and_leaves_no_process(server: PostgresServer) -> None:
    processes = processes_of(server)
    with closing(
        psycopg2.connect(
            host=server.host,
            port=server.port,
            user=server.username,
            password=server.password,
            dbname=server.database,
        )
    ):  # a client that stays must not hold it up
        server.stop()
    assert not any(map(lives, processes))
    assert "database system is shut down" in server.log_path.read_text()


def test_settings_hold_from_the_next_start_on(
    server: PostgresServer, make_server: Callable[..., PostgresServer]
) -> None:
    server.stop()
    with make_server(server.data_dir, config={"work_mem": "5MB"}) as again:
        assert ask(again, "SHOW work_mem") == "5MB"
    options = {"work_mem": "6MB", "log_line_prefix": "it's "}
    with make_server(server.data_dir, config=options) as again:
        assert ask(again, "SHOW work_mem") == "6MB"
        assert ask(again, "SHOW log_line_prefix") == "it's "


def test_a_paused_one_answers_again_after_resume(server: PostgresServer) -> None:
    server.pause()
    with pytest.raises(psycopg2.OperationalError):
        ask(server, "SELECT 1", connect_timeout=2)
    server.resume()
    assert ask(server, "SELECT 1") == 1


def test_a_paused_one_can_be_stopped(server: PostgresServer) -> None:
    processes = processes_of(server)
    server.pause()
    server.stop()
    assert not any(map(lives, processes))


def start_and_die(server: PostgresServer, *, main_thread: bool) -> psutil.Process:
    """The server of a Python program that starts it and is killed."""
    program = f"""
import os, signal, threading
from pathlib import Path
from heartbeat_app.embedded import PostgresServer
server = PostgresServer(Path({str(server.data_dir)!r}), port={server.port},
    username={server.username!r}, password={PASSWORD!r}, database="beats")
if {main_thread}:
    server.start()
else:
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGKILL
    return psutil.Process(int(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel does it")
def test_ends_with_the_program_that_started_it(server: PostgresServer) -> None:
    server.stop()
    process = start_and_die(server, main_thread=True)
    wait_until(lambda: not lives(process), "the server ends", seconds=10)


def test_one_that_was_left_behind_is_found_and_ended(
    server: PostgresServer, make_server: Callable[..., PostgresServer]
) -> None:
    server.stop()
    process = start_and_die(server, main_thread=False)
    assert lives(process)
    told: list[str] = []
    with make_server(server.data_dir, progress=told.append) as again:
        assert not lives(process)
        assert ask(again, "SELECT 1") == 1
    assert any(f"process {process.pid}" in text for text in told)


def test_a_lock_file_that_names_a_stranger_hurts_nobody(
    server: PostgresServer,
) -> None:
    server.kill()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        lock = server.home / "data" / "postmaster.pid"
        lines = lock.read_text().splitlines()
        lock.write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
        (server.data_dir / "server.pid").write_text(
            f"{stranger.pid}\n12345.0\n{server.data_dir}\n"
        )
        server.start()
        assert stranger.poll() is None
        stranger.kill()
    assert ask(server, "SELECT 1") == 1


def test_what_outlived_a_killed_server_is_ended_first(server: PostgresServer) -> None:
    """Two servers at once on the same files would ruin them."""
    with closing(
        psycopg2.connect(
            host=server.host,
            port=server.port,
            user=server.username,
            password=server.password,
            dbname=server.database,
        )
    ) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        backend.suspend()  # or it would notice by itself
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_running(), "the server ends", seconds=10)
        server.kill()
        assert lives(backend)
        server.start()
        assert not lives(backend)
    assert ask(server, "SELECT 1") == 1


def test_a_taken_port_is_named_with_its_holder_and_a_way_on(
    server: PostgresServer, make_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    other = make_server(tmp_path / "other", port=server.port)
    with pytest.raises(EmbeddedServerError) as caught:
        other.start()
    assert f"Port {server.port}" in str(caught.value)
    assert f"postgres (process {server.pid})" in str(caught.value)
    assert "POSTGRESQL_PORT" in str(caught.value)


def test_a_folder_in_use_names_who_uses_it(
    server: PostgresServer, make_server: Callable[..., PostgresServer]
) -> None:
    with pytest.raises(EmbeddedServerError, match=f"in use by process {os.getpid()}"):
        make_server(server.data_dir).start()
    assert ask(server, "SELECT 1") == 1


def test_another_password_than_that_of_the_data_is_explained(
    server: PostgresServer, make_server: Callable[..., PostgresServer]
) -> None:
    server.stop()
    with pytest.raises(EmbeddedServerError, match=r"\.env(.|\n)*--fresh"):
        make_server(server.data_dir, password="another").start()


def test_no_password_is_refused(make_server: Callable[..., PostgresServer]) -> None:
    with pytest.raises(EmbeddedServerError, match="POSTGRESQL_PASSWORD"):
        make_server(password="").start()


def test_a_failed_start_shows_the_end_of_the_log(
    server: PostgresServer, make_server: Callable[..., PostgresServer]
) -> None:
    server.stop()
    broken = make_server(server.data_dir, config={"shared_buffers": "plenty"})
    with pytest.raises(EmbeddedServerError) as caught:
        broken.start()
    assert "PostgreSQL ended while starting (exit status 1)" in str(caught.value)
    assert str(server.log_path) in str(caught.value)
    assert 'invalid value for parameter "shared_buffers"' in str(caught.value)
    assert not broken.is_running()


def test_any_folder_will_do(
    make_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    deep = tmp_path / "it's a, 'ö' 100%" / ("long" * 30)
    with make_server(deep / "postgres") as server:
        assert ask(server, "SELECT 1") == 1


@as_root
def test_root_needs_no_open_folder_and_opens_none(
    make_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    project = closed / "project"
    project.mkdir(parents=True)
    for folder in (closed, project):
        folder.chmod(0o700)
    above = [closed, project, *tmp_path.parents]
    modes = [folder.stat().st_mode for folder in above]
    with make_server(project / ".heartbeat" / "postgres") as server:
        uids = set(psutil.Process(server.pid).uids())
        assert 0 not in uids
        data = server.home / "data"
        assert {data.stat().st_uid} == uids
        assert data.stat().st_mode & 0o777 == 0o700
    assert [folder.stat().st_mode for folder in above] == modes


@as_root
def test_root_finds_the_data_of_a_moved_project_again(
    make_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    with make_server(tmp_path / "old" / "postgres") as server:
        ask(server, "CREATE TABLE kept AS SELECT 7 AS seven")
        old_home = server.home
    (tmp_path / "old").rename(tmp_path / "new")
    with make_server(tmp_path / "new" / "postgres") as moved:
        assert ask(moved, "SELECT seven FROM kept") == 7
    assert not old_home.exists()


@as_root
def test_root_leaves_the_data_with_the_original_of_a_copied_project(
    make_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    with make_server(original / "postgres") as server:
        ask(server, "CREATE TABLE kept AS SELECT 7 AS seven")
        shutil.copytree(original, copy, symlinks=True)
        with make_server(copy / "postgres") as other:
            assert ask(other, "SELECT to_regclass('kept')") is None
        assert ask(server, "SELECT seven FROM kept") == 7


@as_root
def test_root_starts_anew_where_the_project_was_removed(
    make_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    with make_server() as server:
        ask(server, "CREATE TABLE kept AS SELECT 7 AS seven")
    shutil.rmtree(server.data_dir)
    with make_server() as anew:
        assert ask(anew, "SELECT to_regclass('kept')") is None
    home = anew.home
    assert home.parent == SYSTEM_DIR
    anew.remove_data()
    assert not home.exists()
    assert not anew.data_dir.exists()


def test_its_files_are_closed_to_others_whatever_the_umask(
    make_server: Callable[..., PostgresServer],
) -> None:
    """But for what the account that it runs as has to read, which tells nothing."""
    server = make_server()
    before = os.umask(0)
    try:
        server.start()
    finally:
        os.umask(before)
    home = server.home.resolve()
    open_to_others = {
        path.name
        for top in (server.data_dir, home)
        for path in (top, *top.iterdir())
        if not path.is_symlink() and path.stat().st_mode & 0o077
    }
    assert open_to_others <= {home.name, "server.conf"}
    assert home.stat().st_mode & 0o022 == 0
