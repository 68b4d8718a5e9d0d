"""Makes `.env` from `.env.example`, with passwords that nobody has chosen."""

import os
import re
import secrets
import sys
from pathlib import Path

import click

from heartbeat_app.exceptions import EmbeddedServerError, HeartbeatError


def ensure_env_file(folder: Path | None = None) -> bool:
    """Make `.env`, readable for its owner only; False when it is there already.

    Has to come before the settings are read. `folder`: the working folder unless
    given.
    """
    folder = folder or Path.cwd()
    target, example = folder / ".env", folder / ".env.example"
    if target.exists() or target.is_symlink():  # whatever it is, it is not ours
        return False
    try:
        text = example.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EmbeddedServerError(
            f"There is no .env in {folder}, and no .env.example to make it from.\n"
            "Start from the project's folder."
        ) from None
    text = re.sub(
        r"^(POSTGRESQL_(?:OWNER_|READER_)?PASSWORD)=$",
        lambda match: f"{match[1]}={secrets.token_urlsafe(24)}",
        text,
        flags=re.MULTILINE,
    )
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    click.echo("Made .env from .env.example, with new passwords.")
    return True


if __name__ == "__main__":
    try:
        ensure_env_file()
    except HeartbeatError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}.")
