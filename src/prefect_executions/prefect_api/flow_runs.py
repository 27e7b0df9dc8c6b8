"""Flow runs in Prefect: states, generations, request, infrastructure, task runs, cancellation.

Prefect receives a task's states as events, so its API may lag behind a task's
end by some tenths of a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import prefect
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed

from prefect_executions.capture.host import pod_of
from prefect_executions.capture.parameters import plain_value, recorded_parameters
from prefect_executions.capture.secrets import redact_urls
from prefect_executions.documents import clean_text, in_utc, json_value
from prefect_executions.errors import ExecutionsError, NotFoundError, OrchestratorError
from prefect_executions.events import SeenLabel
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import (
    Agent,
    Deployment,
    ExecuteRequest,
    Infrastructure,
    Instance,
    Relative,
    RerunSource,
    relatives_from_tags,
)
from prefect_executions.lifecycle.history import (
    JobStatus,
    ObservedState,
    PrefectState,
    Step,
    merge_states,
    new_job_status,
)
from prefect_executions.lifecycle.status import FROM_PREFECT, Observer, Status
from prefect_executions.methods.model import Method
from prefect_executions.prefect_api.client import client, configured_api, translate_errors
from prefect_executions.settings import ArchiveLevel

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State, TaskRun

MAX_STEPS = 10_000
"""The most steps in a record; fifty requests."""

REQUESTER_LABEL = "prefect-executions.requested-by"
"""The label of a flow run that names who submitted it with our command line."""

_PAGE_SIZE = 200
_PLACEHOLDER = re.compile(r"<\w+>")
"""Prefect's text for a parameter that it cannot encode."""
_LONG_AGO, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def observed_state(state: State[Any]) -> ObservedState:
    """Return *state* as our value; URLs in its message lose their credentials."""
    own = PrefectState(type=state.type.value, name=state.name or state.type.value.title(), id=state.id)
    return ObservedState(own, in_utc(state.timestamp), redact_urls(state.message) if state.message else None)


def state_history(flow_run_id: UUID) -> tuple[ObservedState, ...]:
    """Return the states of a flow run in order of time; one request.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    try:
        states = client().read_flow_run_states(flow_run_id)
    except Exception as error:
        raise OrchestratorError(f"the state history of flow run {flow_run_id} cannot be read: {error}") from error
    return tuple(sorted(map(observed_state, states), key=lambda state: state.time))


def flow_run(flow_run_id: UUID) -> FlowRun | None:
    """Return a flow run as it is now, or None if it is not in Prefect.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    try:
        return client().read_flow_run(flow_run_id)
    except ObjectNotFound:
        return None
    except Exception as error:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be read: {error}") from error


