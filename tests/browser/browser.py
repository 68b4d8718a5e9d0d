"""Debian's Chromium without a screen, and what a person does with the live page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from testkit.servers import wait_until

AXE = Path(__file__).parent / "axe-core-4.14.1" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]

ROWS = """
return [...document.querySelectorAll("tr.customer")].map((row) => ({
    id: row.querySelector("button").textContent, state: row.state.textContent,
    rate: row.rate.textContent, age: row.age.textContent}));
"""


def missing() -> str | None:
    """Why there is no browser; None if there is one."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"no {program} here (Debian: apt install chromium chromium-driver)"
    return None


class Browser:
    """One window."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        options.add_argument("--headless=new")
        options.add_argument("--window-size=1100,800")
        options.add_argument("--disable-dev-shm-usage")
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")  # Chromium refuses root otherwise
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = Service(executable_path=shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)

    def quit(self) -> None:
        """End it."""
        self.driver.quit()

    def open(self, url: str) -> None:
        """Go there and wait for the first customers."""
        self.driver.get(url)
        self.wait(lambda: self.rows(), "customers are shown")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def rows(self) -> list[dict[str, str]]:
        """The rows that are in the page, from the top."""
        found: list[dict[str, str]] = self.run(ROWS)
        return found

    def text(self, id: str) -> str:
        """What an element says."""
        return self.driver.find_element(By.ID, id).text

    def type(self, *keys: str) -> None:
        """Type where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        """Text of what has the focus."""
        return self.driver.switch_to.active_element.text

    def search(self, words: str) -> None:
        """Search with the keyboard alone."""
        self.driver.find_element(By.TAG_NAME, "body").send_keys("/")
        self.type(Keys.CONTROL, "a")
        self.type(words or Keys.BACKSPACE)

    def emulate(
        self, *, dark: bool = False, width: int = 1100, height: int = 800
    ) -> None:
        """A person's taste, and the size of the screen."""
        scheme = "dark" if dark else "light"
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": height,
                "deviceScaleFactor": 1,
                "mobile": False,
            },
        )

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.1 AA."""
        self.run(AXE.read_text())
        found: list[dict[str, Any]] = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {runOnly: arguments[0]})"
            ".then((found) => done(found.violations));",
            RULES,
        )
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in found
            for node in each["nodes"]
        ]

    def complaints(self) -> list[str]:
        """What the browser complained of since the last time."""
        get_log: Any = self.driver.get_log
        return [entry["message"] for entry in get_log("browser")]

    def wait(
        self, condition: Callable[[], Any], what: str, seconds: float = 30.0
    ) -> Any:
        """Wait until it holds."""
        return wait_until(condition, what, seconds=seconds)
