"""Executions as OGC's jobs: the list with its six filters, and the status of each, with exactly 1.0's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from prefect_executions.bundles.layout import check_execution_id
from prefect_executions.errors import NameRefusedError, NotFoundError
from prefect_executions.lifecycle.status import AS_OGC, OgcStatus, Status
from prefect_executions.query.literals import Duration, Text, instant
from prefect_executions.query.parser import parse
from prefect_executions.query.tree import (
    And,
    Condition,
    FieldTarget,
    Has,
    Not,
    Operator,
    QueryTree,
    conjunction,
    disjunction,
)
from prefect_executions.web.documents import REL, Link, answer, link
from prefect_executions.web.problems import NO_SUCH_JOB, ProblemError
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.lookup import index_new

PAGE = 10
"""The jobs of a page for which no limit is given, as OGC's default."""
LARGEST_PAGE = 1000
"""A larger limit is taken as this one (requirement /req/job-list/rl-limit-response)."""

_COLUMNS = ("id", "method", "status", "message", "created", "started", "finished", "updated", "progress")
_TYPE = "process"
"""OGC's type of all jobs."""
_LONGEST = 100 * 365 * 24 * 3600
"""A century, in seconds: a longer duration is taken as this one."""
_YEAR = re.compile(r"\d{4}-")

Strings = Annotated[list[str] | None, Query()]
_CREATED, _STARTED, _FINISHED, _DURATION = map(FieldTarget, ("created", "started", "finished", "duration"))


def jobs_router(catalog: Callable[[], Catalog]) -> APIRouter:
    """Return the routes of the jobs in *catalog*."""
    router = APIRouter(tags=["jobs"])

    @router.get("/jobs", operation_id="jobs", summary="Executions, newest first")
    def job_list(
        request: Request,
        *,
        type_: Annotated[list[str] | None, Query(alias="type", description="Only 'process' has jobs.")] = None,
        process_id: Annotated[list[str] | None, Query(alias="processID", description="Ids of Methods.")] = None,
        status: Annotated[list[OgcStatus] | None, Query()] = None,
        when: Annotated[
            str | None, Query(alias="datetime", description="When the job was created: a time, or an interval.")
        ] = None,
        shortest: Annotated[int | None, Query(alias="minDuration", ge=0, description="In seconds.")] = None,
        longest: Annotated[int | None, Query(alias="maxDuration", ge=0, description="In seconds.")] = None,
        q: Annotated[str, Query(description="A query in the language of searches.")] = "",
        limit: Annotated[int, Query(ge=1)] = PAGE,
        after: Annotated[str | None, Query(description="The cursor of an earlier page.")] = None,
    ) -> Response:
        terms = [
            *_types(type_ or ()),
            *_methods(process_id or ()),
            *_statuses(status or ()),
            *(_created(when) if when is not None else ()),
            *_durations(shortest, longest, datetime.now(UTC)),
            *([parse(q)] if q.strip() else ()),
        ]
        opened = catalog()
        index_new(opened.workbench)
        size = min(limit, LARGEST_PAGE)
        found = opened.search(conjunction(terms), columns=_COLUMNS, limit=size, after=after)
        jobs = [status_info(request, row) for row in found]
        links = [link(request, "/jobs", "self", "This document", query=request.query_params.multi_items())]
        if found.after:
            others = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
            links.append(link(request, "/jobs", "next", "The next page", query=[*others, ("after", found.after)]))
        counts = {"numberMatched": found.total, "numberReturned": len(jobs)}
        return answer({"jobs": jobs, "links": links, **counts})

    @router.get("/jobs/{jobID}", operation_id="status", summary="The status of an execution")
    def job_status(request: Request, jobID: str) -> Response:  # noqa: N803 - OGC's name
        return answer(status_info(request, job_row(catalog(), jobID)))

    return router


