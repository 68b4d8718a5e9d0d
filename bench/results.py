"""bench/results.json, and what docs/explanation/benchmarks.md shows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measures import MEASURES
from bench.process import PROJECT

RESULTS = PROJECT / "bench" / "results.json"
DOCUMENT = PROJECT / "docs" / "explanation" / "benchmarks.md"
IMAGES = PROJECT / "docs" / "images"
# What is outside of these lines is written by hand and stays.
BEGIN = "<!-- Written by scripts/bench: begin -->"
END = "<!-- Written by scripts/bench: end -->"


def load(path: Path = RESULTS) -> dict[str, Any]:
    """What was measured so far, by the measurement's name."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def save(results: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Keep it."""
    path.write_text(json.dumps(results, indent=1) + "\n")


def write_document(results: Mapping[str, Any]) -> None:
    """Write the generated part anew, and the pictures."""
    DOCUMENT.write_text(insert(DOCUMENT.read_text(), render(results)))
    for name, measure in MEASURES.items():
        if name in results:
            for file, svg in measure.pictures(results[name]["figures"]).items():
                (IMAGES / file).write_text(svg)


def insert(document: str, generated: str) -> str:
    """The document with another text between the two marks.

    Raises:
        ValueError: It has not both marks, once each and in this order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(
            f"docs/explanation/benchmarks.md has to hold the lines {BEGIN!r} and "
            f"{END!r} once each, in this order: what stands between them is written "
            "anew."
        )
    return f"{before}{BEGIN}\n\n{generated}\n{END}{after}"


def render(results: Mapping[str, Any]) -> str:
    """All measurements that there are, each with what it was measured on."""
    lines: list[str] = []
    versions: dict[str, list[str]] = {}
    for name, measure in MEASURES.items():
        if name not in results:
            continue
        measured = results[name]["measured"]
        lines += measure.markdown(results[name]["figures"])
        lines += [measured_words(measured), ""]
        words = ", ".join(
            f"{what} {version}" for what, version in measured["versions"].items()
        )
        versions.setdefault(words, []).append(name)
    for words, names in versions.items():
        lines += [f"Versions ({', '.join(names)}): {words}.", ""]
    return "\n".join(lines)


def measured_words(measured: Mapping[str, Any]) -> str:
    """Command, time, commit and machine."""
    machine = measured["machine"]
    return (
        f"*`{measured['command']}` at {measured['at']}, commit `{measured['commit']}`, "
        f"on {machine['cores']} cores ({machine['processor']}), "
        f"{machine['memory_gb']} GB, {machine['system']}.*"
    )