def parent_run_id(run: FlowRun) -> UUID | None:
    """Return the flow run whose code called *run*, or None; a request only if there is one.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    if run.parent_task_run_id is None:
        return None
    try:
        return client().read_task_run(run.parent_task_run_id).flow_run_id
    except Exception as error:
        raise OrchestratorError(f"the parent of flow run {run.id} cannot be read: {error}") from error


def infrastructure(run: FlowRun, environment: Mapping[str, str], names: tuple[str, ...] = ()) -> Infrastructure:
    """Return where *run* was sent, according to Prefect and its worker.

    Of the job variable ``env`` only the names are recorded: its values may be secrets. Other
    variables are recorded like inputs; *names* are additional names of secrets.
    """
    labels, pod = run.labels or {}, pod_of(environment)
    worker_labels = _worker_labels(run, pod)
    pool_type = labels.get("prefect.worker.type")
    given = {name: json_value(value) for name, value in (run.job_variables or {}).items()}
    if isinstance(given.get("env"), dict):
        given["env"] = sorted(given["env"])
    variables = {name: plain_value(value, name, names) for name, value in given.items()}
    return Infrastructure(
        type=str(pool_type) if pool_type else "direct" if run.deployment_id is None else "serve",
        work_pool=run.work_pool_name or _text(labels.get("prefect.work-pool.name")),
        work_queue=run.work_queue_name,
        worker=_text(labels.get("prefect.worker.name") or environment.get("PREFECT__WORKER_NAME")),
        worker_id=_text(environment.get("PREFECT__WORKER_ID")),
        image=_text(worker_labels.get(SeenLabel.IMAGE)),
        image_digest=_text(worker_labels.get(SeenLabel.IMAGE_DIGEST)),
        image_id=_text(worker_labels.get(SeenLabel.IMAGE_ID)),
        job_variables=variables,
        identifier=_identifier(run, pod),
        prefect_version=prefect.__version__,
        prefect_api=configured_api(),
    )


def shares_its_worker(infrastructure_type: str | None) -> bool:
    """Whether a run on this infrastructure has no limits of its own: a process, served or started by hand."""
    return (
        infrastructure_type is None
        or infrastructure_type in {"direct", "serve"}
        or infrastructure_type.endswith("process")
    )


def with_worker_labels(instance: Instance, run: FlowRun) -> Instance:
    """Return *instance* with the container, pod and node from the worker of *run*, where the run has not seen them."""
    labels = _worker_labels(run, instance.pod)
    location = {
        "container_id": instance.container_id or _text(labels.get(SeenLabel.CONTAINER)),
        "pod": instance.pod or _text(labels.get(SeenLabel.POD)),
        "node": instance.node or _text(labels.get(SeenLabel.NODE)),
    }
    return instance.model_copy(update=location)


def _worker_labels(run: FlowRun, pod: str | None) -> Mapping[str, Any]:
    """Return the labels of *run* unless they name another pod: a deleted pod is replaced, and a run sent again."""
    labels = run.labels or {}
    return labels if pod is None or labels.get(SeenLabel.POD, pod) == pod else {}


def _identifier(run: FlowRun, pod: str | None) -> str | None:
    """Return Prefect's identifier of the infrastructure, unless it names another job than that of this *pod*."""
    identifier = run.infrastructure_pid
    worker_type = str((run.labels or {}).get("prefect.worker.type"))
    if identifier is None or pod is None or not worker_type.endswith("kubernetes"):
        return identifier
    return identifier if pod.startswith(f"{identifier.rpartition(':')[2]}-") else None


def deployment(run: FlowRun, environment: Mapping[str, str]) -> Deployment | None:
    """Return the deployment of *run*; its name as the worker passed it on, else as Prefect has it."""
    if run.deployment_id is None:
        return None
    name = environment.get("PREFECT__DEPLOYMENT_NAME") or _deployment_name(run.deployment_id)
    return Deployment(id=run.deployment_id, name=_text(name))


def _deployment_name(deployment_id: UUID) -> str | None:
    with suppress(ExecutionsError), translate_errors("the deployment"):  # it may have been deleted
        return client().read_deployment(deployment_id).name
    return None


def created_by(run: FlowRun) -> dict[str, str] | None:
    """Return the schedule or automation that created *run*, or None."""
    creator = run.created_by
    if creator is None:
        return None
    values = {"type": creator.type, "id": creator.id and str(creator.id), "name": creator.display_value}
    return {key: str(value) for key, value in values.items() if value}


def requester(run: FlowRun) -> Agent | None:
    """Return who requested *run* as far as Prefect knows it; None if a process called the flow itself.

    Prefect's open-source server does not record who starts a run of a deployment. The agent then has no name,
    because the user of the worker's process did not request the run.
    """
    creator = created_by(run) or {}
    name = creator.get("name") or run.labels.get(REQUESTER_LABEL)
    if name is None and run.deployment_id is None:
        return None
    return Agent(source="prefect", claims=({"sub": str(name)} if name else {}) | creator)


def _text(value: object) -> str | None:
    return None if value is None else clean_text(str(value))


def current_states(run: FlowRun) -> tuple[ObservedState, ...]:
    """Return the states of the newest generation of *run*, or its current state if Prefect's API is unavailable.

    A run that was just called in this process has two states, which came with the
    run itself: that takes no request.
    """
    called = run.deployment_id is None and os.environ.get("PREFECT__FLOW_RUN_ID") != str(run.id)
    if called and run.run_count == 1 and run.state and run.state.is_running() and run.expected_start_time:
        return (_pending_at(run.expected_start_time), observed_state(run.state))
    try:
        return generations(state_history(run.id))[-1]
    except OrchestratorError:
        return (observed_state(run.state),) if run.state else ()


def _pending_at(expected: datetime) -> ObservedState:
    """Return the PENDING that a direct call begins with: Prefect's server keeps its time as the expected start."""
    return ObservedState(PrefectState(type="PENDING", name="Pending"), in_utc(expected))


