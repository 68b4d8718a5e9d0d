"""The lock of a server's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from heartbeat_app.embedded.folder import FolderLock, make_own_folder, open_closed
from heartbeat_app.embedded.processes import write_own_process
from heartbeat_app.exceptions import EmbeddedServerError


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(EmbeddedServerError, match=f"by process {os.getpid()}"),
    ):
        FolderLock(tmp_path).acquire()


def test_what_is_given_back_is_free_whoever_was_started_meanwhile(
    tmp_path: Path,
) -> None:
    """A child has all descriptors between its fork and its exec."""
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert lock._fd is not None
    childs = os.dup(lock._fd)
    try:
        lock.release()
        with FolderLock(tmp_path):
            pass
    finally:
        os.close(childs)


def test_what_it_makes_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    """And what was there already, from before."""
    folder, there = tmp_path / "own", tmp_path / "own" / "there.log"
    folder.mkdir(mode=0o755)
    there.touch(0o644)
    before = os.umask(0)
    try:
        make_own_folder(folder)
        for path in (folder / "new.log", there):
            os.close(open_closed(path, os.O_WRONLY | os.O_APPEND))
        write_own_process(folder / "server.pid", os.getpid())
        FolderLock(folder).acquire()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(("new.log", "there.log", "server.pid", "lock"), 0o600)
    assert folder.stat().st_mode & 0o777 == 0o700
