"""The guard of the HTTP server: what it refuses of other sites, how large and slow a body may be, its headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request

from prefect_executions.web import problems
from prefect_executions.web.security import HEADERS, Guard
from webs import ADDRESS, Client


def guarded(**options) -> Guard:
    """Return a small application behind the guard: it reads bodies, and fails on request."""
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    def read() -> str:
        return "read"

    @app.post("/")
    async def write(request: Request) -> int:
        return len(await request.body())

    @app.get("/failure")
    def fail() -> None:
        raise RuntimeError("secret of /home/ada/data")

    return Guard(app, **options)


def client(**options) -> Client:
    return Client(guarded(**options))


@pytest.mark.parametrize("host", ["127.0.0.1:8200", "localhost", "LOCALHOST:1", "[::1]:8200", "[::1]"])
def test_programs_of_this_machine_are_served(host):
    assert client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8200", "localhost.", "localhost:80@evil", "", "0"]
)
def test_a_name_that_was_rebound_to_loopback_is_refused(host):
    found = client().get("/", headers={"Host": host})
    assert found.status_code == 403
    assert found.headers["Content-Type"] == problems.MEDIA_TYPE


def test_two_hosts_are_refused():
    sent = raw_headers(("Host", "127.0.0.1"), ("Host", "evil.example"))
    assert asyncio.run(status_of(guarded(), sent)) == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1:9999", "https://127.0.0.1:8200", "null", ""]
)
def test_a_page_of_another_origin_is_refused(method, origin):
    assert client().request(method, "/", headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_across_sites_without_an_origin_is_refused(site):
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert client().get("/", headers=headers).status_code == 403
    assert client().post("/", headers=headers).status_code == 403


def test_a_form_of_another_site_is_refused_and_a_link_from_it_opens():
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client().post("/", headers=headers).status_code == 403
    assert client().get("/", headers=headers).status_code == 200


def test_our_own_pages_may_write():
    headers = {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert client().post("/", headers=headers, content=b"12").json() == 2


@pytest.mark.parametrize("path", ["/", "/missing", "/failure"])
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_every_answer_has_the_security_headers_and_none_of_cors(path, host):
    found = client().get(path, headers={"Host": host})
    assert {name: found.headers[name] for name in HEADERS} == HEADERS
    assert not [name for name in found.headers if name.lower().startswith("access-control")]
    assert "unsafe" not in found.headers["Content-Security-Policy"]


def test_a_preflight_is_not_answered():
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    assert client().request("OPTIONS", "/", headers=headers).status_code == 403


def test_a_large_body_is_refused_by_its_length_or_while_it_arrives():
    limited = client(body_limit=10)
    assert limited.post("/", content=b"x" * 10).json() == 10
    assert limited.post("/", content=b"x" * 11).status_code == 413
    assert limited.post("/", content=parts()).status_code == 413  # chunked: no length


def test_a_body_that_does_not_arrive_is_refused():
    sent = raw_headers(("Host", "127.0.0.1"), ("Content-Length", "5"))
    assert asyncio.run(status_of(guarded(body_seconds=0.01), sent, method="POST", body=None)) == 408


def test_a_websocket_is_closed():
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    asyncio.run(guarded()({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_failure_shows_neither_its_text_nor_a_path(caplog):
    found = client().get("/failure")
    assert found.status_code == 500
    shown = json.dumps(found.json())
    assert "secret" not in shown
    assert "/home" not in shown
    assert found.json()["instance"] in caplog.text
    assert "secret of /home/ada/data" in caplog.text


async def parts() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x" * 4


def raw_headers(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in pairs]


async def status_of(app, headers, *, method: str = "GET", body: bytes | None = b"") -> int:
    """Send one request without a client, which would correct it; a body of None never arrives."""
    sent: list[dict] = []

    async def receive():
        if body is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/", "raw_path": b"/", "query_string": b"", "root_path": ""}
    scope |= {"scheme": "http", "headers": headers, "server": ("127.0.0.1", 8200), "client": ("127.0.0.1", 1)}
    await app(scope | {"http_version": "1.1"}, receive, send)
    return sent[0]["status"]
