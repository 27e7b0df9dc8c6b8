"""The ASGI application: the routes of OGC API - Processes 1.0 over the Catalog, behind the guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from prefect_executions.web import problems
from prefect_executions.web.documents import OPENAPI, REL, answer, link
from prefect_executions.web.jobs import jobs_router
from prefect_executions.web.openapi import openapi_document
from prefect_executions.web.processes import ServedMethod, by_id, processes_router
from prefect_executions.web.security import LOOPBACK, Asgi, Guard
from prefect_executions.workbench.catalog import Catalog

TITLE = "Executions"
DESCRIPTION = "Methods and their recorded executions."

CONFORMANCE: tuple[str, ...] = ()
"""The conformance classes; each is here when a test verifies all of its requirements."""

OpenCatalog = Callable[[], Catalog]


def create_app(
    open_catalog: OpenCatalog, methods: Sequence[ServedMethod] = (), *, hosts: Iterable[str] = LOOPBACK
) -> Asgi:
    """Return the application that serves *methods*, and the executions of the catalog that *open_catalog* returns.

    It is reached by the names *hosts* only. The catalog is opened at the first request that needs it.

    Raises:
        RequestError: If two Methods have one id.
    """
    released = version("prefect-executions")
    app = FastAPI(
        title=TITLE, description=DESCRIPTION, version=released, openapi_url=None, docs_url=None, redoc_url=None
    )
    problems.install(app)
    _add_capabilities(app)
    app.include_router(processes_router(by_id(methods)))
    app.include_router(jobs_router(cache(open_catalog)))
    return Guard(app, hosts=hosts)


def _add_capabilities(app: FastAPI) -> None:
    """Add the routes that describe the server: landing page, conformance and API definition."""

    @app.get("/", operation_id="landingPage", summary="What this server has")
    def landing_page(request: Request) -> Response:
        links = [
            link(request, "/", "self", "This document"),
            link(request, "/api", "service-desc", "The API definition", OPENAPI),
            link(request, "/conformance", f"{REL}conformance", "The conformance classes"),
            link(request, "/processes", f"{REL}processes", "The Methods"),
            link(request, "/jobs", f"{REL}job-list", "All executions"),
        ]
        return answer({"title": TITLE, "description": DESCRIPTION, "links": links})

    @app.get("/conformance", operation_id="conformance", summary="The conformance classes that tests verify")
    def conformance() -> Response:
        return answer({"conformsTo": CONFORMANCE})

    @app.get("/api", operation_id="apiDefinition", summary="The API definition in OpenAPI 3.0")
    def api_definition(request: Request) -> Response:
        return answer(openapi_document(app, str(request.base_url).rstrip("/")), media_type=OPENAPI)
