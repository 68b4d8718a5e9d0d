"""How a transaction that stores begins: the ledger locked, and new erasures held off.

In two messages for one batch, in one for those of several partitions.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from heartbeat_app.storage.db.prepared import Plain, Prepared, run
from heartbeat_app.storage.db.transactions import BEGIN
from heartbeat_app.storage.write.erasures import Erased

LOCK = Prepared(
    "ledger_lock",
    ("TEXT", "INTEGER"),
    """
    SELECT next_offset FROM partition_ledger
    WHERE topic_id = $1 AND partition = $2
    FOR UPDATE
    """,
)
# A statement of its own: the next one takes its snapshot when this one has waited for
# an erasure, and sees it.
HOLD_OFF_ERASURES = Plain("LOCK TABLE erased_customers IN ACCESS SHARE MODE")
LOCK_FREE_AND_READ = Prepared(
    "ledger_lock_free",
    ("TEXT", "INTEGER[]", "BIGINT"),
    """
    WITH free AS (
        SELECT partition, next_offset FROM partition_ledger
        WHERE topic_id = $1 AND partition = ANY ($2)
        FOR UPDATE SKIP LOCKED
    )
    SELECT partition, next_offset, NULL AS id, NULL AS key, NULL AS digest FROM free
    UNION ALL
    SELECT NULL, NULL, id, key, digest FROM erased_customers WHERE id > $3
    """,
)


def begin(connection: Connection, topic_id: str, partition: int) -> int | None:
    """Begin, and lock the partition's row until the transaction ends; its next offset.

    None where there is no row. Who was erased is still to be read.
    """
    offset: int | None = run(
        connection, [BEGIN, LOCK.bind(topic_id, partition)]
    ).scalar()
    return offset


def begin_with_free(
    connection: Connection, topic_id: str, partitions: Collection[int], known: Erased
) -> tuple[dict[int, int], Erased]:
    """Begin, and lock those of the rows that nobody holds; their next offsets.

    It does not wait for a row, so no two that lock several ever wait for each other.
    With them comes who was erased, as by `erasures.read`.
    """
    rows = run(
        connection,
        [
            BEGIN,
            HOLD_OFF_ERASURES,
            LOCK_FREE_AND_READ.bind(topic_id, list(partitions), known.last),
        ],
    ).all()
    free = {row.partition: row.next_offset for row in rows if row.id is None}
    return free, known.and_these([row for row in rows if row.id is not None])
