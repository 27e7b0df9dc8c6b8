"""Opens a runtime by its name, for a door that has read which one an operator chose."""

from __future__ import annotations

from pathlib import Path

from prefect_executions.errors import InfrastructureError, RequestError
from prefect_executions.runtimes.interface import Runtime, SharedClaim
from prefect_executions.runtimes.process.runtime import ProcessRuntime

NAMES = ("process", "docker", "kubernetes")
"""The runtimes that there are."""


def open_runtime(
    name: str,
    *,
    state: Path,
    engine: str | None = None,
    open_network: str | None = None,
    claim: SharedClaim | None = None,
) -> Runtime:
    """Return the runtime called *name*.

    *state* is where processes are kept. *engine* is the Docker engine's URL, else
    what ``DOCKER_HOST`` says; or the path of a kubeconfig, else what ``KUBECONFIG``
    says. *open_network* is the network for scripts that may reach others: one of
    the engine's, or `host` for that of Kubernetes' node. *claim* is a volume of the
    cluster that this machine sees, too.

    Raises:
        RequestError: If there is no such runtime.
        InfrastructureError: If what it needs is not installed, or does not answer.
    """
    if name not in NAMES:
        raise RequestError(f"There is no runtime '{name}'; choose one of {', '.join(NAMES)}")
    if name == "process":
        return ProcessRuntime(state)
    try:
        if name == "docker":
            # An extra, and it takes long to import.
            from prefect_executions.runtimes.docker.runtime import DockerRuntime  # noqa: PLC0415

            return DockerRuntime(engine, open_network=open_network or "bridge")
        # The same.
        from prefect_executions.runtimes.kubernetes.runtime import KubernetesRuntime  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InfrastructureError(
            f"The runtime '{name}' needs the Python package {error.name}: pip install 'prefect-executions[{name}]'"
        ) from error
    if open_network not in {None, "host"}:
        raise RequestError(f"Kubernetes has no network '{open_network}'; name none for the pod's own, or 'host'")
    return KubernetesRuntime(engine, host_network=open_network == "host", claim=claim)
