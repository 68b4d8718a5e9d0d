"""The live page as a person uses it: real servers, a real worker, a real browser."""

from __future__ import annotations

import base64
import itertools
import math
import os
import random
import re
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from sqlalchemy import text

from heartbeat_app.domain.models import Heartbeat, encode
from testkit.servers import PROJECT, Crowd, Servers, Topic, Worker
from tests.browser.browser import Browser

pytestmark = pytest.mark.integration

# With this variable the picture of the README is made anew, after so many seconds.
PICTURE = os.environ.get("LIVE_PICTURE")
TOKEN = "the-token-of-these-tests"
EVIL = '<script>document.title="taken"</script>'
SILENT_SECONDS = 15
ALL_STATES = {"silent", "high", "low", "in range"}


class People:
    """Customers with a beat a second each, until somebody takes the device off."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.rates = {f"customer-{number:04d}": 72 for number in range(1, 41)}
        self.rates |= {EVIL: 80, "fast": 175, "slow": 38}

    def beat(self) -> None:
        """One beat of everybody, a little faster or slower."""
        now = datetime.now(UTC)
        wave = int(time.time()) % 7
        beats = [Heartbeat(id, now, rate + wave) for id, rate in self.rates.items()]
        self.topic.produce([encode(beat) for beat in beats])


@pytest.fixture
def people(topic: Topic) -> Iterator[People]:
    topic.make(partitions=2)
    people = People(topic)
    with Crowd(people.beat, 1.0):
        yield people


@pytest.fixture
def worker(people: People, make_worker: Callable[..., Worker]) -> Worker:
    worker = make_worker(WEB_TOKEN=TOKEN).start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    return worker


def address(worker: Worker) -> str:
    return f"http://127.0.0.1:{worker.environ['WEB_PORT']}/live/"


def row(browser: Browser, id: str) -> dict[str, str]:
    """The customer's row; empty texts if it is not in the page."""
    nobody = {"id": id, "state": "", "rate": "", "age": ""}
    return next((each for each in browser.rows() if each["id"] == id), nobody)


def line(browser: Browser, id: str) -> str:
    """The path of the customer's sparkline."""
    found: str = browser.run(
        "return [...document.querySelectorAll('tr.customer')]"
        ".find((row) => row.querySelector('button').textContent === arguments[0])"
        ".querySelector('path').getAttribute('d')",
        id,
    )
    return found


def height(line: str) -> float:
    """How far below the top of its picture a line begins."""
    return float(re.findall(r"M\d+ ([\d.]+)", line)[0])


def states(browser: Browser) -> set[str]:
    """Of all customers whose rows are in the page."""
    return {each["state"] for each in browser.rows()}


def open_hour(browser: Browser, words: str) -> None:
    """Open the first customer's last hour, and wait until it says so."""
    browser.run("document.querySelector('tr.customer button').click()")
    browser.wait(lambda: words in browser.text("detail-text"), f"it says {words!r}")


def open_page(browser: Browser, worker: Worker) -> None:
    """Go there, log in where the browser is not yet, wait for the first customers."""
    browser.driver.get(address(worker))
    if "/login" in browser.driver.current_url:
        browser.driver.find_element(By.NAME, "token").send_keys(TOKEN, Keys.ENTER)
    browser.wait(browser.rows, "customers are shown")


@contextmanager
def no_database(servers: Servers, name: str) -> Iterator[None]:
    """Nobody gets into the database, and whoever was in it is sent away."""
    engine = servers.admin_engine()
    with engine.connect() as connection:
        allow = f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS'
        connection.execute(text(f"{allow} false"))
        sent_away = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        connection.execute(text(f"{sent_away} WHERE datname = :name"), {"name": name})
        yield
        connection.execute(text(f"{allow} true"))
    engine.dispose()


