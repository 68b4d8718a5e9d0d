"""Looks whether an erased customer is gone, in another way than it was erased.

`erase` finds days by their names and letters by reading them, in Python. Here tables
are found by their columns, and letters by patterns that PostgreSQL matches with their
bytes: a pattern knows each character of the id in all forms that JSON and addresses
have for it, at any depth of texts within texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg2.sql import SQL, Identifier
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from heartbeat_app.storage.db import errors

# So many letters and bytes in a statement, so that it ends soon.
BATCH_LETTERS = 500
BATCH_BYTES = 4 * 1024 * 1024
# PostgreSQL has no room for the text of more, four characters a byte.
LARGEST_BYTES = 64 * 1024 * 1024

# Whatever has customers, partition or not. What else is in the database is not ours.
TABLES = text(
    """
SELECT c.relname FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE a.attname = 'customer_id' AND NOT a.attisdropped AND c.relkind = 'r'
  AND n.nspname = 'public' AND starts_with(c.relname, 'heartbeats')
ORDER BY 1
"""
)
COUNT = "SELECT count(*) FROM public.{table} WHERE customer_id BETWEEN %s AND %s"

SIZES = text(
    """
SELECT id, coalesce(length(key), 0) + coalesce(length(value), 0)
           + length(headers::TEXT) AS size
FROM dead_letters WHERE id > :after AND id <= :last ORDER BY id LIMIT :letters
"""
)
LAST = text("SELECT coalesce(max(id), 0) FROM dead_letters")
# Bytes as encode(…, 'escape') writes them: ASCII as it is, a backslash twice, the
# others in octal.
LOOK = text(
    """
