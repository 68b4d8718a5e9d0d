"""Recordings of heartbeats: CSV files, read as a stream and checked line by line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

import msgspec

from heartbeat_app.domain import models
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.domain.validation import EARLIEST, Refusal, Rules, check
from heartbeat_app.exceptions import CommandError

HEADER = ["customer_id", "timestamp", "heart_rate"]

BYTE_ORDER_MARK = "\ufeff"

# Any instant that a record can hold: what is too old to keep or too far ahead is for
# the worker to decide, by its own clock and settings.
ANY_TIME = Rules(earliest=EARLIEST, latest=datetime.max.replace(tzinfo=UTC))

# Three fields of at most 255 characters, quotes doubled, are far below. It bounds the
# memory that a file without line ends takes, and what an open quote swallows.
MAX_LINE_CHARACTERS = 65_536

_json_number = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no heartbeat: where it is, and why, in words."""

    name: str
    first_line: int
    last_line: int
    why: str

    def __str__(self) -> str:
        lines = f"line {self.first_line:,}"
        if self.last_line != self.first_line:
            lines = f"lines {self.first_line:,} to {self.last_line:,}"
        return f"{self.name}, {lines}: {self.why}"


def read(
    stream: BinaryIO,
    name: str,
    *,
    customer_id: str | None = None,
    start: datetime | None = None,
) -> Generator[Heartbeat | BadLine]:
    """Read a recording: UTF-8 CSV with the header customer_id,timestamp,heart_rate.

    Rates are kept as they are, instants to the microsecond. Blank lines, and further
    headers (of files that were put one after the other), are passed over. Read it to
    its end, or close the generator before the stream.

    Arguments:
        stream: The bytes of the file.
        name: What to call it.
        customer_id: Put in the place of every line's own.
        start: Shift all times by the same amount, so that the first beat is then.

    Raises:
        CommandError: It is no recording: the header is missing, or a line has no end.
    """
    # What is not UTF-8 becomes lone surrogates, so that one wrong byte makes one
    # wrong line.
    text = io.TextIOWrapper(
        stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    try:
        yield from _read(text, name, customer_id, start)
    finally:
        text.detach()  # the stream is the caller's to close


def _read(
    text: io.TextIOWrapper, name: str, customer_id: str | None, start: datetime | None
) -> Iterator[Heartbeat | BadLine]:
    rows = csv.reader(_lines(text, name), strict=True)
    shift: timedelta | None = None if start else timedelta(0)
    header_seen = False
    last_line = 0
    while True:
        first_line = last_line + 1
        try:
            fields = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            last_line = rows.line_num
            if not header_seen:
                raise _no_header(name, str(error)) from None
            yield BadLine(name, first_line, last_line, f"This is not CSV: {error}.")
            continue
        last_line = rows.line_num
        if fields == HEADER or not fields:
            header_seen = header_seen or bool(fields)
            continue
        if not header_seen:
            raise _no_header(name, "its first line is " + ascii(",".join(fields))[:100])
        found = _parse(fields, customer_id)
        if isinstance(found, Heartbeat):
            if shift is None:
                assert start is not None
                shift = start - found.timestamp
            found = _shifted(found, shift)
        if isinstance(found, str):
            yield BadLine(name, first_line, last_line, found)
        else:
            yield found
    if not header_seen:
        raise _no_header(name, "it is empty")


# How files begin that are often taken for recordings, and how to make one of them.
NOT_YET_TEXT = (
    (b"\x1f\x8b", "compressed by gzip; unpack it first: gzip -dc FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first: zstd -dc FILE"),
    (b"BZh", "compressed by bzip2; unpack it first: bzip2 -dc FILE"),
    (b"\xfd7zXZ\x00", "compressed by xz; unpack it first: xz -dc FILE"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; unpack it first: lz4 -dc FILE"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first: unzip -p FILE"),
    (b"\xff\xfe", "in UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "in UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"c\x00", "in UTF-16; convert it first: iconv -f UTF-16LE -t UTF-8 FILE"),
    (b"\x00c", "in UTF-16; convert it first: iconv -f UTF-16BE -t UTF-8 FILE"),
)


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    """The lines of a file; a byte-order mark in front of a header is passed over."""
    number = 0
    while line := text.readline(MAX_LINE_CHARACTERS):
        number += 1
        if number == 1:
            begin = line.encode(errors="surrogateescape")
            for magic, what in NOT_YET_TEXT:
                if begin.startswith(magic):
                    raise CommandError(
                        f"{name} is {what} | heartbeat_app send -. A recording is CSV "
                        "in UTF-8."
                    )
        elif line.startswith(BYTE_ORDER_MARK + HEADER[0]):
            # Of the second file, where several were put one after the other.
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) == MAX_LINE_CHARACTERS:
            raise CommandError(
                f"{name}, line {number:,}, has {MAX_LINE_CHARACTERS:,} characters or "
                "more: this is no recording."
            )
        yield line


def _no_header(name: str, why: str) -> CommandError:
    return CommandError(
        f"{name} is no recording: it must begin with the line {','.join(HEADER)}, "
        f"but {why}."
    )


def _parse(fields: list[str], customer_id: str | None) -> Heartbeat | str:
    """The beat of a line, its time not checked yet, or what is wrong with it."""
    if len(fields) != len(HEADER):
        return f"It has {len(fields)} fields instead of {len(HEADER)}."
    if customer_id is not None:
        fields[0] = customer_id
    for name, value in zip(HEADER, fields, strict=True):
        if not value:
            return f"{name} is empty."
    heart_rate: str | msgspec.Raw = fields[2]
    if _json_number.fullmatch(fields[2]):
        heart_rate = msgspec.Raw(fields[2].encode())
    try:
        record = _encode(
            {
                "customer_id": fields[0],
                "timestamp": fields[1],
                "heart_rate": heart_rate,
            }
        )
    except UnicodeEncodeError:
        return "It is not UTF-8."
    try:
        return models.decode(record)
    except (msgspec.MsgspecError, ValueError):
        refusal = check(record, ANY_TIME)
        assert isinstance(refusal, Refusal)
        return refusal.detail


def _shifted(beat: Heartbeat, shift: timedelta) -> Heartbeat | str:
    """The beat as it will be sent, checked as the worker does but for its clock."""
    if shift:
        try:
            beat = msgspec.structs.replace(beat, timestamp=beat.timestamp + shift)
        except OverflowError:
            return "Shifted, its timestamp lies beyond the year 9999."
    found = check(models.encode(beat), ANY_TIME)
    return found.detail if isinstance(found, Refusal) else found