def test_a_person_watches(browser: Browser, people: People, worker: Worker) -> None:
    browser.driver.delete_all_cookies()
    browser.driver.get(address(worker))
    assert "/login" in browser.driver.current_url
    open_page(browser, worker)
    assert browser.driver.current_url == address(worker)
    browser.complaints()  # those of the login's page
    browser.wait(lambda: len(browser.rows()) >= 20, "all have come")
    # Who is out of range comes first, and says so in words.
    browser.wait(
        lambda: {each["id"] for each in browser.rows()[:2]} == {"fast", "slow"},
        "those out of range are on top",
    )
    assert row(browser, "fast")["state"] == "high"
    assert row(browser, "slow")["state"] == "low"

    # Numbers move.
    before = row(browser, "fast")["rate"]
    browser.wait(lambda: row(browser, "fast")["rate"] != before, "rates move")
    assert browser.text("link") == "Hears the server"

    # The figures at the top: beats per second, delay, lag, refused.
    browser.wait(lambda: browser.text("rate") not in ("--", "0"), "beats per second")
    took = r"[\d.]+ m?s"
    browser.wait(
        lambda: re.fullmatch(f"{took} / {took}", browser.text("delay")), "the delay"
    )
    browser.wait(lambda: browser.text("lag").isdigit(), "the lag")
    assert browser.text("refused") == "0"
    people.topic.produce([b"no beat"] * 3)
    browser.wait(lambda: browser.text("refused") == "3", "three are refused")

    # The last minutes as a line, which goes on.
    drawn = line(browser, "fast")
    assert re.match(r"M\d+ [\d.]+L", drawn)
    browser.wait(lambda: line(browser, "fast") != drawn, "its line goes on")
    # Above the other's: it is drawn from the top.
    assert height(line(browser, "fast")) < height(line(browser, "slow"))

    # An id is text whatever it holds.
    browser.search("script")
    browser.wait(lambda: [r["id"] for r in browser.rows()] == [EVIL], "it is found")
    assert browser.driver.title == "Live heart rates"
    assert browser.run("return document.querySelectorAll('tbody script').length") == 0

    # By keyboard alone: search, open, close.
    browser.search("0017")
    browser.wait(
        lambda: [r["id"] for r in browser.rows()] == ["customer-0017"], "it is found"
    )
    browser.type(Keys.ARROW_DOWN)
    assert browser.focused() == "customer-0017"
    browser.type(Keys.ENTER)
    browser.wait(lambda: "Last hour:" in browser.text("detail-text"), "its last hour")
    assert browser.text("detail-name") == "customer-0017"
    assert browser.run("return document.querySelectorAll('#chart canvas').length") == 1
    browser.type(Keys.ESCAPE)
    browser.wait(
        lambda: not browser.run("return document.getElementById('detail').open"),
        "it is closed",
    )
    assert browser.focused() == "customer-0017"
    browser.search("")

    # Somebody falls silent: to the top, and no old number is shown as if it were new.
    del people.rates["customer-0031"]
    browser.wait(
        lambda: browser.rows()[0]["id"] == "customer-0031",
        "the silent one is on top",
        seconds=SILENT_SECONDS + 20,
    )
    assert row(browser, "customer-0031")["rate"] == "--"
    assert row(browser, "customer-0031")["state"] == "silent"
    assert browser.complaints() == []


def test_a_server_that_is_away_and_comes_back(
    browser: Browser, people: People, worker: Worker, servers: Servers
) -> None:
    open_page(browser, worker)
    # The database: the page says so, and how many beats come in nobody knows.
    with no_database(servers, worker.environ["POSTGRESQL_DATABASE"]):
        browser.wait(
            lambda: browser.text("link").startswith("The database does not answer"),
            "the page says that the database is away",
        )
        assert browser.text("rate") == "--"
    browser.wait(lambda: browser.text("link") == "Hears the server", "it is back")

    # The worker.
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 8, "an open page holds up the stop"
    browser.wait(lambda: "Does not hear" in browser.text("link"), "the page says so")
    assert browser.text("rate") == "--"
    browser.wait(
        lambda: {each["rate"] for each in browser.rows()} == {"--"},
        "no old number is shown",
        seconds=SILENT_SECONDS + 10,
    )
    # Nobody has fallen silent: nobody knows.
    assert {each["state"] for each in browser.rows()} == {"unknown"}
    worker.start()
    browser.wait(
        lambda: browser.text("link") == "Hears the server", "it recovers", seconds=60
    )
    browser.wait(
        lambda: row(browser, "fast")["rate"] not in ("", "--"),
        "rates are back",
        seconds=60,
    )


