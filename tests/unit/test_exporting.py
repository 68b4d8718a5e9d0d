"""A file of beats is whole or not there."""

from __future__ import annotations

import io
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from heartbeat_app.cli import report
from heartbeat_app.cli.exporting import CSV, PARQUET, export, whole_file
from heartbeat_app.cli.recordings import read
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.exceptions import CommandError
from heartbeat_app.storage.read.extract import Page, Row

AT = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
IDS = ["a", "a,b", 'a"b', "a\nb", "a\rb", " ", "\\N", "=1+1", "ä💓", "'", "z" * 255]
ROWS: list[Row] = [
    (name, AT + number * timedelta(microseconds=499_999), 60 + number)
    for number, name in enumerate(IDS)
]


def pages(rows: list[Row] = ROWS, size: int = 4) -> Iterator[Page]:
    yield Page([], 0, 1)
    for first in range(0, len(rows), size):
        yield Page(rows[first : first + size], first, len(rows))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_csv_is_what_send_reads(tmp_path: Path) -> None:
    path = tmp_path / "beats.csv"
    assert export(pages(), whole_file(path), CSV).beats == len(ROWS)
    with path.open("rb") as stream:
        assert list(read(stream, "beats")) == [Heartbeat(*row) for row in ROWS]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["beats.csv"]


@pytest.mark.parametrize("letter", ["x", "é", "猫", "💓"])
def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path, letter: str) -> None:
    room = os.pathconf(tmp_path, "PC_NAME_MAX") // len(letter.encode())
    path = tmp_path / (letter * room)
    assert export(pages(), whole_file(path), CSV).beats == len(ROWS)
    assert names(tmp_path) == [path.name]


def test_parquet_has_the_types_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "beats.parquet"
    assert export(pages(), whole_file(path), PARQUET).beats == len(ROWS)
    table = parquet.read_table(path)
    assert [str(field.type) for field in table.schema] == [
        "string",
        "timestamp[us, tz=UTC]",
        "int32",
    ]
    assert [tuple(row.values()) for row in table.to_pylist()] == ROWS


@pytest.mark.parametrize("format", [CSV, PARQUET])
def test_no_beats_are_a_file_too(tmp_path: Path, format: str) -> None:
    path = tmp_path / "none"
    assert export(pages([]), whole_file(path), format).beats == 0
    if format == CSV:
        assert path.read_bytes() == b"customer_id,timestamp,heart_rate\r\n"
    else:
        assert parquet.read_table(path).num_rows == 0


@pytest.mark.parametrize("format", [CSV, PARQUET])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_file(
    tmp_path: Path, number: signal.Signals, format: str
) -> None:
    def interrupted() -> Iterator[Page]:
        for position, page in enumerate(pages()):
            if position == 2:
                assert names(tmp_path)[0].startswith(".beats.")
                os.kill(os.getpid(), number)
            yield page

    before = signal.getsignal(number)
    result = export(interrupted(), whole_file(tmp_path / "beats"), format)
    assert (result.beats, result.stopped_by) == (8, number)
    assert report.exported(result, "beats") == (
        "Stopped after 8 beats. Nothing was kept: no beats."
    )
    assert names(tmp_path) == []
    assert signal.getsignal(number) is before


def test_under_nohup_it_goes_on_when_the_connection_drops(
    tmp_path: Path,
) -> None:
    def hung_up() -> Iterator[Page]:
        for page in pages():
            os.kill(os.getpid(), signal.SIGHUP)
            yield page

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = export(hung_up(), whole_file(tmp_path / "beats"), CSV)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.beats, result.stopped_by) == (len(ROWS), None)
    assert names(tmp_path) == ["beats"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_the_file_that_was_there(
    tmp_path: Path, error: Any
) -> None:
    def failing() -> Iterator[Page]:
        yield from pages()
        raise error

    path = tmp_path / "beats.csv"
    path.write_text("before")
    with pytest.raises(error):
        export(failing(), whole_file(path, replace=True), CSV)
    assert (names(tmp_path), path.read_text()) == (["beats.csv"], "before")


def test_a_file_that_is_there_is_replaced_only_when_that_is_wanted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "beats.csv"
    path.write_text("before")
    with pytest.raises(CommandError, match="is there already; --force replaces it"):
        export(pages(), whole_file(path), CSV)
    assert path.read_text() == "before"
    export(pages(), whole_file(path, replace=True), CSV)
    assert path.read_text().startswith("customer_id")

    def meanwhile() -> Iterator[Page]:
        yield from pages()
        (tmp_path / "new").write_text("another's")

    with pytest.raises(CommandError, match="is there already"):
        export(meanwhile(), whole_file(tmp_path / "new"), CSV)
    assert names(tmp_path) == ["beats.csv", "new"]
    assert (tmp_path / "new").read_text() == "another's"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nowhere/beats: No such file"):
        export(pages(), whole_file(tmp_path / "nowhere" / "beats"), CSV)


def test_standard_output_has_what_was_written_before_a_stop() -> None:
    stream = io.BytesIO()

    def interrupted() -> Iterator[Page]:
        for page in pages():
            os.kill(os.getpid(), signal.SIGTERM)
            yield page
            yield page

    result = export(interrupted(), nullcontext(stream), CSV)
    assert (result.beats, result.stopped_by) == (0, signal.SIGTERM)
    assert stream.getvalue() == b"customer_id,timestamp,heart_rate\r\n"


def test_parquet_without_pyarrow_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CommandError, match=r"pip install 'heartbeat_app\[parquet\]'"):
        export(pages(), whole_file(tmp_path / "beats"), PARQUET)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["a device", "a named pipe", "a folder", "a symb"])
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "a device":
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = path.lstat()
    with pytest.raises(CommandError, match=f"is {kind}.*only a regular file"):
        export(pages(), whole_file(path, replace=True), CSV)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (
        before.st_ino,
        before.st_mode,
    )
    assert names(tmp_path) == ["there"]
