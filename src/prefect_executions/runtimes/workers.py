"""Our Prefect workers, registered as a Prefect collection; each needs its extra."""

from __future__ import annotations

from importlib.util import find_spec

# Prefect imports this module to find worker types; importing a class registers it.
if find_spec("prefect_docker"):
    import prefect_executions.runtimes.docker.worker
if find_spec("prefect_kubernetes"):
    import prefect_executions.runtimes.kubernetes.worker  # noqa: F401
