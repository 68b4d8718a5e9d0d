"""Who may see the worker's pages: nothing but `/health/…` is shown without the token.

A program sends it (`Authorization: Bearer …`). A browser sends it once, at `/login`,
and keeps a cookie that is made from it: scripts cannot read the cookie, other sites
cannot send it, and it ends after some hours, or when the token is changed. Nothing is
kept here, so a login holds for all workers with the same token, and through restarts.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

log = logging.getLogger(__name__)

COOKIE = "heartbeat_app"
LOGIN = "/login"
# For supervisors, which have no token. They say whether the worker works, and of
# what does not work a text without customers and passwords.
OPEN = frozenset({"/health/live", "/health/ready"})
SESSION_SECONDS = 12 * 3600
# A header with such a name says that a proxy passed the request on: the standards', and
# those of common proxies, load balancers and content networks.
FORWARDED = frozenset(
    {
        "cdn-loop",
        "forwarded",
        "true-client-ip",
        "via",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-host",
        "x-real-ip",
        "x-remote-addr",
        "x-remote-ip",
    }
)
FORWARDED_PREFIXES = (
    "cf-",
    "fastly-",
    "fly-",
    "proxy-",
    "x-amz",
    "x-azure-",
    "x-envoy-",
    "x-forwarded",
    "x-original-",
    "x-proxy",
    "x-real-",
)
# RFC 9110: a name or an address, and a port.
HOST = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?", re.ASCII
)

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

LOGIN_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>heartbeat_app: log in</title>
<h1>heartbeat_app</h1>
<form method="post">
<p><label>Token (<code>WEB_TOKEN</code>)
<input type="password" name="token" autocomplete="current-password" required autofocus>
</label>
<p><button>Log in</button>
</form>
"""
WRONG = "<p role=alert>This is not the token.\n"

_ACCESS: web.AppKey[Access]


class Seldom:
    """Lets a line of the log through once a second, whoever sends what by the thousand.

    The next one that comes through tells how many were left out.
    """

    SECONDS = 1.0

    def __init__(self) -> None:
        self._last = -self.SECONDS
        self._left_out = 0

    def words(self) -> str | None:
        """What to add to the line, or None: leave it out."""
        now = time.monotonic()
        if now - self._last < self.SECONDS:
            self._left_out += 1
            return None
        left_out, self._last, self._left_out = self._left_out, now, 0
        return f" ({left_out:,} more like it before)" if left_out else ""


