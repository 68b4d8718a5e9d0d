"""Which daily partitions, and which months of roll-ups, PostgreSQL has."""

from __future__ import annotations

import re
from datetime import date, timedelta

from sqlalchemy import Connection, text


def bounds(day: date) -> tuple[str, str]:
    """The instant that the day begins at, and that the next one does."""
    return f"{day} 00:00:00+00", f"{day + timedelta(days=1)} 00:00:00+00"


def day_table(day: date) -> str:
    """Name of the day's partition."""
    return f"heartbeats_{day:%Y_%m_%d}"


def day_of_table(name: str) -> date:
    """The day of a partition's name."""
    return date.fromisoformat(name.removeprefix("heartbeats_").replace("_", "-"))


def existing_days(connection: Connection) -> set[date]:
    """The days that have a partition, and not one that is being detached."""
    return {
        date.fromisoformat(found.replace("_", "-"))
        for found in _partitions(connection, "heartbeats", r"\d{4}_\d\d_\d\d")
    }


def day_tables(connection: Connection) -> list[str]:
    """The names of all tables of days, also of those that were detached."""
    return list(
        connection.scalars(
            text(
                "SELECT relname FROM pg_class"
                " WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r'"
                " AND relname ~ '^heartbeats_[0-9]{4}_[0-9]{2}_[0-9]{2}$'"
            )
        )
    )


def detached_months(connection: Connection) -> list[str]:
    """The names of all tables of months of roll-ups that were detached."""
    return list(
        connection.scalars(
            text(
                "SELECT relname FROM pg_class"
                " WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r'"
                " AND NOT relispartition"
                " AND relname ~ '^heartbeats_(minute|hour)_[0-9]{4}_[0-9]{2}$'"
            )
        )
    )


def existing_months(connection: Connection, parent: str) -> set[date]:
    """The first days of the months that a table of roll-ups has partitions for."""
    return {
        date.fromisoformat(found.replace("_", "-") + "-01")
        for found in _partitions(connection, parent, r"\d{4}_\d\d")
    }


def _partitions(connection: Connection, parent: str, suffix: str) -> list[str]:
    """How the names of a table's partitions end."""
    names = connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = CAST(:parent AS regclass) AND NOT i.inhdetachpending"
        ),
        {"parent": parent},
    ).scalars()
    found = [re.fullmatch(f"{parent}_({suffix})", name) for name in names]
    return [match[1] for match in found if match]
