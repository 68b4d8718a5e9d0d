"""`.env` means to the commands what it means to Docker Compose.

Every row was held against Compose's own reader (compose-go 2.16.2), as were 450,000
generated files when the reader was written; there was no difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from heartbeat_app.config import load_settings
from heartbeat_app.env_file import parse, read_env_file
from heartbeat_app.exceptions import ConfigurationError

ENVIRON = {"HOME": "/home/anna", "EMPTY": ""}

# What stands after `V=`, and what V is.
VALUES = {
    # Single quotes: as it is, but for \'.
    "'a${HOME}b'": "a${HOME}b",
    "'$HOME'": "$HOME",
    "'Let\\'s go!'": "Let's go!",
    "'some\\tvalue'": "some\\tvalue",
    "'a\\\\b'": "a\\\\b",
    "'two\nlines'": "two\nlines",
    "' x '": " x ",
    "'a # b' # comment": "a # b",
    # Double quotes: escapes, and variables.
    '"a${HOME}b"': "a/home/annab",
    '"$HOME"': "/home/anna",
    '"\\$HOME"': "$HOME",
    '"a$$b"': "a$b",
    '"a\\nb\\tc\\rd\\\\e"': "a\nb\tc\rd\\e",
    '"{\\"hello\\": \\"json\\"}"': '{"hello": "json"}',
    '"\\0101\\041"': "A\\41",
    '"\\x41\\q\\0"': "\\x41\\q\\",
    '"VAL # not a comment" # comment': "VAL # not a comment",
    '"two\nlines"': "two\nlines",
    # Neither: variables, and a comment after a blank.
    "a${HOME}b": "a/home/annab",
    "$HOME/x": "/home/anna/x",
    "VAL # comment": "VAL",
    "VAL# not a comment": "VAL# not a comment",
    "a#b": "a#b",
    "# c": "# c",
    "some\\tvalue": "some\\tvalue",
    " blanks around \t": "blanks around",
    "it's": "it's",
    'a"b"': 'a"b"',
    "pa$$word": "pa$word",
    "50%$": "50%$",
    "$1": "$1",
    "a=b:c": "a=b:c",
    "": "",
    "\xa0x\u2003": "x",
    # What is not set is nothing.
    "a$NOBODY.b": "a.b",
    "a${NOBODY}b": "ab",
    # The operators of ${…}.
    "${NOBODY:-default}": "default",
    "${NOBODY-default}": "default",
    "${EMPTY:-default}": "default",
    "${EMPTY-default}": "",
    "${HOME:-default}": "/home/anna",
    "${NOBODY:-}": "",
    "${HOME:+set}": "set",
    "${EMPTY:+set}": "",
    "${EMPTY+set}": "set",
    "${NOBODY+set}": "",
    "${HOME:?must be set}": "/home/anna",
    "${EMPTY?must be set}": "",
    "${NOBODY:-${HOME}}": "/home/anna",
    "${NOBODY:-${NOBODY:-x}}": "x",
    "${NOBODY:-a} and ${NOBODY-b}": "a and b",
    "${HOME}}": "/home/anna}",
}

# Whole files.
FILES = {
    "A=1\r\nB='2'\r\nC=\"3\"\r\n": {"A": "1", "B": "2", "C": "3"},
    "\ufeffA=1\n": {"A": "1"},
    "export A=1\n  export\tB=2\n": {"A": "1", "B": "2"},
    "exportA=1\nexport_B=2\n": {"exportA": "1", "export_B": "2"},
    "A = 1\n\n  # comment\nB: 2\n": {"A": "1", "B": "2"},
    "A=1\nA=2\nA=\n": {"A": ""},
    "A=1\nB=${A}2\nC=$B\n": {"A": "1", "B": "12", "C": "12"},
    "HOME=/x\nA=$HOME\n": {"HOME": "/x", "A": "/home/anna"},
    "B=$A\nA=1\n": {"A": "1", "B": ""},
    "HOME\nNOBODY\nA=1": {"HOME": "/home/anna", "A": "1"},
    "A='1'B=2\n": {"A": "1", "B": "2"},
    "a[1].b-c=x\né=y\n": {"a[1].b-c": "x", "é": "y"},
    "": {},
    "# only a comment": {},
}

# What no reader takes, with words that do not tell the value.
WRONG = {
    "A=1\nB='secret\n": "line 2, has no closing '",
    'A="secret': 'line 1, has no closing "',
    "A=1\n\nsecret$x=1\n": "line 3, is not of the form NAME=value",
    "A B=secret\n": "line 1, has a blank in the variable's name",
    "A=${secret\n": "line 1, has a ${ that names no variable",
    "A=${NOBODY:?secret}\n": "line 1, needs NOBODY, which is not set",
    'A="x"\nB="two\nlines"\nC=${}': "line 4, has a ${ that names no variable",
}


@pytest.mark.parametrize("written", VALUES)
@pytest.mark.parametrize("end", ["\n", "", "\nW=w\n"])
def test_a_value_is_what_compose_takes(written: str, end: str) -> None:
    assert parse(f"V={written}{end}", ENVIRON)["V"] == VALUES[written]


@pytest.mark.parametrize("text", FILES)
def test_a_file_is_what_compose_takes(text: str) -> None:
    assert parse(text, ENVIRON) == FILES[text]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_line_is_named_and_no_secret_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_env_file(file, ENVIRON)
    assert str(caught.value) == f"{file}, {WRONG[text]}."


def test_a_password_in_single_quotes_reaches_the_database_as_it_is(
    tmp_path: Path,
) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "POSTGRESQL_USERNAME=admin\nPOSTGRESQL_PASSWORD=' a${HOME}b '\n"
        "POSTGRESQL_DATABASE=db\nWEB_PORT=' 7000 '\n"
    )
    settings = load_settings({"HOME": "/home/anna"}, file)
    assert settings.postgresql_password == " a${HOME}b "
    assert settings.web_port == 7000


def test_what_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    def why(file: Path) -> str:
        with pytest.raises(ConfigurationError) as caught:
            read_env_file(file, {})
        return str(caught.value)

    assert read_env_file(tmp_path / "nowhere", {}) == {}
    assert "cannot be read: Is a directory" in why(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert f"is a link to {tmp_path / 'gone'}, which does not exist" in why(link)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be read: Too many levels of symbolic links" in why(loop)
    assert "Not a directory" in why(Path("/dev/null/.env"))
    latin = tmp_path / "latin"
    latin.write_bytes(b"A=1\nB=\xe9\n")
    assert why(latin) == f"{latin}, line 2, is not UTF-8. Save the file in UTF-8."
    assert read_env_file(Path("/dev/null"), {}) == {}
