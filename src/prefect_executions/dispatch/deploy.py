"""Deployments of Methods on Prefect work pools: code location, form, schedules, job variables.

A work pool's base job template decides which resources a request may ask for, and
what its job variables are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.dispatch.options import DeployOptions
from prefect_executions.durations import parse_duration
from prefect_executions.errors import NotFoundError, RequestError
from prefect_executions.methods.model import DESCRIPTOR_MODULE, descriptor_in
from prefect_executions.prefect_api import blocks, flow_runs
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import queries as prefect_queries
from prefect_executions.runtimes.interface import Resources

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.schedules import SCHEDULE_TYPES
    from prefect.flows import Flow

TIME_LIMIT_VARIABLE = "EXECUTIONS_TIME_LIMIT"
"""The environment variable that sets the time limit of a run, on every pool."""

RESOURCE_VARIABLES = {"cpus": "EXECUTIONS_CPUS", "memory": "EXECUTIONS_MEMORY", "gpus": "EXECUTIONS_GPUS"}
"""The environment variables that set the other resources of a descriptor Method's scripts, which run elsewhere."""

IMAGE_CODE_FOLDER = "/opt/executions"
"""The folder of the image from deployments/docker/ that holds the repository it was built from."""

# What the pod requests and its limit, in the base job template of prefect-kubernetes.
_KUBERNETES_VARIABLES = {"cpus": ("cpu_request", "cpu_limit"), "memory": ("memory_request", "memory_limit")}
_CONTAINER_POOLS = ("docker", "kubernetes")  # how the types of such pools end, both ours and Prefect's


class Deployed(NamedTuple):
    """A deployment as Prefect has it now; `name` is ``flow/deployment``."""

    id: UUID
    name: str
    pool: str
    type: str
    entrypoint: str
    folder: str
    link: str | None


def deploy(
    flow: Flow[..., Any],
    entrypoint: str,
    options: DeployOptions,
    *,
    parameters: Mapping[str, Any],
    variables: Mapping[str, Any],
    here: Path,
) -> Deployed:
    """Deploy *flow*, whose *entrypoint* is relative to the folder *here*.

    *parameters* are the default inputs of its runs, and *variables* its job variables.
    A second deployment of the same name replaces the first, with its schedules.

    Raises:
        RequestError: If the pool does not accept the options; nothing is deployed then.
        SecretError: If a secret input is given in plain text.
        NotFoundError: If there is no such pool.
        OrchestratorError: If Prefect's API is unavailable.
    """
    require_server()
    pool = work_pool(options.pool)
    entrypoint, folder = _location(pool, entrypoint, options.folder, here)
    variables = with_image(pool, options.image, variables)
    schedules = [
        DeploymentScheduleCreate(schedule=schedule_of(text, options.timezone), active=True) for text in options.schedule
    ]
    form = flow.parameters.model_dump()
    check_parameters(flow.name, form, parameters)
    name = options.name or f"{flow.name}-{pool.name}"
    with api_client.translate_errors(f"the deployment {flow.name}/{name}", parameters):
        flow_id = api_client.client().create_flow(flow)
        prefect_queries.mark_flows([flow_id])
        deployment_id = api_client.client().create_deployment(
            flow_id=flow_id,
            name=name,
            version=flow.version,
            description=flow.description,
            entrypoint=entrypoint,
            path=".",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
            work_pool_name=pool.name,
            work_queue_name=options.queue,
            parameters=dict(parameters),
            parameter_openapi_schema=form,
            enforce_parameter_schema=flow.should_validate_parameters,
            job_variables=variables,
            schedules=schedules,
            paused=False,
        )
    link = url_for("deployment", obj_id=deployment_id)
    return Deployed(deployment_id, f"{flow.name}/{name}", pool.name, pool.type, entrypoint, folder, link)


