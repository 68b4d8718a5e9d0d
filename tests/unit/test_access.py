"""The token in front of the pages: a real server on 127.0.0.1, a real client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, CookieJar, web
from aiohttp.test_utils import TestClient, TestServer

from heartbeat_app.web.access import COOKIE, SESSION_SECONDS, Access, requires_token

TOKEN = "a-token-of-some-length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
OPEN = ["/health/live", "/health/ready"]
CLOSED = ["/", "/stats/", "/graph/", "/assignment/", "/personal", "/nowhere"]

Client = TestClient[web.Request, web.Application]
Serve = Callable[..., Any]


class Clock:
    """A time that the test moves."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def answer(request: web.Request) -> web.Response:
    return web.Response(text="told")


class Page:
    """Like a page of Faust's, whose handler is a method."""

    @requires_token
    async def get(self, request: web.Request, **match: Any) -> web.Response:
        """Tell a heart rate."""
        return web.Response(text="72")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    clients: list[Client] = []

    async def make(
        token: str | None, bind: str = "127.0.0.1", clock: Clock | None = None
    ) -> Client:
        app = web.Application()
        Access(token, bind, clock or Clock()).protect(app)
        for path in (*OPEN, *CLOSED[:-2]):
            app.router.add_get(path, answer)
        app.router.add_get("/personal", Page().get)
        # Cookies of an address, too.
        client = TestClient(TestServer(app), cookie_jar=CookieJar(unsafe=True))
        await client.start_server()
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


async def log_in(client: Client, token: str = TOKEN, **more: Any) -> ClientResponse:
    path = more.pop("path", "/login")
    return await client.post(path, data={"token": token}, allow_redirects=False, **more)


@pytest.mark.parametrize("path", OPEN)
async def test_supervisors_need_no_token(serve: Serve, path: str) -> None:
    client = await serve(TOKEN)
    assert (await client.get(path)).status == 200


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \udcff"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
        {"Cookie": f"{COOKIE}=99999999999."},
        {"Cookie": f"{COOKIE}=99999999999.{'0' * 64}"},
        {"Cookie": f"{COOKIE}=x"},
    ],
)
async def test_nothing_else_is_told_without_it(
    serve: Serve, path: str, headers: dict[str, str]
) -> None:
    client = await serve(TOKEN)
    if "\udcff" in headers.get("Authorization", ""):
        headers = {"Authorization": "Bearer ÿ"}
    got = await client.get(path, headers=headers)
    assert got.status == 401
    assert got.headers["WWW-Authenticate"] == "Bearer"
    text = await got.text()
    assert "told" not in text
    assert "72" not in text
    assert TOKEN not in text


@pytest.mark.parametrize("path", CLOSED[:-1])
async def test_with_it_all_is_told(serve: Serve, path: str) -> None:
    client = await serve(TOKEN, "0.0.0.0")
    got = await client.get(path, headers=BEARER)
    assert got.status == 200
    assert await got.text() in {"told", "72"}


async def test_a_browser_logs_in_once(serve: Serve) -> None:
    client = await serve(TOKEN)
    sent_there = await client.get("/stats/", headers=BROWSER)
    assert sent_there.url.path == "/login"
    assert dict(sent_there.url.query) == {"next": "/stats/"}
    form = await sent_there.text()
    assert '<form method="post">' in form
    assert '<input type="password" name="token"' in form

    entered = await log_in(client, path=sent_there.url.path_qs)
    assert (entered.status, entered.headers["Location"]) == (303, "/stats/")
    cookie = entered.cookies[COOKIE]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Strict")
    assert (cookie["path"], cookie["secure"]) == ("/", "")
    assert TOKEN not in cookie.value
    for path in CLOSED[:-1]:
        assert (await client.get(path, headers=BROWSER)).status == 200


async def test_who_is_logged_in_may_log_in_again(serve: Serve) -> None:
    client = await serve(TOKEN)
    for _ in range(2):
        form = await client.get("/login", headers=BROWSER)
        assert form.status == 200
        assert '<form method="post">' in await form.text()
        entered = await log_in(client, path="/login?next=/stats/")
        assert (entered.status, entered.headers["Location"]) == (303, "/stats/")
        assert COOKIE in entered.cookies


@pytest.mark.parametrize("given", ["", "wrong", TOKEN[:-1], "ÿ", "x" * 10_000])
async def test_a_wrong_token_lets_nobody_in(serve: Serve, given: str) -> None:
    client = await serve(TOKEN)
    refused = await log_in(client, given)
    assert refused.status == 403
    assert not refused.cookies
    page = await refused.text()
    assert "This is not the token" in page
    assert not given or given not in page
    assert (await client.get("/stats/")).status == 401


