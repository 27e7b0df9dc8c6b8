"""The way to Prefect's API: one client for each process, and whether anybody answers."""

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

_REFUSED = frozenset({400, 409, 422})
"""With these codes Prefect's API says that it understood and that the request is wrong."""

_TOO_LARGE = re.compile(r"must be less than ([\d,]+) bytes when serialized \(got ([\d,]+) bytes\)")
_NOTHING: Mapping[str, Any] = MappingProxyType({})

_clients: dict[tuple[int, str], SyncPrefectClient] = {}


def client() -> SyncPrefectClient:
    """Return the run's own client inside a sync run, and elsewhere one that the process keeps."""
    return process_client() if SyncClientContext.get() is None else get_client(sync_client=True)


def process_client() -> SyncPrefectClient:
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


def ping() -> str:
    """Ask Prefect's API for its version; the first request, which starts an embedded server where one is needed.

    Raises:
        OrchestratorError: If the API cannot be asked, or the embedded server does not start.
    """
    if configured_api() is None:
        _make_home()
    try:
        return client().api_version()
    except Exception as error:
        place = configured_api() or "the embedded server"
        raise OrchestratorError(
            f"Prefect's API ({place}) does not answer: {redact_urls(str(error))}. Run 'executions doctor'."
        ) from error


def _make_home() -> None:
    """Make the folder of the embedded server's database; without it Prefect starts one server after the other."""
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise OrchestratorError(
            f"Prefect's embedded server needs a folder that it can write to, and {home} is none: {error.strerror}. "
            "Set PREFECT_HOME to a folder of yours, or PREFECT_API_URL to a server."
        ) from error


@contextmanager
def translate_errors(what: str, parameters: Mapping[str, Any] = _NOTHING) -> Iterator[None]:
    """Tell as one error of ours that Prefect's API refused *what* it was asked for, or that it is away.

    Where *parameters* were sent and are too large, the message names the largest.

    Raises:
        RequestError: If it refused; the message has its own words.
        OrchestratorError: If it does not answer, or failed.
    """
    try:
        yield
    except ExecutionsError:
        raise
    except PrefectHTTPStatusError as error:
        refused = too_large_error(error, what, parameters)
        if refused is not None:
            raise refused from None  # Prefect's own text repeats all of them
        said = redact_urls(_words(error))
        if error.response.status_code in _REFUSED:
            raise RequestError(f"Prefect refuses {what}: {said}") from error
        raise OrchestratorError(f"Prefect's API failed when asked for {what}: {said}") from error
    except Exception as error:
        raise OrchestratorError(f"Prefect's API failed when asked for {what}: {redact_urls(str(error))}") from error


def too_large_error(error: BaseException, what: str, parameters: Mapping[str, Any]) -> RequestError | None:
    """Return our own error where Prefect's is that the *parameters* of *what* are too large for it, else None.

    How much it takes is a setting of its server (`PREFECT_SERVER_API_MAX_PARAMETER_SIZE`).
    """
    found = _TOO_LARGE.search(_words(error)) if isinstance(error, PrefectHTTPStatusError) else None
    if found is None:
        return None
    sizes = {name: len(json.dumps(json_value(value), separators=(",", ":"))) for name, value in parameters.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    which = f"; the largest is '{largest}' with {sizes[largest]:,}" if largest else ""
    return RequestError(
        f"Prefect refuses {what}: it takes at most {found[1]} bytes of inputs, and these are {found[2]}{which}. "
        "Give it as a file: an InputFile, or in a descriptor an input of format uri-reference, takes a path or URL."
    )


def _words(error: PrefectHTTPStatusError) -> str:
    try:
        told = error.response.json()
    except ValueError:
        return str(error)
    detail = told.get("detail") or told.get("exception_detail") or told if isinstance(told, dict) else told
    if isinstance(detail, list):
        # Each also has the value that it is about, which may be long, and is the caller's.
        return "; ".join(str(one.get("msg", "")) if isinstance(one, dict) else str(one) for one in detail)
    return str(detail)
