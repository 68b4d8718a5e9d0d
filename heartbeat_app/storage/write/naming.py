"""Which customers a record names that is no beat, and which it may name. Pure.

A record **names** a customer

- by its key, as a whole;
- by a header: its name or its value as a whole (a value that is a number only where
  the header is called customer_id);
- by any `customer_id` in the value, the key or a header, a text or a number, in broken
  JSON and JSON in texts, too;
- unless the value has such a customer_id, and unless the id is a number: by a whole
  text of JSON (not a field's name) in the value, the key or a header, or by a whole
  word of the key, of a header, or of a value that is no JSON.

It **may name** a customer whose id is anywhere else in it, in whatever mix of escapes;
one whose id is a number only as a whole text or word. Other numbers say nothing.

Texts within texts are read, DEPTH deep.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

DEPTH = 24
MAX_ID_CHARACTERS = 255

# The closing quote may be missing, and nothing is read twice: a record of a megabyte
# that was made to take long must not.
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*+)"?', re.DOTALL)
# Its letters may be written by their numbers: were they read first, the quotes within
# an id would be, too.
_FIELD = '"' + "".join(rf"(?:{c}|\\u(?i:{ord(c):04x}))" for c in "customer_id") + '"'
_ID_TEXT = re.compile(_FIELD + r'\s*+:\s*+(?="((?:[^"\\]|\\.)*+))', re.DOTALL)
_ID_NUMBER = re.compile(_FIELD + r"\s*+:\s*+([-+]?[0-9.][0-9.eE+-]*+)")
_IS_NAME = re.compile(r"\s*+:")
_NUMBERED = re.compile(r"\\u([0-9a-fA-F]{4})")
_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SHORT = {
    r"\"": '"', r"\/": "/", r"\b": "\b", r"\f": "\f", r"\n": "\n", r"\r": "\r",
    r"\t": "\t",
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?[0-9.]+")
_PIECES = re.compile(r"[\s;,&|]+")
_WORDS = re.compile(r"[\s=:;,&|/?#\"'()\[\]{}<>]+")
_BRACKETS = "\"'()[]{}<>"

# Compressed with gzip, zstd, lz4, snappy (Java's, framed), zip, xz, bzip2.
_COMPRESSED = (
    b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x82SNAPPY\x00",
    b"\xff\x06\x00\x00sNaPpY", b"PK\x03\x04", b"\xfd7zXZ\x00", b"BZh",
)  # fmt: skip

Headers = Sequence[Sequence[object]]


def is_number(customer_id: str) -> bool:
    """Whether an id looks as counts and rates do."""
    return _NUMBER.fullmatch(customer_id) is not None


def customers_named(
    key: bytes | None, value: bytes | None, headers: Headers
) -> set[str]:
    """The customers that a record names; texts among them that nobody is called.

    Arguments:
        headers: Pairs of texts, or what of dead_letters.headers takes their place.
    """
    named: set[str] = set()
    weakly: set[str] = set()
    for name, text in _around(key, headers):
        if text and (name in ("", "customer_id") or not is_number(text)):
            named.add(text)
        named |= _customer_ids(text)
        weakly |= {*_texts(text), *_words(text)}
    content = _text(value)
    in_value = _customer_ids(content)
    if in_value:
        return named | in_value
    weakly.update(_texts(content) if _is_json(content) else _words(content))
    return named | {each for each in weakly if each and not is_number(each)}


def may_name(
    customer_id: str,
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
    *others: str,
) -> bool:
    """Whether the id is anywhere in a record, or in other texts about it."""
    texts = [_text(value), *others, *(text for _, text in _around(key, headers))]
    if is_number(customer_id):
        return any(
            customer_id == text
            or customer_id in _texts(text)
            or (customer_id in _words(text) and not _is_json(text))
            for text in texts
        )
    wide = [customer_id.encode(code) for code in ("utf-16-le", "utf-16-be")]
    return any(
        customer_id in level or customer_id in unquote(level)
        for text in texts
        for level in _levels(text)
    ) or any(
        each in content for content in _bytes(key, value, headers) for each in wide
    )


def is_unreadable(key: bytes | None, value: bytes | None, headers: Headers) -> bool:
    """Whether a record has what nobody can look into without knowing more of it.

    Compressed or encrypted, in UTF-16, or in another form than text.
    """
    return any(
        b"\0" in content or content.startswith(_COMPRESSED) or not _is_utf8(content)
        for content in _bytes(key, value, headers)
    )


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes(key: bytes | None, value: bytes | None, headers: Headers) -> Iterator[bytes]:
    yield key or b""
    yield value or b""
    for pair in headers:
        for each in pair:
            yield _header(each).encode("utf-8", "surrogateescape")


def _around(key: bytes | None, headers: Headers) -> Iterator[tuple[str, str]]:
    """The texts beside the value, after the names of their headers; "" is the key's."""
    yield "", _text(key)
    for name, value in headers:
        yield "", _header(name)
        yield _header(name), _header(value)