SELECT id, name_them, name_them OR may_name FROM (
    SELECT id,
           coalesce(key = convert_to(:id, 'UTF8'), false)
           OR EXISTS (
               SELECT FROM jsonb_array_elements(headers) AS header
               WHERE header ->> 0 = :id OR (
                   header ->> 1 = :id AND (NOT :number OR header ->> 0 = 'customer_id')
               )
           )
           OR coalesce(jsonb_exists(customer_ids, :id), false)
           OR key_text ~ :named OR value_text ~ :named OR headers_text ~ :named
               AS name_them,
           key_text ~ :mentioned OR value_text ~ :mentioned
           OR headers_text ~ :mentioned OR detail_text ~ :mentioned AS may_name
    FROM (
        SELECT id, key, headers, customer_ids,
               coalesce(encode(key, 'escape'), '') AS key_text,
               coalesce(encode(value, 'escape'), '') AS value_text,
               encode(convert_to(detail, 'UTF8'), 'escape') AS detail_text,
               (
                   SELECT coalesce(string_agg(encode(
                       CASE jsonb_typeof(part)
                           WHEN 'object' THEN decode(part ->> 'base64', 'base64')
                           ELSE convert_to(part #>> '{}', 'UTF8')
                       END, 'escape'), ' '), '')
                   FROM jsonb_array_elements(headers) AS header,
                        jsonb_array_elements(header) AS part
                   WHERE jsonb_typeof(part) <> 'null'
               ) AS headers_text
        FROM dead_letters WHERE id = ANY (:ids)
    ) AS texts
) AS looked_at
WHERE name_them OR may_name
"""
)


@dataclass(slots=True)
class Check:
    """What was found of a customer.

    Attributes:
        rows: How many rows there are, by table.
        letters: Ids of dead letters that name the customer.
        elsewhere: Ids of others that have the id somewhere.
        too_large: Ids of letters that were not looked at.
    """

    customer_id: str
    rows: dict[str, int] = field(default_factory=dict)
    letters: list[int] = field(default_factory=list)
    elsewhere: list[int] = field(default_factory=list)
    too_large: list[int] = field(default_factory=list)

    def tables(self, engine: Engine) -> list[str]:
        """The names of the tables to look at."""
        with engine.connect() as connection:
            return list(connection.scalars(TABLES))


def check_rows(engine: Engine, check: Check, name: str) -> None:
    """Count the customer's rows in a table, which may be gone meanwhile."""
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        query = SQL(COUNT).format(table=Identifier(name)).as_string(raw)
        try:
            count = connection.exec_driver_sql(
                query, (check.customer_id, check.customer_id)
            ).scalar_one()
        except DBAPIError as error:
            if errors.sqlstate(error) != errors.UNDEFINED_TABLE:
                raise
        else:
            if count:
                check.rows[name] = count


def check_letters(engine: Engine, check: Check) -> Iterator[int]:
    """Look at all letters; yields after each batch how many it had."""
    pattern = any_form(check.customer_id)
    quote = f"({BACKSLASHES}?{QUOTE})"
    blank = f"([ \\t\\r\\n]|{BACKSLASHES}[nrt])*"
    whole = f"{quote}{pattern}{quote}"
    mentioned = any_form(check.customer_id, in_addresses=True)
    number = re.fullmatch("[-+]?[0-9.]+", check.customer_id) is not None
    value = whole
    if number:
        value = f"({whole}|{literal(check.customer_id)}([^0-9.eE+-]|$))"
        mentioned = whole
    named = f"{quote}{any_form('customer_id')}{quote}{blank}:{blank}{value}"
    with engine.connect() as connection:
        last = connection.execute(LAST).scalar_one()
    after = 0
    while True:
        with engine.connect() as connection:
            sizes = connection.execute(
                SIZES, {"after": after, "last": last, "letters": BATCH_LETTERS}
            ).all()
            if not sizes:
                return
            ids: list[int] = []
            size = 0
            for each in sizes:
                size += each.size
                if ids and size > BATCH_BYTES:
                    break
                ids.append(each.id)
                if each.size > LARGEST_BYTES:
                    check.too_large.append(each.id)
            for letter, names, _ in connection.execute(
                LOOK,
                {
                    "ids": [each for each in ids if each not in check.too_large],
                    "id": check.customer_id, "number": number,
                    "named": named, "mentioned": mentioned,
                },
            ):  # fmt: skip
                (check.letters if names else check.elsewhere).append(letter)
        after = ids[-1]
        yield len(ids)


# Patterns, over what encode(…, 'escape') writes

# A run of backslashes, some of which may be written by their number.
BACKSLASHES = r"((\\+(u005[cC])*)+)"
QUOTE = '("|u0022)'
_SHORT = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def literal(text: str) -> str:
    """A pattern of a text as it is."""
    return "".join(_byte(each) for each in text.encode())


def any_form(text: str, *, in_addresses: bool = False) -> str:
    """A pattern of a text, each character in any form that JSON has for it.

    Arguments:
        in_addresses: Also those with a percent sign.
    """
    return "".join(_any_form(character, in_addresses) for character in text)


def _any_form(character: str, in_addresses: bool) -> str:
    units = character.encode("utf-16-be")
    numbered = "".join(
        f"{BACKSLASHES}u{_hexadecimal(units[at : at + 2].hex())}"
        for at in range(0, len(units), 2)
    )
    forms = [literal(character), numbered]
    if in_addresses:
        forms.append(
            "".join(f"%{_hexadecimal(f'{each:02x}')}" for each in character.encode())
        )
    if character in '"/':
        forms.append(f"{BACKSLASHES}{literal(character)}")
    elif character == "\\":
        forms.append(BACKSLASHES)
    elif character in _SHORT:
        forms.append(BACKSLASHES + _SHORT[character])
    return f"({'|'.join(forms)})"


def _hexadecimal(digits: str) -> str:
    return "".join(
        f"[{each}{each.upper()}]" if each.isalpha() else each for each in digits
    )


def _byte(byte: int) -> str:
    if byte == 0 or byte >= 0x80:
        return rf"\\{byte:03o}"
    if byte == 0x5C:
        return r"\\\\"
    character = chr(byte)
    if character.isalnum() or character in "_ ":
        return character
    return f"[{character}]" if character not in "^]" else f"\\{character}"
