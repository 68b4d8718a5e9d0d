"""The worker's pages: whether it lives, whether it is ready, what it did."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, ClassVar

from faust.web import Request, Response, View
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.storage.read.books import read_books
from heartbeat_app.storage.read.questions import read
from heartbeat_app.storage.read.reads import read_recent
from heartbeat_app.storage.write.dead_letters import count_by_reason
from heartbeat_app.worker.application import app

# A page answers within a second, also while the database is slow.
ANSWER_SECONDS = 0.5


@app.page("/health/live", name="health-live")
class Live(View):
    """200 while the event loop turns: otherwise restart the process."""

    async def get(self, request: Request) -> Response:
        """Answer."""
        return self.json({"alive": True})


@app.page("/health/ready", name="health-ready")
class Ready(View):
    """200 when what comes in is stored, 503 with the reasons when not."""

    async def get(self, request: Request) -> Response:
        """Answer from the watchdog's last look, so that it never waits."""
        health = app.watchdog.health
        return self.json(
            {
                "ready": health.ready,
                "reasons": health.reasons,
                "warnings": app.policies.warnings,
                "lag": health.lag,
            },
            status=200 if health.ready else 503,
        )


@app.page("/metrics", name="metrics")
class Metrics(View):
    """What this worker did, for Prometheus."""

    async def get(self, request: Request) -> Response:
        """Answer from memory, so that a scrape never waits for anybody."""
        accept = request.headers.get("Accept", "")
        body, content_type = app.metrics.expose(accept)
        return self.bytes(body, headers={"Content-Type": content_type})


@app.page("/stats/", name="stats")
class Stats(View):
    """What came in: the books by partition, rate, delay, refusals by reason."""

    # Shared by all who ask meanwhile, so that a slow database is not asked more.
    _reading: ClassVar[asyncio.Future[dict[str, Any] | None] | None] = None

    async def get(self, request: Request) -> Response:
        """Answer from the database, for all workers together; 503 without it."""
        health = app.watchdog.health
        answer: dict[str, Any] = {
            "ready": health.ready,
            "reasons": health.reasons,
            "lag": health.lag,
        }
        if Stats._reading is None or Stats._reading.done():
            reading = asyncio.to_thread(_read_stats, app.reads)
            Stats._reading = asyncio.ensure_future(reading)
        await asyncio.wait([Stats._reading], timeout=ANSWER_SECONDS)
        found = Stats._reading.result() if Stats._reading.done() else None
        if found is None:
            return self.json(answer, status=503)
        return self.json({**answer, **found})


def _read_stats(engine: Engine) -> dict[str, Any] | None:
    """The same; None: the database does not answer."""
    try:
        return read(read_stats, engine)
    except SQLAlchemyError:
        return None


def read_stats(engine: Engine) -> dict[str, Any]:
    """What the database tells of all workers together."""
    books = read_books(engine)
    recent = read_recent(engine)
    refused = count_by_reason(engine)
    return {
        **asdict(books.total),
        "balanced": books.balanced,
        "refused": refused,
        **asdict(recent),
        "partitions": [
            {
                **asdict(each),
                "updated_at": each.updated_at.isoformat(),
                "is_read": each.topic in app.lane.topics,
            }
            for each in books.partitions
        ],
    }
