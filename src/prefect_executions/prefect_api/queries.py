"""Queries of Prefect, page by page: recently ended and open flow runs, workers, flows that are Methods.

Law: no query reads everything; each is bounded by a time, by ids, or by what is
open now.

Law: Prefect itself stores which of its flows are Methods. Every way to deploy a
Method sends a mark in its parameter schema, and a flow found by this mark gets a
tag. The tag is on the flow, so it survives when a deployment is renamed or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowFilterTags,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.lifecycle.status import PREFECT_TERMINAL
from prefect_executions.methods.secrets import MARK
from prefect_executions.prefect_api.client import client

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

TAG = "prefect-executions"
"""The tag of a Prefect flow that is a Method."""

PAGE_SIZE = 200
"""Items per request; the default maximum of Prefect's API."""

_ENDED = [StateType(name) for name in sorted(PREFECT_TERMINAL)]


def server_time() -> datetime:
    """Return the time by the clock of Prefect's server, in whole seconds.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    with _reading("the time of its server"):
        date = client().request("GET", "/health").headers.get("date")
    return in_utc(parsedate_to_datetime(date)) if date else datetime.now(UTC)


def ended_since(flows: Sequence[UUID], when: datetime) -> Iterator[FlowRun]:
    """Yield the runs of *flows* that ended after *when*, the last first; a run may appear twice.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    ended = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ENDED)),
        end_time=FlowRunFilterEndTime(after_=when),
    )
    yield from _runs(flows, ended, FlowRunSort.END_TIME_DESC)


def open_runs(flows: Sequence[UUID], *, late: bool = False) -> Iterator[FlowRun]:
    """Yield the runs of *flows* that are active, or with *late* those that no worker has picked up in time.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    active = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    )
    waiting = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"]))
    yield from _runs(flows, FlowRunFilter(state=waiting if late else active), FlowRunSort.EXPECTED_START_TIME_ASC)


def runs_by_id(ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Return the flow runs with these ids that are in Prefect.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    runs: dict[UUID, FlowRun] = {}
    remaining = list(ids)
    for start in range(0, len(remaining), PAGE_SIZE):
        run_filter = FlowRunFilter(id=FlowRunFilterId(any_=remaining[start : start + PAGE_SIZE]))
        with _reading("the flow runs"):
            runs |= {run.id: run for run in client().read_flow_runs(flow_run_filter=run_filter, limit=PAGE_SIZE)}
    return runs


def worker_silence(pool: str, worker: str, now: datetime) -> timedelta | None:
    """Return the time since a worker's last heartbeat, or None if the worker is not in Prefect.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    heartbeats = [entry["last_heartbeat_time"] for entry in _workers(pool) if entry["name"] == worker]
    return min((now - in_utc(datetime.fromisoformat(time)) for time in heartbeats if time), default=None)


def has_workers(pool: str) -> bool:
    """Return whether a work pool has had workers; a push or managed pool never has.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    return bool(_workers(pool))


def _workers(pool: str) -> list[dict[str, Any]]:
    with _reading(f"the workers of {pool}"):
        try:
            response = client().request(
                "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": pool}, json={}
            )
        except ObjectNotFound:
            return []
    return list(response.json())


def force_terminal(flow_run_id: UUID, message: str, *, cancelled: bool) -> None:
    """Move a flow run whose process is gone to Crashed, or to Cancelled if that was requested.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    state: State[None] = Cancelled(message=message) if cancelled else Crashed(message=message)
    with _reading(f"flow run {flow_run_id}"):
        client().set_flow_run_state(flow_run_id, state, force=True)


def _runs(flows: Sequence[UUID], run_filter: FlowRunFilter, sort: FlowRunSort) -> Iterator[FlowRun]:
    if not flows:
        return
    of_methods = FlowFilter(id=FlowFilterId(any_=list(flows)))
    offset = 0
    while True:
        with _reading("the flow runs"):
            page = client().read_flow_runs(
                flow_filter=of_methods, flow_run_filter=run_filter, sort=sort, limit=PAGE_SIZE, offset=offset
            )
        yield from page
        if len(page) < PAGE_SIZE:
            return
        offset += PAGE_SIZE


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except ObjectNotFound:
        raise
    except Exception as error:
        raise OrchestratorError(f"Prefect's API failed for {what}: {error}. Run 'executions doctor'.") from error


def method_flows(deployed_since: datetime | None) -> frozenset[UUID]:
    """Return the flows that are Methods; new ones are found by deployments since that time, or by all.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    try:
        tagged = _tagged()
        untagged = _deployed(deployed_since) - tagged
        mark_flows(untagged)
    except Exception as error:
        raise OrchestratorError(f"Prefect's API failed for the flows of Methods: {error}") from error
    return tagged | untagged


def mark_flows(flows: Iterable[UUID]) -> None:
    """Tag flows as Methods; ids that are not in Prefect are skipped."""
    for flow_id in flows:
        try:
            tags = client().read_flow(flow_id).tags
            if TAG not in tags:
                client().request("PATCH", "/flows/{id}", path_params={"id": flow_id}, json={"tags": [*tags, TAG]})
        except ObjectNotFound:
            continue


def is_method(schema: Mapping[str, Any] | None, description: str | None) -> bool:
    """Whether a deployment with this parameter schema and description belongs to a Method."""
    properties = [value for value in ((schema or {}).get("properties") or {}).values() if isinstance(value, Mapping)]
    return any(MARK in value for value in properties) or MARK in (description or "")


def _tagged() -> frozenset[UUID]:
    flows: set[UUID] = set()
    while True:
        page = client().read_flows(
            flow_filter=FlowFilter(tags=FlowFilterTags(all_=[TAG])), limit=PAGE_SIZE, offset=len(flows)
        )
        flows |= {flow.id for flow in page}
        if len(page) < PAGE_SIZE:
            return frozenset(flows)


def _deployed(since: datetime | None) -> frozenset[UUID]:
    flows: set[UUID] = set()
    offset = 0
    while True:
        page = client().read_deployments(sort=DeploymentSort.UPDATED_DESC, limit=PAGE_SIZE, offset=offset)
        for deployment in page:
            if since is not None and deployment.updated is not None and in_utc(deployment.updated) < since:
                return frozenset(flows)
            if is_method(deployment.parameter_openapi_schema, deployment.description):
                flows.add(deployment.flow_id)
        if len(page) < PAGE_SIZE:
            return frozenset(flows)
        offset += PAGE_SIZE
