"""Errors as answers: RFC 7807 problem documents with the exception types of OGC API - Processes 1.0.

Law: an answer has no traceback and no path of this machine. A failure of the server has a number instead,
under which its log has the details.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from prefect_executions.errors import (
    BundleError,
    EndedError,
    ExecutionsError,
    InputError,
    NotAvailableError,
    NotFoundError,
    QueryError,
    RequestError,
    ScriptError,
    SealedError,
    WorldError,
)

MEDIA_TYPE = "application/problem+json"

OGC = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0/"
"""The prefix of OGC's exception types."""

NO_SUCH_PROCESS, NO_SUCH_JOB, NOT_READY = f"{OGC}no-such-process", f"{OGC}no-such-job", f"{OGC}result-not-ready"

ANY_TYPE = "about:blank"
"""The type of a problem that its HTTP status describes (RFC 7807, section 4.2)."""

STATUS_OF: dict[type[ExecutionsError], int] = {
    InputError: 400,
    RequestError: 400,
    NotFoundError: 404,
    SealedError: 409,
    EndedError: 409,
    NotAvailableError: 403,
    ScriptError: 500,
    BundleError: 500,
    WorldError: 503,
    ExecutionsError: 500,
}
"""The HTTP status of each error; an error that is not here has that of its nearest base class."""

_FIRST_FAILURE = 500
_MOST_FAULTS = 10

_PATH = re.compile(r"(?<![\w:/.*~-])~?(?:/[^\s/'\":;,()\[\]]+){2,}/?")
"""An absolute path in a message; not the path of a URL."""

_log = logging.getLogger(__name__)


class ProblemError(HTTPException):
    """A request that a route refuses, with one of OGC's exception types."""

    def __init__(self, status: int, detail: str, type_: str = ANY_TYPE) -> None:
        super().__init__(status, detail)
        self.type = type_


def problem(status: int, detail: str, type_: str = ANY_TYPE, **members: Any) -> JSONResponse:
    """Return the answer with a problem document."""
    document = {"type": type_, "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return JSONResponse(document, status, media_type=MEDIA_TYPE)


def status_of(error: ExecutionsError) -> int:
    """Return the HTTP status of *error*."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def install(app: FastAPI) -> None:
    """Let *app* answer every error with a problem document."""
    handlers: dict[type[Exception], Callable[[Request, Any], JSONResponse]] = {
        ExecutionsError: _of_ours,
        RequestValidationError: _of_validation,
        HTTPException: _of_http,
        Exception: _of_failure,
    }
    for kind, answer in handlers.items():
        app.add_exception_handler(kind, answer)


def _of_ours(request: Request, error: ExecutionsError) -> JSONResponse:
    status = status_of(error)
    if status >= _FIRST_FAILURE:
        return _failure(request, error, status)
    if isinstance(error, QueryError):  # its text is the query, so it has no path of this machine
        place: dict[str, Any] = {"column": error.column, "expected": error.expected, "suggestion": error.suggestion}
        return problem(status, str(error), **{name: value for name, value in place.items() if value})
    return problem(status, _without_paths(str(error)))


def _of_validation(_request: Request, error: RequestValidationError) -> JSONResponse:
    faults = [f"{'.'.join(map(str, part['loc'][1:]))}: {part['msg']}" for part in error.errors()[:_MOST_FAULTS]]
    return problem(400, "; ".join(faults))


def _of_http(_request: Request, error: HTTPException) -> JSONResponse:
    type_ = error.type if isinstance(error, ProblemError) else ANY_TYPE
    answer = problem(error.status_code, error.detail, type_)
    answer.headers.update(error.headers or {})
    return answer


def _of_failure(request: Request, error: Exception) -> JSONResponse:
    return _failure(request, error, 500)


def _failure(request: Request, error: Exception, status: int) -> JSONResponse:
    number = uuid4().urn
    _log.error("%s %s failed (%s)", request.method, request.url.path, number, exc_info=error)
    unavailable = status == HTTPStatus.SERVICE_UNAVAILABLE
    what = "A system that this server needs is unavailable; try again." if unavailable else "The server failed."
    return problem(status, f"{what} Its log has the details under the number in 'instance'.", instance=number)


def _without_paths(text: str) -> str:
    """Return *text* with only the last part of each absolute path."""
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)
