"""Order and age of the customers, as the page's own script decides them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from testkit.servers import PROJECT
from tests.browser.browser import Browser

pytestmark = pytest.mark.integration

# Not from the module that serves it: that makes an app, which needs settings.
STATIC = PROJECT / "heartbeat_app" / "web" / "static" / "live"
NOW = 1_700_000_000_000


class Quiet(SimpleHTTPRequestHandler):
    """Writes no log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    """The page's files, without a worker."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(STATIC))
    ) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def run(browser: Browser, files: str) -> Any:
    """Runs a script that knows the module; its last expression's value."""
    browser.driver.get(f"{files}/icon.svg")

    def evaluate(script: str) -> Any:
        return browser.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"import('{files}/customers.js').then((m) => {{ {script} }})"
            ".catch((error) => done(String(error)));"
        )

    return evaluate


def ordered(
    run: Any, customers: list[tuple[str, int, int]], search: str = "", show: str = "all"
) -> list[str]:
    """Ids in order; customers are id, age in ms, rate."""
    told = [[id, age, rate, [0] * 60] for id, age, rate in customers]
    message = json.dumps({"now": NOW, "customers": told})
    found: list[str] = run(
        f"const c = new m.Customers(); c.replace({message});"
        f"done(c.ordered({json.dumps(search)}, '{show}').rows.map((r) => r.id));"
    )
    return found


def test_who_needs_eyes_comes_first(run: Any) -> None:
    customers = [
        ("customer-10", 0, 70),
        ("customer-9", 0, 50),
        ("out by little", 0, 121),
        ("out by much", 0, 190),
        ("too slow", 0, 20),
        ("silent for long", 3_600_000, 70),
        ("just silent", 15_001, 70),
        ("not silent yet", 15_000, 120),
    ]
    assert ordered(run, customers) == [
        "just silent",
        "silent for long",
        "out by much",
        "too slow",
        "out by little",
        "customer-9",
        "customer-10",
        "not silent yet",
    ]
    assert ordered(run, customers, show="silent") == ["just silent", "silent for long"]
    assert ordered(run, customers, search=" OUT by ") == [
        "out by much",
        "out by little",
    ]


def test_an_old_rate_is_old_also_when_nothing_is_heard(run: Any) -> None:
    message = json.dumps({"now": NOW, "customers": [["c", 1000, 70, [0] * 60]]})
    found = run(
        f"const c = new m.Customers(); c.replace({message});"
        "const [row] = c.ordered('', 'all').rows;"
        f"done([14000, 14001].map((ms) => [m.isStale(row, {NOW} + ms),"
        f" m.stateOf(row, {NOW} + ms)]));"
    )
    assert found == [[False, "in range"], [True, "unknown"]]


@pytest.mark.parametrize(
    ("lag", "rate", "words"),
    [
        (0, 0, ""),
        (10_000, 1000, ""),
        (10_001, 1000, "10,001 records wait to be stored"),
        (101, None, "101 records wait to be stored"),
        (None, 1000, "Kafka does not answer"),
    ],
)
def test_silence_may_be_the_pipelines_own(
    run: Any, lag: int | None, rate: int | None, words: str
) -> None:
    figures = json.dumps({"lag": lag, "stored_per_second": rate})
    assert run(f"done(m.waiting({figures}))") == words


def test_a_late_beat_changes_the_picture_and_not_the_rate(run: Any) -> None:
    new = [
        {"now": NOW, "ids": ["c"], "heard": [[0, 0, 70]]},
        {"now": NOW, "ids": [], "heard": [[0, 10_000, 150, 140, 160]]},
        {"now": NOW, "ids": [], "heard": [[0, 10_000, 150, 140, 160]]},
    ]
    found = run(
        f"const c = new m.Customers(); {json.dumps(new)}.forEach((n) => c.add(n));"
        "const [row] = c.ordered('', 'all').rows;"
        f"done([row.rate, m.slotsOf(row, {NOW}).slice(-2),"
        f" m.slotsOf(row, {NOW} + 10000).slice(-3)]);"
    )
    last = [[140, 160], [70, 70]]
    assert found == [70, last, [*last, [0, 0]]]


def test_a_page_told_all_draws_what_one_told_bit_by_bit_draws(run: Any) -> None:
    slots = [0] * 56 + [140, 160, 70, 70]
    message = json.dumps({"now": NOW, "customers": [["c", 0, 70, slots]]})
    found = run(
        f"const c = new m.Customers(); c.replace({message});"
        f"done(m.slotsOf(c.all[0], {NOW}).slice(-3));"
    )
    assert found == [[0, 0], [140, 160], [70, 70]]