def test_everybody_can_read_it(
    browser: Browser, people: People, worker: Worker
) -> None:
    looks = list(itertools.product((False, True), (1100, 360)))
    open_page(browser, worker)
    browser.wait(lambda: row(browser, "customer-0031")["id"], "somebody is heard")
    del people.rates["customer-0031"]
    browser.wait(
        lambda: row(browser, "customer-0031")["rate"] == "--",
        "somebody is silent",
        seconds=SILENT_SECONDS + 20,
    )
    for dark, width in looks:
        browser.emulate(dark=dark, width=width)
        open_page(browser, worker)
        browser.wait(lambda: states(browser) == ALL_STATES, "all states are in sight")
        assert browser.violations() == []
        page = browser.run("return document.documentElement.scrollWidth")
        assert page <= width, "it is wider than the screen"
        body = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (body == "rgb(19, 20, 23)") is dark
        open_hour(browser, "Last hour:")
        assert browser.violations() == []

    # And while the page does not hear the server, with an hour that was open and one
    # that cannot be had.
    assert worker.stop() == 0
    browser.wait(lambda: "Does not hear" in browser.text("link"), "the page says so")
    for dark, width in looks:
        browser.emulate(dark=dark, width=width)
        assert browser.violations() == []
    browser.type(Keys.ESCAPE)
    browser.wait(
        lambda: states(browser) == {"silent", "unknown"},
        "no old number is shown",
        seconds=SILENT_SECONDS + 10,
    )
    for dark, width in looks:
        browser.emulate(dark=dark, width=width)
        assert browser.violations() == []
        open_hour(browser, "cannot be had")
        assert browser.violations() == []
        browser.type(Keys.ESCAPE)


