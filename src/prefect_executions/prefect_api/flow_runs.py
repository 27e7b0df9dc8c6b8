"""What Prefect says of a flow run: itself, its states, and where it was sent.

The life of an execution as Prefect's state history tells it.

A flow run as the request for an execution.

The task runs of a flow run, as Prefect's API knows them.

Prefect hears of a task's states by events, so for some tenths of a second after
a task has ended its API may not know it yet.

How Prefect is asked to cancel a flow run, and what it says of one that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import prefect
from prefect.exceptions import ObjectNotFound

from prefect_executions.capture.host import pod_of
from prefect_executions.capture.secrets import redact_urls
from prefect_executions.documents import in_utc, json_value
from prefect_executions.errors import OrchestratorError
from prefect_executions.events import SeenLabel
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import Deployment, Infrastructure, Instance
from prefect_executions.lifecycle.history import ObservedState, PrefectState
from prefect_executions.prefect_api.client import client, configured_api

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State


import os
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from prefect_executions.lifecycle.history import JobStatus, merge_states, new_job_status
from prefect_executions.lifecycle.status import FROM_PREFECT, Observer, Status

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


from typing import TYPE_CHECKING

from prefect_executions.capture.parameters import recorded_parameters
from prefect_executions.executions.record import ExecuteRequest, Relative, tagged
from prefect_executions.methods.model import Method
from prefect_executions.settings import ArchiveLevel

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort

from prefect_executions.documents import clean_text
from prefect_executions.lifecycle.history import Step

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun


from typing import TYPE_CHECKING, NamedTuple

from prefect.states import Cancelled, Cancelling

from prefect_executions.errors import NotFoundError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def observed_state(state: State[Any]) -> ObservedState:
    """Return *state* as a value of ours, its message without credentials of URLs."""
    told = PrefectState(type=state.type.value, name=state.name or state.type.value.title(), id=state.id)
    return ObservedState(told, in_utc(state.timestamp), redact_urls(state.message) if state.message else None)


def state_history(flow_run_id: UUID) -> tuple[ObservedState, ...]:
    """Return the states of a flow run in the order of their times, one request.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        states = client().read_flow_run_states(flow_run_id)
    except Exception as error:
        raise OrchestratorError(f"the state history of flow run {flow_run_id} cannot be read: {error}") from error
    return tuple(sorted((observed_state(state) for state in states), key=lambda one: one.time))


def flow_run(flow_run_id: UUID) -> FlowRun | None:
    """Return a flow run as Prefect knows it now, or None when Prefect does not know it.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        return client().read_flow_run(flow_run_id)
    except ObjectNotFound:
        return None
    except Exception as error:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be read: {error}") from error


def parent_run_id(run: FlowRun) -> UUID | None:
    """Return the flow run whose code asked for *run*, or None when Prefect tells of none; a request only where it does.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    if run.parent_task_run_id is None:
        return None
    try:
        return client().read_task_run(run.parent_task_run_id).flow_run_id
    except Exception as error:
        raise OrchestratorError(f"who called flow run {run.id} cannot be read: {error}") from error


def infrastructure(run: FlowRun, environment: Mapping[str, str]) -> Infrastructure:
    """Return what Prefect and its worker say about where *run* was sent.

    Of the job variables the names in ``env`` are kept and their values are not:
    they may hold secrets.
    """
    labels, pod = run.labels or {}, pod_of(environment)
    seen_outside = _seen_of(run, pod)
    pool_type = labels.get("prefect.worker.type")
    variables = {name: json_value(value) for name, value in (run.job_variables or {}).items()}
    if isinstance(variables.get("env"), dict):
        variables["env"] = sorted(variables["env"])
    kind = str(pool_type) if pool_type else "direct" if run.deployment_id is None else "serve"
    return Infrastructure(
        type=kind,
        work_pool=run.work_pool_name or _text(labels.get("prefect.work-pool.name")),
        work_queue=run.work_queue_name,
        worker=_text(labels.get("prefect.worker.name")) or environment.get("PREFECT__WORKER_NAME"),
        worker_id=environment.get("PREFECT__WORKER_ID"),
        image=_text(seen_outside.get(SeenLabel.IMAGE)),
        image_digest=_text(seen_outside.get(SeenLabel.IMAGE_DIGEST)),
        image_id=_text(seen_outside.get(SeenLabel.IMAGE_ID)),
        job_variables=variables,
        identifier=_identifier(run, pod),
        prefect_version=prefect.__version__,
        prefect_api=configured_api(),
    )


