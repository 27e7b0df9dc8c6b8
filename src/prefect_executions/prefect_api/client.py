"""Clients of Prefect's API, one for each process, and the translation of its errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SyncClientContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from prefect_executions.capture.secrets import redact_url, redact_urls
from prefect_executions.documents import json_value
from prefect_executions.errors import ExecutionsError, OrchestratorError, RequestError

_REFUSALS = frozenset({400, 409, 422})
"""The HTTP statuses by which Prefect's API refuses a request."""

_TOO_LARGE = re.compile(r"must be less than ([\d,]+) bytes when serialized \(got ([\d,]+) bytes\)")
_NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})

_clients: dict[tuple[int, str], SyncPrefectClient] = {}


def client() -> SyncPrefectClient:
    """Return the run's client inside a synchronous run, and the client of the process elsewhere."""
    return process_client() if SyncClientContext.get() is None else get_client(sync_client=True)


def process_client() -> SyncPrefectClient:
    """Return the client of the process, for work that outlives a run and its client.

    Creating a client takes about 20 ms (its TLS context), so there is one for each
    API and process; a forked child creates its own.
    """
    key = (os.getpid(), PREFECT_API_URL.value() or "ephemeral")
    if key not in _clients:
        # With any settings, even empty ones, Prefect returns a new client and not the current run's.
        _clients[key] = get_client(httpx_settings={}, sync_client=True)
    return _clients[key]


def configured_api() -> str | None:
    """Return the configured URL of Prefect's API without credentials, or None.

    Without a URL, Prefect starts an embedded server for the process at its first request.
    """
    api = PREFECT_API_URL.value()
    return redact_url(api) if api else None


def ping() -> str:
    """Return the version of Prefect's API; the first request starts an embedded server if one is needed.

    Raises:
        OrchestratorError: If the API is unavailable, or the embedded server does not start.
    """
    if configured_api() is None:
        _create_home()
    try:
        return client().api_version()
    except Exception as error:
        api = configured_api() or "the embedded server"
        raise OrchestratorError(
            f"Prefect's API ({api}) is unavailable: {redact_urls(str(error))}. Run 'executions doctor'."
        ) from error


def _create_home() -> None:
    """Create the folder of the embedded server's database; without it Prefect restarts the server forever."""
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise OrchestratorError(
            f"Prefect's embedded server cannot write to its folder {home}: {error.strerror}. "
            "Set PREFECT_HOME to a folder of yours, or PREFECT_API_URL to a server."
        ) from error


@contextmanager
def translate_errors(what: str, parameters: Mapping[str, Any] = _NO_PARAMETERS) -> Iterator[None]:
    """Raise errors of Prefect's client as errors of ours about *what*, the object of the request.

    If *parameters* were sent and are too large, the message names the largest.

    Raises:
        RequestError: If Prefect refused the request; the message quotes its reason.
        OrchestratorError: If Prefect's API is unavailable, or failed.
    """
    try:
        yield
    except ExecutionsError:
        raise
    except PrefectHTTPStatusError as error:
        too_large = too_large_error(error, what, parameters)
        if too_large is not None:
            raise too_large from None  # Prefect's own text repeats all parameters
        detail = redact_urls(_detail(error))
        if error.response.status_code in _REFUSALS:
            raise RequestError(f"Prefect refuses {what}: {detail}") from error
        raise OrchestratorError(f"Prefect's API failed for {what}: {detail}") from error
    except Exception as error:
        raise OrchestratorError(f"Prefect's API failed for {what}: {redact_urls(str(error))}") from error


def too_large_error(error: BaseException, what: str, parameters: Mapping[str, Any]) -> RequestError | None:
    """Return our error if *error* means that the *parameters* of *what* are too large for Prefect, else None.

    The limit is a setting of Prefect's server (`PREFECT_SERVER_API_MAX_PARAMETER_SIZE`).
    """
    match = _TOO_LARGE.search(_detail(error)) if isinstance(error, PrefectHTTPStatusError) else None
    if match is None:
        return None
    sizes = {name: len(json.dumps(json_value(value), separators=(",", ":"))) for name, value in parameters.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    which = f"; the largest is '{largest}' with {sizes[largest]:,}" if largest else ""
    return RequestError(
        f"Prefect refuses {what}: its inputs may have at most {match[1]} bytes, and they have {match[2]}{which}. "
        "Give it as a file: an InputFile, or in a descriptor an input of format uri-reference, takes a path or URL."
    )


def _detail(error: PrefectHTTPStatusError) -> str:
    try:
        body = error.response.json()
    except ValueError:
        return str(error)
    detail = body.get("detail") or body.get("exception_detail") or body if isinstance(body, dict) else body
    if isinstance(detail, list):
        # Each item also holds the value that it is about, which may be long and belongs to the caller.
        return "; ".join(str(item.get("msg", "")) if isinstance(item, dict) else str(item) for item in detail)
    return str(detail)
