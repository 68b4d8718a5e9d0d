"""Reads `.env` as Docker Compose reads it, so that one file has one meaning.

The rules are those of https://docs.docker.com/compose/env-file/ and, where that page is
silent, of Compose's own reader (compose-go, packages dotenv and template): single
quotes keep what is in them, double quotes know escapes, and without single quotes
`$NAME`, `${NAME}`, `${NAME:-default}` and their kin are replaced, by the environment's
variables first. A test has both readers' answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from heartbeat_app.exceptions import ConfigurationError

BYTE_ORDER_MARK = "\ufeff"

# What Go calls a space; the second with what ends a line.
_BLANK = "\t\v\f\r \x85\xa0"
_SPACE = (
    _BLANK
    + "\n\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
_EXPORT = re.compile(r"export(?=[\t\n\f\r ])")
_ESCAPE = re.compile(r'\\(?:[abcfnrtv$"\\]|0[0-9]{0,3})')
_ESCAPED = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    '"': '"', "\\": "\\",
    "$": "$$",  # which the next step takes for a single one
}  # fmt: skip
_REFERENCE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[_a-z][_a-z0-9]*)"
    r"|\{(?:(?P<braced>[_a-z][_a-z0-9]*(?::?[-+?].*)?)\}|(?P<invalid>)))",
    re.IGNORECASE | re.ASCII,
)
_OPERATOR = re.compile(r"([^-+?:]*)(:?[-+?])(.*)", re.DOTALL)

Lookup = Callable[[str], str | None]


class _Wrong(ValueError):
    """What is wrong with a line, in words that follow its number."""


def read_env_file(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the file; none where there is no file.

    Arguments:
        environ: Variables that `$NAME` may stand for; they come before the file's own.

    Raises:
        ConfigurationError: It is there, but cannot be read, or a line is wrong. The
            values, which may be passwords, are not told.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigurationError(
                f"{path} is a link to {path.readlink()}, which does not exist. Make "
                "that file, or remove the link."
            ) from None
        return {}
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}. It must be a file of lines "
            "NAME=value that this user may read."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}, line {line}, is not UTF-8. Save the file in UTF-8."
        ) from None
    try:
        return parse(text, environ)
    except _Wrong as wrong:
        raise ConfigurationError(f"{path}, {wrong}.") from None


def parse(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a file's text; see `read_env_file`."""
    rest = text.removeprefix(BYTE_ORDER_MARK)
    found: dict[str, str] = {}

    def lookup(name: str) -> str | None:
        return environ[name] if name in environ else found.get(name)

    while rest := rest.lstrip(_SPACE):
        line = text.count("\n", 0, len(text) - len(rest)) + 1
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        try:
            name, ending, rest = _name(rest)
            if ending == "\n":  # a name alone hands on what the environment has
                value = lookup(name)
            else:
                value, rest = _value(rest, lookup)
        except _Wrong as wrong:
            raise _Wrong(f"line {line}, {wrong}") from None
        if name and value is not None:
            found[name] = value
    return found


def _name(text: str) -> tuple[str, str, str]:
    """The name, what ended it (`=`, `:` or the line's end), and what follows."""
    if _EXPORT.match(text):
        text = text.removeprefix("export").lstrip(_BLANK)
    for index, char in enumerate(text):
        if char in "=:\n":
            name = text[:index].rstrip(_SPACE)
            if " " in name:
                raise _Wrong("has a blank in the variable's name")
            return name, char, text[index + 1 :].lstrip(_BLANK)
        if not (
            char in "_.-[]" or char in _BLANK or unicodedata.category(char)[0] in "LN"
        ):
            raise _Wrong("is not of the form NAME=value")
    if not text:
        raise _Wrong("exports nothing")
    return "", "\n", ""  # Compose takes no name that only the file's end ends


def _value(text: str, lookup: Lookup) -> tuple[str, str]:
    """The value at the beginning of the text, and what follows it."""
    quote = text[:1]
    if quote not in {"'", '"'}:
        line, _, rest = text.partition("\n")
        # A comment begins with a blank; abc#1 has none.
        value = line.partition(" #")[0].rstrip(_SPACE)
        return _replace(value, lookup), rest
    quoted = re.compile(rf"{quote}((?:\\.|[^\\{quote}])*){quote}", re.DOTALL).match(
        text
    )
    if quoted is None:
        raise _Wrong(f"has no closing {quote}")
    value = quoted[1].replace(f"\\{quote}", quote)
    if quote == '"':
        value = _replace(_ESCAPE.sub(_unescape, value), lookup)
    return value, text[quoted.end() :]


def _unescape(match: re.Match[str]) -> str:
    escape = match[0][1:]
    if not escape.startswith("0"):
        return _ESCAPED.get(escape, match[0])
    octal = escape[1:]
    if re.fullmatch("[0-3][0-7]{2}", octal):
        return chr(int(octal, 8))
    return f"\\{octal}"


def _replace(value: str, lookup: Lookup) -> str:
    """Put in what each `$NAME` stands for; nothing for one that is not set."""

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        if match["plain"]:
            return lookup(match["plain"]) or ""
        if match["braced"] is None:
            raise _Wrong("has a ${ that names no variable")
        # The pattern goes as far as the last brace.
        reference, rest = _closed(match[0])
        inner = _REFERENCE.match(reference)
        assert inner is not None
        operation = _OPERATOR.fullmatch(inner["braced"])
        if operation is None:
            return lookup(inner["braced"]) or ""
        name, operator, word = operation.groups()
        return _operate(name, operator, word, lookup) + _replace(rest, lookup)

    return _REFERENCE.sub(replace, value)


def _closed(text: str) -> tuple[str, str]:
    """The text up to the brace that closes its first one, and what follows."""
    depth = index = 0
    while index < len(text):
        if text[index] == "}":
            depth -= 1
            if depth == 0:
                return text[: index + 1], text[index + 1 :]
        if text[index] == "{":
            depth += 1
            index += 1
        index += 1
    return text, ""


def _operate(name: str, operator: str, word: str, lookup: Lookup) -> str:
    value = lookup(name)
    counts = bool(value) if operator.startswith(":") else value is not None
    match operator[-1]:
        case "-":
            return value or "" if counts else _replace(word, lookup)
        case "+":
            return _replace(word, lookup) if counts else value or ""
        case _:
            if not counts:
                raise _Wrong(f"needs {name}, which is not set")
            return value or ""
