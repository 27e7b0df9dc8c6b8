"""What a runtime is asked to run, and the plan that it makes of it: values, to be read before anything is started.

Law: a plan says all that will happen and no secret. A runtime that cannot do
what was asked refuses it; nothing is ever left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator

from prefect_executions.documents import Part, canonical
from prefect_executions.errors import NameRefusedError

DATA = "/ccp_data"
"""Where a container sees the data folder (CCP's contract with its scripts)."""

RUN_COOKIE = "EXECUTION_RUN"
"""The environment variable that all processes of one run inherit: the id of the run."""

PREFIX = "prefect-executions"
"""The beginning of the names of all labels."""

LABEL = f"{PREFIX}.run"
"""The label that holds the id of the run."""

# Kubernetes allows no more in a name or a label; an id that fits there fits everywhere.
_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class Network(StrEnum):
    """What a script may reach."""

    OPEN = "open"
    """Whatever the infrastructure reaches."""
    CLOSED = "closed"
    """Itself alone."""


class Pull(StrEnum):
    """When the image is asked for at its registry."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class Resources(Part):
    """The limits of one run; what is not named is not limited.

    `memory` is in bytes, `time_limit` in seconds, `processes` counts processes
    and threads that are alive together.
    """

    cpus: float | None = Field(default=None, gt=0)
    memory: int | None = Field(default=None, gt=0)
    gpus: int | None = Field(default=None, gt=0)
    time_limit: float | None = Field(default=None, gt=0)
    processes: int | None = Field(default=None, gt=0)


class RunRequest(Part):
    """One script to run, with all that is asked of the runtime.

    `id` is the caller's own, made before anything is started, so that a caller
    that was killed can find its run again. The script is POSIX shell text and
    begins in the folder `data`, which is absolute and exists.
    """

    id: str
    execution_id: str
    script: str
    data: Path
    environment: dict[str, str] = {}
    secrets: dict[str, SecretStr] = Field(default={}, exclude=True)
    """More environment variables, whose values are in no plan."""
    image: str | None = None
    pull: Pull = Pull.MISSING
    user: str | None = None
    network: Network = Network.OPEN
    resources: Resources = Resources()

    @field_validator("id")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return run_id(name)


@dataclass(frozen=True, slots=True)
class SharedClaim:
    """A volume claim of a cluster that this machine sees as well: *root* is the folder that the claim *name* holds."""

    name: str
    root: Path


class Wish(StrEnum):
    """Something that a request may ask for, and that a runtime honours or refuses."""

    DATA = "data folder"
    ENVIRONMENT = "environment"
    SECRETS = "secrets"
    IMAGE = "image"
    USER = "user"
    OPEN_NETWORK = "open network"
    CLOSED_NETWORK = "closed network"
    CPUS = "cpus"
    MEMORY = "memory"
    GPUS = "gpus"
    PROCESSES = "processes"
    TIME_LIMIT = "time limit"


def wishes_of(request: RunRequest) -> Iterator[Wish]:
    """Yield what *request* asks for; the pull policy is a part of the image."""
    asked: Mapping[Wish, object] = {
        Wish.DATA: request.data,
        Wish.ENVIRONMENT: request.environment,
        Wish.SECRETS: request.secrets,
        Wish.IMAGE: request.image,
        Wish.USER: request.user,
        Wish.OPEN_NETWORK: request.network is Network.OPEN,
        Wish.CLOSED_NETWORK: request.network is Network.CLOSED,
        Wish.CPUS: request.resources.cpus,
        Wish.MEMORY: request.resources.memory,
        Wish.GPUS: request.resources.gpus,
        Wish.PROCESSES: request.resources.processes,
        Wish.TIME_LIMIT: request.resources.time_limit,
    }
    return (wish for wish, value in asked.items() if value)


class Plan(Part):
    """What a runtime will do, in its own words (`spec`), complete but for the values of secrets."""

    runtime: str
    request: RunRequest
    secret_names: tuple[str, ...] = ()
    image_digest: str | None = None
    """``repository@sha256:…``, as the registry knows the image that `spec` names; absent when it came from none."""
    spec: dict[str, Any]
    """For Docker the body of ``POST /containers/create``; for a process its command, folder and limits."""

    @property
    def id(self) -> str:
        """The id of the run that this plan is of."""
        return self.request.id

    def to_json(self) -> bytes:
        """Return the plan as it is shown and kept."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n"

    def as_told(self) -> bytes:
        """Return the one form that the plan's digest is made of."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def write(self, folder: Path) -> None:
        """Write ``plan.json`` and ``entrypoint.sh``, the script as it is run, into *folder*, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_bytes(self.to_json())
        (folder / "entrypoint.sh").write_text(self.request.script, encoding="utf-8", newline="")


def run_id(name: str) -> str:
    """Return *name* if it may be the id of a run on every runtime.

    Raises:
        NameRefusedError: If it may not.
    """
    if not _ID.fullmatch(name):
        raise NameRefusedError(
            f"{name!r} cannot be the id of a run: use at most 63 lower-case letters, digits, dots and hyphens, "
            "with a letter or digit at both ends"
        )
    return name
