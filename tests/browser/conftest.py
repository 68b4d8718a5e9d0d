"""One browser for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.browser import Browser, missing


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium; skips where there is none."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"The live page is not tried in a browser: {reason}")
    browser = Browser()
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The same, as a person finds it: bright and wide."""
    chromium.emulate()
    chromium.complaints()
    return chromium
