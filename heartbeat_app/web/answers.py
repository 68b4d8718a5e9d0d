"""The answers of the read API as bytes: JSON, CSV, or a problem (RFC 9457)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from heartbeat_app.web.parameters import CSV

PROBLEM = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent: status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, for both formats.

    Attributes:
        document: For JSON.
        columns, rows: For CSV.
        next: The id that the next page begins after; None: there is none.
    """

    document: Mapping[str, Any]
    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]
    next: str | None = None


def encode(found: Found, format: str) -> Answer:
    """The answer with what was found."""
    if format == CSV:
        return Answer(
            HTTPStatus.OK,
            {"Content-Type": "text/csv; charset=utf-8; header=present"},
            _csv(found).encode(),
        )
    return Answer(
        HTTPStatus.OK,
        {"Content-Type": "application/json"},
        msgspec.json.encode(found.document),
    )


def problem(status: HTTPStatus, detail: str, **more: str) -> Answer:
    """The answer that says what is wrong."""
    document = {"title": status.phrase, "status": status, "detail": detail, **more}
    headers = {"Content-Type": PROBLEM}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "2"
    return Answer(status, headers, msgspec.json.encode(document))


def _csv(found: Found) -> str:
    """As RFC 4180: lines end with CR LF, what needs it is in quotes."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(found.columns)
    # Instants as in JSON.
    writer.writerows(msgspec.to_builtins(list(found.rows)))
    return lines.getvalue()
