"""Deploy a Method: tell Prefect where a worker of a pool finds it, what its form is, and when it runs by itself.

Work pools: which there is, what its base job template takes, and what a request's wishes are called there.

Schedules as an operator writes them: every so often, a cron line, or an iCalendar rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.utilities.urls import url_for

from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.durations import parse_duration
from prefect_executions.errors import RequestError
from prefect_executions.methods.model import DESCRIPTOR_MODULE, descriptor_in
from prefect_executions.prefect_api import blocks
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import queries as prefect_queries

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool
    from prefect.flows import Flow


from typing import TYPE_CHECKING

from prefect.exceptions import ObjectNotFound

from prefect_executions.errors import NotFoundError
from prefect_executions.prefect_api import flow_runs
from prefect_executions.runtimes.interface import Resources

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool


from contextlib import suppress
from typing import TYPE_CHECKING

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from pydantic import ValidationError

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import SCHEDULE_TYPES

TIME_LIMIT_VARIABLE = "EXECUTIONS_TIME_LIMIT"
"""The variable by which a run is told its time limit, whatever its pool."""

RESOURCE_VARIABLES = {"cpus": "EXECUTIONS_CPUS", "memory": "EXECUTIONS_MEMORY", "gpus": "EXECUTIONS_GPUS"}
"""The variables by which the scripts of a descriptor Method are told the other wishes: they may run elsewhere."""

# What the pod gets and what it may use at most, in the base job template of prefect-kubernetes.
_OF_KUBERNETES = {"cpus": ("cpu_request", "cpu_limit"), "memory": ("memory_request", "memory_limit")}
_CONTAINERS = ("docker", "kubernetes")  # what the types of such pools end with, our own as well as Prefect's


def work_pool(name: str) -> WorkPool:
    """Return the work pool called *name*.

    Raises:
        NotFoundError: If there is none.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    with api_client.translate_errors(f"work pool {name}"):
        try:
            return api_client.client().read_work_pool(name)
        except ObjectNotFound as error:
            raise NotFoundError(
                f"There is no work pool '{name}'. Make one: prefect work-pool create {name} --type process"
            ) from error


def runs_containers(pool: WorkPool) -> bool:
    """Whether each run of *pool* is a container, with an image of its own and no disk that it shares."""
    return pool.type.endswith(_CONTAINERS)


def with_image(pool: WorkPool, image: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job variables *given*, with *image* among them.

    Raises:
        RequestError: If runs of the pool have no image, or would get one without this package.
    """
    if not runs_containers(pool):
        if image:
            raise RequestError(f"The work pool '{pool.name}' of type {pool.type} runs no containers: leave out --image")
        return dict(given)
    if image:
        return {**given, "image": image}
    if not given.get("image") and not _default(pool, "image"):
        raise RequestError(
            f"The work pool '{pool.name}' of type {pool.type} has no image of its own, and Prefect's lacks "
            "prefect-executions: give --image. deployments/docker/ makes one."
        )
    return dict(given)


def job_variables(
    pool: WorkPool, resources: Resources, standing: Mapping[str, Any], *, of_scripts: bool = False
) -> dict[str, Any]:
    """Return the job variables that say *resources* in the words of *pool*.

    A variable ``cpus``, ``memory`` (bytes) or ``gpus`` of its base job template goes
    before what the pool's type has. The time limit is held by the run itself, and
    other wishes by what runs its scripts, where it is *of_scripts* and its pool
    promises nothing.
    *standing* are the deployment's own job variables, of which Prefect replaces
    each by one of the same name.

    Raises:
        RequestError: If the pool cannot honour a wish; all such wishes are named.
    """
    wishes = {name: getattr(resources, name) for name in ("cpus", "memory", "gpus")}
    wishes = {name: value for name, value in wishes.items() if value is not None}
    told = {name: value for name, value in wishes.items() if name in _variables(pool)}
    others = {name: value for name, value in wishes.items() if name not in told}
    for name in [name for name in others if set(_OF_KUBERNETES.get(name, ("-",))) <= _variables(pool).keys()]:
        told |= dict.fromkeys(_OF_KUBERNETES[name], str(others.pop(name)))
    shared = flow_runs.shares_its_worker(pool.type)
    if others and not pool.type.endswith("docker") and not (shared and of_scripts):
        raise RequestError(_refusal(pool, others))
    if others and not shared:
        told |= _of_docker(others, standing.get("container_create_kwargs") or _default(pool, "container_create_kwargs"))
    # A file of Python may hold a descriptor's Method too; only at a process pool it makes a difference.
    env = {RESOURCE_VARIABLES[name]: f"{value}" for name, value in wishes.items()} if of_scripts or not shared else {}
    if resources.time_limit is not None:
        env[TIME_LIMIT_VARIABLE] = f"{resources.time_limit:g}"
    return {**told, "env": env} if env else told


def _of_docker(wishes: Mapping[str, Any], creating: Mapping[str, Any] | None) -> dict[str, Any]:
    told, asked = {}, dict(creating or {})
    if "memory" in wishes:
        told["mem_limit"] = f"{wishes['memory']}b"
    if "cpus" in wishes:
        asked["nano_cpus"] = round(wishes["cpus"] * 1e9)
    if "gpus" in wishes:
        asked["device_requests"] = [{"Driver": "nvidia", "Count": wishes["gpus"], "Capabilities": [["gpu"]]}]
    return {**told, "container_create_kwargs": asked} if asked else told


def _refusal(pool: WorkPool, wishes: Mapping[str, Any]) -> str:
    cure = (
        "Make the pool with the base job template in deployments/kubernetes/, which has them as variables."
        if runs_containers(pool)
        else "Its runs share what their worker has. Choose a docker or kubernetes work pool, or deploy a descriptor."
    )
    return f"The work pool '{pool.name}' of type {pool.type} cannot promise {', '.join(wishes)}. {cure}"


def _default(pool: WorkPool, variable: str) -> Any:
    return (_variables(pool).get(variable) or {}).get("default")


def _variables(pool: WorkPool) -> Mapping[str, Any]:
    told = (pool.base_job_template or {}).get("variables", {}).get("properties", {})
    return told if isinstance(told, Mapping) else {}


def schedule_of(text: str, timezone: str | None = None) -> SCHEDULE_TYPES:
    """Return the schedule that *text* means: ``15m``, ``0 6 * * *`` or ``RRULE:…``, in *timezone* or UTC.

    Raises:
        RequestError: If it means none.
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
            f"'{text}' in {zone} is no schedule: write 15m, 2h or 1d, a cron line as '0 6 * * *', or 'RRULE:FREQ=…'"
        ) from error


