"""What a scenario is, and the list of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prove.world import World

MODULES = (
    "workers", "postgres", "people", "kafka", "cluster", "inputs", "load", "standstill",
)  # fmt: skip


class Skipped(Exception):
    """A scenario cannot be run here; its words say why."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that is done to the parts while beats flow.

    Attributes:
        name: As it is asked for: lower case, words joined by hyphens.
        title: What is done to whom, for the report.
        group: The module that it is in, without its package.
        quick: Whether it belongs to `--quick`.
        kafka: Further lines of Kafka's configuration.
        cluster: Whether Kafka is a cluster of three brokers.
        alone: Whether it measures time, and nothing else may be run beside it.
        run: Does it. The world is settled and judged afterwards.
    """

    name: str
    title: str
    group: str
    quick: bool
    kafka: Mapping[str, str]
    run: Callable[[World], None]
    alone: bool = False
    cluster: bool = False


_all: dict[str, Scenario] = {}


def scenario(
    title: str,
    *,
    quick: bool = False,
    alone: bool = False,
    cluster: bool = False,
    kafka: Mapping[str, str] | None = None,
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Make a function a scenario; its name and module become the scenario's."""

    def register(run: Callable[[World], None]) -> Callable[[World], None]:
        name = run.__name__.replace("_", "-")
        group = run.__module__.rpartition(".")[2]
        _all[name] = Scenario(
            name, title, group, quick, kafka or {}, run, alone, cluster
        )
        return run

    return register


def scenarios() -> dict[str, Scenario]:
    """All scenarios by name, in the order of the report."""
    for module in MODULES:
        import_module(f"prove.scenarios.{module}")
    # Whichever module was imported first, by another one perhaps.
    ordered = sorted(_all.values(), key=lambda each: MODULES.index(each.group))
    return {each.name: each for each in ordered}
