"""Links between the documents lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from testkit.servers import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
TESTS = {
    name
    for path in PROJECT.glob("tests/**/*.py")
    for name in [*re.findall(r"def (test_\w+)", path.read_text()), path.stem]
}
LINK = re.compile(r"\]\(([^)\s#]*)(#[^)\s]*)?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its headings, as GitHub makes them, and its own."""
    text = page.read_text()
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    } | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_to_a_file_and_to_a_heading(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor[1:] in anchors(file), f"{page.name}: {target}{anchor}"


def test_each_page_that_something_names_is_there() -> None:
    found = subprocess.run(
        ["git", "grep", "-ohIE", r"\bdocs/[a-z/-]+\.md"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in set(found.stdout.split()):
        assert (PROJECT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_module_and_each_test_that_a_page_names_is_there(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "reliability.md"):  # which tell of earlier ones
        return
    text = page.read_text()
    for name in set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", text)):
        found = [*PROJECT.glob(f"{name}"), *PROJECT.glob(f"heartbeat_app/{name}")]
        assert found or list(PROJECT.glob(f"tests/*/{name}")), f"{page.name}: {name}"
    for name in set(re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)`", text)):
        assert name in TESTS, f"{page.name}: {name}"
