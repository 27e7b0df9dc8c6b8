"""Submission of a run through a deployment, with the resources that it asks for, and waiting for its end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import DeploymentStatus, WorkPoolStatus
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from prefect_executions.dispatch.deploy import check_parameters, job_variables, require_server, work_pool
from prefect_executions.dispatch.options import SubmitOptions
from prefect_executions.durations import parse_duration
from prefect_executions.errors import ExecutionsError, NotFoundError, RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import descriptor_in
from prefect_executions.operations.replay import rerun_request
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import flow_runs
from prefect_executions.prefect_api.run_labels import run_labels
from prefect_executions.runtimes.interface import Resources
from prefect_executions.workbench.catalog import Catalog

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

    from prefect_executions.executions.annotations import LabelChange

SEAL_TIMEOUT = timedelta(seconds=20)
"""How long to wait for the seal after the end: as long as a state hook may take."""

N = TypeVar("N", int, float)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]?)")
_POWERS = ("", "k", "m", "g", "t")

_POLL = 1.0  # seconds
_DEPLOY = "Deploy it: executions deploy METHOD --pool POOL"


class Submitted(NamedTuple):
    """A flow run that was submitted; its id is the execution's."""

    id: str
    deployment: str
    pool: str | None
    state: str
    link: str | None
    waits: str | None = None
    """Why the run does not start soon, and what to do; None if nothing is known to hold it."""


class FinishedRun(NamedTuple):
    """The end of a submitted run: Prefect's state, and the record's status; None if no sealed record is reachable."""

    state: str
    status: Status | None
    message: str | None

    @property
    def succeeded(self) -> bool:
        return self.state == "COMPLETED"


def submit(
    name: str,
    parameters: Mapping[str, Any],
    options: SubmitOptions,
    *,
    by: str,
    tags: Sequence[str] = (),
    changes: Sequence[LabelChange] = (),
) -> Submitted:
    """Start a run of the deployment called *name*, ``method/deployment`` or the Method's name alone.

    *by* is who requests it; the run has it as a label, and its record as the requester. The
    execution gets *tags*, which the flow run has as well, and *changes*, a name or an experiment.

    Everything is checked before the flow run is created. A second request with the
    same idempotency key returns the first run.

    Raises:
        NotFoundError: If there is no such deployment.
        RequestError: If several deployments match, an input is wrong, or the pool cannot guarantee a resource.
        SecretError: If a secret input is given in plain text.
        OrchestratorError: If Prefect's API is unavailable.
    """
    resources = resources_of(options)  # before anything is asked of Prefect
    require_server()
    deployment, full_name = _deployment(name, options.pool)
    check_parameters(full_name.partition("/")[0], deployment.parameter_openapi_schema or {}, parameters)
    variables = _job_variables(deployment, full_name, resources)
    with api_client.translate_errors(f"a run of {full_name}", parameters):
        run = api_client.client().create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(parameters),
            idempotency_key=options.idempotency_key,
            work_queue_name=options.queue,
            tags=tags,
            labels={flow_runs.REQUESTER_LABEL: by, **run_labels(changes)},
            job_variables=variables or None,
        )
    state = run.state.name if run.state and run.state.name else "Scheduled"
    link, waits = url_for("flow-run", obj_id=run.id), _waits(deployment)
    return Submitted(str(run.id), full_name, deployment.work_pool_name, state, link, waits)


def _waits(deployment: DeploymentResponse) -> str | None:
    name = deployment.work_pool_name
    if name is None:
        served = deployment.status is not DeploymentStatus.NOT_READY
        return None if served else "No process serves this deployment, so the run waits until its .serve() is started."
    with suppress(ExecutionsError):  # the run is submitted; the pool was removed meanwhile
        status = work_pool(name).status
        if status is WorkPoolStatus.PAUSED:
            return f"Work pool '{name}' is paused, so the run waits: prefect work-pool resume {name}"
        if status is WorkPoolStatus.NOT_READY:
            return f"No worker of pool '{name}' is online, so the run waits: prefect worker start --pool {name}"
    return None


def submit_again(
    catalog: Catalog, execution_id: str, edits: Mapping[str, Any] | None = None, *, by: str, pool: str | None = None
) -> Submitted:
    """Submit a run with the inputs of an execution, overridden by *edits*.

    It uses the deployment of that execution, or the deployment of its Method on *pool*.
    Input files are given by their origin: a worker cannot see this machine's copies.

    Raises:
        NotFoundError: If there is no such execution or deployment.
        RequestError: If an input is wrong or missing, or the Method has several deployments.
        SecretError: If *edits* lack a secret input.
        OrchestratorError: If Prefect's API is unavailable.
    """
    record = catalog.record(execution_id)
    unnamed = sorted({file.input.partition(".")[0] for file in record.request.files} - (edits or {}).keys())
    if unnamed and catalog.is_imported(execution_id):  # its record could name any file of the worker's machine
        options = " ".join(f"-p {name}=FILE" for name in unnamed)
        raise RequestError(f"execution {execution_id} was imported, so its input files must be named again: {options}")
    rerun = rerun_request(record, edits or {}, as_json=True)
    deployment, name = record.request.deployment, record.method.id
    if pool is None and deployment is not None and deployment.name:
        name = f"{name}/{deployment.name}"
    elif pool is None:
        pool = record.infrastructure.work_pool
    return submit(name, rerun.parameters, SubmitOptions(pool=pool), by=by, tags=(rerun.relative.tag,))


