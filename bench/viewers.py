"""What the viewers of the live page cost a worker, in processor time.

    python -m bench.viewers 0 1 100 --url http://127.0.0.1:6066/live/events --pid PID

The viewers are in this process; the worker is one that runs already.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

import aiohttp
import click
import psutil

SETTLING_SECONDS = 5.0  # the first messages, which tell everything


async def watch(session: aiohttp.ClientSession, url: str, got: Counter[str]) -> None:
    """Be one viewer, until cancelled."""
    async with session.get(url) as answer:
        answer.raise_for_status()
        async for some in answer.content.iter_any():
            got["bytes"] += len(some)
            got["messages"] += some.count(b"event: new")


async def measure(
    url: str, worker: psutil.Process, viewers: int, seconds: float
) -> str:
    """What the worker took while so many watched, in words."""
    got: Counter[str] = Counter()
    token = os.environ.get("WEB_TOKEN")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        tasks = [asyncio.create_task(watch(session, url, got)) for _ in range(viewers)]
        await asyncio.sleep(SETTLING_SECONDS)
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
    messages, kilobytes = got["messages"] / each, got["bytes"] / each / 1000
    return (
        f"{viewers} viewers: {100 * took / lasted:.1f} % of a core; to each "
        f"{messages:.2f} messages/s, {kilobytes:.0f} kB/s"
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
