"""Who has beats, and the last beat of each: by skipping through an index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from heartbeat_app.storage.read.spans import (
    END,
    ORIGIN,
    connected,
    in_time,
    not_rolled_up,
)
from heartbeat_app.storage.rollup.marks import DAY, day_span

# One descent into the index for each customer and day, however many beats they have.
# The days are whole ones: inside of one the index would be read on for as long as a
# customer's beats do not fit.
CUSTOMERS = text("""
WITH RECURSIVE found AS (
    SELECT customer_id, 1 AS number FROM (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until AND customer_id > :after
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id, number + 1
    FROM found CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until
          AND customer_id > found.customer_id
        ORDER BY customer_id LIMIT 1
    ) AS next
    WHERE number < :limit
)
SELECT customer_id FROM found
""")

# The same of those that are rolled up: a descent for each customer and month.
CUSTOMERS_ROLLED_UP = text("""
WITH RECURSIVE found AS (
    SELECT customer_id, 1 AS number FROM (
        SELECT customer_id FROM heartbeats_hour
        WHERE customer_id > :after
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id, number + 1
    FROM found CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats_hour
        WHERE customer_id > found.customer_id
        ORDER BY customer_id LIMIT 1
    ) AS next
    WHERE number < :limit
)
SELECT customer_id FROM found
""")

# The recursion goes on only for as long as the limit lets it.
LATEST = text("""
WITH RECURSIVE found AS (
    SELECT customer_id FROM (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until AND customer_id > :after
        ORDER BY customer_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT next.customer_id
    FROM found CROSS JOIN LATERAL (
        SELECT customer_id FROM heartbeats
        WHERE "timestamp" >= :since AND "timestamp" < :until
          AND customer_id > found.customer_id
        ORDER BY customer_id LIMIT 1
    ) AS next
)
SELECT found.customer_id, latest."timestamp", latest.heart_rate
FROM found CROSS JOIN LATERAL (
    SELECT "timestamp", heart_rate FROM heartbeats
    WHERE heartbeats.customer_id = found.customer_id
      AND "timestamp" >= :since AND "timestamp" < :until
    ORDER BY "timestamp" DESC LIMIT 1
) AS latest
WHERE latest."timestamp" >= :exact_since
LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Latest:
    """A customer's last beat."""

    customer_id: str
    timestamp: datetime
    heart_rate: int


def list_customers(engine: Engine, *, after: str, limit: int) -> list[str]:
    """The ids that have beats and come after `after`, in the order of their bytes.

    Also those of whom nothing is kept but hours.
    """
    values: dict[str, object] = {"after": after, "limit": limit}
    with connected(engine) as connection:
        # The marks first: what is rolled up after that is found in either way.
        counted = list(not_rolled_up(connection, ORIGIN, END, DAY))
        found = list(connection.scalars(CUSTOMERS_ROLLED_UP, values))
        for since, until in in_time(counted):
            span = {"since": since, "until": until}
            found.extend(connection.scalars(CUSTOMERS, {**values, **span}))
    return sorted(set(found))[:limit]


def list_latest(
    engine: Engine, *, since: datetime, after: str, limit: int
) -> list[Latest]:
    """The last beat of each customer that has one since then, ordered like that."""
    midnight, _ = day_span(since.astimezone(UTC).date())
    values = {
        "since": midnight,
        "until": "infinity",
        "exact_since": since,
        "after": after,
        "limit": limit,
    }
    with connected(engine) as connection:
        return [Latest(*row) for row in connection.execute(LATEST, values)]
