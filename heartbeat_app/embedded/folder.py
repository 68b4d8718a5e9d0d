"""A folder of our own: who may use it, and who uses it now."""

import fcntl
import os
import pwd
from pathlib import Path
from types import TracebackType

from heartbeat_app.exceptions import EmbeddedServerError

CLOSED_UMASK = 0o077
"""What we start makes files for its own user only, whatever the umask here is."""


def open_closed(path: Path, flags: int) -> int:
    """Open a file that only its owner may read and write, also if it was there."""
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_own_folder(folder: Path) -> None:
    """A folder that only its owner may enter, also if it was there.

    Raises EmbeddedServerError when it is there already and somebody else's.

    Run once as root and once not, the servers would leave files that the other one
    cannot read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError:
        raise EmbeddedServerError(
            f"{folder} is no folder. Move it away and start again."
        ) from None
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise EmbeddedServerError(
            f"{folder} belongs to the user {_user_name(owner)}, and this is "
            f"{_user_name(os.geteuid())}.\n"
            f"Run it as {_user_name(owner)}, or remove the folder to start anew."
        )
    folder.chmod(0o700)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"number {uid}"


class FolderLock:
    """Holds `folder` for this process alone.

    The file names the holder for people; what counts is the kernel's lock on it,
    so a lock file that a `kill -9` left behind keeps nobody out.
    """

    def __init__(self, folder: Path, *, name: str = "lock") -> None:
        self._path = folder / name
        self._fd: int | None = None
        self.left_by: int | None = None
        """The process that held the lock last and ended without giving it back."""

    def acquire(self) -> None:
        """Raises EmbeddedServerError, which names the holder, when it is held."""
        if self._fd is not None:
            return
        fd = open_closed(self._path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise EmbeddedServerError(
                f"{self._path.parent} is in use by process {holder}.\n"
                f"Stop that one first (Ctrl-C in its terminal, or `kill {holder}`)."
            ) from None
        except BaseException:
            os.close(fd)
            raise
        last = os.read(fd, 32).decode(errors="replace").strip()
        self.left_by = int(last) if last.isdigit() else None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is None:
            return
        os.ftruncate(self._fd, 0)
        # A process that another thread is just starting has the descriptor, too, until
        # it becomes another program: closed here, the lock would still be held.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
