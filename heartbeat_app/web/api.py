"""The read API: customers and their heart rates, out of the database.

Any worker can answer for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from faust.web import Request, Response, View
from sqlalchemy.exc import SQLAlchemyError

from heartbeat_app.exceptions import (
    TooManyBeatsError,
    TooManyQuestionsError,
    TooSlowError,
)
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.read import customers, history, reads
from heartbeat_app.storage.read.questions import ANSWER_SECONDS
from heartbeat_app.web.access import requires_token
from heartbeat_app.web.answers import Answer, Found, encode, problem
from heartbeat_app.web.connections import Web
from heartbeat_app.web.parameters import (
    BadParameterError,
    Parameters,
    check_encoding,
    customer_id,
)
from heartbeat_app.worker.application import app

# SQLSTATEs of a statement that took longer than it may.
TOO_SLOW = {"57014", errors.LOCK_NOT_AVAILABLE}


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell as a problem, like every other one here, that there is no such page."""
    try:
        return await handler(request)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        if not request.path.startswith("/api/"):
            raise
        status = HTTPStatus(error.status)
        answer = problem(status, f"{request.method} is not allowed here.")
        if status == HTTPStatus.NOT_FOUND:
            answer = problem(status, "There is no such page; see /api/openapi.json.")
        headers = {**answer.headers}
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
        return web.Response(status=status, headers=headers, body=answer.body)


assert isinstance(app.web, Web)
app.web.web_app.middlewares.append(problems)


async def respond(
    view: View, request: Request, known: set[str], ask: Callable[[Parameters], Found]
) -> Response:
    """Check the parameters, ask in a thread, and answer in the wanted format."""
    try:
        answer = await app.questions.ask(_answer, request, known, ask)
    except (TooManyQuestionsError, TooSlowError) as error:
        answer = problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
    except SQLAlchemyError as error:
        if errors.sqlstate(error) in TOO_SLOW:
            why = str(TooSlowError(ANSWER_SECONDS))
        else:
            why = "The database does not answer; /health/ready says more."
        answer = problem(HTTPStatus.SERVICE_UNAVAILABLE, why)
    headers = dict(answer.headers)
    return view.bytes(answer.body, status=answer.status, headers=headers)


def _answer(
    request: Any, known: set[str], ask: Callable[[Parameters], Found]
) -> Answer:
    try:
        check_encoding(request.rel_url.raw_path, request.rel_url.raw_query_string)
        parameters = Parameters(list(request.query.items()), known)
        format = parameters.format(request.headers.get("Accept", ""))
        found = ask(parameters)
        answer = encode(found, format)
    except BadParameterError as error:
        return problem(HTTPStatus.BAD_REQUEST, str(error), parameter=error.parameter)
    except TooManyBeatsError as error:
        return problem(HTTPStatus.BAD_REQUEST, str(error), parameter="step")
    if found.next is None:
        return answer
    url = request.rel_url.update_query(after=found.next)
    return Answer(
        answer.status, {**answer.headers, "Link": f'<{url}>; rel="next"'}, answer.body
    )


@app.page("/api/customers", name="api_customers")
class Customers(View):
    """The customers, a page at a time."""

    @requires_token
    async def get(self, request: Request) -> Response:
        """Answer with their ids."""

        def ask(parameters: Parameters) -> Found:
            limit = parameters.limit()
            ids = customers.list_customers(
                app.questions.engine, after=parameters.after(), limit=limit + 1
            )
            page = ids[:limit]
            following = page[-1] if len(ids) > limit else None
            return Found(
                {"customers": page, "next": following},
                ["customer_id"],
                [[each] for each in page],
                following,
            )

        return await respond(self, request, {"limit", "after"}, ask)


@app.page("/api/customers/{customer_id:[^/]+}/heart-rate", name="api_heart_rate")
class HeartRate(View):
    """A customer's heart rate over a time."""

    @requires_token
    async def get(self, request: Request, **match: str) -> Response:
        """Answer with beats, or with minutes, hours or days of them."""

        def ask(parameters: Parameters) -> Found:
            given = match["customer_id"]
            since, until, step = parameters.span(datetime.now(UTC))
            found = history.read_history(
                app.questions.engine, customer_id(given), since, until, step
            )
            kind = history.Beat if found.step == history.RAW else history.Bucket
            columns = [field.name for field in fields(kind)]
            return Found(
                {
                    "customer_id": found.customer_id,
                    "from": found.since,
                    "to": found.until,
                    "step": found.step,
                    "points": found.points,
                },
                columns,
                ([getattr(point, name) for name in columns] for point in found.points),
            )

        return await respond(self, request, {"from", "to", "step"}, ask)


@app.page("/api/latest", name="api_latest")
class Latest(View):
    """The last beat of each customer, a page at a time."""

    @requires_token
    async def get(self, request: Request) -> Response:
        """Answer with those of customers that were heard lately."""

        def ask(parameters: Parameters) -> Found:
            since, limit = parameters.since(datetime.now(UTC)), parameters.limit()
            found = customers.list_latest(
                app.questions.engine,
                since=since,
                after=parameters.after(),
                limit=limit + 1,
            )
            page = found[:limit]
            following = page[-1].customer_id if len(found) > limit else None
            return Found(
                {"since": since, "beats": page, "next": following},
                [field.name for field in fields(customers.Latest)],
                ([b.customer_id, b.timestamp, b.heart_rate] for b in page),
                following,
            )

        return await respond(self, request, {"since", "limit", "after"}, ask)


@app.page("/api/summary", name="api_summary")
class Summary(View):
    """Everything at a glance."""

    @requires_token
    async def get(self, request: Request) -> Response:
        """Answer with the last minute, the pace, and the sums."""

        def ask(parameters: Parameters) -> Found:
            document = asdict(reads.read_summary(app.questions.engine))
            flat = _flat(document)
            return Found(document, list(flat), [list(flat.values())])

        return await respond(self, request, set(), ask)


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """One column for each value, named after the objects that it is in."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


@app.page("/api/openapi.json", name="api_openapi")
class OpenApi(View):
    """The description of this API."""

    async def get(self, request: Request) -> Response:
        """Answer with the file beside this one."""
        body = files("heartbeat_app.web").joinpath("openapi.json").read_bytes()
        return self.bytes(body, headers={"Content-Type": "application/json"})
