"""What is kept of a record that is not kept whole. Pure: no clock, no I/O.

Its size, its SHA-256, its first 4 KiB, and the customers that it names: who is erased
must be found in what is kept, and the name may stand behind it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from heartbeat_app.domain.models import (
    MAX_CUSTOMER_ID_LENGTH,
    Record,
    why_no_customer_id,
)

KEPT_BYTES = 4096

# A record that names more customers, or takes longer to look through, is a stranger's:
# of such a one no bytes are kept, so that nobody has to be found in them.
MOST_IDS = 100
MOST_CANDIDATES = 1_000
MOST_ESCAPED_BYTES = 16 * 1024 * 1024

# An id of 255 characters, each of them escaped as a pair of surrogates.
_LONGEST_ID = MAX_CUSTOMER_ID_LENGTH * 12
_LONGEST_PLAIN_ID = MAX_CUSTOMER_ID_LENGTH * 4
# More than a field's name, a colon, blanks and an id: what is looked at again together
# with the next piece.
_OVERLAP = 4096

_NAME = b"customer_id"


def _field(name: bytes) -> re.Pattern[bytes]:
    # The quotes are escaped where the JSON is a text in another JSON.
    return re.compile(
        rb'(?P<escape>\\{0,7})"' + name + rb'(?P=escape)"\s{0,64}:\s{0,64}'
    )


_FIELD = _field(_NAME)
_ESCAPED_FIELD = _field(b"".join(rb"(?:%c|\\{1,8}u(?i:%04x))" % (c, c) for c in _NAME))
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]{0,64}")
# An id, from quote to quote, by how many backslashes stand before each of them.
_TEXTS = [re.compile(rb'"((?:[^"\\]|\\.){0,%d})"' % _LONGEST_ID, re.DOTALL)] + [
    re.compile(
        rb'%b"(.{0,%d}?)(?<!\\)%b"' % (rb"\\" * escapes, _LONGEST_ID, rb"\\" * escapes),
        re.DOTALL,
    )
    for escapes in range(1, 8)
]


class Excerpt(msgspec.Struct, frozen=True, gc=False):
    """The beginning of a record, and what tells it from others.

    Attributes:
        offset: Of the record.
        key, value, headers: Of these, in this order, the first 4 KiB; a header whole or
            not at all. Nothing where too many customers are named.
        size: Bytes of the whole key, the value, and each header's name and value.
        sha256: Of those bytes, in that order.
        customer_ids: Who is named in the whole record, as far as it can be read.
    """

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    size: int
    sha256: bytes
    customer_ids: Sequence[str]


def size_of(record: Record) -> int:
    """Bytes of a record's key, its value, and each header's name and value."""
    size = len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        size += len(name.encode("utf-8", "surrogateescape")) + len(value or b"")
    return size


def excerpt(record: Record, customer_ids: Iterable[str] = ()) -> Excerpt:
    """Make an excerpt of a record that is held whole.

    Arguments:
        customer_ids: Who it is known to be about.
    """
    made = Excerpting()
    for size, part in ((made.key, record.key), (made.value, record.value)):
        size(None if part is None else len(part))
        made.add(part or b"")
    for name, value in record.headers:
        # A name that is not UTF-8 came out of the lane as lone surrogates.
        encoded = name.encode("utf-8", "surrogateescape")
        made.header_name(len(encoded))
        made.add(encoded)
        made.header_value(None if value is None else len(value))
        made.add(value or b"")
    for customer_id in customer_ids:
        made.name(customer_id)
    return made.end(record.offset)


class Excerpting:
    """Makes an excerpt of a record that comes piece by piece.

    Tell each part's size (None: it is null) before its pieces, in this order: key,
    value, and each header's name and value.
    """

    def __init__(self) -> None:
        self._size = 0
        self._digest = hashlib.sha256()
        self._ids: set[str] = set()
        # Of the part that comes: what is done with it, and its first bytes.
        self._finish: Callable[[bytes | None], None] = lambda part: None
        self._part: bytearray | None = None
        self._in_value = False
        self._window = b""
        self._candidates = 0
        self._escaped_bytes = 0
        self._room = KEPT_BYTES
        self._key: bytes | None = None
        self._value: bytes | None = None
        self._headers: list[tuple[str, bytes | None]] = []
        self._header_name: bytes = b""

    def key(self, size: int | None) -> None:
        """Begin the key."""
        self._begin(size, self._finish_key)

    def value(self, size: int | None) -> None:
        """Begin the value."""
        self._begin(size, self._finish_value)
        self._in_value = True

    def header_name(self, size: int) -> None:
        """Begin a header."""
        self._begin(size, self._finish_header_name)

    def header_value(self, size: int | None) -> None:
        """Begin the value of the header whose name came."""
        self._begin(size, self._finish_header)

    def encoded_headers(self, size: int) -> None:
        """Begin headers that are too many to be taken apart, as Kafka has them."""
        self._begin(size, lambda part: None)

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the part that was begun."""
        if not piece:  # it may be null
            return
        self._digest.update(piece)
        self._size += len(piece)
        assert self._part is not None
        if len(self._part) <= KEPT_BYTES:
            # One byte more tells that there is more.
            self._part += piece[: KEPT_BYTES + 1 - len(self._part)]
        if self._in_value and self._looks_on:
            self._window += piece
            self._look(until=len(self._window) - _OVERLAP)

    def name(self, customer_id: str) -> None:
        """Note a customer that the record is about."""
        # No other id is ever erased, nor does PostgreSQL take it.
        if self._looks_on and why_no_customer_id(customer_id) is None:
            self._ids.add(customer_id)

    def end(self, offset: int) -> Excerpt:
        """Make the excerpt; all of the record came."""
        self._end_part()
        if not self._looks_on:
            self._key, self._value, self._headers, self._ids = None, None, [], set()
        return Excerpt(
            offset,
            self._key,
            self._value,
            self._headers,
            self._size,
            self._digest.digest(),
            sorted(self._ids),
        )

    @property
    def _looks_on(self) -> bool:
        return (
            len(self._ids) <= MOST_IDS
            and self._candidates <= MOST_CANDIDATES
            and self._escaped_bytes <= MOST_ESCAPED_BYTES
        )

    def _begin(self, size: int | None, finish: Callable[[bytes | None], None]) -> None:
        self._end_part()
        self._finish = finish
        self._part = None if size is None else bytearray()

    def _end_part(self) -> None:
        if self._in_value:
            self._look(until=len(self._window))
            self._in_value, self._window = False, b""
        self._finish(None if self._part is None else bytes(self._part))

    def _finish_key(self, key: bytes | None) -> None:
        self._name_by(key)
        self._key = self._take(key)

    def _finish_value(self, value: bytes | None) -> None:
        self._value = self._take(value)

    def _finish_header_name(self, name: bytes | None) -> None:
        assert name is not None
        self._name_by(name)
        self._header_name = name

    def _finish_header(self, value: bytes | None) -> None:
        self._name_by(value)
        size = len(self._header_name) + len(value or b"")
        if size <= self._room:
            self._room -= size
            name = self._header_name.decode("utf-8", "surrogateescape")
            self._headers.append((name, value))
        else:
            self._room = 0

    def _take(self, part: bytes | None) -> bytes | None:
        if part is None:
            return None
        kept = part[: self._room]
        self._room -= len(kept)
        return kept

    def _name_by(self, part: bytes | None) -> None:
        if part and len(part) <= _LONGEST_PLAIN_ID:
            self.name(part.decode(errors="surrogateescape"))

    def _look(self, until: int) -> None:
        """Look for customers in the window, whose names begin before `until`."""
        if until <= 0:
            return
        window = self._window
        field: re.Pattern[bytes] | None = _FIELD
        if b"\\u" in window:
            field = _ESCAPED_FIELD
            self._escaped_bytes += until
        elif _NAME not in window:
            field = None
        if field is not None:
            for found in field.finditer(window):
                if found.start() >= until or not self._looks_on:
                    break
                self._candidates += 1
                self._name_after(found)
        self._window = window[until:]

    def _name_after(self, found: re.Match[bytes]) -> None:
        escapes = len(found["escape"])
        text = _TEXTS[escapes].match(found.string, found.end())
        if text is None:
            number = _NUMBER.match(found.string, found.end())
            if number is not None:
                with suppress(ValueError):
                    self.name(str(json.loads(number[0])))
            return
        # Escaped once, and once more for each JSON that it lies in.
        words = text[1].decode(errors="surrogateescape")
        for _ in range((escapes + 1).bit_length()):
            try:
                words = json.loads(f'"{words}"', strict=False)
            except ValueError:  # as it stands there
                break
        self.name(words)
