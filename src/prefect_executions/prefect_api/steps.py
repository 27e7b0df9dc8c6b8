"""The task runs of a flow run, as Prefect's API knows them.

Prefect hears of a task's states by events, so for some tenths of a second after
a task has ended its API may not know it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort

from prefect_executions.documents import clean_text, in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.lifecycle.history import JobStatus, Step
from prefect_executions.prefect_api.client import client

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

MOST = 10_000
"""How many steps a record tells; fifty requests."""

_PAGE = 200
_LONG_AGO, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def steps(job_status: JobStatus, mask: Callable[[str], str]) -> tuple[Step, ...]:
    """Return the steps of an execution as far as Prefect's API knows them now, in the order in which they began.

    Those of its subflows are not among them: they belong to the flow run that
    called them. *mask* is put over names, which may be made of parameters.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    flow_run_id, _, life = job_status.job_id.partition(".")
    try:
        found = list(_task_runs(UUID(flow_run_id)))
    except Exception as error:
        raise OrchestratorError(f"the task runs of flow run {flow_run_id} cannot be read: {error}") from error
    # A life before this one had steps as well.
    since = job_status.history[0].time if life else _LONG_AGO
    told = [_step(one, mask) for one in found if _begun(one, _NEVER) >= since]
    return tuple(sorted(told, key=lambda step: (step.started or _NEVER, str(step.id))))


def _task_runs(flow_run_id: UUID) -> Iterator[TaskRun]:
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    for offset in range(0, MOST, _PAGE):
        page = client().read_task_runs(
            flow_run_filter=wanted, sort=TaskRunSort.EXPECTED_START_TIME_ASC, limit=_PAGE, offset=offset
        )
        yield from page
        if len(page) < _PAGE:
            return


def _begun(run: TaskRun, otherwise: datetime) -> datetime:
    told = run.start_time or run.expected_start_time
    return otherwise if told is None else in_utc(told)


def _step(run: TaskRun, mask: Callable[[str], str]) -> Step:
    state = run.state
    kind = state.type.value if state else run.state_type.value if run.state_type else "PENDING"
    return Step(
        id=run.id,
        name=clean_text(mask(run.name)),
        state=kind,
        state_name=(state.name if state else run.state_name) or kind.title(),
        started=run.start_time and in_utc(run.start_time),
        finished=run.end_time and in_utc(run.end_time),
        flow_run_id=state.state_details.child_flow_run_id if state else None,
    )
