"""Writes beats into a file, CSV or Parquet, that has its name only when it is whole."""

from __future__ import annotations

import csv
import io
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from heartbeat_app.cli.recordings import HEADER
from heartbeat_app.exceptions import CommandError
from heartbeat_app.storage.read.extract import Page, Row
from heartbeat_app.terminal.output import written
from heartbeat_app.terminal.stopping import StopSignals

CSV = "csv"
PARQUET = "parquet"

Write = Callable[[Iterable[Row]], None]


@dataclass(slots=True)
class Exported:
    """How an export went so far.

    Attributes:
        beats: How many were written.
        stopped_by: The signal that ended it before the end.
    """

    beats: int = 0
    stopped_by: signal.Signals | None = None


class Stopped(Exception):
    """A signal came; inside of a file, so that it is given up."""


def export(
    pages: Iterable[Page],
    opened: AbstractContextManager[BinaryIO],
    format: str,
    progress: Callable[[Exported, Page], None] = lambda so_far, page: None,
) -> Exported:
    """Write the pages, one at a time in memory.

    Arguments:
        opened: The file; left with an exception when it is not whole.
        format: CSV or PARQUET.
        progress: Told after every page.

    Raises:
        CommandError: PARQUET, and pyarrow is not installed.
    """
    so_far = Exported()
    stop = StopSignals()
    writing = _csv if format == CSV else _parquet
    with stop.caught(), suppress(Stopped), opened as file, writing(file) as write:
        for page in pages:
            if page.rows:
                write(page.rows)
            so_far.beats += len(page.rows)
            progress(so_far, page)
            if stop.signal is not None:
                so_far.stopped_by = stop.signal
                raise Stopped
    return so_far


@contextmanager
def whole_file(path: Path, *, replace: bool = False) -> Iterator[BinaryIO]:
    """A new file, which gets its name when the block ends without an exception.

    Until then it has another one beside it, and is only for its owner to read, as it
    is afterwards: heart rates are personal data.

    Raises:
        CommandError: It cannot be made, or is there already and not to be replaced.
    """
    try:
        _refuse_existing(path, replace)
        # The file's own name may be as long as names can be: 255 bytes as a rule.
        begin = f".{path.name[:50]}."
        handle, name = tempfile.mkstemp(".part", begin, path.parent)
    except OSError as error:
        raise CommandError(f"Cannot write {path}: {error.strerror}.") from error
    part = Path(name)
    try:
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _refuse_existing(path, replace)
            part.replace(path)
        except OSError as error:
            raise CommandError(
                f"Cannot write {path}: {error.strerror}. Nothing was kept."
            ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output, which has everything when the block ends without an exception.

    Raises:
        CommandError, BrokenPipeError: As by `written`.
    """
    with written():
        yield sys.stdout.buffer


def _refuse_existing(path: Path, replace: bool) -> None:
    """Only what is a file itself may be replaced, and no link, device or pipe by one.

    A link is not followed: it may lead to what others look at.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise CommandError(
            f"{path} is {_kind(mode)}, and only a regular file is replaced. Name a "
            "file, or `-` for the standard output."
        )
    if not replace:
        raise CommandError(f"{path} is there already; --force replaces it.")


def _kind(mode: int) -> str:
    for is_one, name in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_one(mode):
            return name
    return "a device"


@contextmanager
def _csv(file: BinaryIO) -> Iterator[Write]:
    """The form that `send` reads."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(HEADER)

    def write(rows: Iterable[Row]) -> None:
        writer.writerows((id, at.isoformat(), rate) for id, at, rate in rows)

    try:
        yield write
        text.flush()
    finally:
        # The file is the caller's to close. What could not be written has been told.
        with suppress(OSError, ValueError):
            text.detach()


@contextmanager
def _parquet(file: BinaryIO) -> Iterator[Write]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CommandError(
            "Parquet needs pyarrow, which is not installed: "
            "pip install 'heartbeat_app[parquet]'. CSV does without it."
        ) from error
    schema = pyarrow.schema(
        [
            pyarrow.field("customer_id", pyarrow.string(), nullable=False),
            pyarrow.field("timestamp", pyarrow.timestamp("us", "UTC"), nullable=False),
            pyarrow.field("heart_rate", pyarrow.int32(), nullable=False),
        ]
    )
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def write(rows: Iterable[Row]) -> None:
            columns: Any = list(zip(*rows, strict=True))
            arrays = [
                pyarrow.array(column, field.type)
                for column, field in zip(columns, schema, strict=True)
            ]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))

        yield write
