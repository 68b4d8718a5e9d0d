"""Virtual environments of the benchmark's own, one a peer, below .heartbeat/bench."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from bench.progress import Progress

FOLDER = Path(__file__).resolve().parent.parent / ".heartbeat" / "bench"
REQUIREMENTS = Path(__file__).parent / "requirements"


def ensure_environment(name: str, progress: Progress) -> Path:
    """The Python that has the pinned packages of bench/requirements/NAME.txt.

    Raises:
        RuntimeError: They could not be installed; with what pip said.
    """
    pins = REQUIREMENTS / f"{name}.txt"
    wanted = f"{sys.version} {hashlib.sha256(pins.read_bytes()).hexdigest()}"
    home = FOLDER / name
    python = home / "bin" / "python"
    stamp = home / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    progress.tell(f"Installing the packages of {name}, once")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [
            str(python), "-m", "pip", "install", "--disable-pip-version-check",
            "--no-input", "--quiet", "--no-deps", "-r", str(pins),
        ],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"The packages of {pins} could not be installed:\n{done.stderr[-2000:]}"
            )
    stamp.write_text(wanted)
    return python
