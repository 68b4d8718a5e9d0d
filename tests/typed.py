"""Commands as a user types them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testkit.servers import PROJECT, child_environ

SCRIPTS = Path(sys.executable).parent
HEARTBEAT_APP = (str(SCRIPTS / "heartbeat_app"),)
FAUST = (str(SCRIPTS / "faust"), "-A", "heartbeat_app")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


def typed(
    environ: Mapping[str, str],
    *arguments: str,
    program: tuple[str, ...] = HEARTBEAT_APP,
    stdin: bytes = b"",
    seconds: float = 60,
) -> Done:
    """Run `heartbeat_app …` in the project's folder to its end."""
    done = subprocess.run(
        [*program, *arguments],
        cwd=PROJECT,
        env=child_environ(environ),
        input=stdin,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def typing(
    environ: Mapping[str, str], *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `heartbeat_app …` beside the test, with pipes; ended with the block."""
    process = subprocess.Popen(
        [*HEARTBEAT_APP, *arguments],
        cwd=PROJECT,
        env=child_environ(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
