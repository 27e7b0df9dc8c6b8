"""The way to Prefect's API: one client for each process, and whether anybody answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SyncClientContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from prefect_executions.capture.secrets import redact_url, redact_urls
from prefect_executions.errors import ExecutionsError, OrchestratorError, RequestError

_REFUSED = frozenset({400, 409, 422})
"""With these codes Prefect's API says that it understood and that the request is wrong."""

_clients: dict[tuple[int, str], SyncPrefectClient] = {}


def client() -> SyncPrefectClient:
    """Return the run's own client inside a sync run, and elsewhere one that the process keeps."""
    return own_client() if SyncClientContext.get() is None else get_client(sync_client=True)


def own_client() -> SyncPrefectClient:
    """Return a client that the process keeps, for what goes on when a run and its client are gone.

    Making a client costs about 20 ms (its TLS context), so it is made once for
    each API and process; a forked child makes its own.
    """
    key = (os.getpid(), PREFECT_API_URL.value() or "ephemeral")
    if key not in _clients:
        # With settings, and be they none, Prefect gives a new client and not that of the run around us.
        _clients[key] = get_client(httpx_settings={}, sync_client=True)
    return _clients[key]


def configured_api() -> str | None:
    """Return the address of the Prefect API that is configured, without credentials; None where none is.

    Prefect then starts a server of its own for the process, at the first request.
    """
    api = PREFECT_API_URL.value()
    return redact_url(api) if api else None


def greet() -> str:
    """Ask Prefect's API for its version; the first request, which starts an embedded server where one is needed.

    Raises:
        OrchestratorError: If the API cannot be asked, or the embedded server does not start.
    """
    try:
        return client().api_version()
    except Exception as error:
        place = configured_api() or "the embedded server"
        raise OrchestratorError(
            f"Prefect's API ({place}) does not answer: {redact_urls(str(error))}. Run 'executions doctor'."
        ) from error


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Tell as one error of ours that Prefect's API refused *what* it was asked for, or that it is away.

    Raises:
        RequestError: If it refused; the message has its own words.
        OrchestratorError: If it does not answer, or failed.
    """
    try:
        yield
    except ExecutionsError:
        raise
    except PrefectHTTPStatusError as error:
        said = redact_urls(_words(error))
        if error.response.status_code in _REFUSED:
            raise RequestError(f"Prefect refuses {what}: {said}") from error
        raise OrchestratorError(f"Prefect's API failed when asked for {what}: {said}") from error
    except Exception as error:
        raise OrchestratorError(f"Prefect's API failed when asked for {what}: {redact_urls(str(error))}") from error


def _words(error: PrefectHTTPStatusError) -> str:
    try:
        told = error.response.json()
    except ValueError:
        return str(error)
    return str(told.get("detail") or told.get("exception_detail") or told) if isinstance(told, dict) else str(told)
