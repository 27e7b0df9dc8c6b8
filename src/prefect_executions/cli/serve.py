"""`executions serve`: the HTTP server on loopback."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog, set_defaults
from prefect_executions.cli.exit_codes import OK
from prefect_executions.cli.output import say, show_json, status_line
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.web.processes import ServedMethod

PORT = 8200


def serve(
    *methods: str,
    host: str = "127.0.0.1",
    port: int = PORT,
    open_page: Annotated[bool, Parameter(name="--open")] = False,
    as_json: Json = False,
) -> int:
    """Serve Methods and executions on this machine as OGC API - Processes.

    Args:
        methods: Methods to offer: path.py:function, module:function, or the path of a descriptor.
        host: Address to listen on: 127.0.0.1 (default), localhost or ::1.
        port: Port to listen on (default: 8200); 0 chooses a free one.
        open_page: Open the server in the browser.
        as_json: Print the address as one JSON document.
    """
    # Start-up time of the CLI: no other command needs FastAPI.
    from prefect_executions.web.app import create_app  # noqa: PLC0415
    from prefect_executions.web.server import check_address  # noqa: PLC0415
    from prefect_executions.web.server import serve as serve_app  # noqa: PLC0415

    check_address(host, port)
    settings = Settings.read()
    served = _load(methods, quiet=as_json) if methods else []

    def started(address: str) -> None:
        if as_json:
            show_json({"url": address})
        else:
            say(f"Serving at {address} until Ctrl-C")
        if open_page:
            webbrowser.open(address)

    # uvicorn raises KeyboardInterrupt again when it has stopped.
    with suppress(KeyboardInterrupt), open_catalog(settings) as catalog:
        serve_app(create_app(lambda: catalog, served), host, port, on_started=started)
    return OK


def _load(entrypoints: Sequence[str], *, quiet: bool) -> list[ServedMethod]:
    """Return the Methods at *entrypoints*; each is imported once here, and its runs have processes of their own."""
    set_defaults()
    with status_line("Loading Prefect and the Methods", quiet=quiet):
        # Prefect takes seconds to import; a server without Methods of its own does not need it.
        from prefect_executions.flow.entrypoints import load_deployable  # noqa: PLC0415
        from prefect_executions.web.processes import ServedMethod  # noqa: PLC0415

        return [ServedMethod(load_deployable(each).method, each) for each in entrypoints]
