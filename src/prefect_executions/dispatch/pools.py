"""Work pools: which there is, what its base job template takes, and what a request's wishes are called there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect.exceptions import ObjectNotFound

from prefect_executions.errors import NotFoundError, RequestError
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import flow_runs
from prefect_executions.runtimes.plans import Resources

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool

TIME_LIMIT = "EXECUTIONS_TIME_LIMIT"
"""The variable by which a run is told its time limit, whatever its pool."""

FOR_SCRIPTS = {"cpus": "EXECUTIONS_CPUS", "memory": "EXECUTIONS_MEMORY", "gpus": "EXECUTIONS_GPUS"}
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
    with api_client.answering(f"work pool {name}"):
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


def wished(
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
    env = {FOR_SCRIPTS[name]: f"{value}" for name, value in wishes.items()} if of_scripts or not shared else {}
    if resources.time_limit is not None:
        env[TIME_LIMIT] = f"{resources.time_limit:g}"
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
