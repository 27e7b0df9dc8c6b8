"""The options of `deploy` and `submit`, as an operator writes them; importing them does not load Prefect.

The command line shows the text below a field as the help of its option.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """Where and when a deployed Method runs."""

    pool: str
    """Work pool of type process, docker or kubernetes."""
    name: str | None = None
    """Name of the deployment (default: METHOD-POOL)."""
    image: str | None = None
    """Container image, for a docker or kubernetes pool."""
    folder: str | None = None
    """Folder of the code on the worker (default: this folder; in a container, /opt/executions)."""
    queue: str | None = None
    """Work queue of the pool."""
    schedule: tuple[str, ...] = ()
    """When to run: 15m, 2h, '0 6 * * *' or 'RRULE:…' (repeatable)."""
    timezone: str | None = None
    """Time zone of the schedules (default: UTC)."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Which deployment of a Method runs, and with which resources."""

    pool: str | None = None
    """Work pool, if the Method is deployed on several."""
    queue: str | None = None
    """Work queue of the pool, instead of the deployment's."""
    cpus: float | None = None
    """Number of CPUs, for example 0.5 or 2."""
    memory: str | None = None
    """Memory limit: 512m, 4g."""
    gpus: int | None = None
    """Number of GPUs."""
    time_limit: str | None = None
    """Time limit for the Method's code: 90s, 30m, 2h."""
    idempotency_key: str | None = None
    """Any text; a second request with the same key starts no new run."""