def job_row(catalog: Catalog, job_id: str) -> Mapping[str, Any]:
    """Return the status of the execution whose whole id is *job_id*, by `_COLUMNS`.

    Raises:
        ProblemError: If there is no such execution.
    """
    try:
        check_execution_id(job_id)
    except NameRefusedError:
        raise _no_such_job(job_id) from None
    with suppress(NotFoundError):
        row = catalog.workbench.ledger.get(job_id)
        return {name: row.method_id if name == "method" else getattr(row, name) for name in _COLUMNS}
    try:
        record = catalog.record(job_id)  # a run writes its row half a second after it has begun
    except NotFoundError:
        raise _no_such_job(job_id) from None
    known = record.job_status
    return {"id": record.id, "method": record.method.id, "status": record.status} | {
        name: getattr(known, name) for name in _COLUMNS[3:]
    }


def status_info(request: Request, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return OGC's statusInfo of the execution in *row*."""
    status = AS_OGC[Status(row["status"])]
    return {
        "jobID": row["id"],
        "processID": row["method"],
        "type": _TYPE,
        "status": status,
        "message": row["message"],
        **{name: row[name] for name in ("created", "started", "finished", "updated", "progress")},
        "links": list(_links(request, row["id"])),
    }


def _links(request: Request, job_id: str) -> Iterator[Link]:
    yield link(request, f"/jobs/{job_id}", "self", "The status of this execution")
    yield link(request, "/jobs", f"{REL}job-list", "All executions")


def _no_such_job(job_id: str) -> ProblemError:
    return ProblemError(404, f"There is no job '{job_id[:80]}'.", NO_SUCH_JOB)


# --- the filters -----------------------------------------------------------------


def _listed(values: Sequence[str]) -> tuple[str, ...]:
    """Return the values of an array parameter, which may be repeated or separated by commas."""
    return tuple(word for value in values for word in value.split(",") if word)


def _types(values: Sequence[str]) -> Iterator[QueryTree]:
    if values and _TYPE not in _listed(values):
        yield disjunction(())  # nothing


def _methods(values: Sequence[str]) -> Iterator[QueryTree]:
    if values:
        yield Condition(FieldTarget("method"), Operator.EQUAL, tuple(Text((one,)) for one in _listed(values)))


def _statuses(values: Sequence[OgcStatus]) -> Iterator[QueryTree]:
    if values:
        yield parse(f"status:{','.join(values)}")


def _created(when: str) -> Iterator[QueryTree]:
    """Yield the conditions of OGC's ``datetime``: a time, or an interval whose open end is ``..`` or empty."""
    first, slash, last = when.partition("/")
    ends = (first, last if slash else first)
    if all(end in {"", ".."} for end in ends):
        raise ProblemError(400, "datetime: an interval has at least one end, such as 2026-01-31T12:00:00Z/..")
    since, until = (None if end in {"", ".."} else _time(end) for end in ends)
    if since and until and since > until:
        raise ProblemError(400, "datetime: the interval ends before it begins.")
    if since:
        yield Condition(_CREATED, Operator.GREATER_EQUAL, (instant(since),))
    if until:
        yield Condition(_CREATED, Operator.LESS_EQUAL, (instant(until),))


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text) if _YEAR.match(text) else None
        if time is not None and time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ProblemError(400, f"datetime: '{text[:40]}' is not a time with an offset, such as 2026-01-31T12:00:00Z.")


def _durations(shortest: int | None, longest: int | None, now: datetime) -> Iterator[QueryTree]:
    """Yield the conditions on the duration, which for a running job lasts until *now*."""
    bounds = (
        (shortest, Operator.GREATER_EQUAL, Operator.LESS_EQUAL),
        (longest, Operator.LESS_EQUAL, Operator.GREATER_EQUAL),
    )
    for seconds, of_ended, of_start in bounds:
        if seconds is not None:
            length = timedelta(seconds=min(seconds, _LONGEST))
            begun = Condition(_STARTED, of_start, (instant(now - length),))
            ended = Condition(_DURATION, of_ended, (Duration(length),))
            yield disjunction([ended, And((Not(Has(_FINISHED)), begun))])