async def test_a_login_needs_a_form(serve: Serve) -> None:
    client = await serve(TOKEN)
    assert (await client.post("/login", data=b"\xff\x00")).status == 403
    with Path(__file__).open("rb") as file:
        assert (await client.post("/login", data={"token": file})).status == 403


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": FORM}, b"token=\xff"),
        ({"Content-Type": FORM}, b"token=%FF"),
        ({"Content-Type": f"{FORM}; charset=nope"}, b"token=x"),
        ({"Content-Type": f"{FORM}; charset=base64"}, b"token=x"),
        ({"Content-Type": f"{FORM}; charset=idna"}, b"token=x"),
        # Half of a pair, which no UTF-8 can hold.
        ({"Content-Type": f"{FORM}; charset=utf-7"}, b"token=+2AA-"),
        ({"Content-Type": FORM, "Content-Encoding": "deflate"}, b"\xff\xff"),
        ({"Content-Type": "multipart/form-data"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"x"),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b"--x\r\nContent-Disposition: form-data; name=token\r\n"
            b"Content-Transfer-Encoding: nope\r\n\r\nx\r\n--x--\r\n",
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b"--x\r\nnothing\r\n\r\nx\r\n--x--\r\n",
        ),
    ],
)
async def test_a_form_that_cannot_be_read_has_no_token(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    body: bytes,
) -> None:
    client = await serve(TOKEN)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    lines = [
        "POST /login HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    status = (await reader.readline()).split()[1]
    writer.close()
    await writer.wait_closed()
    assert status == b"403"
    assert "A login with a wrong token" in caplog.text
    assert "Error handling request" not in caplog.text


async def test_a_login_ends_after_some_hours(serve: Serve) -> None:
    clock = Clock()
    client = await serve(TOKEN, clock=clock)
    await log_in(client)
    clock.now += SESSION_SECONDS - 1
    assert (await client.get("/stats/")).status == 200
    clock.now += 1
    assert (await client.get("/stats/")).status == 401


async def test_the_end_of_a_login_cannot_be_moved(serve: Serve) -> None:
    client = await serve(TOKEN)
    cookie = (await log_in(client)).cookies[COOKIE].value
    end, _, signed = cookie.partition(".")
    for forged in (f"{int(end) + 1}.{signed}", f"0{end}.{signed}", f"{end}.", end):
        client.session.cookie_jar.clear()
        got = await client.get("/stats/", headers={"Cookie": f"{COOKIE}={forged}"})
        assert got.status == 401, forged


async def test_a_login_holds_for_all_workers_with_that_token_only(serve: Serve) -> None:
    first, second, other = [
        await serve(token) for token in (TOKEN, TOKEN, "another-token-of-length")
    ]
    cookie = (await log_in(first)).cookies[COOKIE].value
    for client, status in ((second, 200), (other, 401)):
        got = await client.get("/stats/", headers={"Cookie": f"{COOKIE}={cookie}"})
        assert got.status == status


async def test_the_cookie_stays_with_tls_where_a_proxy_speaks_it(serve: Serve) -> None:
    client = await serve(TOKEN)
    entered = await log_in(client, headers={"X-Forwarded-Proto": "https"})
    assert entered.cookies[COOKIE]["secure"] is True


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a?b=//c"],
)
async def test_a_login_leads_to_no_other_site(serve: Serve, wanted: str) -> None:
    client = await serve(TOKEN)
    entered = await log_in(client, params={"next": wanted})
    assert entered.headers["Location"] == "/"


@pytest.mark.parametrize("path", [*OPEN, *CLOSED, "/login"])
@pytest.mark.parametrize("headers", [{}, BEARER])
async def test_every_answer_has_the_headers(
    serve: Serve, path: str, headers: dict[str, str]
) -> None:
    client = await serve(TOKEN)
    got = await client.get(path, headers=headers, allow_redirects=False)
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'self'" in got.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in got.headers["Content-Security-Policy"]
    assert got.headers["Cache-Control"] == "no-store"
    assert got.headers["Server"] == "heartbeat_app"


# Without a token


async def test_without_a_token_what_is_not_personal_is_told(serve: Serve) -> None:
    client = await serve(None, "0.0.0.0")
    for path in ("/", "/stats/", *OPEN):
        assert (await client.get(path)).status == 200
    assert (await client.get("/login")).status == 404


@pytest.mark.parametrize(
    ("bind", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:6066", 200),
        ("127.0.0.1", "localhost:6066", 200),
        ("localhost", "localhost", 200),
        ("::1", "[::1]:6066", 200),
        # Another site's name that points at this machine.
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("0.0.0.0", "127.0.0.1:6066", 403),
        ("::", "localhost", 403),
        ("192.0.2.1", "192.0.2.1", 403),
        ("example.org", "localhost", 403),
    ],
)
async def test_what_is_personal_is_told_on_this_machine_only(
    serve: Serve, bind: str, host: str, status: int
) -> None:
    client = await serve(None, bind)
    got = await client.get("/personal", headers={"Host": host})
    assert got.status == status
    assert ("72" in await got.text()) is (status == 200)


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-Proto: https",
        "X-Forwarded-For: 192.0.2.1",
        "x-forwarded-host: site.example",
        "X-Real-IP: 192.0.2.1",
        "Forwarded: for=192.0.2.1",
        "Via: 1.1 site.example",
        "Via:",
        "X-Forwarded-Server: site.example",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Prefix: /hearts",
        "X-Forwarded-Scheme: https",
        "X-Forwarded-Anything-Else: x",
        "X-Forwarded: x",
        "CF-Connecting-IP: 192.0.2.1",
        "CF-Ray: x",
        "CDN-Loop: cloudflare",
        "True-Client-IP: 192.0.2.1",
        "X-Original-Host: site.example",
        "X-Envoy-External-Address: 192.0.2.1",
        "X-Amzn-Trace-Id: x",
        "Fastly-Client-IP: 192.0.2.1",
    ],
)
async def test_what_is_personal_is_not_told_through_a_proxy_on_this_machine(
    serve: Serve, header: str
) -> None:
    name, _, value = header.partition(":")
    headers = {"Host": "127.0.0.1:6066", name: value.strip()}
    got = await (await serve(None)).get("/personal", headers=headers)
    assert got.status == 403
    assert "72" not in await got.text()
    # With a token the proxy's users have shown that they may see it.
    got = await (await serve(TOKEN)).get("/personal", headers={**headers, **BEARER})
    assert got.status == 200
