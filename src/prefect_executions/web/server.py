"""The server process: an ASGI application on a loopback address of this machine, by uvicorn."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address

import uvicorn

from prefect_executions.errors import InfrastructureError, RequestError
from prefect_executions.web.security import Asgi

_LARGEST_PORT = 65_535
_WAITING = 128
"""Connections that wait until they are accepted, as `listen(2)` counts them."""
_END_SECONDS = 10
"""How long requests may take to end when the server is stopped."""


def serve(app: Asgi, host: str, port: int, *, on_started: Callable[[str], None]) -> None:
    """Serve *app* at *host* and *port*, 0 for a free one, until SIGINT or SIGTERM; *on_started* gets the address.

    Raises:
        RequestError: If *host* is not a loopback address, or *port* is not a port.
        InfrastructureError: If the port is in use.
    """
    with closing(_listening(host, port)) as listener:
        bound = int(listener.getsockname()[1])
        config = uvicorn.Config(
            app,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=_END_SECONDS,
        )
        on_started(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
        uvicorn.Server(config).run(sockets=[listener])


def check_address(host: str, port: int) -> None:
    """Refuse an address that other machines reach: the server has no access control yet.

    Raises:
        RequestError: If *host* is not a loopback address, or *port* is not a port.
    """
    if not _is_loopback(host):
        raise RequestError(
            f"--host {host}: this server has no access control yet, so it listens on loopback only. "
            "Give 127.0.0.1, localhost or ::1; from another machine, use an SSH tunnel: ssh -L PORT:127.0.0.1:PORT HOST"
        )
    if not 0 <= port <= _LARGEST_PORT:
        raise RequestError(f"--port must be between 0 and {_LARGEST_PORT}, not {port}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host) in map(ip_address, ("127.0.0.1", "::1"))
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    check_address(host, port)
    name = "127.0.0.1" if host == "localhost" else host  # a resolver may say something else
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        # Without SO_REUSEPORT, so that no other process shares the port.
        return socket.create_server((name, port), family=family, backlog=_WAITING)
    except OSError as error:
        raise InfrastructureError(
            f"port {port} of {host} cannot be used: {error.strerror}. Give another one with --port, or --port 0"
        ) from error