def test_thousands_are_a_few_rows_in_the_page(
    browser: Browser, topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    topic.make(partitions=1)
    ids = [f"customer-{number:05d}" for number in range(1, 10_001)]
    sent = itertools.count()

    def beat() -> None:
        now, rate = datetime.now(UTC), 60 + next(sent) % 40
        topic.produce([encode(Heartbeat(id, now, rate)) for id in ids])

    worker = make_worker(WEB_TOKEN=TOKEN).start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    with Crowd(beat, 2.0):
        open_page(browser, worker)
        counted = "return document.querySelector('[data-count=all]').textContent"
        browser.wait(
            lambda: browser.run(counted) == "10,000", "all have come", seconds=60
        )
        assert len(browser.rows()) < 60
        browser.search("09999")
        browser.wait(
            lambda: [r["id"] for r in browser.rows()] == ["customer-09999"],
            "it is found",
        )
        before = row(browser, "customer-09999")["rate"]
        browser.wait(
            lambda: row(browser, "customer-09999")["rate"] not in (before, "--"),
            "rates move",
        )
        browser.search("")
        browser.type(Keys.ARROW_DOWN)
        browser.type(Keys.END)
        browser.wait(lambda: browser.focused() == "customer-10000", "the end")
        assert len(browser.rows()) < 60


# What the page does, frame by frame: the longest gap of each second in milliseconds,
# and how often a rate changed in the row of whom.
LOOK_ON = """
const seconds = arguments[0], done = arguments[arguments.length - 1];
const gaps = new Array(seconds).fill(0), changes = {};
const observer = new MutationObserver((records) => {
  for (const { target } of records) {
    if (target.className !== "rate") continue;
    const id = target.parentNode.querySelector("button").textContent;
    changes[id] = (changes[id] ?? 0) + 1;
  }
});
observer.observe(document, { childList: true, subtree: true });
let began = null, last = null;
requestAnimationFrame(function frame(now) {
  began ??= last ??= now;
  const second = Math.floor((now - began) / 1000);
  if (second >= seconds) {
    observer.disconnect();
    done({ gaps, changes });
    return;
  }
  gaps[second] = Math.max(gaps[second], now - last);
  last = now;
  requestAnimationFrame(frame);
});
"""
# Everybody's age in seconds, from the top of the list to its end.
AGES = """
const done = arguments[arguments.length - 1];
const scroller = document.getElementById("scroller"), ages = {};
scroller.scrollTop = 0;
(function page() {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    for (const row of document.querySelectorAll("tr.customer")) {
      ages[row.name.textContent] = row.age.textContent;
    }
    const before = scroller.scrollTop;
    scroller.scrollTop += scroller.clientHeight / 2;
    if (scroller.scrollTop > before) page();
    else done(ages);
  }));
})();
"""


def looked_on(browser: Browser, seconds: int) -> tuple[float, dict[str, int], float]:
    """The longest gap of an ordinary second, in ms; how often whose rate changed; busy.

    Busy: processor time of the page's main thread, as a part of a core. It and the
    median say little of what else the machine does.
    """

    def busy() -> float:
        told = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return {each["name"]: float(each["value"]) for each in told}["TaskDuration"]

    browser.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    began = busy()
    found = browser.driver.execute_async_script(LOOK_ON, seconds)
    took = busy() - began
    browser.driver.execute_cdp_cmd("Performance.disable", {})
    return statistics.median(found["gaps"]), found["changes"], took / seconds


def test_a_thousand_change_each_second_without_a_stutter(
    browser: Browser, topic: Topic, make_worker: Callable[..., Worker]
) -> None:
    topic.make()
    ids = [f"customer-{number:04d}" for number in range(1, 1001)]
    sent = itertools.count()

    def beat() -> None:
        now, rate = datetime.now(UTC), 60 + next(sent) % 50
        topic.produce([encode(Heartbeat(id, now, rate)) for id in ids])

    worker = make_worker(WEB_TOKEN=TOKEN).start()
    worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
    browser.driver.get("about:blank")
    empty_gap, _, empty_busy = looked_on(browser, 3)
    with Crowd(beat, 1.0):
        open_page(browser, worker)
        counted = "return document.querySelector('[data-count=all]').textContent"
        browser.wait(lambda: browser.run(counted) == "1,000", "all have come")
        before = next(sent)
        gap, changes, busy = looked_on(browser, 10)
        beats = next(sent) - before - 1
        ages = browser.driver.execute_async_script(AGES)
    # Everybody's number is a new one each time, in sight or not.
    assert beats >= 5
    assert len(changes) >= 15
    assert min(changes.values()) >= beats - 2
    assert set(ages) == set(ids)
    assert set(ages.values()) <= {f"{seconds} s" for seconds in range(6)}
    # Three frames more than a page with nothing in it are seen by nobody, and what is
    # done each second is less than what a browser calls a long task.
    assert gap < empty_gap + 50
    assert busy - empty_busy < 0.05


class Portrait:
    """A thousand customers whose rates go up and down, for the picture."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        chance = random.Random(7)
        self.people = {
            f"customer-{number:04d}": (
                chance.randint(62, 92),
                chance.uniform(4, 14),
                chance.uniform(60, 240),
                chance.uniform(0, 6),
            )
            for number in range(1, 1001)
        }
        for id, base in (("0214", 148), ("0387", 131), ("0655", 45)):
            self.people[f"customer-{id}"] = (base, 3.0, 90.0, 0.0)
        # Silent for so many seconds.
        self.silent = {"customer-0102": 47, "customer-0871": 130}
        self.chance = chance

    def beats(self, at: datetime) -> Iterator[bytes]:
        """One beat of everybody."""
        ago = datetime.now(UTC) - at
        for id, (base, swing, period, phase) in self.people.items():
            if ago < timedelta(seconds=self.silent.get(id, 0)):
                continue
            wave = swing * math.sin(at.timestamp() / period * math.tau + phase)
            yield encode(Heartbeat(id, at, round(base + wave + self.chance.gauss())))

    def beat(self) -> None:
        """One beat of everybody who is not silent, now."""
        self.topic.produce(list(self.beats(datetime.now(UTC))))


def test_the_picture_of_the_readme(
    browser: Browser,
    topic: Topic,
    make_worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    topic.make()
    portrait = Portrait(topic)
    now = datetime.now(UTC)
    for ago in range(300 if PICTURE else 10, 0, -1):
        topic.produce(list(portrait.beats(now - timedelta(seconds=ago))))
    with Crowd(portrait.beat, 1.0):
        worker = make_worker().start()
        worker.wait_until(lambda: worker.get("/health/ready")[0] == 200, "it is ready")
        # Until the history is forgotten at the top: delays of the last two minutes.
        time.sleep(float(PICTURE or 0))
        browser.emulate(width=900, height=560)
        browser.open(address(worker))
        browser.wait(lambda: browser.text("link") == "Hears the server", "it is well")
        time.sleep(12 if PICTURE else 1)
        command, options = "Page.captureScreenshot", {"format": "png"}
        drawn = browser.driver.execute_cdp_cmd(command, options)
    folder = PROJECT / "docs" / "images" if PICTURE else tmp_path
    path = folder / "live.png"
    path.write_bytes(base64.b64decode(drawn["data"]))
    # The size is in the first chunk; a page without rows takes far less.
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (900, 560)
    assert 20_000 < path.stat().st_size < 300_000
