"""The lock of a server's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from heartbeat_app.embedded.folder import FolderLock
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
