"""Standard output of the commands: what cannot be written is an error, told once."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from heartbeat_app.exceptions import CommandError, printable

# Of a write, and of nothing else that a command does without a file's name.
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


@contextmanager
def written() -> Iterator[None]:
    """Standard output has everything when the block ends without an exception.

    Raises:
        CommandError: It cannot be written.
        BrokenPipeError: Nobody reads it any more, which click ends with status 1.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(error) from error


def _cannot_write(error: OSError) -> CommandError:
    # What was not written would be tried, and told, once more as Python ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return CommandError(f"Cannot write standard output: {error.strerror}.")


def say(words: str, *, done: bool = False) -> None:
    """Print a result; names that came from elsewhere cannot move the terminal.

    Arguments:
        done: It tells of something that has happened, so it is told on standard error
            where standard output takes nothing.

    Raises:
        CommandError, BrokenPipeError: As by `written`.
    """
    try:
        with written():
            click.echo(printable(words))
    except (CommandError, BrokenPipeError):
        if done:
            click.echo(printable(words), err=True)
        raise


@contextmanager
def explained() -> Iterator[None]:
    """Around a whole command: a file or standard output that fails is no traceback.

    Raises:
        CommandError: Names the file, or standard output.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise CommandError(f"{error.filename}: {error.strerror}.") from error
        if error.errno in _WRITE_ERRORS:
            raise _cannot_write(error) from error
        raise
