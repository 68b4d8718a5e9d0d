"""`heartbeat_app export`, as a user types it."""

from __future__ import annotations

import random
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyarrow import parquet
from sqlalchemy import Engine, text

from heartbeat_app.cli.recordings import read
from heartbeat_app.config import Settings
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.exceptions import DayGoneError
from heartbeat_app.storage.db.engine import make_engine
from heartbeat_app.storage.read import extract
from heartbeat_app.storage.read.extract import Row, read_pages
from heartbeat_app.terminal.progress import LINE_SECONDS
from testkit.servers import wait_until
from tests.storing import Kept
from tests.typed import HEARTBEAT_APP, typed, typing

pytestmark = pytest.mark.integration

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
IDS = ["a", "A", "a\nb", "ä", "'; --", '"', "z" * 255]
ULIMIT = ("sh", "-c", f'ulimit -f 8; exec {HEARTBEAT_APP[0]} "$@"', "sh")
TO_FULL_DISK = ("sh", "-c", f'exec {HEARTBEAT_APP[0]} "$@" > /dev/full', "sh")


def fill(engine: Engine, count: int = 300) -> list[Row]:
    """Beats of three days, many at the same instants; in the order of an export."""
    chance = random.Random(5)
    rows = {
        (chance.choice(IDS), BEGIN + chance.randrange(72) * HOUR): chance.randint(
            1, 300
        )
        for _ in range(count)
    }
    with engine.begin() as connection:
        for day in range(3):
            connection.execute(
                text("SELECT make_day(:day)"),
                {"day": (BEGIN + timedelta(days=day)).date()},
            )
        connection.execute(
            text(
                'INSERT INTO heartbeats (customer_id, "timestamp", heart_rate)'
                " VALUES (:id, :at, :rate)"
            ),
            [{"id": id, "at": at, "rate": rate} for (id, at), rate in rows.items()],
        )
        found = connection.execute(
            text(
                'SELECT customer_id, "timestamp", heart_rate FROM heartbeats'
                ' ORDER BY "timestamp", customer_id'
            )
        )
        return [(row[0], row[1], row[2]) for row in found]


def csv_rows(path: Path) -> list[Row]:
    with path.open("rb") as stream:
        found = list(read(stream, path.name))
    beats = [each for each in found if isinstance(each, Heartbeat)]
    assert len(beats) == len(found)
    return [(beat.customer_id, beat.timestamp, beat.heart_rate) for beat in beats]


@pytest.mark.parametrize("size", [1, 3, 7, 1_000])
def test_pages_hold_each_beat_once(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rows = fill(engine)
    monkeypatch.setattr(extract, "PAGE", size)
    reading = make_engine(settings, application_name="export")
    since, until = BEGIN + 5 * HOUR, BEGIN + 50 * HOUR
    for customer_id in (None, "a\nb"):
        pages = list(
            read_pages(reading, customer_id=customer_id, since=since, until=until)
        )
        assert max(len(page.rows) for page in pages) <= size
        assert [row for page in pages for row in page.rows] == [
            row
            for row in rows
            if since <= row[1] < until and customer_id in {None, row[0]}
        ]
        done = [page.done for page in pages]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, pages[0].total) == (0, 45 * 3600)
    reading.dispose()


@pytest.mark.parametrize("customer_id", [None, "a"])
@pytest.mark.parametrize("leaves", ["DETACH PARTITION", "DROP"])
def test_a_day_that_goes_away_meanwhile_is_no_end_of_it(
    settings: Settings,
    engine: Engine,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    customer_id: str | None,
    leaves: str,
) -> None:
    fill(engine)
    monkeypatch.setattr(extract, "PAGE", 2)
    reading = make_engine(settings, application_name="export")
    pages = read_pages(reading, customer_id=customer_id)
    assert not next(pages).rows
    assert next(pages).rows
    table = "heartbeats_2026_01_01"
    if leaves == "DROP":
        kept.do(f"DROP TABLE {table}")
    else:
        kept.do(f"ALTER TABLE heartbeats DETACH PARTITION {table}")
    with pytest.raises(DayGoneError, match="2026-01-01 were dropped or detached"):
        list(pages)
    reading.dispose()


