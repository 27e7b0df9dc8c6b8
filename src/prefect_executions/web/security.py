"""The guard before every route: which hosts and origins are served, how large a body may be, and the security headers.

Law: without a login, only programs of this machine and pages of this server get an answer. A page of
another site reaches a loopback server in two ways, and both are refused:

- by a name of its own that resolves to 127.0.0.1 (DNS rebinding): the ``Host`` is then not one of `LOOPBACK`;
- by a request across sites, which browsers mark with ``Origin`` and ``Sec-Fetch-Site``. No answer has a
  header of CORS. A link from another site still opens a page, because it changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from prefect_executions.web.problems import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""The names by which programs of this machine reach a server on loopback."""

BODY_LIMIT = 16 * 1024 * 1024
"""The largest body of a request, in bytes; larger inputs are given by reference."""

BODY_SECONDS = 30.0
"""How long the next part of a body may take."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""The headers of every answer, unless a route sets a stricter one."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_PAGE = frozenset({"same-origin", "none"})
"""Values of ``Sec-Fetch-Site``: a page of this origin, or the user, such as an address that was typed."""


class Guard:
    """The ASGI application *inner* behind the rules of this module."""

    def __init__(
        self,
        inner: Asgi,
        *,
        hosts: Iterable[str] = LOOPBACK,
        body_limit: int = BODY_LIMIT,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._inner, self._hosts = inner, frozenset(host.lower() for host in hosts)
        self._body_limit, self._body_seconds = body_limit, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it; a websocket is closed, because nothing is served by one."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        send = _with_headers(send)
        if refusal := self._refusal(scope):
            await problem(*refusal)(scope, receive, send)
            return
        await self._inner(scope, self._limited(receive), send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return why a request is refused, as a status and a sentence; None if it is not."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name_of(hosts[0]) not in self._hosts:
            return 403, "This server is not reached by this host name. Use the address that it printed at its start."
        if any(origin != f"{scope['scheme']}://{hosts[0]}" for origin in headers.getlist("origin")):
            return 403, "Requests from pages of other sites are refused."
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        follows_link = scope["method"] in _SAFE and mode == "navigate"
        if site not in _OWN_PAGE and not follows_link:
            return 403, "Requests from pages of other sites are refused."
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._body_limit:
            return _too_large(self._body_limit)
        return None

    def _limited(self, receive: Receive) -> Receive:
        received, ended = 0, False

        async def limited() -> Message:
            nonlocal received, ended
            if ended:  # what follows is the end of the connection, which may take as long as it likes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._body_seconds)
            except TimeoutError:
                raise HTTPException(408, "The body of the request did not arrive in time.") from None
            received += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if received > self._body_limit:
                raise HTTPException(*_too_large(self._body_limit))
            return message

        return limited


def _name_of(host: str) -> str:
    """Return the name in a ``Host`` header, without its port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isascii() and port.isdigit() else host.lower()


def _too_large(limit: int) -> tuple[int, str]:
    return 413, f"The body of a request may have at most {limit:,} bytes; give larger inputs by reference (href)."


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
