"""What Prefect says of a flow run: itself, its states, and where it was sent."""

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
from prefect_executions.executions.record import Deployment, Infrastructure, Instance
from prefect_executions.lifecycle.history import PrefectState, Seen
from prefect_executions.prefect_api.client import client, configured_api

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State


def seen(state: State[Any]) -> Seen:
    """Return *state* as a value of ours, its message without credentials of URLs."""
    told = PrefectState(type=state.type.value, name=state.name or state.type.value.title(), id=state.id)
    return Seen(told, in_utc(state.timestamp), redact_urls(state.message) if state.message else None)


def history(flow_run_id: UUID) -> tuple[Seen, ...]:
    """Return the states of a flow run in the order of their times, one request.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        states = client().read_flow_run_states(flow_run_id)
    except Exception as error:
        raise OrchestratorError(f"the state history of flow run {flow_run_id} cannot be read: {error}") from error
    return tuple(sorted((seen(state) for state in states), key=lambda one: one.time))


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


def caller(run: FlowRun) -> UUID | None:
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


def placed(instance: Instance, run: FlowRun) -> Instance:
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
