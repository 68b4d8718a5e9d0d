"""What the viewers of the live page cost a worker, in processor time.

    python -m bench.viewers 0 1 100 --url http://127.0.0.1:6066/live/events --pid PID

The viewers are in this process; the worker is one that runs already.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass

import aiohttp
import click
import psutil

# The first messages, which tell everything, are waited for; at most so long.
SETTLING_SECONDS = 60.0


@dataclass(frozen=True)
class Cost:
    """What so many viewers cost, and got.

    Attributes:
        core: Processor time of the worker, as a part of a core.
        messages, kilobytes: To each of them a second.
    """

    viewers: int
    core: float
    messages: float
    kilobytes: float

    def __str__(self) -> str:
        return (
            f"{self.viewers} viewers: {100 * self.core:.1f} % of a core; to each "
            f"{self.messages:.2f} messages/s, {self.kilobytes:.0f} kB/s"
        )


async def watch(session: aiohttp.ClientSession, url: str, got: Counter[str]) -> None:
    """Be one viewer, until cancelled."""
    async with session.get(url) as answer:
        answer.raise_for_status()
        async for some in answer.content.iter_any():
            got["bytes"] += len(some)
            got["messages"] += some.count(b"event: new")


async def measure(
    url: str, worker: psutil.Process, viewers: int, seconds: float
) -> Cost:
    """What the worker took while so many watched."""
    got: Counter[str] = Counter()
    token = os.environ.get("WEB_TOKEN")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        tasks = [asyncio.create_task(watch(session, url, got)) for _ in range(viewers)]
        async with asyncio.timeout(SETTLING_SECONDS):
            while got["messages"] < 2 * viewers:
                await asyncio.sleep(0.1)
                for task in tasks:
                    if task.done():
                        task.result()  # raises what went wrong
        got.clear()
        before, began = sum(worker.cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(seconds)
        took, lasted = sum(worker.cpu_times()[:2]) - before, time.monotonic() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    each = max(1, viewers) * lasted
    return Cost(
        viewers, took / lasted, got["messages"] / each, got["bytes"] / each / 1000
    )


@click.command(help=__doc__)
@click.argument("viewers", nargs=-1, type=click.IntRange(0), required=True)
@click.option("--url", default="http://127.0.0.1:6066/live/events", show_default=True)
@click.option("--pid", type=int, required=True, help="The worker's process.")
@click.option("--seconds", default=20.0, show_default=True)
def main(viewers: tuple[int, ...], url: str, pid: int, seconds: float) -> None:
    """Measure each number of viewers in turn."""
    worker = psutil.Process(pid)
    for count in viewers:
        click.echo(asyncio.run(measure(url, worker, count, seconds)))


if __name__ == "__main__":
    main()
