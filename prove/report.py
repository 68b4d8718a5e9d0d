"""Keeps results in prove/results.json, and writes docs/explanation/reliability.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from prove.guards import GUARDS, Guard
from prove.scenario import Scenario
from prove.world import Outcome
from testkit.commit import commit
from testkit.servers import PROJECT

RESULTS = PROJECT / "prove" / "results.json"
PAGE = PROJECT / "docs" / "explanation" / "reliability.md"
RUNS_KEPT = 3

# What stands above the tables.
HEAD = Path(__file__).with_name("reliability.md")


def load() -> dict[str, Any]:
    """What was kept before."""
    if not RESULTS.exists():
        return {"runs": {}, "guards": {}}
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def keep(outcomes: Iterable[Outcome]) -> None:
    """Keep the outcomes of scenarios, the newest few runs of each.

    What was run again with its seed takes the place of what it was before.
    """
    results = load()
    for outcome in outcomes:
        runs = results["runs"].setdefault(outcome.name, [])
        runs[:] = [each for each in runs if each["seed"] != outcome.seed]
        runs.append({**_of_what(), **asdict(outcome)})
        del runs[:-RUNS_KEPT]
    _save(results)


def keep_guard(guard: Guard, outcome: Outcome) -> None:
    """Keep what went wrong without a guard; nothing if it was not missed."""
    results = load()
    known = results["guards"]
    known.pop(guard.name, None)
    if guard.is_missed(outcome):
        known[guard.name] = {
            **_of_what(),
            "seed": outcome.seed,
            "complaints": _in_a_line_each(guard, outcome.complaints),
        }
    results["guards"] = {name: known[name] for name in GUARDS if name in known}
    _save(results)


def _in_a_line_each(guard: Guard, complaints: Iterable[str]) -> list[str]:
    """What was complained of, what shows that the guard is gone first."""
    shown = [
        line for each in complaints for line in each.splitlines() if guard.shows in line
    ]
    # Those of many lines are logs and tracebacks, which say nothing to a reader.
    others = [each for each in complaints if "\n" not in each]
    return list(dict.fromkeys([*shown[:1], *others]))


def _of_what() -> dict[str, str]:
    return {"date": date.today().isoformat(), "commit": commit()}


def _save(results: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def write(known: Mapping[str, Scenario]) -> None:
    """Write the page."""
    PAGE.write_text(page(known))


def page(known: Mapping[str, Scenario]) -> str:
    """The page, of what was kept."""
    results = load()
    lines = [HEAD.read_text(), "## Scenarios", "", _runs_of_what(results), ""]
    group = None
    for each in known.values():
        runs = results["runs"].get(each.name, [])
        if each.group != group:
            group = each.group
            lines += [
                "",
                f"### {group.capitalize()}",
                "",
                "| scenario | done | sent | stored | duplicate | refused | missing "
                "| lost | doubled | standstill | memory | seeds |",
                "|---|---|---|---|---|---|---|---|---|---|---|---|",
            ]
        lines.append(_row(each, runs))
        lines += _notes(each, runs)
    lines += [
        "",
        "## Guards",
        "",
        "Each was taken out of a copy of the code, and its scenario or test run there: "
        "what it then said. It has to be what the guard stops, not just any failure.",
        "",
    ]
    lines += [
        "| guard | what it holds | scenario or test | without it |",
        "|---|---|---|---|",
    ]
    for guard in GUARDS.values():
        found = results["guards"].get(guard.name)
        said = "; ".join(found["complaints"])[:300] if found else "**not seen yet**"
        lines.append(
            f"| {guard.name} | {guard.holds} | {guard.fails} | {_cell(said)} |"
        )
    return "\n".join(lines) + "\n"


def _runs_of_what(results: Mapping[str, Any]) -> str:
    """How many runs are of which code."""
    counts = Counter(
        (run["date"], run["commit"])
        for runs in results["runs"].values()
        for run in runs
    )
    found = "; ".join(
        f"{count} of {day}, commit {of}"
        for (day, of), count in sorted(counts.items(), reverse=True)
    )
    return f"The last {RUNS_KEPT} runs of each at most. Runs: {found}."


def _row(each: Scenario, runs: list[dict[str, Any]]) -> str:
    if not runs:
        return f"| **{each.name}**: {each.title} | not run yet |" + " |" * 10
    did: Counter[str] = Counter()
    for run in runs:
        did.update(run["did"])
    verdicts = [run["verdict"] for run in runs if run["verdict"]]

    def total(name: str) -> str:
        return f"{sum(verdict[name] for verdict in verdicts):,}"

    done = "; ".join(f"{count} x {what}" for what, count in did.items())
    failed = sum(bool(run["complaints"]) for run in runs)
    cells = [
        f"**{each.name}**: {each.title}"
        + (f" (**{failed} of {len(runs)} runs failed**)" if failed else ""),
        done,
        *(
            total(name)
            for name in (
                "sent", "stored", "duplicate", "refused", "missing", "lost", "doubled",
            )
        ),
        f"{max(run['standstill'] for run in runs):.0f} s",
        f"{max(run['memory'] for run in runs)} MB",
        ", ".join(str(run["seed"]) for run in runs),
    ]  # fmt: skip
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _notes(each: Scenario, runs: list[dict[str, Any]]) -> list[str]:
    notes = {what: value for run in runs for what, value in run["notes"].items()}
    if not notes:
        return []
    said = "; ".join(f"{what}: {value}" for what, value in notes.items())
    return [f"| | the last run: {_cell(said)} |" + " |" * 10]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
