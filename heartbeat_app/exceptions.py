"""The errors that end a command, or that a caller tells apart, in one tree.

A message says what happened, where, and what to do about it. It never holds a password.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import click


def printable(text: str) -> str:
    """A text of several lines in which all that could move a terminal is written out.

    Names of topics, files and roles come from elsewhere, and so do the errors of
    servers: what they hold must not clear a screen or hide a line.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        each
        if each == "\n" or each.isprintable()
        else each.encode("unicode_escape").decode()
        for each in text
    )


def first_words(text: str) -> str:
    """What a driver says first, without the hints and statements below it.

    Of several servers that it tried in vain each has a line.
    """
    first, *others = text.strip().splitlines() or [""]
    tried = [each for each in others if each.startswith(_ANOTHER_SERVER)]
    return "; ".join([first, *tried])


# As libpq begins them.
_ANOTHER_SERVER = ("connection to server ", "could not translate host name ")


class HeartbeatError(Exception):
    """The root: whatever this application raises on purpose."""


class ConfigurationError(HeartbeatError, click.ClickException):
    """A setting is missing or wrong; named with what it was and what is allowed.

    It is a `click.ClickException` too, so that every command line ends with the
    message and exit status 1 instead of a traceback.
    """

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, printable(message))


class CommandError(HeartbeatError, click.ClickException):
    """A command cannot go on; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, printable(message))


class LaneError(HeartbeatError):
    """The batch lane met a state in which going on would lose or double records."""


class StandstillError(HeartbeatError):
    """Nothing moves although there is lag and the database is well.

    The process ends for its supervisor to start it anew.
    """


class StorageError(HeartbeatError):
    """PostgreSQL refused or could not do something."""


class LedgerWentBackError(StorageError):
    """The ledger lies behind the records in hand, as after a restored backup.

    Nothing was written; the reader has to seek to `next_offset` again (None: the
    ledger has no row for the partition any more).
    """

    def __init__(self, where: str, asked: int, next_offset: int | None) -> None:
        self.next_offset = next_offset
        super().__init__(
            f"{where}: the ledger stands at {next_offset}, the records in hand begin "
            f"at {asked}; what lies between is not in the database (a restored "
            f"backup?). Reading again from the ledger's offset."
        )


class ApartError(StorageError):
    """Batches cannot share a transaction; nothing was written.

    Each is to be written by itself.
    """


class TooManyBeatsError(StorageError):
    """A question has more beats for an answer than one may hold."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"There are more than {most:,} beats in that time; ask for a shorter one, "
            "or for a longer step."
        )


class TooSlowError(StorageError):
    """A question takes longer to answer than a person waits."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"It would take longer than {seconds:g} s; ask for a shorter time, or "
            "again later."
        )


class TooManyQuestionsError(StorageError):
    """More is asked than is answered at once, or the worker ends."""

    def __init__(self) -> None:
        super().__init__("Too many questions at once; ask again.")


class DayGoneError(CommandError):
    """A day is not there any more, and not all of it was read."""

    def __init__(self, day: date) -> None:
        super().__init__(
            f"The beats of {day} were dropped or detached while they were read. Ask "
            f"for those from {day + timedelta(days=1)} on, or again once the day is "
            "back."
        )


class BooksError(StorageError):
    """A batch does not add up; its transaction was rolled back."""


class NotErasedError(CommandError):
    """Something of an erased customer is still there."""

    def __init__(self, rows: Mapping[str, int], letters: Sequence[int]) -> None:
        self.rows, self.letters = dict(rows), list(letters)
        there = [f"{count:,} rows in {table}" for table, count in rows.items()]
        if letters:
            ids = ", ".join(map(str, letters[:20]))
            more = ", …" if len(letters) > 20 else ""
            there.append(f"{len(letters):,} dead letters (ids {ids}{more})")
        super().__init__(
            f"The customer is not erased: {' and '.join(there)} still name them. It "
            "is not noted as finished. Run it again; if that does not help, look at "
            "what is left, remove it as the owner of the tables, and report this."
        )


class EmbeddedServerError(HeartbeatError):
    """A server of the one-machine set-up could not be installed, started or stopped."""
