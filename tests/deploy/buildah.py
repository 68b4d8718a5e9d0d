"""Builds images with buildah, which needs no engine, in a storage of its own.

The base image is a stand-in for debian:bookworm-slim made with debootstrap, for
machines that reach Debian's packages and no image registry.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SUITE = "bookworm"
BASE_IMAGE = f"docker.io/library/debian:{SUITE}-slim"

BASE_KEEP_SECONDS = 30 * 86_400
"""Making the base takes half a minute; one that is older misses Debian's updates."""

# What the real one has, so that the size of what is built on it can be told.
_SLIM = {
    "etc/dpkg/dpkg.cfg.d/docker": (
        "path-exclude /usr/share/doc/*\n"
        "path-exclude /usr/share/info/*\n"
        "path-exclude /usr/share/locale/*\n"
        "path-exclude /usr/share/man/*\n"
    ),
    "etc/apt/apt.conf.d/docker-clean": (
        'APT::Update::Post-Invoke { "rm -f /var/cache/apt/*.bin || true"; };\n'
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
        'Dir::Cache::pkgcache "";\n'
        'Dir::Cache::srcpkgcache "";\n'
    ),
}
_NOT_SLIM = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)


def why_not() -> str | None:
    """Why no image can be built here, in words; None where one can."""
    missing = [name for name in ("buildah", "debootstrap") if not shutil.which(name)]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "debootstrap and buildah's chroot isolation need root"
    return None


class Buildah:
    """buildah with its images and containers below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._global = [
            "buildah",
            f"--root={folder / 'storage'}",
            f"--runroot={folder / 'run'}",
            "--storage-driver=vfs",
        ]

    def __call__(self, *arguments: str) -> str:
        """Run one of its commands to the end; an error shows what it printed."""
        done = subprocess.run(
            [*self._global, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def make_base(self, cache: Path) -> None:
        """Bring in the stand-in, under the name that the Dockerfile asks for."""
        container = self("from", "scratch")
        self("add", "--quiet", container, str(_base_files(cache)), "/")
        # The way out of this machine may be through a proxy with a CA of its own.
        # This is the machine's matter: the Dockerfile has to do without.
        authorities = os.environ.get("PIP_CERT", ssl.get_default_verify_paths().cafile)
        if authorities:
            self("copy", "--quiet", container, authorities, "/etc/pip-ca.crt")
            self("config", "--env=PIP_CERT=/etc/pip-ca.crt", container)
        self("config", "--cmd=bash", container)
        self("commit", "--quiet", "--rm", container, BASE_IMAGE)

    def build(self, context: Path, tag: str, *more: str) -> None:
        self(
            "build",
            "--isolation=chroot",
            "--format=docker",  # the other one has no HEALTHCHECK
            "--pull-never",
            f"--tag={tag}",
            *more,
            str(context),
        )

    def run_command(
        self, container: str, command: Sequence[str], environ: Mapping[str, str]
    ) -> list[str]:
        """What runs the command in the container, as its user, on this network."""
        return [
            *self._global,
            "run",
            "--isolation=chroot",
            *(f"--env={name}={value}" for name, value in environ.items()),
            container,
            "--",
            *command,
        ]


def _base_files(cache: Path) -> Path:
    archive = cache / f"debian-{SUITE}.tar"
    if archive.exists() and time.time() - archive.stat().st_mtime < BASE_KEEP_SECONDS:
        return archive
    tree = cache / f"debian-{SUITE}"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", SUITE, str(tree)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    for folder in _NOT_SLIM:
        for path in (tree / folder).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in _SLIM.items():
        (tree / name).write_text(text)
    unfinished = archive.with_suffix(".new")
    subprocess.run(["tar", "-C", str(tree), "-cf", str(unfinished), "."], check=True)
    unfinished.rename(archive)
    shutil.rmtree(tree)
    return archive