def shares_its_worker(kind: str | None) -> bool:
    """Whether a run on infrastructure of this type has no limits of its own: a process, served or started by hand."""
    return kind is None or kind in {"direct", "serve"} or kind.endswith("process")


def with_worker_labels(instance: Instance, run: FlowRun) -> Instance:
    """Return *instance* with the container, pod and node that the worker of *run* saw, where the run did not."""
    labels = _seen_of(run, instance.pod)
    seen_outside = {
        "container_id": instance.container_id or _text(labels.get(SeenLabel.CONTAINER)),
        "pod": instance.pod or _text(labels.get(SeenLabel.POD)),
        "node": instance.node or _text(labels.get(SeenLabel.NODE)),
    }
    return instance.model_copy(update=seen_outside)


def _seen_of(run: FlowRun, pod: str | None) -> Mapping[str, Any]:
    """The labels of *run*, unless they tell of another pod: one that was deleted is replaced, and a run sent again."""
    labels = run.labels or {}
    return labels if pod is None or labels.get(SeenLabel.POD, pod) == pod else {}


def _identifier(run: FlowRun, pod: str | None) -> str | None:
    """What Prefect calls the infrastructure of *run*, unless that is another job than that of the *pod* around us."""
    told = run.infrastructure_pid
    if told is None or pod is None or not str((run.labels or {}).get("prefect.worker.type")).endswith("kubernetes"):
        return told
    return told if pod.startswith(f"{told.rpartition(':')[2]}-") else None


def deployment(run: FlowRun, environment: Mapping[str, str]) -> Deployment | None:
    """Return the deployment that *run* came through; its name only where the worker told it."""
    if run.deployment_id is None:
        return None
    return Deployment(id=run.deployment_id, name=environment.get("PREFECT__DEPLOYMENT_NAME"))


def created_by(run: FlowRun) -> dict[str, str] | None:
    """Return the schedule or automation that created *run*, if Prefect says one."""
    maker = run.created_by
    if maker is None:
        return None
    told = {"type": maker.type, "id": maker.id and str(maker.id), "name": maker.display_value}
    return {key: str(value) for key, value in told.items() if value}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def current_states(run: FlowRun) -> tuple[ObservedState, ...]:
    """Prefect's state history since the run was created or retried by hand; its one state when the API is away.

    A run that was just called in a process has two states, and Prefect told both
    with the run: it need not be asked again.
    """
    called = run.deployment_id is None and os.environ.get("PREFECT__FLOW_RUN_ID") != str(run.id)
    if called and run.run_count == 1 and run.state and run.state.is_running() and run.expected_start_time:
        return (_called(run.expected_start_time), observed_state(run.state))
    try:
        return generations(state_history(run.id))[-1]
    except OrchestratorError:
        return (observed_state(run.state),) if run.state else ()


def _called(expected: datetime) -> ObservedState:
    """The PENDING that a direct call begins with: Prefect's server keeps its time as the expected start."""
    return ObservedState(PrefectState(type="PENDING", name="Pending"), in_utc(expected))


def generations(told: Sequence[ObservedState]) -> list[tuple[ObservedState, ...]]:
    """Return the states *told* of a flow run, cut where somebody scheduled it again after an end.

    Prefect keeps its id then; a record has ended, and another one begins.
    """
    cuts = [
        number
        for number, (before, one) in enumerate(pairwise(told), start=1)
        if one.state.type == "SCHEDULED" and before.state.is_terminal
    ]
    return [tuple(told[start:end]) for start, end in pairwise([0, *cuts, len(told)])]


def generation_history(execution_id: str) -> tuple[ObservedState, ...]:
    """Return Prefect's state history of this generation of a flow run; one request.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    flow_run_id, generation = ExecutionId.parse(execution_id)
    parts = generations(state_history(UUID(flow_run_id)))
    return parts[min(generation, len(parts)) - 1]


def job_status_from_prefect(
    execution_id: str, method_id: str, run: FlowRun, heard: Sequence[ObservedState] | None = None
) -> JobStatus:
    """Return the history so far with Prefect's own times; *heard* are the run's `states`, asked for when not given.

    Prefect tells the creation twice: as the flow run's `created`, by the server's
    clock, and as the time of its first state, by the client's. The earlier counts.
    """
    heard = current_states(run) if heard is None else heard
    told = [one.time for one in heard[:1]]
    if run.created and execution_id == str(run.id):
        told.append(in_utc(run.created))
    if not told:
        return new_job_status(
            execution_id, method_id, status=Status.STARTED, at=datetime.now(UTC), observer=Observer.HOOK
        )
    accepted = heard[0].state if heard and FROM_PREFECT.get(heard[0].state.type) is Status.CREATED else None
    created = new_job_status(
        execution_id,
        method_id,
        status=Status.CREATED,
        at=min(told),
        observer=Observer.PREFECT,
        prefect_state=accepted,
    )
    return merge_states(created, heard)


def merge_prefect_history(job_status: JobStatus) -> JobStatus:
    """Return *job_status* with what Prefect's state history of this generation tells by now; one request.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    return merge_states(job_status, generation_history(job_status.job_id))