def test_a_customers_or_a_periods_beats_in_both_formats(
    environ: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    rows = fill(engine)
    path = tmp_path / "all.csv"
    done = typed(environ, "export", str(path))
    assert (done.status, done.out) == (0, f"Wrote {len(rows)} beats to {path}.\n")
    assert csv_rows(path) == rows

    period = ("--from", "2026-01-01T10:00:00+01:00", "--to", "2026-01-03T00:00:00Z")
    some = [r for r in rows if BEGIN + 9 * HOUR <= r[1] < BEGIN + 48 * HOUR]
    path = tmp_path / "some.parquet"
    assert typed(environ, "export", *period, str(path)).status == 0
    found = parquet.read_table(path).to_pylist()
    assert [tuple(row.values()) for row in found] == some

    mine = [row for row in some if row[0] == "'; --"]
    done = typed(environ, "export", "--customer", "'; --", *period, "-")
    assert done.err.splitlines()[-1] == f"Wrote {len(mine)} beats to standard output."
    path.write_text(done.out)
    assert csv_rows(path) == mine


@pytest.mark.parametrize(
    "instant",
    ["yesterday", "9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+01:00"],
)
def test_an_instant_that_there_is_not_in_utc_is_refused(
    environ: dict[str, str], instant: str
) -> None:
    done = typed(environ, "export", "--from", instant, "-")
    assert done.status == 2
    assert f"'{instant}' is no instant such as 2026-01-01T00:00:00Z" in done.err


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_disk_that_is_full_behind_standard_output_is_told(
    environ: dict[str, str], engine: Engine, format: str
) -> None:
    fill(engine)
    done = typed(environ, "export", "-", "--format", format, program=TO_FULL_DISK)
    assert (done.status, done.err) == (
        1,
        "Error: Cannot write standard output: No space left on device.\n",
    )


def test_ctrl_c_says_that_nothing_was_kept(
    environ: dict[str, str], engine: Engine, kept: Kept, tmp_path: Path
) -> None:
    fill(engine)
    with engine.connect() as blocking:
        blocking.execute(text("LOCK TABLE heartbeats_2026_01_02"))
        with typing(environ, "export", str(tmp_path / "beats.csv")) as process:
            kept.waits("heartbeat_app export")
            assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
            process.send_signal(signal.SIGINT)
            blocking.rollback()
            out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert out.decode().startswith("Stopped after ")
    assert "Nothing was kept: no " in out.decode()
    assert list(tmp_path.iterdir()) == []


def test_it_tells_how_far_it_is(
    environ: dict[str, str], engine: Engine, kept: Kept, tmp_path: Path
) -> None:
    rows = fill(engine)
    with engine.connect() as blocking:
        blocking.execute(text("LOCK TABLE heartbeats_2026_01_02"))
        with typing(environ, "export", str(tmp_path / "beats.csv")) as process:
            kept.waits("heartbeat_app export")
            time.sleep(LINE_SECONDS)
            blocking.rollback()
            out, err = process.communicate(timeout=20)
    assert out.decode().startswith(f"Wrote {len(rows)} beats")
    told = re.findall(r"^Exporting: ([\d,]+) beats \((\d+)%\)$", err.decode(), re.M)
    # Of three days two.
    beats = sum(row[1] < BEGIN + 48 * HOUR for row in rows)
    assert [(int(of), int(share)) for of, share in told[:1]] == [(beats, 67)]


def test_what_goes_wrong_leaves_no_file(
    environ: dict[str, str], engine: Engine, kept: Kept, tmp_path: Path
) -> None:
    fill(engine)
    path = tmp_path / "beats.csv"
    done = typed(environ, "export", str(path), program=ULIMIT)
    assert done.status == 1
    assert f"Cannot write {path}: File too large. Nothing was kept." in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []

    with engine.connect() as blocking:
        blocking.execute(text("LOCK TABLE heartbeats_2026_01_03"))
        with typing(environ, "export", str(path)) as process:
            pid = kept.waits("heartbeat_app export")
            kept.all("SELECT pg_terminate_backend(:pid)", pid=pid)
            _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"PostgreSQL at 127.0.0.1" in err
    wait_until(lambda: not list(tmp_path.iterdir()), "no file is left", seconds=5)