def wait(
    catalog: Catalog, execution_id: str, *, tell: Callable[[str], None], sealing: timedelta = SEAL_TIMEOUT
) -> FinishedRun:
    """Wait until the run has ended in Prefect, and then at most *sealing* until its record is sealed.

    *tell* receives a line about each new state.

    Raises:
        NotFoundError: If the run is no longer in Prefect.
        OrchestratorError: If Prefect's API is unavailable.
    """
    run, shown = _flow_run(execution_id), ""
    while run.state is None or not run.state.is_final():
        if run.state and run.state.name and run.state.name != shown:
            shown = run.state.name
            tell(f"Prefect says {shown} of {execution_id}")
        time.sleep(_POLL)
        run = _flow_run(execution_id)
    return FinishedRun(run.state.type.value, _sealed_status(catalog, execution_id, sealing), run.state.message)


def resources_of(options: SubmitOptions) -> Resources:
    """Return the resource limits in *options*: memory in bytes, the time limit in seconds.

    Raises:
        RequestError: If a limit is not a positive amount; the message names its option.
    """
    return Resources(
        cpus=_positive("--cpus", options.cpus),
        memory=_memory(options.memory) if options.memory else None,
        gpus=_positive("--gpus", options.gpus),
        time_limit=_seconds(options.time_limit) if options.time_limit else None,
    )


def _positive(option: str, number: N | None) -> N | None:
    if number is not None and not 0 < number < inf:
        raise RequestError(f"{option} must be a number above 0, not {number}")
    return number


def _memory(text: str) -> int:
    """The size in bytes; its letter is a power of 1024."""
    match = _SIZE.fullmatch(text.strip().lower().removesuffix("b").removesuffix("i"))
    if not match or match[2] not in _POWERS or float(match[1]) <= 0:
        raise RequestError(f"--memory must be a size such as 512m or 4g, or a number of bytes, not '{text}'")
    return int(float(match[1]) * 1024 ** _POWERS.index(match[2]))


def _seconds(text: str) -> float:
    try:
        duration = parse_duration(text.lower(), default_seconds=True)
    except (ValueError, OverflowError):
        duration = timedelta(0)
    if duration <= timedelta(0):
        raise RequestError(f"--time-limit must be a duration such as 90s, 30m, 2h or 1d, not '{text}'")
    return duration.total_seconds()


def _flow_run(execution_id: str) -> FlowRun:
    run = flow_runs.flow_run(UUID(execution_id))
    if run is None:
        raise NotFoundError(f"Flow run {execution_id} is no longer in Prefect; it was deleted there")
    return run


def _sealed_status(catalog: Catalog, execution_id: str, timeout: timedelta) -> Status | None:
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            if catalog.storage_state(execution_id).sealed:
                return catalog.record(execution_id).status
        except ExecutionsError:
            pass  # the record cannot be reached from here yet
        if time.monotonic() >= until:
            return None
        time.sleep(_POLL)


def _deployment(name: str, pool: str | None) -> tuple[DeploymentResponse, str]:
    with api_client.translate_errors(f"deployment {name}"):
        if "/" in name:
            candidates = [(_read(name), name)]
        else:
            method = FlowFilter(name=FlowFilterName(any_=[name]))
            deployments = api_client.client().read_deployments(flow_filter=method)
            candidates = [(deployment, f"{name}/{deployment.name}") for deployment in deployments]
    matching = [candidate for candidate in candidates if pool is None or candidate[0].work_pool_name == pool]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        on_pool = f" on work pool '{pool}'" if pool else ""
        others = "; its deployments: " + ", ".join(map(_label, candidates)) if candidates else ""
        raise NotFoundError(f"'{name}' is not deployed{on_pool}{others}. {_DEPLOY}")
    raise RequestError(f"'{name}' has several deployments: give one of {', '.join(map(_label, matching))}")


def _read(name: str) -> DeploymentResponse:
    try:
        return api_client.client().read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise NotFoundError(f"There is no deployment '{name}'. {_DEPLOY}") from error


def _label(candidate: tuple[DeploymentResponse, str]) -> str:
    deployment, name = candidate
    return f"{name} (work pool {deployment.work_pool_name})" if deployment.work_pool_name else name


def _job_variables(deployment: DeploymentResponse, name: str, resources: Resources) -> dict[str, Any]:
    if resources == Resources():
        return {}
    if deployment.work_pool_name is None:
        raise RequestError(f"'{name}' is served by a process and has no work pool, so resources cannot be requested")
    of_scripts = descriptor_in(deployment.entrypoint or "") is not None
    deployed = deployment.job_variables or {}
    return job_variables(work_pool(deployment.work_pool_name), resources, deployed, of_scripts=of_scripts)
