"""Opens a runtime by its name, for a door that has read which one an operator chose."""

from __future__ import annotations

from pathlib import Path

from prefect_executions.errors import InfrastructureError, RequestError
from prefect_executions.runtimes.process import ProcessRuntime
from prefect_executions.runtimes.runs import Runtime

NAMES = ("process", "docker")
"""The runtimes that there are."""


def open_runtime(name: str, *, state: Path, engine: str | None = None, open_network: str = "bridge") -> Runtime:
    """Return the runtime called *name*.

    *state* is where processes are kept; *engine* is the Docker engine's URL, else
    what ``DOCKER_HOST`` says; *open_network* is its network for scripts that may
    reach others.

    Raises:
        RequestError: If there is no such runtime.
        InfrastructureError: If what it needs is not installed, or does not answer.
    """
    if name == "process":
        return ProcessRuntime(state)
    if name != "docker":
        raise RequestError(f"There is no runtime '{name}'; choose one of {', '.join(NAMES)}")
    try:
        # An extra, and it takes long to import.
        from prefect_executions.runtimes.docker import DockerRuntime  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InfrastructureError(
            f"The runtime 'docker' needs the Python package {error.name}: pip install 'prefect-executions[docker]'"
        ) from error
    return DockerRuntime(engine, open_network=open_network)
