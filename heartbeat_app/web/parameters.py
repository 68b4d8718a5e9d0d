"""The parameters of the read API, checked: what is wrong is said in the answer.

They are in the query; the bounds are also in openapi.json, which a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import msgspec

from heartbeat_app.domain.models import why_no_customer_id
from heartbeat_app.storage.read.history import MAX_POINTS, RAW, STEPS, longest_span

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)

DEFAULT_PAGE = 100
MAX_PAGE = 1_000
DEFAULT_SPAN = timedelta(hours=1)
# A list of the latest beats looks at whole days, and each costs a step a customer.
DEFAULT_LATEST = timedelta(days=1)
MAX_LATEST = timedelta(days=31)

JSON = "json"
CSV = "csv"
MEDIA_TYPES = {"application/json": JSON, "text/csv": CSV}


class BadParameterError(Exception):
    """Which parameter is wrong, what it was, and what is allowed."""

    def __init__(self, parameter: str, detail: str) -> None:
        self.parameter = parameter
        super().__init__(f"{parameter}: {detail}")


class Parameters:
    """The parameters of one request.

    Arguments:
        given: Every name with its value, in the order in which they came.
        known: What this page has, beside `format`.

    Raises:
        BadParameterError: There is an unknown one, or one twice.
    """

    def __init__(self, given: Collection[tuple[str, str]], known: set[str]) -> None:
        self._given: dict[str, str] = {}
        for name, value in given:
            if name not in known | {"format"}:
                raise BadParameterError(
                    name, f"unknown; known are {', '.join(sorted(known | {'format'}))}"
                )
            if name in self._given:
                raise BadParameterError(name, "given twice")
            self._given[name] = value

    def limit(self) -> int:
        """How many entries a page may have."""
        value = self._given.get("limit")
        if value is None:
            return DEFAULT_PAGE
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_PAGE:
            raise BadParameterError(
                "limit", f"is {_shown(value)}; allowed is 1 to {MAX_PAGE}"
            )
        return int(value)

    def after(self) -> str:
        """The id that the page begins after; empty: at the beginning."""
        value = self._given.get("after", "")
        return customer_id(value, "after") if value else value

    def since(self, now: datetime) -> datetime:
        """From when on a last beat counts."""
        since = self._instant("since")
        if since is None:
            return now - DEFAULT_LATEST
        if since < now - MAX_LATEST:
            raise BadParameterError(
                "since", f"lies more than {MAX_LATEST.days} days back"
            )
        return since

    def span(self, now: datetime) -> tuple[datetime, datetime, str | None]:
        """From when to when, and by what step; None: as fits."""
        until = self._instant("to") or now
        since = self._instant("from") or max(EARLIEST, until - DEFAULT_SPAN)
        if since >= until:
            raise BadParameterError(
                "from", f"{_iso(since)} does not lie before `to`, {_iso(until)}"
            )
        step = self._given.get("step")
        if step is not None and step not in {RAW, *STEPS}:
            allowed = ", ".join([RAW, *STEPS])
            raise BadParameterError(
                "step", f"is {_shown(step)}; allowed is one of {allowed}"
            )
        longest = longest_span(STEPS.get(step or RAW, STEPS["day"]))
        if until - since > longest:
            raise BadParameterError(
                "step" if step else "from",
                f"the time from {_iso(since)} to {_iso(until)} has more than "
                f"{MAX_POINTS:,} points; the longest that fits is {longest}",
            )
        return since, until, step

    def format(self, accept: str) -> str:
        """json or csv: as the parameter says, else as the Accept header prefers."""
        value = self._given.get("format")
        if value is None:
            return preferred(accept)
        if value not in {JSON, CSV}:
            raise BadParameterError(
                "format", f"is {_shown(value)}; allowed is {JSON} or {CSV}"
            )
        return value

    def _instant(self, name: str) -> datetime | None:
        value = self._given.get(name)
        if value is None:
            return None
        # A plus sign that was not written as %2B came as a blank, and ISO 8601's basic
        # format has no colon in the offset.
        whole = re.sub(
            r"([0-9])([ +-])([0-9]{2}):?([0-9]{2})$",
            lambda m: f"{m[1]}{m[2].replace(' ', '+')}{m[3]}:{m[4]}",
            value,
        )
        try:
            instant = msgspec.convert(whole, datetime)
        except (msgspec.MsgspecError, ValueError):
            instant = None
        if instant is None or instant.tzinfo is None:
            raise BadParameterError(
                name,
                f"is {_shown(value)}, no instant such as 2026-01-01T00:00:00Z",
            )
        if not EARLIEST <= instant <= LATEST:
            raise BadParameterError(name, "lies before 2000 or after 9999")
        return instant.astimezone(UTC)


def check_encoding(path: str, query: str) -> None:
    """Check the address as it was sent: what it escapes has to be UTF-8.

    Other bytes would stay as they were written, so that `Zo%EB` would be taken for the
    id whose fourth character is a percent sign.

    Raises:
        BadParameterError: It is not.
    """
    parts = [("customer_id", path)]
    parts += [(part.partition("=")[0], part) for part in query.split("&")]
    for name, part in parts:
        try:
            unquote(part, errors="strict")
        except UnicodeDecodeError:
            raise BadParameterError(
                unquote(name), "is not UTF-8 where it is percent-encoded"
            ) from None


def customer_id(value: str, name: str = "customer_id") -> str:
    """An id that a customer may have.

    Raises:
        BadParameterError: None may have it.
    """
    if why := why_no_customer_id(value):
        raise BadParameterError(name, why)
    return value


def preferred(accept: str) -> str:
    """The format that an Accept header prefers; JSON where it names neither."""
    best, quality = JSON, 0.0
    for each in accept.split(","):
        media_type, *options = (part.strip() for part in each.lower().split(";"))
        weights = [o.removeprefix("q=") for o in options if o.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            continue
        if media_type in MEDIA_TYPES and weight > quality:
            best, quality = MEDIA_TYPES[media_type], weight
    return best


def _iso(instant: datetime) -> str:
    return str(msgspec.to_builtins(instant))


def _shown(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "…")
