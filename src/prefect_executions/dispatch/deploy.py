"""Deploy a Method: tell Prefect where a worker of a pool finds it, what its form is, and when it runs by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.utilities.urls import url_for

from prefect_executions.descriptors.openapi import inputs_of
from prefect_executions.dispatch.pools import runs_containers, with_image, work_pool
from prefect_executions.dispatch.schedules import schedule_of
from prefect_executions.errors import RequestError
from prefect_executions.methods.files import DESCRIPTORS, descriptor_in
from prefect_executions.prefect_api import blocks, recognising
from prefect_executions.prefect_api import client as api_client

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool
    from prefect.flows import Flow

CODE = "/opt/executions"
"""Where the image of deployments/docker/ has the repository that it was built from."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an operator wants of a deployment.

    Attributes:
        pool: The work pool whose workers run it.
        name: The deployment's name; that of the pool when left out.
        image: The container image.
        folder: Where the code lies for the worker; this folder, or in a container `CODE`, when left out.
        queue: The work queue, which has a priority of its own.
        schedules: When it runs by itself, as `schedule_of` reads it.
        timezone: The time zone of the schedules.
        parameters: Inputs that a run has when it names no others.
        job_variables: Whatever else the pool's base job template takes.
    """

    pool: str
    name: str | None = None
    image: str | None = None
    folder: str | None = None
    queue: str | None = None
    schedules: tuple[str, ...] = ()
    timezone: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    job_variables: Mapping[str, Any] = field(default_factory=dict)


class Deployed(NamedTuple):
    """A deployment as Prefect has it now; `name` is that of the flow and its own."""

    id: UUID
    name: str
    pool: str
    type: str
    entrypoint: str
    folder: str
    link: str | None


def deploy(flow: Flow[..., Any], entrypoint: str, wanted: Wanted, *, here: Path) -> Deployed:
    """Put *flow*, which is found at *entrypoint* from the folder *here*, on a work pool.

    To deploy it again under the same name replaces what was there, with its schedules.

    Raises:
        RequestError: If the pool does not take what is wanted; nothing is deployed then.
        SecretError: If a secret input is given in clear.
        NotFoundError: If there is no such pool.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    need_server()
    pool = work_pool(wanted.pool)
    entrypoint, folder = _place(pool, entrypoint, wanted.folder, here)
    variables = with_image(pool, wanted.image, wanted.job_variables)
    schedules = [
        DeploymentScheduleCreate(schedule=schedule_of(text, wanted.timezone), active=True) for text in wanted.schedules
    ]
    form = flow.parameters.model_dump()
    check_parameters(flow.name, form, wanted.parameters)
    name = wanted.name or pool.name
    with api_client.answering(f"the deployment {flow.name}/{name}", wanted.parameters):
        flow_id = api_client.client().create_flow(flow)
        recognising.mark_flows([flow_id])
        made = api_client.client().create_deployment(
            flow_id=flow_id,
            name=name,
            version=flow.version,
            description=flow.description,
            entrypoint=entrypoint,
            path=".",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
            work_pool_name=pool.name,
            work_queue_name=wanted.queue,
            parameters=dict(wanted.parameters),
            parameter_openapi_schema=form,
            enforce_parameter_schema=flow.should_validate_parameters,
            job_variables=variables,
            schedules=schedules,
            paused=False,
        )
    link = url_for("deployment", obj_id=made)
    return Deployed(made, f"{flow.name}/{name}", pool.name, pool.type, entrypoint, folder, link)


def need_server() -> None:
    """Refuse what makes no sense on the server that Prefect starts for one process.

    Raises:
        RequestError: If no other one is configured.
    """
    if api_client.configured_api() is None:
        raise RequestError(
            "Deployments live on a Prefect server, and none is configured. Start one with 'prefect server start' "
            "and set PREFECT_API_URL to the address that it tells."
        )


def check_parameters(method_id: str, form: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Refuse inputs that the *form* does not have, which Prefect would take, and secrets in clear.

    Raises:
        RequestError: If one is unknown.
        SecretError: If one is a secret's value; it is not repeated.
    """
    known = inputs_of(form)
    unknown = [name for name in parameters if name not in known]
    if unknown:
        inputs = ", ".join(known) or "none"
        raise RequestError(f"Method '{method_id}' has no input {', '.join(unknown)}. Its inputs: {inputs}.")
    for name, value in parameters.items():
        if known[name].is_secret and value is not None:
            blocks.check_secret(name, value)


def _place(pool: WorkPool, entrypoint: str, folder: str | None, here: Path) -> tuple[str, str]:
    """The entrypoint as a worker finds it, and the folder that it is relative to."""
    shared = None if runs_containers(pool) else str(here.resolve())
    path, written = _file_of(entrypoint)
    if path is None:
        return entrypoint, folder or shared or CODE
    file = (here / path).resolve()
    if file.is_relative_to(here.resolve()):
        return written.format(file.relative_to(here.resolve()).as_posix()), folder or shared or CODE
    if folder or shared is None:
        raise RequestError(
            f"{file} lies outside {here}, so nobody knows where it is for the worker: "
            f"go to the folder that the worker has as {folder or CODE}, and deploy there"
        )
    return written.format(file.name), str(file.parent)


def _file_of(entrypoint: str) -> tuple[str | None, str]:
    """The file that an entrypoint names, and how it is written as an entrypoint of Prefect's; a module is no file."""
    descriptor = descriptor_in(entrypoint)
    if descriptor is not None:
        return descriptor, f"{DESCRIPTORS}:{{}}"
    path, _, name = entrypoint.rpartition(":")
    return (path, f"{{}}:{name}") if path.endswith(".py") else (None, entrypoint)
