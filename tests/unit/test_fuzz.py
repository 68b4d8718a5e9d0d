"""What the fuzzer found stays mended, and it finds nothing in some seconds more."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import verdict

PROJECT = Path(__file__).parents[2]
FUZZ = PROJECT / "tests" / "fuzz"
CASES = sorted((FUZZ / "cases").iterdir())
SECONDS = 10


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_what_was_found_stays_mended(path: Path) -> None:
    verdict.hold(path.read_bytes())


def test_what_it_begins_with_is_decided_right() -> None:
    for line in (FUZZ / "corpus.txt").read_text().splitlines():
        verdict.hold(ast.literal_eval(line))


@pytest.mark.fuzz
def test_some_seconds_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: no fuzzing")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.fuzz_decoder",
            "--seconds", str(SECONDS), "--cases", str(tmp_path),
        ],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS + 60,
        check=False,
    )  # fmt: skip
    words = done.stdout.decode(errors="replace")
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (done.returncode, found) == (0, {}), words[-4_000:]
    assert "Done " in words, words[-4_000:]
