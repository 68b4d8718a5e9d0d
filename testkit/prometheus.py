"""A real Prometheus: Debian's, unpacked where it is needed and installed nowhere.

Its package would start a server of its own on every machine that the tests are run on.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from testkit.servers import free_port, wait_until

PACKAGE = "prometheus"


def unpack(folder: Path) -> str | None:
    """Get the programs into a folder; why that cannot be done, None where it was."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"no {program} here"
    done = subprocess.run(
        ["apt-get", "download", PACKAGE],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return f"apt-get download {PACKAGE}: {done.stderr.strip()}"
    (package,) = folder.glob(f"{PACKAGE}_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    package.unlink()
    return None


class Promtool:
    """Works questions out over series that are made up."""

    def __init__(self, programs: Path) -> None:
        self._program = programs / "usr/bin/promtool"
        self._folder = programs

    def load(self, samples: Path, data: Path) -> None:
        """Put samples in OpenMetrics' text format into a server's data."""
        subprocess.run(
            [
                *(self._program, "tsdb", "create-blocks-from", "openmetrics"),
                # It reads the file once for each block.
                *("--max-block-duration=486h", "--quiet", samples, data),
            ],
            check=True,
        )

    def firing(
        self, rule: dict[str, Any], series: dict[str, str], minutes: Sequence[int]
    ) -> list[int]:
        """In which of these minutes one of Grafana's rules fires, for such series."""
        asked, condition = (each["model"] for each in rule["data"])
        (limit,) = condition["conditions"]
        sign = {"gt": ">", "lt": "<"}[limit["evaluator"]["type"]]
        (bound,) = limit["evaluator"]["params"]
        alert = {
            "alert": "it",
            "expr": f"({asked['expr']}) {sign} {bound}",
            "for": rule["for"],
            "keep_firing_for": rule["keepFiringFor"],
        }
        group = {"name": "all", "interval": "10s", "rules": [alert]}
        path = self._folder / "rules.yml"
        path.write_text(yaml.safe_dump({"groups": [group]}))
        tried = {
            "rule_files": [str(path)],
            "evaluation_interval": "10s",
            "tests": [
                {
                    "interval": "15s",
                    "input_series": [
                        {"series": name, "values": values.strip()}
                        for name, values in series.items()
                    ],
                    "alert_rule_test": [
                        {
                            "eval_time": f"{minute}m",
                            "alertname": "it",
                            "exp_alerts": [{}],
                        }
                        for minute in minutes
                    ],
                }
            ],
        }
        test = self._folder / "tried.yml"
        test.write_text(yaml.safe_dump(tried))
        done = subprocess.run(
            [self._program, "test", "rules", test],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        # It says when the alert that is expected does not fire.
        silent = {int(each) for each in re.findall(r"time: (\d+)m,", said)}
        assert bool(silent) == (done.returncode == 1), said
        return [minute for minute in minutes if minute not in silent]

    def answer(self, question: str, series: dict[str, str], at: str) -> list[float]:
        """What a question gives at a time, for series in promtool's own notation.

        By asking for what it cannot be: promtool tells then what it is.
        """
        asked = {
            "evaluation_interval": "15s",
            "tests": [
                {
                    "interval": "15s",
                    "input_series": [
                        {"series": name, "values": values}
                        for name, values in series.items()
                    ],
                    "promql_expr_test": [
                        {
                            "expr": question,
                            "eval_time": at,
                            "exp_samples": [{"labels": "nothing", "value": -1}],
                        }
                    ],
                }
            ],
        }
        path = self._folder / "asked.yml"
        path.write_text(yaml.safe_dump(asked))
        done = subprocess.run(
            [self._program, "test", "rules", path],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        # got: Labels:{a="b"} Sample:{Value:1 Timestamp:0}, or nil
        got = said.partition("got:")[2].splitlines()[0].strip().strip('",')
        if got == "nil":
            return []
        return [float(each.split()[-1]) for each in got.split(", ")]


class Prometheus:
    """A server with the project's own configuration, which scrapes these addresses.

    Arguments:
        targets: Host and port by the name of the job.
        token: What the workers want to be told.
        keep: Samples that are older are dropped.
    """

    def __init__(
        self,
        programs: Path,
        folder: Path,
        config: dict[str, Any],
        *,
        targets: dict[str, str],
        token: str,
        keep: str = "15d",
    ) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        secret = folder / "token"
        secret.write_text(token)
        config["global"]["scrape_interval"] = "1s"
        jobs = []
        for job in config["scrape_configs"]:
            if job["job_name"] not in targets:
                continue
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
            if "authorization" in job:
                job["authorization"]["credentials_file"] = str(secret)
            jobs.append(job)
        config["scrape_configs"] = jobs
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self._command = [
            str(programs / "usr/bin/prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--storage.tsdb.retention.time={keep}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def answer(self, question: str) -> list[float]:
        """What a question gives now; raises where it is none."""
        found = self.ask("query", query=question)
        return [float(each["value"][1]) for each in found]

    def ask(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        """What it finds for these parameters of /api/v1/`what`."""
        asked = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(
            f"{self._url}/api/v1/{what}?{asked}", timeout=60
        ) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        series: list[dict[str, Any]] = found["data"]["result"]
        return series

    def wait_for_answer(self, question: str) -> list[float]:
        """Wait until it has an answer."""

        def ask() -> list[float]:
            try:
                return self.answer(question)
            except OSError:  # it is about to listen
                assert self._process.poll() is None, self._log.read_text()
                return []

        found: list[float] = wait_until(ask, f"an answer to {question}", seconds=60)
        return found