class Access:
    """Decides about requests.

    Arguments:
        token: WEB_TOKEN; None: it asks for none.
        bind: WEB_BIND, the address that the pages listen on.
        clock: Tells the time, in seconds since 1970.
    """

    def __init__(
        self, token: str | None, bind: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._token = token
        self._is_local = _is_loopback(bind)
        self._clock = clock
        self._malformed = Seldom()
        self._wrong = Seldom()

    def protect(self, app: web.Application) -> None:
        """Put it in front of all pages of the app, before that starts."""
        app[_ACCESS] = self
        app.middlewares.append(self._middleware)
        app.on_response_prepare.append(_add_headers)

    def is_personal_allowed(self, request: web.Request) -> bool:
        """Whether the request may see personal data.

        The middleware let it pass, so it has the token if there is one. Without one
        only this machine is let in, and by its own name: another site's name that
        points here would lend the browser's place on this machine to that site. A
        proxy on this machine may ask by this machine's name for anybody.
        """
        if self._token is not None:
            return True
        names = (name.lower() for name in request.headers)
        if any(n in FORWARDED or n.startswith(FORWARDED_PREFIXES) for n in names):
            return False
        host = request.url.host
        return self._is_local and host is not None and _is_loopback(host)

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        if not _has_host(request):
            if (more := self._malformed.words()) is not None:
                log.warning(
                    "A request with a malformed Host, from %s: 400%s",
                    request.remote,
                    more,
                )
            return web.Response(status=400, text="400: Host is malformed\n")
        # Also for whoever has logged in: another tab did, or this one went back.
        if self._token is not None and request.path == LOGIN:
            return await self._log_in(request)
        if self._token is None or request.path in OPEN or self._has_token(request):
            return await handler(request)
        if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
            raise web.HTTPSeeOther(URL(LOGIN).with_query(next=request.path))
        return web.json_response(
            {"error": "WEB_TOKEN is needed: send Authorization: Bearer TOKEN"},
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _log_in(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            return web.Response(text=LOGIN_PAGE, content_type="text/html")
        if not self._is_token(await _entered(request)):
            if (more := self._wrong.words()) is not None:
                log.warning(
                    "A login with a wrong token, from %s%s", request.remote, more
                )
            return web.Response(
                text=LOGIN_PAGE + WRONG, content_type="text/html", status=403
            )
        # Another site's address would be a way to send people there.
        wanted = request.query.get("next", "")
        is_ours = re.fullmatch(r"/([\w-][\w/-]*)?", wanted, re.ASCII)
        answer = web.HTTPSeeOther(wanted if is_ours else "/")
        answer.set_cookie(
            COOKIE,
            self._session(int(self._clock()) + SESSION_SECONDS),
            httponly=True,
            samesite="Strict",
            secure=_is_https(request),
            path="/",
        )
        raise answer

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        session = request.cookies.get(COOKIE, "")
        end, _, _ = session.partition(".")
        return (
            re.fullmatch(r"[0-9]{1,12}", end) is not None
            and _is_same(session, self._session(int(end)))
            and self._clock() < int(end)
        )

    def _is_token(self, given: str) -> bool:
        return self._token is not None and _is_same(given, self._token)

    def _session(self, end: int) -> str:
        """The cookie of a login that holds until `end`."""
        assert self._token is not None
        signed = hmac.digest(self._token.encode(), b"session until %d" % end, "sha256")
        return f"{end}.{signed.hex()}"


_ACCESS = web.AppKey("access", Access)


def requires_token(
    page: Callable[..., Awaitable[Any]],
) -> Callable[..., Awaitable[Any]]:
    """Decorates a handler that shows personal data; its last argument is the request.

    Without WEB_TOKEN it answers on this machine only, 403 elsewhere.
    """

    async def checked(*arguments: Any, **match: Any) -> Any:
        request: web.Request = arguments[-1]
        if not request.app[_ACCESS].is_personal_allowed(request):
            return web.json_response(
                {"error": "This page shows personal data: set WEB_TOKEN to see it"},
                status=403,
            )
        return await page(*arguments, **match)

    checked.__doc__ = page.__doc__
    return checked


async def _entered(request: web.Request) -> str:
    """The token in the form; empty where none can be read."""
    # The login page sends no other type. Reading multipart, too, would only be more
    # that anybody could break.
    if request.content_type != "application/x-www-form-urlencoded":
        return ""
    try:
        form = await request.post()
    except ConnectionError:  # gone, or too slow
        raise web.HTTPBadRequest from None
    # Not in its charset, in one that nobody knows, no chunks as it says.
    except (ValueError, LookupError, web.RequestPayloadError):
        return ""
    return str(form.get("token", "")).strip()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "heartbeat_app"  # aiohttp's own tells versions


def _has_host(request: web.Request) -> bool:
    """Whether it names one host, which `request.url` can be made of."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) > 1 or not all(map(HOST.fullmatch, hosts)):
        return False
    try:
        _ = request.url.host
    except ValueError:  # no such port, or no such name
        return False
    return True


def _is_same(given: str, wanted: str) -> bool:
    """Takes as long whatever is given, so that time tells nothing."""
    # A form may name a charset whose decoder makes any surrogate.
    return hmac.compare_digest(given.encode(errors="surrogatepass"), wanted.encode())


def _is_https(request: web.Request) -> bool:
    """Also where a proxy in front speaks TLS: the header can only make it stricter."""
    return request.secure or request.headers.get("X-Forwarded-Proto") == "https"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