def _header(found: Any) -> str:
    if isinstance(found, dict) and isinstance(found.get("base64"), str):
        return _text(base64.b64decode(found["base64"]))
    return found if isinstance(found, str) else ""


def _text(content: bytes | None) -> str:
    return (content or b"").decode(errors="surrogateescape")


def _is_json(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").startswith(("{", "[", '"'))


def _customer_ids(text: str) -> set[str]:
    """Every customer_id in a text."""
    found: set[str] = set()
    if not text:
        return found
    if _is_json(text):
        with suppress(ValueError, RecursionError):
            found.update(_ids_in(json.loads(text)))
    for level in _levels(text):
        for match in _ID_TEXT.finditer(level):
            # Some write a backslash as it is.
            found |= {match[1], _unescaped(match[1])}
        for match in _ID_NUMBER.finditer(level):
            found.add(match[1])
            with suppress(ValueError):
                found.add(str(json.loads(match[1])))
    return found


def _ids_in(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        for name, value in found.items():
            if name == "customer_id" and isinstance(value, str | int | float):
                yield str(value)
            else:
                yield from _ids_in(value)
    elif isinstance(found, list):
        for each in found:
            yield from _ids_in(each)


def _texts(text: str) -> set[str]:
    """The texts of JSON, also of broken JSON and of JSON in texts; no fields' names."""
    found: set[str] = set()
    for level in _levels(text):
        first = level.find('"')
        if first < 0:
            continue
        # In broken JSON an opening quote may be a closing one.
        for start in (first, first + 1):
            for match in _TEXT.finditer(level, start):
                if len(match[1]) <= 12 * MAX_ID_CHARACTERS and not _IS_NAME.match(
                    level, match.end()
                ):
                    found.add(_unescaped(match[1]))
    return found


def _words(text: str) -> set[str]:
    """The words of a text that is no JSON, such as `user=anna` or `anna,72`."""
    found: set[str] = set()
    for written in {text, unquote(text)}:
        for piece in _PIECES.split(written):
            for name_or_value in (piece, piece.partition("=")[2]):
                found.add(name_or_value.strip(_BRACKETS))
        found.update(_WORDS.split(written))
    return found


def _levels(text: str) -> Iterator[str]:
    """The text, and what it is with its escapes read once, twice, …"""
    for _ in range(DEPTH):
        yield text
        if "\\" not in text:
            return
        read = _read_escapes(text)
        if read == text:
            return
        text = read


def _unescaped(text: str) -> str:
    return _read_escapes(text) if "\\" in text else text


def _read_escapes(text: str) -> str:
    """The text with JSON's escapes read; what is no escape stays."""
    parts = text.split("\\\\")  # two backslashes, which mean one
    for short, meant in _SHORT.items():
        if short in text:
            parts = [part.replace(short, meant) for part in parts]
    if "\\u" in text:
        parts = [
            _NUMBERED.sub(lambda match: chr(int(match[1], 16)), part) for part in parts
        ]
    read = "\\".join(parts)
    # Two halves of a character become one.
    return _HALVES.sub(
        lambda halves: (
            halves[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        ),
        read,
    )
