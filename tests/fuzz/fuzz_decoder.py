"""Looks for bytes about which decoder and documents differ, guided by coverage.

    python -m tests.fuzz.fuzz_decoder --seconds 60

What it finds becomes a file of tests/fuzz/cases, which a unit test replays from then
on: give it a name that says what it is.
"""

from __future__ import annotations

import argparse
import ast
import faulthandler
import random
import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["heartbeat_app", "heartbeat_app.audit.reference", "tests.fuzz.verdict"]
):
    from tests.fuzz.verdict import hold

FOLDER = Path(__file__).parent
CASES = FOLDER / "cases"
CORPUS = FOLDER / "corpus.txt"

MAX_BYTES = 1_024
# An input that takes so long is one that was found, too.
STUCK_SECONDS = 20

# What a value may be put together from; libFuzzer puts these in.
DICTIONARY = [
    '"customer_id"', '"timestamp"', '"heart_rate"', "{", "}", "[", "]", ",", ":",
    "null", "true", "NaN", "-0", "72.0", "7.2e1", "300", "301",
    '"2026-01-01T00:00:00Z"',
    "23:59:60", "24:00:00", "0000", "9999-12-31", "2000-01-01", "1999-12-31", "02-29",
    ".9999995", "+23:59", "-14:00", "+24:00", "+0530", "\\u0000", "\\ud800", "\\udc00",
    "\\ud83d\\ude00", "\\\\", '\\"', "\x00", "\x7f", "é", "😀", "\ufeff",
]  # fmt: skip

_pieces = re.compile(rb'"(?:[^"\\]|\\.)*"|[0-9.eE+-]+|\w+', re.DOTALL)


def one_input(value: bytes) -> None:
    """What libFuzzer calls with each of its inputs."""
    hold(value)


def mutate(value: bytes, max_size: int, seed: int) -> bytes:
    """Change one text or number of the JSON, or else any bytes.

    Of changes anywhere, nearly all only make it no JSON.
    """
    choice = random.Random(seed)
    pieces = list(_pieces.finditer(value))
    if not pieces or choice.random() < 0.3:
        return bytes(atheris.Mutate(value, max_size))
    piece = choice.choice(pieces)
    begin, end = piece.span()
    if choice.random() < 0.2:  # the same piece twice, or another's in its place
        other = choice.choice(pieces)[0]
        return (value[:begin] + other + value[end:])[:max_size]
    if value[begin:end].startswith(b'"') and end - begin >= 2:
        begin, end = begin + 1, end - 1
    room = max(1, max_size - len(value) + end - begin)
    changed = bytes(atheris.Mutate(value[begin:end] or b"0", room))
    return (value[:begin] + changed + value[end:])[:max_size]


def seeds() -> list[bytes]:
    """The inputs to begin with: what was found before, and what led to new code."""
    kept: list[bytes] = [
        ast.literal_eval(line) for line in CORPUS.read_text().splitlines()
    ]
    return kept + [path.read_bytes() for path in sorted(CASES.iterdir())]


def main() -> None:
    """Run for some seconds, or until something is found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--cases", type=Path, default=CASES, help="the folder for what is found"
    )
    parser.add_argument(
        "--corpus", type=Path, help="a folder to keep inputs in that led to new code"
    )
    options = parser.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    dictionary = corpus.with_suffix(".dict")
    dictionary.write_text(
        "".join(f'"{_quoted(word.encode())}"\n' for word in DICTIONARY)
    )
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={options.seconds}",
            f"-max_len={MAX_BYTES}",
            f"-timeout={STUCK_SECONDS}",
            f"-artifact_prefix={options.cases}/",
            f"-dict={dictionary}",
            "-print_final_stats=1",
            str(corpus),
        ],
        one_input,
        custom_mutator=mutate,
    )
    # What is stuck elsewhere than in an input is told by where it is.
    faulthandler.dump_traceback_later(options.seconds + 2 * STUCK_SECONDS, exit=True)
    atheris.Fuzz()  # ends the process


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