def request_of(
    run: FlowRun,
    method: Method,
    execution_id: str,
    values: Mapping[str, Any] | None,
    *,
    archive: ArchiveLevel,
    environment: Mapping[str, str],
    parent: str | None = None,
) -> ExecuteRequest:
    """Return what was asked for with *run*; *values* are None where Prefect could not validate the parameters.

    *archive* is the level where the Method says none, *parent* the execution whose Method called this one.
    """
    raw = recorded_parameters(method, run.parameters)
    return ExecuteRequest(
        execution_id=execution_id,
        method_id=method.id,
        method_version=method.version,
        values=raw if values is None else dict(values),
        parameters=raw,
        validated=values is not None,
        archive=method.archive or archive,
        relatives=_relatives(run, execution_id, parent),
        flow_run_name=run.name,
        deployment=deployment(run, environment),
        tags=tuple(run.tags),
        created_by=created_by(run),
    )


def _relatives(run: FlowRun, execution_id: str, parent: str | None) -> tuple[Relative, ...]:
    first = str(run.id)
    retried = [Relative(execution_id=first, relation="retry-of")] if execution_id != first else []
    called = [Relative(execution_id=parent, relation="parent")] if parent else []
    # A run that a Method calls inherits the tags of the one around it.
    again = () if run.parent_task_run_id else tagged(run.tags)
    return (*retried, *called, *again)


MAX_STEPS = 10_000
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
    execution_id = ExecutionId.parse(job_status.job_id)
    try:
        found = list(_task_runs(execution_id.flow_run_uuid))
    except Exception as error:
        raise OrchestratorError(
            f"the task runs of flow run {execution_id.flow_run_id} cannot be read: {error}"
        ) from error
    # The steps of an earlier generation have the same flow run.
    since = job_status.history[0].time if execution_id.generation > 1 else _LONG_AGO
    told = [_step(one, mask) for one in found if _begun(one, _NEVER) >= since]
    return tuple(sorted(told, key=lambda step: (step.started or _NEVER, str(step.id))))


def _task_runs(flow_run_id: UUID) -> Iterator[TaskRun]:
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    for offset in range(0, MAX_STEPS, _PAGE):
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


class CancelReply(NamedTuple):
    """What Prefect answers who asks it to cancel: its state now, and why it refuses, if it does."""

    state: ObservedState
    refused: str | None


def cancel(flow_run_id: UUID, message: str) -> CancelReply:
    """Ask Prefect to cancel a flow run, with a *message* that says who asks.

    A run that no infrastructure works on is cancelled at once. Prefect leaves the
    message out then, so it is told once more.

    Raises:
        NotFoundError: If Prefect does not know the flow run.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    result = _set(flow_run_id, Cancelling(message=message), force=False)
    reason = getattr(result.details, "reason", None)
    if result.status == "ABORT" or result.state is None:
        run = flow_run(flow_run_id)
        if run is None or run.state is None:
            raise NotFoundError(f"Prefect does not know the flow run {flow_run_id}")
        return CancelReply(observed_state(run.state), str(reason))
    if result.state.is_cancelled() and not result.state.message:
        return CancelReply(set_cancelled(flow_run_id, message), None)
    return CancelReply(observed_state(result.state), None)


def set_cancelled(flow_run_id: UUID, message: str | None) -> ObservedState:
    """Put a flow run into Cancelled, whatever it is in now, and return that state.

    Raises:
        NotFoundError: If Prefect does not know the flow run.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    result = _set(flow_run_id, Cancelled(message=message), force=True)
    if result.state is None:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be put into Cancelled: {result.details}")
    return observed_state(result.state)


def cancel_request(states: Sequence[ObservedState]) -> ObservedState | None:
    """Return the state that asked for the cancellation of the newest generation in *states*, if one did."""
    newest = generations(states)[-1] if states else ()
    return next((one for one in newest if one.state.is_cancelling), None)


def _set(flow_run_id: UUID, state: State[Any], *, force: bool) -> Any:
    try:
        return client().set_flow_run_state(flow_run_id, state, force=force)
    except ObjectNotFound:
        raise NotFoundError(f"Prefect does not know the flow run {flow_run_id}") from None
    except Exception as error:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be cancelled: {error}") from error
