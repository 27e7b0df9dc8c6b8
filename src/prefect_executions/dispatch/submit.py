"""Submit a request: start a deployment's run with the resources that it wishes for, and wait for it where asked.

Run an execution again through a deployment of its Method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from prefect_executions.dispatch.deploy import check_parameters, job_variables, require_server, work_pool
from prefect_executions.errors import ExecutionsError, NotFoundError, RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import descriptor_in
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import flow_runs
from prefect_executions.runtimes.interface import Resources
from prefect_executions.workbench.catalog import Catalog

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse


from prefect_executions.operations.replay import rerun_request

_ASK = 1.0  # seconds between two questions to Prefect
_CURE = "Deploy it: executions deploy METHOD --pool POOL"

SEAL_TIMEOUT = timedelta(seconds=20)
"""How long the seal is waited for after the end: as long as a hook may work."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a deployment: inputs, resources, and how the request itself is to be treated.

    A request with the `key` of an earlier one is that one: nothing new is started.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    pool: str | None = None
    queue: str | None = None
    key: str | None = None
    tags: tuple[str, ...] = ()


class Submitted(NamedTuple):
    """A flow run that a deployment was asked for; its id is that of the execution."""

    id: str
    deployment: str
    pool: str | None
    state: str
    link: str | None


class FinishedRun(NamedTuple):
    """How a submitted run ended: Prefect's state, and the record's status where it is sealed and can be reached."""

    state: str
    status: Status | None
    message: str | None

    @property
    def well(self) -> bool:
        return self.state == "COMPLETED"


def submit(name: str, request: Request) -> Submitted:
    """Start a run of the deployment called *name*, ``method/deployment`` or the Method's alone.

    What is refused is refused before anything is created.

    Raises:
        NotFoundError: If there is no such deployment.
        RequestError: If the name fits several, an input is wrong, or the pool cannot honour a wish.
        SecretError: If a secret input is given in clear.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    require_server()
    deployment, full_name = _deployment(name, request.pool)
    check_parameters(full_name.partition("/")[0], deployment.parameter_openapi_schema or {}, request.parameters)
    variables = _variables(deployment, full_name, request.resources)
    with api_client.translate_errors(f"a run of {full_name}", request.parameters):
        run = api_client.client().create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(request.parameters),
            idempotency_key=request.key,
            work_queue_name=request.queue,
            tags=request.tags,
            job_variables=variables or None,
        )
    state = run.state.name if run.state and run.state.name else "Scheduled"
    return Submitted(str(run.id), full_name, deployment.work_pool_name, state, url_for("flow-run", obj_id=run.id))


def wait(
    catalog: Catalog, execution_id: str, *, tell: Callable[[str], None], sealing: timedelta = SEAL_TIMEOUT
) -> FinishedRun:
    """Return when Prefect says that the run has ended, and its record is sealed or the time for that is over.

    *tell* is told each state that the run is seen in.

    Raises:
        NotFoundError: If Prefect does not know the run any more.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    run, told = _asked(execution_id), ""
    while run.state is None or not run.state.is_final():
        if run.state and run.state.name and run.state.name != told:
            told = run.state.name
            tell(f"Prefect says {told} of {execution_id}")
        time.sleep(_ASK)
        run = _asked(execution_id)
    return FinishedRun(run.state.type.value, _sealed(catalog, execution_id, sealing), run.state.message)


def _asked(execution_id: str) -> FlowRun:
    run = flow_runs.flow_run(UUID(execution_id))
    if run is None:
        raise NotFoundError(f"Prefect does not know flow run {execution_id} any more; somebody deleted it")
    return run


def _sealed(catalog: Catalog, execution_id: str, patience: timedelta) -> Status | None:
    until = time.monotonic() + patience.total_seconds()
    while True:
        try:
            if catalog.standing(execution_id).sealed:
                return catalog.record(execution_id).status
        except ExecutionsError:
            pass  # no record that can be reached from here: that is no end of waiting
        if time.monotonic() >= until:
            return None
        time.sleep(_ASK)


def _deployment(name: str, pool: str | None) -> tuple[DeploymentResponse, str]:
    with api_client.translate_errors(f"deployment {name}"):
        if "/" in name:
            found = [(_read(name), name)]
        else:
            method = FlowFilter(name=FlowFilterName(any_=[name]))
            deployments = api_client.client().read_deployments(flow_filter=method)
            found = [(one, f"{name}/{one.name}") for one in deployments]
    fitting = [one for one in found if pool is None or one[0].work_pool_name == pool]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        on = f" on work pool '{pool}'" if pool else ""
        there = "; there are: " + ", ".join(_told(one) for one in found) if found else ""
        raise NotFoundError(f"'{name}' is not deployed{on}{there}. {_CURE}")
    raise RequestError(f"'{name}' has several deployments: give one of {', '.join(_told(one) for one in fitting)}")


def _read(name: str) -> DeploymentResponse:
    try:
        return api_client.client().read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise NotFoundError(
            f"There is no deployment '{name}'. Deploy it: executions deploy METHOD --pool POOL"
        ) from error


def _told(found: tuple[DeploymentResponse, str]) -> str:
    deployment, name = found
    return f"{name} (work pool {deployment.work_pool_name})" if deployment.work_pool_name else name


def _variables(deployment: DeploymentResponse, name: str, resources: Resources) -> dict[str, Any]:
    if resources == Resources():
        return {}
    if deployment.work_pool_name is None:
        raise RequestError(f"'{name}' is served by a process and has no work pool, so it takes no wishes for resources")
    of_scripts = descriptor_in(deployment.entrypoint or "") is not None
    standing = deployment.job_variables or {}
    return job_variables(work_pool(deployment.work_pool_name), resources, standing, of_scripts=of_scripts)


def submit_again(
    reader: Catalog, execution_id: str, edits: Mapping[str, Any] | None = None, *, pool: str | None = None
) -> Submitted:
    """Start a run with the inputs of an execution, those in *edits* in place of its own.

    It goes through the deployment that the execution came through, else through the one of its Method on
    *pool*. The inputs' files are told by where they came from: a worker cannot see this machine's copies.

    Raises:
        NotFoundError: If there is no such execution or deployment.
        RequestError: If an input is wrong or not known, or the Method has several deployments.
        SecretError: If a secret input is not named anew.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    record = reader.record(execution_id)
    again = rerun_request(record, edits or {})
    came, name = record.request.deployment, record.method.id
    if pool is None and came is not None and came.name:
        name = f"{name}/{came.name}"
    elif pool is None:
        pool = record.infrastructure.work_pool
    return submit(name, Request(parameters=again.parameters, pool=pool, tags=(again.relative.tag,)))
