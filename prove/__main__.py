"""`scripts/prove`: runs scenarios on real servers and writes docs/reliability.md."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

import click
from rich.console import Console

from prove.run import run
from prove.scenario import Scenario, scenarios
from prove.world import Outcome

console = Console(highlight=False, soft_wrap=True)


def show(outcome: Outcome) -> None:
    """One line, or what was wrong."""
    verdict = outcome.verdict
    counts = (
        f"{verdict.sent:>9,} sent, {verdict.stored:>9,} stored, {verdict.lost} lost, "
        f"{verdict.doubled} doubled, "
        if verdict
        else ""
    )
    mark = "[green]holds[/]" if outcome.passed else "[red]FAILED[/]"
    console.print(
        f"{mark} {outcome.name:26} {counts}standstill {outcome.standstill:.0f} s, "
        f"{outcome.memory} MB, {outcome.seconds:.0f} s, seed {outcome.seed}"
    )
    for what, count in outcome.did.items():
        console.print(f"        {count} x {what}")
    for what, value in outcome.notes.items():
        console.print(f"        {what}: {value}")
    for complaint in outcome.complaints:
        console.print(f"      ! {complaint}", markup=False)


def run_all(chosen: list[Scenario], seed: int, jobs: int) -> list[Outcome]:
    """Run scenarios, some at a time, in the order of the list."""
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, each, seed) for each in chosen]
        for future in as_completed(futures):
            outcomes.append(future.result())
            show(outcomes[-1])
    return outcomes


@click.command()
@click.option("--list", "listing", is_flag=True, help="Say what there is, and end.")
@click.option("--quick", is_flag=True, help="The short ones only: under 8 minutes.")
@click.option("--seed", type=int, help="Run again what a report names.")
@click.option("--jobs", default=2, show_default=True, help="Scenarios at a time.")
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
def main(
    listing: bool, quick: bool, seed: int | None, jobs: int, names: tuple[str, ...]
) -> None:
    """Do to the parts what may happen to them, and look that no beat is lost."""
    known = scenarios()
    if listing:
        for each in known.values():
            mark = "quick" if each.quick else ""
            console.print(f"{each.name:32} {mark:6} {each.title}")
        return
    wrong = [name for name in names if name not in known]
    if wrong:
        raise click.UsageError(
            f"no scenario {wrong[0]!r}; there are: {', '.join(known)}"
        )
    chosen = [
        each
        for each in known.values()
        if each.name in names or (not names and (each.quick or not quick))
    ]
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    console.print(f"{len(chosen)} scenarios, {jobs} at a time, seed {seed}")
    outcomes = run_all(chosen, seed, jobs)
    sys.exit(any(not each.passed for each in outcomes))


if __name__ == "__main__":
    main()