def require_server() -> None:
    """Refuse to continue on the embedded server that Prefect starts for one process.

    Raises:
        RequestError: If no other server is configured.
    """
    if api_client.configured_api() is None:
        raise RequestError(
            "Deployments need a Prefect server, and none is configured. Start one with 'prefect server start' "
            "and set PREFECT_API_URL to the address that it prints."
        )


def check_parameters(method_id: str, form: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Refuse inputs that are missing in the *form*, which Prefect would accept, and secrets in plain text.

    Raises:
        RequestError: If there is no such input.
        SecretError: If an input is a secret's value; the message does not repeat it.
    """
    inputs = inputs_of(form)
    unknown = [name for name in parameters if name not in inputs]
    if unknown:
        raise RequestError(
            f"Method '{method_id}' has no input {', '.join(unknown)}. Its inputs: {', '.join(inputs) or 'none'}."
        )
    for name, value in parameters.items():
        if inputs[name].is_secret and value is not None:
            blocks.check_secret(name, value)


def schedule_of(text: str, timezone: str | None = None) -> SCHEDULE_TYPES:
    """Parse a schedule: ``15m``, ``0 6 * * *`` or ``RRULE:…``, in *timezone* or UTC.

    Raises:
        RequestError: If *text* is not a schedule.
    """
    text = text.strip()
    zone = timezone or "UTC"
    try:
        with suppress(ValueError):
            return IntervalSchedule(interval=parse_duration(text), timezone=zone)
        if text.upper().startswith(("RRULE:", "DTSTART")):
            return RRuleSchedule(rrule=text, timezone=zone)
        return CronSchedule(cron=text, timezone=zone)
    except (ValidationError, ValueError, OverflowError) as error:
        raise RequestError(
            f"'{text}' in {zone} is not a schedule: write 15m, 2h or 1d, a cron line as '0 6 * * *', or 'RRULE:FREQ=…'"
        ) from error


def work_pool(name: str) -> WorkPool:
    """Return the work pool called *name*.

    Raises:
        NotFoundError: If there is no such pool.
        OrchestratorError: If Prefect's API is unavailable.
    """
    with api_client.translate_errors(f"work pool {name}"):
        try:
            return api_client.client().read_work_pool(name)
        except ObjectNotFound as error:
            raise NotFoundError(
                f"There is no work pool '{name}'. Create it: prefect work-pool create {name} --type process"
            ) from error


def runs_containers(pool: WorkPool) -> bool:
    """Whether each run of *pool* is a container, which has its own image and shares no disk."""
    return pool.type.endswith(_CONTAINER_POOLS)


def with_image(pool: WorkPool, image: str | None, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job *variables* with *image* added.

    Raises:
        RequestError: If the pool's runs have no image, or would get an image that lacks this package.
    """
    if not runs_containers(pool):
        if image:
            raise RequestError(f"The work pool '{pool.name}' of type {pool.type} runs no containers: leave out --image")
        return dict(variables)
    if image:
        return {**variables, "image": image}
    if not variables.get("image") and not _default(pool, "image"):
        raise RequestError(
            f"The work pool '{pool.name}' of type {pool.type} has no image of its own, and Prefect's lacks "
            "prefect-executions: give --image. deployments/docker/ builds one."
        )
    return dict(variables)


def job_variables(
    pool: WorkPool, resources: Resources, deployed: Mapping[str, Any], *, of_scripts: bool = False
) -> dict[str, Any]:
    """Return the job variables that request *resources* from *pool*.

    A variable ``cpus``, ``memory`` (bytes) or ``gpus`` of the pool's base job template
    is preferred to the variables of the pool's type. The run enforces the time limit
    itself. With *of_scripts*, the runtime of a descriptor's scripts enforces the rest
    if the pool guarantees nothing. *deployed* are the deployment's job variables:
    Prefect replaces each whole value, so nested values are merged here.

    Raises:
        RequestError: If the pool cannot guarantee a resource; the message names all of them.
    """
    values = {name: getattr(resources, name) for name in ("cpus", "memory", "gpus")}
    values = {name: value for name, value in values.items() if value is not None}
    template = _variables(pool)
    variables = {name: value for name, value in values.items() if name in template}
    others = {name: value for name, value in values.items() if name not in variables}
    for name in [name for name in others if set(_KUBERNETES_VARIABLES.get(name, ("-",))) <= template.keys()]:
        variables |= dict.fromkeys(_KUBERNETES_VARIABLES[name], str(others.pop(name)))
    shared = flow_runs.shares_its_worker(pool.type)
    if others and not pool.type.endswith("docker") and not (shared and of_scripts):
        raise RequestError(_refusal(pool, others))
    if others and not shared:
        create = deployed.get("container_create_kwargs") or _default(pool, "container_create_kwargs")
        variables |= _docker_variables(others, create)
    # A Python file may hold a descriptor's Method too; that matters on a process pool only.
    env = {RESOURCE_VARIABLES[name]: f"{value}" for name, value in values.items()} if of_scripts or not shared else {}
    if resources.time_limit is not None:
        env[TIME_LIMIT_VARIABLE] = f"{resources.time_limit:g}"
    return {**variables, "env": env} if env else variables


def _docker_variables(resources: Mapping[str, Any], create: Mapping[str, Any] | None) -> dict[str, Any]:
    variables, arguments = {}, dict(create or {})
    if "memory" in resources:
        variables["mem_limit"] = f"{resources['memory']}b"
    if "cpus" in resources:
        arguments["nano_cpus"] = round(resources["cpus"] * 1e9)
    if "gpus" in resources:
        arguments["device_requests"] = [{"Driver": "nvidia", "Count": resources["gpus"], "Capabilities": [["gpu"]]}]
    return {**variables, "container_create_kwargs": arguments} if arguments else variables


def _refusal(pool: WorkPool, resources: Mapping[str, Any]) -> str:
    advice = (
        "Create the pool with the base job template in deployments/kubernetes/, which has variables for them."
        if runs_containers(pool)
        else "Its runs share their worker's resources. Choose a docker or kubernetes work pool, or deploy a descriptor."
    )
    return f"The work pool '{pool.name}' of type {pool.type} cannot guarantee {', '.join(resources)}. {advice}"


def _default(pool: WorkPool, variable: str) -> Any:
    return (_variables(pool).get(variable) or {}).get("default")


def _variables(pool: WorkPool) -> Mapping[str, Any]:
    properties = (pool.base_job_template or {}).get("variables", {}).get("properties", {})
    return properties if isinstance(properties, Mapping) else {}


def _location(pool: WorkPool, entrypoint: str, folder: str | None, here: Path) -> tuple[str, str]:
    """Return the entrypoint as a worker finds it, and the folder that it is relative to."""
    shared = None if runs_containers(pool) else str(here.resolve())
    path, template = _file_of(entrypoint)
    if path is None:
        return entrypoint, folder or shared or IMAGE_CODE_FOLDER
    file = (here / path).resolve()
    if file.is_relative_to(here.resolve()):
        return template.format(file.relative_to(here.resolve()).as_posix()), folder or shared or IMAGE_CODE_FOLDER
    if folder or shared is None:
        raise RequestError(
            f"{file} is outside {here}, so its place on the worker is unknown: "
            f"go to the folder that the worker has as {folder or IMAGE_CODE_FOLDER}, and deploy from there"
        )
    return template.format(file.name), str(file.parent)


def _file_of(entrypoint: str) -> tuple[str | None, str]:
    """Return the file of an entrypoint, None for a module, and the template of Prefect's entrypoint for a file."""
    descriptor = descriptor_in(entrypoint)
    if descriptor is not None:
        return descriptor, f"{DESCRIPTOR_MODULE}:{{}}"
    path, _, name = entrypoint.rpartition(":")
    return (path, f"{{}}:{name}") if path.endswith(".py") else (None, entrypoint)
