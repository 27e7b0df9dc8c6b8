"""The life of an execution as Prefect's state history tells it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.lifecycle.following import follow
from prefect_executions.lifecycle.history import JobStatus, PrefectState, Seen, begin
from prefect_executions.lifecycle.status import FROM_PREFECT, Observer, Status
from prefect_executions.prefect_api.flow_runs import history, seen

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_ENDS = frozenset(name for name, status in FROM_PREFECT.items() if status is not None and status.terminal)


def states(run: FlowRun) -> tuple[Seen, ...]:
    """Prefect's state history since the run was created or retried by hand; its one state when the API is away.

    A run that was just called in a process has two states, and Prefect told both
    with the run: it need not be asked again.
    """
    called = run.deployment_id is None and os.environ.get("PREFECT__FLOW_RUN_ID") != str(run.id)
    if called and run.run_count == 1 and run.state and run.state.is_running() and run.expected_start_time:
        return (_called(run.expected_start_time), seen(run.state))
    try:
        return lives(history(run.id))[-1]
    except OrchestratorError:
        return (seen(run.state),) if run.state else ()


def _called(expected: datetime) -> Seen:
    """The PENDING that a direct call begins with: Prefect's server keeps its time as the expected start."""
    return Seen(PrefectState(type="PENDING", name="Pending"), in_utc(expected))


def lives(told: Sequence[Seen]) -> list[tuple[Seen, ...]]:
    """Return the states *told* of a flow run, cut where somebody scheduled it again after an end.

    Prefect keeps its id then; a record has ended, and another one begins.
    """
    cuts = [
        number
        for number, (before, one) in enumerate(pairwise(told), start=1)
        if one.state.type == "SCHEDULED" and before.state.type in _ENDS
    ]
    return [tuple(told[start:end]) for start, end in pairwise([0, *cuts, len(told)])]


def told_by_prefect(execution_id: str, method_id: str, run: FlowRun, heard: Sequence[Seen] | None = None) -> JobStatus:
    """Return the history so far with Prefect's own times; *heard* are the run's `states`, asked for when not given.

    Prefect tells the creation twice: as the flow run's `created`, by the server's
    clock, and as the time of its first state, by the client's. The earlier counts.
    """
    heard = states(run) if heard is None else heard
    told = [one.time for one in heard[:1]]
    if run.created and execution_id == str(run.id):
        told.append(in_utc(run.created))
    if not told:
        return begin(execution_id, method_id, status=Status.STARTED, at=datetime.now(UTC), observer=Observer.HOOK)
    accepted = heard[0].state if heard and FROM_PREFECT.get(heard[0].state.type) is Status.CREATED else None
    created = begin(
        execution_id,
        method_id,
        status=Status.CREATED,
        at=min(told),
        observer=Observer.PREFECT,
        prefect_state=accepted,
    )
    return follow(created, heard)


def catch_up(job_status: JobStatus) -> JobStatus:
    """Return *job_status* with what Prefect's state history tells of this life of the flow run by now, one request.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    flow_run_id, _, life = job_status.job_id.partition(".")
    told = lives(history(UUID(flow_run_id)))
    return follow(job_status, told[min(int(life or 1), len(told)) - 1])
