"""Methods as OGC's processes: the list, and the description of each with the schemas of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from prefect_executions.errors import RequestError
from prefect_executions.methods.model import InputDescription, Method
from prefect_executions.web.documents import REL, Link, answer, link
from prefect_executions.web.problems import NO_SUCH_PROCESS, ProblemError

PAGE = 1000
"""The processes of a page for which no limit is given."""

_SUMMARY = ("id", "version", "title", "description", "keywords", "metadata")


class ServedMethod(NamedTuple):
    """A Method that the server offers, and the entrypoint by which a child process loads it."""

    method: Method
    entrypoint: str


def by_id(served: Sequence[ServedMethod]) -> dict[str, ServedMethod]:
    """Return the Methods by their ids, in the order of these.

    Raises:
        RequestError: If two have one id.
    """
    found: dict[str, ServedMethod] = {}
    for each in sorted(served, key=lambda one: one.method.id):
        if each.method.id in found:
            others = f"{found[each.method.id].entrypoint} and {each.entrypoint}"
            raise RequestError(f"{others} both have the id '{each.method.id}'; give one of them another name")
        found[each.method.id] = each
    return found


def processes_router(methods: Mapping[str, ServedMethod]) -> APIRouter:
    """Return the routes of *methods*."""
    router = APIRouter(tags=["processes"])

    @router.get("/processes", operation_id="processes", summary="The Methods that this server offers, by id")
    def process_list(
        request: Request,
        limit: Annotated[int, Query(ge=1)] = PAGE,
        after: Annotated[str, Query(description="The id at the end of the previous page.")] = "",
    ) -> Response:
        later = [served.method for name, served in methods.items() if name > after]
        shown, links = later[:limit], [link(request, "/processes", "self", "This document", query=request.query_params)]
        if len(later) > limit:
            query = {"limit": limit, "after": shown[-1].id}
            links.append(link(request, "/processes", "next", "The next page", query=query))
        return answer({"processes": [_summary(request, method) for method in shown], "links": links})

    @router.get("/processes/{processID}", operation_id="process", summary="A Method, with its inputs and outputs")
    def process(request: Request, processID: str) -> Response:  # noqa: N803 - OGC's name
        return answer(_description(request, served_method(methods, processID).method))

    return router


def served_method(methods: Mapping[str, ServedMethod], process_id: str) -> ServedMethod:
    """Return the Method with the id *process_id*.

    Raises:
        ProblemError: If the server does not offer it.
    """
    if process_id not in methods:
        raise ProblemError(404, f"There is no process '{process_id[:80]}'.", NO_SUCH_PROCESS)
    return methods[process_id]


def _summary(request: Request, method: Method) -> dict[str, Any]:
    described = method.model_dump(mode="json", by_alias=True, exclude_none=True)
    links: list[Link] = [
        link(request, f"/processes/{method.id}", "self", method.title),
        link(request, "/jobs", f"{REL}job-list", "Its executions", query={"processID": method.id}),
    ]
    return {name: described.get(name) for name in _SUMMARY} | {"links": links}


def _description(request: Request, method: Method) -> dict[str, Any]:
    """Return OGC's process: without scripts and code, which are not needed to run it."""
    outputs = {
        name: described.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, described in method.outputs.items()
    }
    inputs = {name: _input(described) for name, described in method.inputs.items()}
    return _summary(request, method) | {"inputs": inputs, "outputs": outputs}


def _input(described: InputDescription) -> dict[str, Any]:
    members: dict[str, Any] = described.model_dump(mode="json", by_alias=True, exclude_none=True)
    default = members["schema"].get("default")
    if described.is_file and not (isinstance(default, str) and "://" in default):
        members["schema"].pop("default", None)  # a path of this machine
    return members
