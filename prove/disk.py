"""A small disk of a scenario's own, to be filled and freed again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from heartbeat_app.embedded.postgres_home import system_user
from prove.scenario import Skipped
from prove.world import World

FILL_BYTES = 64 * 1024


class SmallDisk:
    """A tmpfs, gone for certain when the world ends.

    Raises:
        Skipped: Nobody but root may mount.
    """

    def __init__(self, world: World, *, megabytes: int) -> None:
        owner = system_user()
        if owner is None:
            raise Skipped("only root may mount a small disk, to have it full")
        self._world = world
        # Not in the world's folder, which PostgreSQL's user may not enter.
        self.path = Path(tempfile.mkdtemp(prefix="prove-disk-"))
        self._filler = self.path / "filler"
        options = f"size={megabytes}m,mode=0700,uid={owner.uid},gid={owner.gid}"
        command = ["mount", "-t", "tmpfs", "-o", options, "prove", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.path.rmdir()
            raise Skipped(f"no small disk can be mounted here: {done.stderr.strip()}")
        world.at_end(self._unmount)

    def move_here(self, folder: Path) -> None:
        """Put a folder of the stopped server onto the disk, and a link in its place."""
        target = self.path / folder.name
        status = folder.stat()
        shutil.move(folder, target)
        for path in [target, *target.rglob("*")]:
            os.chown(path, status.st_uid, status.st_gid)
        folder.symlink_to(target)

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (FILL_BYTES, 4096):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink()

    def _unmount(self) -> None:
        self._world.postgres.kill()  # nobody else has files there
        # Lazily: then it is out of sight even if somebody still looks at it.
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self.path.rmdir()