IMAGE_CODE_FOLDER = "/opt/executions"
"""Where the image of deployments/docker/ has the repository that it was built from."""


@dataclass(frozen=True, kw_only=True)
class DeploymentOptions:
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


def deploy(flow: Flow[..., Any], entrypoint: str, wanted: DeploymentOptions, *, here: Path) -> Deployed:
    """Put *flow*, which is found at *entrypoint* from the folder *here*, on a work pool.

    To deploy it again under the same name replaces what was there, with its schedules.

    Raises:
        RequestError: If the pool does not take what is wanted; nothing is deployed then.
        SecretError: If a secret input is given in clear.
        NotFoundError: If there is no such pool.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    require_server()
    pool = work_pool(wanted.pool)
    entrypoint, folder = _place(pool, entrypoint, wanted.folder, here)
    variables = with_image(pool, wanted.image, wanted.job_variables)
    schedules = [
        DeploymentScheduleCreate(schedule=schedule_of(text, wanted.timezone), active=True) for text in wanted.schedules
    ]
    form = flow.parameters.model_dump()
    check_parameters(flow.name, form, wanted.parameters)
    name = wanted.name or pool.name
    with api_client.translate_errors(f"the deployment {flow.name}/{name}", wanted.parameters):
        flow_id = api_client.client().create_flow(flow)
        prefect_queries.mark_flows([flow_id])
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


def require_server() -> None:
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
        return entrypoint, folder or shared or IMAGE_CODE_FOLDER
    file = (here / path).resolve()
    if file.is_relative_to(here.resolve()):
        return written.format(file.relative_to(here.resolve()).as_posix()), folder or shared or IMAGE_CODE_FOLDER
    if folder or shared is None:
        raise RequestError(
            f"{file} lies outside {here}, so nobody knows where it is for the worker: "
            f"go to the folder that the worker has as {folder or IMAGE_CODE_FOLDER}, and deploy there"
        )
    return written.format(file.name), str(file.parent)


def _file_of(entrypoint: str) -> tuple[str | None, str]:
    """The file that an entrypoint names, and how it is written as an entrypoint of Prefect's; a module is no file."""
    descriptor = descriptor_in(entrypoint)
    if descriptor is not None:
        return descriptor, f"{DESCRIPTOR_MODULE}:{{}}"
    path, _, name = entrypoint.rpartition(":")
    return (path, f"{{}}:{name}") if path.endswith(".py") else (None, entrypoint)
