"""The table of runtimes, and how one is opened by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import NamedTuple, cast

from prefect_executions.errors import InfrastructureError, RequestError
from prefect_executions.runtimes.interface import Runtime, RuntimeOptions, SharedClaim


class RuntimeEntry(NamedTuple):
    """A runtime: where its class is, and what a caller must know before it is imported."""

    target: str
    """The class as ``module:name``; its client may be an extra and slow to import."""
    runs_images: bool
    """Whether scripts run in a container image, with limits of their own."""
    advice: str
    """What `executions doctor` recommends when the runtime cannot be opened."""
    extra: str | None = None
    """The extra of this package that installs its client."""

    def load(self) -> type[Runtime]:
        """Import the class.

        Raises:
            ModuleNotFoundError: If its extra is not installed.
        """
        return cast("type[Runtime]", resolve_name(self.target))


RUNTIMES: Mapping[str, RuntimeEntry] = MappingProxyType(
    {
        "process": RuntimeEntry(
            "prefect_executions.runtimes.process.runtime:ProcessRuntime",
            runs_images=False,
            advice="Check that this user may write to the workbench.",
        ),
        "docker": RuntimeEntry(
            "prefect_executions.runtimes.docker.runtime:DockerRuntime",
            runs_images=True,
            advice="Start Docker, or set DOCKER_HOST to an engine that this user may use.",
            extra="docker",
        ),
        "kubernetes": RuntimeEntry(
            "prefect_executions.runtimes.kubernetes.runtime:KubernetesRuntime",
            runs_images=True,
            advice="Set KUBECONFIG to a file that names a cluster where this user may create Jobs (docs/runtimes.md).",
            extra="kubernetes",
        ),
    }
)


def open_runtime(
    name: str,
    *,
    state: Path,
    engine: str | None = None,
    open_network: str | None = None,
    claim: SharedClaim | None = None,
) -> Runtime:
    """Return the runtime called *name*; `RuntimeOptions` describes the other parameters.

    Raises:
        RequestError: If there is no such runtime, or it does not take an option.
        InfrastructureError: If its extra is not installed, or its engine or cluster does not answer.
    """
    entry = RUNTIMES.get(name)
    if entry is None:
        raise RequestError(f"There is no runtime '{name}'; choose one of {', '.join(RUNTIMES)}")
    try:
        runtime = entry.load()
    except ModuleNotFoundError as error:
        raise InfrastructureError(
            f"The runtime '{name}' needs the Python package {error.name}: "
            f"pip install 'prefect-executions[{entry.extra}]'"
        ) from error
    return runtime.open(RuntimeOptions(state=state, engine=engine, open_network=open_network, claim=claim))


def image_runtime(name: str) -> str:
    """Return *name* if that runtime runs images, else the first one that does."""
    if name in RUNTIMES and not RUNTIMES[name].runs_images:
        return next(other for other, entry in RUNTIMES.items() if entry.runs_images)
    return name
