"""No pinned dependency has a vulnerability that is known."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.deploy.composefile import PROJECT

# Version 2.19.0 sent passwords to other hosts (CVE-2018-18074): who does not know that
# knows nothing.
CANARY = "https://pypi.org/pypi/requests/2.19.0/json"


def why_not() -> str | None:
    """Why nobody can be asked here, in words; None where the index answers."""
    try:
        with urllib.request.urlopen(CANARY, timeout=10) as answer:
            known = json.load(answer).get("vulnerabilities")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{CANARY} does not answer: {error}"
    return None if known else f"{CANARY} lists no vulnerabilities"


def test_no_dependency_has_a_known_vulnerability() -> None:
    if (why := why_not()) is not None:
        pytest.skip(f"The dependencies are not audited: {why}")
    done = subprocess.run(
        [
            sys.executable, "-m", "pip_audit", "--strict", "--progress-spinner=off",
            "--no-deps", "--disable-pip", "--requirement", "constraints.txt",
        ],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
