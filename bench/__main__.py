"""The command line of `scripts/bench`."""

from __future__ import annotations

import shlex
import sys

import click

from bench import results
from bench.contenders import LIMIT, OURS, all_contenders
from bench.machine import describe
from bench.measures import MEASURES
from bench.measures.setting import Setting
from bench.progress import Progress
from bench.stage import Stage

# These compare ours with the limit, whoever else is there.
OURS_AND_LIMIT = {"duplicates", "full-table"}
OURS_ALONE = {"memory", "roll-ups", "workers"}


@click.command()
@click.argument("measures", nargs=-1, type=click.Choice([*MEASURES, "all"]))
@click.option(
    "--contender",
    "-c",
    "wanted",
    multiple=True,
    type=click.Choice(list(all_contenders())),
    help="Who takes part in `backlog` and `delay`; may be given several times. "
    "All unless given.",
)
@click.option(
    "--records",
    type=click.IntRange(1000),
    help="How many records. Unless given: 1,000,000; 10,000,000 for `memory`; "
    "5,000,000 for `roll-ups`; 30,000 for `delay`, which is 30 s.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--table-rows",
    type=click.IntRange(1000),
    default=30_000_000,
    show_default=True,
    help="Rows in the table before, for `full-table`.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the section instead of writing bench/results.json and "
    "docs/explanation/benchmarks.md.",
)
def main(
    measures: tuple[str, ...],
    wanted: tuple[str, ...],
    records: int | None,
    rounds: int,
    table_rows: int,
    dry_run: bool,
) -> None:
    """Measure the speed side by side, on real servers of its own.

    MEASURES are any of those named, `backlog` unless given. Only ratios within one
    run mean anything, and only on a machine that does nothing else.
    """
    names = list(MEASURES) if "all" in measures else list(measures or ("backlog",))
    with Progress() as progress:
        stage = Stage.start(progress)
        try:
            for name in names:
                measure = MEASURES[name]
                everybody = all_contenders()
                if name in OURS_ALONE:
                    chosen = [OURS]
                elif name in OURS_AND_LIMIT:
                    chosen = [LIMIT, OURS]
                else:
                    chosen = list(wanted or everybody)
                contenders = {each: everybody[each] for each in chosen}
                for variants in contenders.values():
                    for each in variants:
                        each.prepare(progress)
                figures = measure.measure(
                    Setting(
                        stage=stage,
                        progress=progress,
                        contenders=contenders,
                        records=records or measure.records,
                        rounds=rounds,
                        table_rows=table_rows,
                    )
                )
                arguments = shlex.join(sys.argv[1:])
                command = f"scripts/bench {arguments}".strip()
                measured = {"command": command, **describe(stage)}
                entry = {"measured": measured, "figures": figures}
                if dry_run:
                    click.echo(results.render({name: entry}))
                else:
                    found = results.load()
                    found[name] = entry
                    results.save(found)
                    results.write_document(found)
        finally:
            progress.tell("Stopping the servers")
            stage.stop()


if __name__ == "__main__":
    main(prog_name="scripts/bench")
