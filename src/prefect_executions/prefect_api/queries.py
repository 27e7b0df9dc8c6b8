"""Which flow runs Prefect knows, asked page by page: those that ended lately, those that are open, and their workers.

Law: no question reads everything; each is bounded by a time, by ids, or by what
is open now.

Which of Prefect's flows are Methods.

Law: Prefect itself knows it, so that no database of ours is needed. A Method's
parameter schema carries a mark, which every way to deploy sends along, and a
flow that is known to be a Method gets a tag. The tag is on the flow: renaming a
deployment, or deleting it, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.lifecycle.status import PREFECT_TERMINAL
from prefect_executions.prefect_api.client import client

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State


from collections.abc import Mapping

from prefect.client.schemas.filters import FlowFilterTags
from prefect.client.schemas.sorting import DeploymentSort

from prefect_executions.methods.secrets import MARK

PAGE_SIZE = 200
"""Flow runs asked for at once; the most that Prefect's API gives by default."""

_ENDED = [StateType(name) for name in sorted(PREFECT_TERMINAL)]


def server_time() -> datetime:
    """Return the time by the clock of Prefect's server, to the second.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    with _asking("the time"):
        told = client().request("GET", "/health").headers.get("date")
    return in_utc(parsedate_to_datetime(told)) if told else datetime.now(UTC)


def ended_since(flows: Sequence[UUID], when: datetime) -> Iterator[FlowRun]:
    """Yield the runs of *flows* that ended after *when*, the last first; one may come twice.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    ended = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ENDED)),
        end_time=FlowRunFilterEndTime(after_=when),
    )
    yield from _runs(flows, ended, FlowRunSort.END_TIME_DESC)


def open_runs(flows: Sequence[UUID], *, late: bool = False) -> Iterator[FlowRun]:
    """Yield the runs of *flows* that are under way, or those that wait too long for a worker.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    under_way = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    )
    waiting = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"]))
    yield from _runs(flows, FlowRunFilter(state=waiting if late else under_way), FlowRunSort.EXPECTED_START_TIME_ASC)


def runs_by_id(ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Return the flow runs with these ids, as far as Prefect knows them.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    found: dict[UUID, FlowRun] = {}
    wanted_ids = list(ids)
    for start in range(0, len(wanted_ids), PAGE_SIZE):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=wanted_ids[start : start + PAGE_SIZE]))
        with _asking("the flow runs"):
            found |= {run.id: run for run in client().read_flow_runs(flow_run_filter=wanted, limit=PAGE_SIZE)}
    return found


def worker_silence(pool: str, worker: str, now: datetime) -> timedelta | None:
    """Return how long ago a worker was heard, or None when Prefect does not know it.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    heard = [one["last_heartbeat_time"] for one in _workers(pool) if one["name"] == worker]
    return min((now - in_utc(datetime.fromisoformat(time)) for time in heard if time), default=None)


def has_workers(pool: str) -> bool:
    """Return whether a work pool is served by workers: one that Prefect itself serves never had any.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    return bool(_workers(pool))


def _workers(pool: str) -> list[dict[str, Any]]:
    asked = {"path_params": {"work_pool_name": pool}, "json": {}}
    with _asking(f"the workers of {pool}"):
        try:
            found = client().request("POST", "/work_pools/{work_pool_name}/workers/filter", **asked)
        except ObjectNotFound:
            return []
    return list(found.json())


def force_terminal(flow_run_id: UUID, message: str, *, cancelled: bool) -> None:
    """Put a flow run whose process is gone into Crashed, or into Cancelled when that was asked for.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    state: State[None] = Cancelled(message=message) if cancelled else Crashed(message=message)
    with _asking(f"flow run {flow_run_id}"):
        client().set_flow_run_state(flow_run_id, state, force=True)


def _runs(flows: Sequence[UUID], wanted: FlowRunFilter, sort: FlowRunSort) -> Iterator[FlowRun]:
    if not flows:
        return
    of_methods = FlowFilter(id=FlowFilterId(any_=list(flows)))
    offset = 0
    while True:
        with _asking("the flow runs"):
            page = client().read_flow_runs(
                flow_filter=of_methods, flow_run_filter=wanted, sort=sort, limit=PAGE_SIZE, offset=offset
            )
        yield from page
        if len(page) < PAGE_SIZE:
            return
        offset += PAGE_SIZE


@contextmanager
def _asking(what: str) -> Iterator[None]:
    try:
        yield
    except ObjectNotFound:
        raise
    except Exception as error:
        raise OrchestratorError(f"Prefect's API does not tell {what}: {error}. Run 'executions doctor'.") from error


TAG = "prefect-executions"
"""The tag of a Prefect flow that is a Method."""

_PAGE = 200


def method_flows(deployed_since: datetime | None) -> frozenset[UUID]:
    """Return the flows that are Methods; deployments since that time, or all, are looked at for new ones.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        known = _tagged()
        fresh = _deployed(deployed_since) - known
        mark_flows(fresh)
    except Exception as error:
        raise OrchestratorError(f"Prefect's API does not tell which flows are Methods: {error}") from error
    return known | fresh


def mark_flows(flows: Iterable[UUID]) -> None:
    """Tag flows as Methods; those that Prefect does not know are passed over."""
    for flow_id in flows:
        try:
            tags = client().read_flow(flow_id).tags
            if TAG not in tags:
                client().request("PATCH", "/flows/{id}", path_params={"id": flow_id}, json={"tags": [*tags, TAG]})
        except ObjectNotFound:
            continue


def is_method(schema: Mapping[str, Any] | None, description: str | None) -> bool:
    """Whether a deployment with this parameter schema and description is that of a Method."""
    properties = (schema or {}).get("properties") or {}
    return any(MARK in one for one in properties.values() if isinstance(one, Mapping)) or MARK in (description or "")


def _tagged() -> frozenset[UUID]:
    found: set[UUID] = set()
    while True:
        page = client().read_flows(
            flow_filter=FlowFilter(tags=FlowFilterTags(all_=[TAG])), limit=_PAGE, offset=len(found)
        )
        found |= {flow.id for flow in page}
        if len(page) < _PAGE:
            return frozenset(found)


def _deployed(since: datetime | None) -> frozenset[UUID]:
    found: set[UUID] = set()
    offset = 0
    while True:
        page = client().read_deployments(sort=DeploymentSort.UPDATED_DESC, limit=_PAGE, offset=offset)
        for one in page:
            if since is not None and one.updated is not None and in_utc(one.updated) < since:
                return frozenset(found)
            if is_method(one.parameter_openapi_schema, one.description):
                found.add(one.flow_id)
        if len(page) < _PAGE:
            return frozenset(found)
        offset += _PAGE
