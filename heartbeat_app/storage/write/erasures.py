"""Customers who were erased are refused, in whatever form they come again.

`erased_customers` does not name them: it has a keyed hash (BLAKE2b) of each id, with a
random key that is in the row, too. Who may read the table can find out whether an id
that they guess was erased, as a worker has to; nobody can read who it was.

**No beat slips through.** A batch's transaction reads the table before it inserts, and
so holds ACCESS SHARE on it until its end. An erasure adds its row under ACCESS
EXCLUSIVE. It therefore waits for all transactions that have not seen it, and all later
ones do: what it deletes after that cannot come again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from heartbeat_app.domain.batches import Batch, Refused
from heartbeat_app.domain.excerpts import Excerpt
from heartbeat_app.domain.models import Record
from heartbeat_app.domain.validation import Reason, Refusal
from heartbeat_app.storage.write.naming import customers_named

REFUSAL = Refusal(
    Reason.CUSTOMER_ERASED, "The customer was erased; what was received is not kept."
)

# Not prepared: EXECUTE takes its snapshot before it waits for the table's lock, and
# would not see the erasure that it waited for.
READ = "SELECT id, key, digest FROM erased_customers WHERE id > %s"


@dataclass(frozen=True, slots=True)
class Erased:
    """Which customers were erased, as far as was read.

    Attributes:
        keys: Of the digests; one, as a rule.
        last: The highest id that was read.
    """

    keys: tuple[bytes, ...] = ()
    digests: frozenset[bytes] = frozenset()
    last: int = 0

    def and_these(self, rows: Sequence[Any]) -> Erased:
        """What is known with these rows of the table."""
        if not rows:
            return self
        return Erased(
            tuple({*self.keys, *(bytes(row.key) for row in rows)}),
            self.digests | {bytes(row.digest) for row in rows},
            max(row.id for row in rows),
        )

    def among(self, customer_ids: Iterable[str]) -> set[str]:
        """Those of the ids that were erased."""
        if not self.digests:
            return set()
        ids = set(customer_ids)
        return {
            each
            for key in self.keys
            for each in ids
            if digest_of(key, each) in self.digests
        }


def digest_of(key: bytes, customer_id: str) -> bytes:
    """What stands for a customer in the table."""
    # A refused record may name what is no text.
    id = customer_id.encode(errors="surrogatepass")
    return hashlib.blake2b(id, key=key, digest_size=32).digest()


def read(connection: Connection, known: Erased) -> Erased:
    """Add what is new to what is known, and hold off erasures until the end.

    Call it inside of the transaction that stores, before it inserts.
    """
    return known.and_these(connection.exec_driver_sql(READ, (known.last,)).all())


@dataclass(frozen=True, slots=True)
class _Emptied:
    """A record of which nothing is kept but its offset."""

    offset: int
    key: None = None
    value: None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def refuse(batch: Batch, erased: Erased) -> Batch:
    """The batch without what erased customers sent; refused records, too."""
    if not erased.digests:
        return batch
    gone = erased.among(beat.customer_id for beat in batch.beats)
    keep = [i for i, beat in enumerate(batch.beats) if beat.customer_id not in gone]
    refused = [
        _emptied(each.record) if erased.among(_named_by(each.record)) else each
        for each in batch.refused
    ]
    if len(keep) == len(batch.beats):
        return replace(batch, refused=refused)
    kept = set(keep)
    return replace(
        batch,
        beats=[batch.beats[i] for i in keep],
        sources=[batch.sources[i] for i in keep],
        refused=[
            *refused,
            *(
                _emptied(source)
                for i, source in enumerate(batch.sources)
                if i not in kept
            ),
        ],
    )


def _emptied(record: Record) -> Refused:
    return Refused(_Emptied(record.offset), REFUSAL)


def _named_by(record: Record) -> set[str]:
    headers = [
        (name, None if value is None else value.decode(errors="surrogateescape"))
        for name, value in record.headers
    ]
    named = customers_named(record.key, record.value, headers)
    if isinstance(record, Excerpt):
        named.update(record.customer_ids)
    return named