def generations(states: Sequence[ObservedState]) -> list[tuple[ObservedState, ...]]:
    """Split the *states* of a flow run where it was scheduled again after its end.

    Prefect keeps the flow run's id then; each generation has a record of its own.
    """
    cuts = [
        number
        for number, (before, after) in enumerate(pairwise(states), start=1)
        if after.state.type == "SCHEDULED" and before.state.is_terminal
    ]
    return [tuple(states[start:end]) for start, end in pairwise([0, *cuts, len(states)])]


def generation_history(execution_id: str) -> tuple[ObservedState, ...]:
    """Return the states of this generation of a flow run; one request.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    flow_run_id, generation = ExecutionId.parse(execution_id)
    parts = generations(state_history(UUID(flow_run_id)))
    return parts[min(generation, len(parts)) - 1]


def job_status_from_prefect(
    execution_id: str, method_id: str, run: FlowRun, states: Sequence[ObservedState] | None = None
) -> JobStatus:
    """Return the history so far, with Prefect's times; *states* are `current_states` by default.

    Prefect has two times of creation: the flow run's `created`, by the server's
    clock, and that of its first state, by the client's. The earlier one counts.
    """
    states = current_states(run) if states is None else states
    times = [state.time for state in states[:1]]
    if run.created and execution_id == str(run.id):
        times.append(in_utc(run.created))
    if not times:
        return new_job_status(
            execution_id, method_id, status=Status.STARTED, at=datetime.now(UTC), observer=Observer.HOOK
        )
    accepted = states[0].state if states and FROM_PREFECT.get(states[0].state.type) is Status.CREATED else None
    created = new_job_status(
        execution_id,
        method_id,
        status=Status.CREATED,
        at=min(times),
        observer=Observer.PREFECT,
        prefect_state=accepted,
    )
    return merge_states(created, states)


def merge_prefect_history(job_status: JobStatus) -> JobStatus:
    """Return *job_status* with the states that Prefect has of this generation by now; one request.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
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
    rerun: Mapping[str, RerunSource] | None = None,
    names: tuple[str, ...] = (),
) -> ExecuteRequest:
    """Return the request of *run*; *values* are None if Prefect could not validate the parameters.

    *rerun* names the inputs that *values* cannot supply to a rerun.

    *archive* is the level of Methods that declare none, *parent* the execution whose Method called this one,
    *names* additional names of secrets.
    """
    raw = recorded_parameters(method, run.parameters, names)
    return ExecuteRequest(
        execution_id=execution_id,
        method_id=method.id,
        method_version=method.version,
        values=raw if values is None else dict(values),
        parameters=raw,
        validated=values is not None,
        rerun=dict(rerun or (_lossy(method, raw) if values is None and run.deployment_id is None else {})) or None,
        archive=method.archive or archive,
        relatives=_relatives(run, execution_id, parent),
        flow_run_name=run.name,
        deployment=deployment(run, environment),
        tags=tuple(run.tags),
        created_by=created_by(run),
    )


def _lossy(method: Method, raw: Mapping[str, Any]) -> dict[str, RerunSource]:
    """Return the parameters of a direct call that Prefect may have stored as another value.

    Prefect's JSON has null for infinity, ``<dict>`` for what it cannot encode, and a list for a tuple. Only the
    annotation of a single value restores it.
    """
    return {
        name: "caller"
        for name, value in raw.items()
        if name not in method.secrets and not _restorable(method, name, value)
    }


def _restorable(method: Method, name: str, value: Any) -> bool:
    schema = method.inputs[name].json_schema if name in method.inputs else {}
    if schema.get("type") not in {"boolean", "integer", "number", "string"} and "enum" not in schema:
        return False
    return isinstance(value, bool | int | float) or (isinstance(value, str) and not _PLACEHOLDER.fullmatch(value))


def _relatives(run: FlowRun, execution_id: str, parent: str | None) -> tuple[Relative, ...]:
    first = str(run.id)
    retry_of = [Relative(execution_id=first, relation="retry-of")] if execution_id != first else []
    parents = [Relative(execution_id=parent, relation="parent")] if parent else []
    # A run that a Method calls inherits the tags of the calling run.
    own_tags = () if run.parent_task_run_id else relatives_from_tags(run.tags)
    return (*retry_of, *parents, *own_tags)


