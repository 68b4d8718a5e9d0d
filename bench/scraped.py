"""Times what Grafana asks Prometheus, over a year of samples.

    .venv/bin/python -m bench.scraped > times.md

Two workers that read four partitions and have failed in `--causes` ways, and a disk,
scraped every 15 s for a year: 27 million samples. Each panel's query is asked with its
macros filled in as Grafana does, over ranges that end with the samples; each twice, as
in `bench.dashboards`. Needs apt-get, from which it unpacks Debian's Prometheus.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import yaml

from bench.dashboards import timed
from testkit import dashboards
from testkit.dashboards import SPANS
from testkit.grafana_macros import DEFAULT_POINTS, View
from testkit.prometheus import Prometheus, Promtool, unpack
from testkit.servers import PROJECT

SCRAPE = timedelta(seconds=15)
# As many samples as Prometheus puts into its largest blocks of a year.
PART = timedelta(hours=486)
YEAR = timedelta(days=365)

WORKERS = ("a:6066", "b:6066")


def all_series(causes: int) -> list[str]:
    """Their names, as scraped."""
    return [
        *(f'heartbeat_app_ready{{instance="{name}"}}' for name in WORKERS),
        *(
            f'heartbeat_app_lag_records{{instance="{name}",partition="{number}"}}'
            for number, name in enumerate(WORKERS * 2)
        ),
        *(
            f'heartbeat_app_retries_total{{instance="{name}",cause="{cause:02d}"}}'
            for name in WORKERS
            for cause in range(causes)
        ),
        *(
            f'heartbeat_app_{metric}{{instance="{name}"}}'
            for name in WORKERS
            for metric in (
                "writes_failed_total",
                "transaction_seconds_sum",
                "transaction_seconds_count",
            )
        ),
        *(f'up{{instance="{name}",job="heartbeat_app"}}' for name in WORKERS),
        'node_filesystem_avail_bytes{mountpoint="/var/lib/postgresql"}',
    ]


def value(series: str, scrape: int) -> int:
    """What is scraped at that number of a scrape."""
    if "retries" in series or "failed" in series:
        return scrape // 240  # one an hour of each cause
    if "transaction" in series:
        return scrape * 100
    if "lag" in series:
        return scrape * 7919 % 1000
    if "avail" in series:
        return 10**12 - scrape * 10_000
    return 1


def lines(
    names: list[str], since: datetime, until: datetime, begin: datetime
) -> Iterator[str]:
    """The samples from `since` to before `until`, where all begin at `begin`."""
    first, end = (since - begin) // SCRAPE, (until - begin) // SCRAPE
    epoch = int(begin.timestamp())
    step = int(SCRAPE.total_seconds())
    for series in names:
        for scrape in range(first, end):
            yield f"{series} {value(series, scrape)} {epoch + scrape * step}\n"
    yield "# EOF\n"


@contextmanager
def filled(names: list[str], end: datetime) -> Iterator[Prometheus]:
    """A server that has scraped for a year, until `end`."""
    with tempfile.TemporaryDirectory(prefix="heartbeat-scraped-") as name:
        folder = Path(name)
        if why_not := unpack(folder):
            raise click.ClickException(f"There is no Prometheus: {why_not}.")
        since = begin = end - YEAR
        samples = folder / "samples.txt"
        with click.progressbar(length=YEAR // PART + 1, label="Filling") as progress:
            while since < end:
                until = min(since + PART, end)
                with samples.open("w") as file:
                    file.writelines(lines(names, since, until, begin))
                Promtool(folder).load(samples, folder / "data")
                since = until
                progress.update(1)
        samples.unlink()
        config = yaml.safe_load((PROJECT / "prometheus/prometheus.yml").read_text())
        with Prometheus(
            folder, folder, config, targets={}, token="none", keep="400d"
        ) as server:
            server.wait_for_answer("vector(1)")
            yield server


def parameters(
    panel: dashboards.Json, target: dashboards.Json, start: datetime, end: datetime
) -> dict[str, str]:
    """What Grafana asks for a panel, by name; `what` is the kind of question."""
    least = panel.get("interval", "15s")
    points = panel.get("maxDataPoints", DEFAULT_POINTS)
    view = View.of(start, end, points=points, least=least)
    scrape = SCRAPE.total_seconds()
    rate = max(view.step_seconds + scrape, 4 * scrape)
    query = target["expr"].replace("$__rate_interval", f"{rate:.0f}s")
    if target.get("instant"):
        return {"what": "query", "query": query, "time": f"{end.timestamp()}"}
    return {
        "what": "query_range",
        "query": query,
        "start": f"{start.timestamp()}",
        "end": f"{end.timestamp()}",
        "step": f"{view.step_seconds}",
    }


def cell(server: Prometheus, asked: dict[str, str]) -> str:
    """Milliseconds, the first time and again."""

    def ask() -> None:
        if not server.ask(**asked):
            raise click.ClickException(f"No answer to {asked}.")

    first, again = timed(ask), timed(ask)
    return f"{first * 1000:,.0f}, {again * 1000:,.0f}"


@click.command()
@click.option(
    "--causes", default=3, show_default=True, help="Of each worker's retries."
)
def main(causes: int) -> None:
    """Print the times as lines of a table in Markdown."""
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with filled(all_series(causes), end) as server:
        click.echo("| query | " + " | ".join(SPANS) + " |")
        click.echo("|---" * (len(SPANS) + 1) + "|")
        for name, dashboard in dashboards.load().items():
            for panel in dashboard["panels"]:
                for target in panel["targets"]:
                    if target["datasource"]["uid"] != dashboards.PROMETHEUS:
                        continue
                    cells = [
                        cell(server, parameters(panel, target, end - span, end))
                        for span in SPANS.values()
                    ]
                    click.echo(f"| {name}: {panel['title']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
