"""A client for an ASGI application in this process; starlette's own needs a package that nothing else here needs."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

ADDRESS = "http://127.0.0.1:8200"


class Client:
    """Sends requests to an application and returns its answers; a failure of it is an answer, too."""

    def __init__(self, app: Any, address: str = ADDRESS) -> None:
        self.app, self.address = app, address

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=self.address) as client:
                return await client.request(method, path, **options)

        return asyncio.run(sent())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", path, **options)