def steps(job_status: JobStatus, mask: Callable[[str], str]) -> tuple[Step, ...]:
    """Return the task runs that Prefect has of an execution by now, in order of their beginning.

    Task runs of subflows belong to the subflow's own flow run. *mask* hides secrets in
    their names, which may be made of parameters.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    flow_run_id, generation = ExecutionId.parse(job_status.job_id)
    try:
        task_runs = list(_task_runs(UUID(flow_run_id)))
    except Exception as error:
        raise OrchestratorError(f"the task runs of flow run {flow_run_id} cannot be read: {error}") from error
    # An earlier generation had task runs as well.
    since = job_status.history[0].time if generation > 1 else _LONG_AGO
    own = [_step(run, mask) for run in task_runs if _begin(run, _NEVER) >= since]
    return tuple(sorted(own, key=lambda step: (step.started or _NEVER, str(step.id))))


def _task_runs(flow_run_id: UUID) -> Iterator[TaskRun]:
    run_filter = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    for offset in range(0, MAX_STEPS, _PAGE_SIZE):
        page = client().read_task_runs(
            flow_run_filter=run_filter, sort=TaskRunSort.EXPECTED_START_TIME_ASC, limit=_PAGE_SIZE, offset=offset
        )
        yield from page
        if len(page) < _PAGE_SIZE:
            return


def _begin(run: TaskRun, default: datetime) -> datetime:
    time = run.start_time or run.expected_start_time
    return default if time is None else in_utc(time)


def _step(run: TaskRun, mask: Callable[[str], str]) -> Step:
    state = run.state
    state_type = state.type.value if state else run.state_type.value if run.state_type else "PENDING"
    return Step(
        id=run.id,
        name=clean_text(mask(run.name)),
        state=state_type,
        state_name=(state.name if state else run.state_name) or state_type.title(),
        started=run.start_time and in_utc(run.start_time),
        finished=run.end_time and in_utc(run.end_time),
        flow_run_id=state.state_details.child_flow_run_id if state else None,
        attempts=run.run_count if run.run_count > 1 else None,
    )


class CancelReply(NamedTuple):
    """Prefect's reply to a cancel request: the state now, and the reason if it was refused."""

    state: ObservedState
    refused: str | None


def cancel(flow_run_id: UUID, message: str) -> CancelReply:
    """Request the cancellation of a flow run; *message* names the requester.

    A run without infrastructure is cancelled at once. Prefect drops the message then, so it is set afterwards.

    Raises:
        NotFoundError: If the flow run is not in Prefect.
        OrchestratorError: If Prefect's API is unavailable.
    """
    result = _set_state(flow_run_id, Cancelling(message=message), force=False)
    reason = getattr(result.details, "reason", None)
    if result.status == "ABORT" or result.state is None:
        run = flow_run(flow_run_id)
        if run is None or run.state is None:
            raise NotFoundError(f"Flow run {flow_run_id} is not in Prefect")
        return CancelReply(observed_state(run.state), str(reason))
    if result.state.is_cancelled() and not result.state.message:
        return CancelReply(set_cancelled(flow_run_id, message), None)
    return CancelReply(observed_state(result.state), None)


def set_cancelled(flow_run_id: UUID, message: str | None) -> ObservedState:
    """Move a flow run to Cancelled from any state, and return the new state.

    Raises:
        NotFoundError: If the flow run is not in Prefect.
        OrchestratorError: If Prefect's API is unavailable.
    """
    result = _set_state(flow_run_id, Cancelled(message=message), force=True)
    if result.state is None:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be moved to Cancelled: {result.details}")
    return observed_state(result.state)


def set_crashed(flow_run_id: UUID, message: str) -> State[Any]:
    """Move a flow run to Crashed from any state, and return the new state.

    Raises:
        NotFoundError: If the flow run is not in Prefect.
        OrchestratorError: If Prefect's API is unavailable.
    """
    result = _set_state(flow_run_id, Crashed(message=message), force=True)
    if result.state is None:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be moved to Crashed: {result.details}")
    state: State[Any] = result.state
    return state


def cancel_request(states: Sequence[ObservedState]) -> ObservedState | None:
    """Return the state that requested the cancellation of the newest generation in *states*, or None."""
    newest = generations(states)[-1] if states else ()
    return next((state for state in newest if state.state.is_cancelling), None)


def _set_state(flow_run_id: UUID, state: State[Any], *, force: bool) -> Any:
    try:
        return client().set_flow_run_state(flow_run_id, state, force=force)
    except ObjectNotFound:
        raise NotFoundError(f"Flow run {flow_run_id} is not in Prefect") from None
    except Exception as error:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be moved to {state.name}: {error}") from error
