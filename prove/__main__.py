"""`scripts/prove`: runs scenarios on real servers, and writes their page."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import NoReturn

import click
import psutil
from rich.console import Console

from prove import report
from prove.guards import GUARDS, Guard, without
from prove.run import run, run_test
from prove.scenario import Scenario, scenarios
from prove.scenarios.long import random_faults
from prove.world import Outcome

console = Console(highlight=False, soft_wrap=True)


def show(outcome: Outcome) -> None:
    """One line, what was done, and what was wrong."""
    if outcome.skipped:
        console.print(f"[yellow]skipped[/] {outcome.name}: {outcome.skipped}")
        return
    verdict = outcome.verdict
    counts = (
        f"{verdict.sent:>9,} sent, {verdict.stored:>9,} stored, {verdict.lost} lost, "
        f"{verdict.doubled} doubled, "
        if verdict
        else ""
    )
    mark = "[green]holds[/]" if outcome.passed else "[red]FAILED[/]"
    console.print(
        f"{mark} {outcome.name:30} {counts}standstill {outcome.standstill:.0f} s, "
        f"{outcome.memory} MB, {outcome.seconds:.0f} s, seed {outcome.seed}"
    )
    for what, count in outcome.did.items():
        console.print(f"        {count} x {what}")
    for what, value in outcome.notes.items():
        console.print(f"        {what}: {value}")
    for complaint in outcome.complaints:
        console.print(f"      ! {complaint}", markup=False)


def each_of(
    work: Mapping[str, Callable[[], Outcome]], jobs: int
) -> Iterator[tuple[str, Outcome]]:
    """Do some at a time; each with its name, as it ends.

    After Ctrl-C what has begun goes on to its end, and the rest is left; another breaks
    off.
    """
    pool = ThreadPoolExecutor(jobs)
    running = {pool.submit(call): name for name, call in work.items()}
    stopping = False
    while running:
        try:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt:
            if stopping:
                break_off()
            stopping = True
            pool.shutdown(wait=False, cancel_futures=True)
            running = {each: of for each, of in running.items() if not each.cancelled()}
            console.print(
                f"Stopping when these have ended, in a few minutes: "
                f"{', '.join(running.values())}. Ctrl-C again breaks them off."
            )
        else:
            for each in done:
                yield running.pop(each), each.result()


def break_off() -> NoReturn:
    """End at once, with all that was started: it has sessions of its own."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    console.print("Broken off; nothing of this run was kept.")
    os._exit(128 + signal.SIGINT)


def run_all(chosen: list[Scenario], seed: int, jobs: int) -> list[Outcome]:
    """Run scenarios, some at a time."""
    outcomes: list[Outcome] = []
    for alone in (False, True):
        work = {e.name: partial(run, e, seed) for e in chosen if e.alone is alone}
        for _, outcome in each_of(work, 1 if alone else jobs):
            outcomes.append(outcome)
            show(outcome)
        if len(outcomes) < len(work):  # stopped
            break
    return outcomes


def run_without(guard: Guard, seed: int) -> Outcome:
    """Run what fails without a guard, without it."""
    with without(guard) as source:
        if (scenario := scenarios().get(guard.fails)) is not None:
            return run(scenario, seed, source=source)
        return run_test(guard.fails, source=source)


def run_without_each(chosen: list[Guard], seed: int, jobs: int) -> dict[str, Outcome]:
    """Take out one guard after the other; what came of it, by the guard's name."""
    outcomes = {}
    work = {each.name: partial(run_without, each, seed) for each in chosen}
    for name, outcome in each_of(work, jobs):
        console.print(f"Without {name}: {GUARDS[name].holds}", markup=False)
        show(outcome)
        outcomes[name] = outcome
        report.keep_guard(GUARDS[name], outcome)
    return outcomes


def all_of_them() -> dict[str, Scenario]:
    """All scenarios that the page names."""
    return {**scenarios(), "long": long(0)}


def long(minutes: int) -> Scenario:
    """Faults at random, for so many minutes."""
    return Scenario(
        "long",
        "one fault after the other, chosen at random from the seed",
        "long",
        quick=False,
        kafka={},
        run=partial(random_faults, seconds=60 * minutes),
    )


@click.command()
@click.option("--list", "listing", is_flag=True, help="Say what there is, and end.")
@click.option("--quick", is_flag=True, help="The short ones only: under 8 minutes.")
@click.option("--long", "minutes", type=int, help="Faults at random, so many minutes.")
@click.option(
    "--without",
    "guards",
    type=click.Choice([*GUARDS, "each"]),
    multiple=True,
    help="Take a guard out, run what fails without it, and print what goes wrong.",
)
@click.option("--seed", type=int, help="Run again what a report names.")
@click.option("--jobs", default=2, show_default=True, help="Scenarios at a time.")
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
def main(
    *,
    listing: bool,
    quick: bool,
    minutes: int | None,
    guards: tuple[str, ...],
    seed: int | None,
    jobs: int,
    names: tuple[str, ...],
) -> None:
    """Do to the parts what may happen to them, and look that no beat is lost.

    What was found goes into docs/explanation/reliability.md, but for what --quick ran.
    Ends with status 1 when anything was lost, doubled or wrong; with --without, when
    nothing was.
    """
    known = scenarios()
    everything = all_of_them()
    wrong = [name for name in names if name not in known]
    if wrong:
        raise click.UsageError(f"no scenario {wrong[0]!r}; --list says what there is")
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    if listing:
        for each in known.values():
            mark = "quick" if each.quick else ""
            console.print(f"{each.name:30} {mark:6} {each.title}")
    elif guards:
        taken = list(GUARDS) if "each" in guards else guards
        found = run_without_each([GUARDS[name] for name in taken], seed, jobs)
        report.write(everything)
        unseen = [n for n, outcome in found.items() if not GUARDS[n].is_missed(outcome)]
        for name in unseen:
            console.print(
                f"Without {name} nothing said {GUARDS[name].shows!r}", markup=False
            )
        sys.exit(bool(unseen) or len(found) < len(taken))
    elif minutes is not None:
        outcome = run(long(minutes), seed)
        show(outcome)
        report.keep([outcome])
        report.write(everything)
        sys.exit(not outcome.passed)
    else:
        picked = [
            each
            for each in known.values()
            if each.name in names or (not names and (each.quick or not quick))
        ]
        console.print(f"{len(picked)} scenarios, {jobs} at a time, seed {seed}")
        outcomes = run_all(picked, seed, jobs)
        if not quick:
            report.keep(each for each in outcomes if not each.skipped)
            report.write(everything)
        failed = [outcome.name for outcome in outcomes if not outcome.passed]
        skipped = [outcome.name for outcome in outcomes if outcome.skipped]
        all_run = len(outcomes) == len(picked)
        if not all_run:
            kept = "not kept" if quick else "kept"
            console.print(
                f"Stopped: {len(outcomes)} of {len(picked)} were run, and are {kept}."
            )
        if skipped:
            console.print(f"Skipped, and not proved here: {', '.join(skipped)}")
        if failed:
            console.print(f"Failed: {', '.join(failed)}")
        else:
            which = "All" if all_run and not skipped else "The others"
            console.print(f"{which} hold: 0 lost, 0 doubled.")
        sys.exit(bool(failed) or not all_run)


if __name__ == "__main__":
    main()
