"""The live page: everybody at a glance, told by server-sent events."""

from __future__ import annotations

from mimetypes import guess_type
from pathlib import Path
from typing import Any

from aiohttp import web
from faust.web import Request, Response, View
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.domain.models import MAX_CUSTOMER_ID_LENGTH, why_no_customer_id
from heartbeat_app.exceptions import TooManyQuestionsError
from heartbeat_app.storage.read.live import HOUR, HOUR_STEP_SECONDS, read_last_hour
from heartbeat_app.web.access import requires_token
from heartbeat_app.web.parameters import BadParameterError, check_encoding
from heartbeat_app.web.stream import send
from heartbeat_app.worker.application import app

STATIC = Path(__file__).parent / "static" / "live"
# Then the browser comes again and is asked for its login, which may have ended.
STREAM_SECONDS = 3600.0

# Stricter than the other pages: nothing may make HTML out of a text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

# Scripts, styles and the icon, a hundred kilobytes: nothing personal. From memory,
# since a file that is being sent stays open, and the worker may open a limited number.
FILES = {
    path.relative_to(STATIC).as_posix(): path.read_bytes()
    for path in STATIC.rglob("*")
    if path.is_file()
}


@app.page("/live", name="live")
class Bare(View):
    """The address as people type it."""

    async def get(self, request: Request) -> Any:
        """Lead to the page."""
        raise web.HTTPFound("/live/")


@app.page("/live/", name="live-page")
class Page(View):
    """The page itself."""

    @requires_token
    async def get(self, request: Request) -> Any:
        """Answer with a file that knows nobody."""
        return web.Response(
            body=FILES["index.html"],
            content_type="text/html",
            headers={"Content-Security-Policy": POLICY},
        )


@app.page("/live/static/{name:.+}", name="live-static")
class Static(View):
    """What the page is made of."""

    async def get(self, request: web.Request, name: str) -> Any:
        """Answer with a file; 404: there is none of that name."""
        if name not in FILES:
            raise web.HTTPNotFound
        kind, _ = guess_type(name)
        return web.Response(body=FILES[name], content_type=kind or "text/plain")


@app.page("/live/events", name="live-events")
class Events(View):
    """What changes, once a second, until the viewer goes."""

    @requires_token
    async def head(self, request: Request, **match: Any) -> Any:
        """Answer whether `get` would: a browser tells its page no status of that."""
        status = 503 if app.feed.is_full else 200
        return web.Response(content_type="text/event-stream", status=status)

    @requires_token
    async def get(self, request: web.Request) -> Any:
        """Tell everything, and then what is new; 503 where too many watch."""
        viewer = app.feed.join()
        if viewer is None:
            return self.json({"error": "Too many watch already"}, status=503)
        end = app.loop.call_later(STREAM_SECONDS, viewer.end)
        try:
            return await send(request, viewer.messages)
        finally:
            end.cancel()
            app.feed.leave(viewer)


@app.page("/live/customer", name="live-customer")
class CustomerHour(View):
    """One customer's last hour."""

    @requires_token
    async def get(self, request: web.Request) -> Response:
        """Answer for `?id=`: steps with a beat; 400 without an id, 503 while away."""
        try:
            check_encoding("", request.rel_url.raw_query_string)
        except BadParameterError as error:
            return self.json({"error": str(error)}, status=400)
        customer_id = request.query.get("id", "")
        if why_no_customer_id(customer_id):
            return self.json(
                {"error": f"id is 1 to {MAX_CUSTOMER_ID_LENGTH} characters"}, status=400
            )
        try:
            steps = await app.questions.ask(
                read_last_hour, app.questions.engine, customer_id
            )
        except TooManyQuestionsError as error:
            return self.json({"error": str(error)}, status=503)
        except SQLAlchemyError:
            return self.json({"error": "The database does not answer"}, status=503)
        return self.json(
            {
                "step_seconds": HOUR_STEP_SECONDS,
                "span_seconds": int(HOUR.total_seconds()),
                "steps": steps,
            }
        )
