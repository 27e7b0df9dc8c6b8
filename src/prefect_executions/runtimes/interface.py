"""The interface of all runtimes: the request for a run, the plan made from it, the run and its end.

Law: a plan states everything that will happen, and no secret. A runtime that
cannot do what was requested refuses it; it never ignores a part silently. A
refusal comes before anything is started, with all reasons at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, SecretStr, field_validator

from prefect_executions.capture.processes import EXECUTION_ID_ENV
from prefect_executions.documents import Part, Time, canonical_json
from prefect_executions.errors import NameRefusedError, PlanError
from prefect_executions.executions.record import Process

DATA = "/ccp_data"
"""The path of the data folder inside a container (CCP's contract with its scripts)."""

RUN_ID_ENV = "EXECUTION_RUN"
"""The environment variable with the run's id, which all processes of the run inherit."""

LABEL_PREFIX = "prefect-executions"
"""The prefix of all label names."""

RUN_LABEL = f"{LABEL_PREFIX}.run"
"""The label that holds the run's id."""

GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL for the processes of a run."""

MAX_VARIABLE_BYTES = 128 * 1024 - 1
"""Bytes of ``NAME=value`` that Linux passes to a program (execve(2), MAX_ARG_STRLEN)."""

MAX_ENVIRONMENT_BYTES = 1536 * 1024
"""Bytes of all variables; Linux allows a quarter of the stack limit, which is 8 MiB nearly everywhere."""

StreamName = Literal["stdout", "stderr"]
STREAMS: tuple[StreamName, StreamName] = ("stdout", "stderr")

# Kubernetes allows no more in a name or a label; an id that fits there fits everywhere.
_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
# A shell silently drops variables with other names.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables that dash or bash do not pass on unchanged.
_SHELL_VARIABLES = frozenset(
    {"_", "PWD", "OLDPWD", "PPID", "SHLVL", "OPTIND", "OPTERR", "IFS", "PS1", "PS2", "PS4", "LINENO", "RANDOM"}
    | {"SRANDOM", "SHELLOPTS", "HISTCMD", "EPOCHSECONDS", "EPOCHREALTIME", "COMP_WORDBREAKS"}
)


class Network(StrEnum):
    """What a script may connect to."""

    OPEN = "open"
    """Everything that the infrastructure can reach."""
    CLOSED = "closed"
    """Loopback only."""


class Pull(StrEnum):
    """When the image is pulled from its registry."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class Resources(Part):
    """The limits of one run; an absent field is unlimited.

    `memory` is in bytes, `time_limit` in seconds; `processes` counts processes and
    threads that are alive at the same time.
    """

    cpus: float | None = Field(default=None, gt=0)
    memory: int | None = Field(default=None, gt=0)
    gpus: int | None = Field(default=None, gt=0)
    time_limit: float | None = Field(default=None, gt=0)
    processes: int | None = Field(default=None, gt=0)


class RunRequest(Part):
    """One script to run, with everything that the runtime needs.

    The caller chooses `id` before anything is started, so that it finds its run again
    if it was killed. The script is POSIX shell text, and starts in the folder `data`,
    which is absolute and exists.
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
        return check_run_id(name)


@dataclass(frozen=True, slots=True)
class SharedClaim:
    """A volume claim of a cluster that this machine mounts, too: *root* is the folder with the claim's content."""

    name: str
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What an operator sets for a runtime; each runtime reads the options that apply to it.

    Attributes:
        state: The folder for the runs of a runtime that keeps them itself.
        engine: The Docker engine's URL, or the path of a kubeconfig; by default what ``DOCKER_HOST`` or
            ``KUBECONFIG`` names.
        open_network: The network for scripts with an open network: one of the Docker engine's, or ``host`` for
            that of the Kubernetes node.
        claim: A volume claim of the cluster that this machine mounts, too.
    """

    state: Path
    engine: str | None = None
    open_network: str | None = None
    claim: SharedClaim | None = None


class Capability(StrEnum):
    """A part of a request that a runtime supports or refuses."""

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


def requested_capabilities(request: RunRequest) -> Iterator[Capability]:
    """Yield the capabilities that *request* needs; the pull policy is part of the image."""
    values: Mapping[Capability, object] = {
        Capability.DATA: request.data,
        Capability.ENVIRONMENT: request.environment,
        Capability.SECRETS: request.secrets,
        Capability.IMAGE: request.image,
        Capability.USER: request.user,
        Capability.OPEN_NETWORK: request.network is Network.OPEN,
        Capability.CLOSED_NETWORK: request.network is Network.CLOSED,
        Capability.CPUS: request.resources.cpus,
        Capability.MEMORY: request.resources.memory,
        Capability.GPUS: request.resources.gpus,
        Capability.PROCESSES: request.resources.processes,
        Capability.TIME_LIMIT: request.resources.time_limit,
    }
    return (capability for capability, value in values.items() if value)


class Plan(Part):
    """What a runtime will do, in its own terms (`spec`), complete except for the values of secrets."""

    runtime: str
    request: RunRequest
    secret_names: tuple[str, ...] = ()
    image_digest: str | None = None
    """``repository@sha256:…``, as the registry names the image of `spec`; absent if it came from none."""
    spec: dict[str, Any]
    """For Docker the body of ``POST /containers/create``, for a process its command, folder and limits."""

    @property
    def id(self) -> str:
        """The id of the planned run."""
        return self.request.id

    def to_json(self) -> bytes:
        """Return the plan as it is shown and stored."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n"

    def canonical_bytes(self) -> bytes:
        """Return the canonical form, from which the plan's digest is computed."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def write(self, folder: Path) -> None:
        """Create *folder* with ``plan.json`` and ``entrypoint.sh``, the script as it is run."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_bytes(self.to_json())
        (folder / "entrypoint.sh").write_text(self.request.script, encoding="utf-8", newline="")


class RunStatus(StrEnum):
    """The status of a run."""

    WAITING = "waiting"
    """Created, and not started."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """The time limit ended it."""
    LOST = "lost"
    """It is not running, and its end was not observed."""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self not in {RunStatus.WAITING, RunStatus.RUNNING}


class Exit(Part):
    """How a run ended; a value that was not observed is absent.

    `code` is the script's exit code, or 128 plus the signal that ended it, as in a
    shell. `why` adds what the code does not say.
    """

    status: RunStatus
    code: int | None = None
    why: str | None = None
    started: Time | None = None
    ended: Time | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None


class RunLocation(Part):
    """Where a run is or was, as the machine or platform reports it; nothing is copied from the request."""

    process: Process | None = None
    job: dict[str, str] | None = None
    """Where a batch system runs it, in that system's terms: job id, partition, array index."""
    container: str | None = None
    pod: str | None = None
    node: str | None = None
    image: str | None = None
    """The image's id: the digest of its configuration."""
    image_digest: str | None = None
    """``repository@sha256:…``, as a registry names the image; absent if it came from none."""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Some bytes of one stream, in order; a line may be cut anywhere."""

    stream: StreamName
    data: bytes


class Run(Protocol):
    """One run of a script; any process that has its id can open it."""

    @property
    def id(self) -> str:
        """The id that the caller chose."""

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and if its end was not observed."""

    def status(self) -> RunStatus:
        """Return its status now."""

    def seen(self) -> RunLocation:
        """Return where it is or was."""

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has.

        Raises:
            TimeoutError: If it still runs after *timeout* seconds.
            InfrastructureError: If the infrastructure is unavailable.
        """

    def logs(self) -> Iterator[LogChunk]:
        """Yield its output from the beginning, live, until it has ended and everything was read."""

    def cancel(self, grace: float = GRACE) -> Exit:
        """End all of its processes and return its end; a run that has ended keeps its own end."""

    def discard(self) -> None:
        """End what remains of it, and remove its logs and state; idempotent."""


class Runtime(Protocol):
    """Runs scripts on one kind of infrastructure."""

    name: str
    capabilities: Mapping[Capability, str]
    """How it supports each capability; others are refused."""

    @classmethod
    def open(cls, options: RuntimeOptions) -> Runtime:
        """Return the runtime with *options*.

        Raises:
            RequestError: If it does not take an option.
            InfrastructureError: If the infrastructure is unavailable.
        """

    def mount_path(self, data: Path) -> str:
        """Return the path at which a script sees the folder *data* of the calling machine."""

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan, and write it into the folder *into*; with an image this includes the pull.

        Raises:
            PlanError: If the request cannot be met; the message lists all reasons.
            InfrastructureError: If the infrastructure is unavailable.
        """

    def run(self, plan: Plan) -> Run:
        """Start *plan*, and return at once. Each id is started at most once.

        Raises:
            PlanError: If the id was used before, or the infrastructure refuses the plan.
            InfrastructureError: If the infrastructure is unavailable.
        """

    def find(self, run_id: str) -> Run:
        """Return the run with this id, started by any process.

        Raises:
            NotFoundError: If there is no such run.
        """

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:
        """Return a name of exactly the image with this id or *digest* (``repository@sha256:…``).

        A missing image is pulled by its digest; returns None if that fails. A cluster pulls it when it runs it.

        Raises:
            InfrastructureError: If the infrastructure is unavailable.
        """

    def close(self) -> None:
        """Close connections; runs continue."""


def check_run_id(name: str) -> str:
    """Return *name* if every runtime accepts it as the id of a run.

    Raises:
        NameRefusedError: If not.
    """
    if not _ID.fullmatch(name):
        raise NameRefusedError(
            f"{name!r} cannot be the id of a run: use at most 63 lower-case letters, digits, dots and hyphens, "
            "with a letter or digit at both ends"
        )
    return name


def plan_environment(request: RunRequest) -> dict[str, str]:
    """Return the variables that a plan shows: the request's, and those that identify the run's processes."""
    return request.environment | {EXECUTION_ID_ENV: request.execution_id, RUN_ID_ENV: request.id}


def full_environment(plan: Plan) -> dict[str, str]:
    """Return all variables that the script gets from its caller, secrets included.

    Raises:
        PlanError: If the plan was read from a file, which has no values of secrets.
    """
    request = plan.request
    missing = sorted(set(plan.secret_names) - request.secrets.keys())
    if missing:
        reason = f"secrets: a plan has no value of {', '.join(missing)}; compile the request again"
        raise refusal(plan.runtime, request, [reason])
    return plan_environment(request) | {name: value.get_secret_value() for name, value in request.secrets.items()}


def refusal(runtime: str, request: RunRequest, reasons: Iterable[str]) -> PlanError:
    """Return the error that lists all *reasons*."""
    lines = "\n  ".join(reasons)
    return PlanError(f"The runtime '{runtime}' cannot run {request.id} as requested; nothing was started:\n  {lines}")


def common_reasons(request: RunRequest, capabilities: Mapping[Capability, str]) -> Iterator[str]:
    """Yield why no runtime could run *request*, and why one with these *capabilities* cannot."""
    for capability in requested_capabilities(request):
        if capability not in capabilities:
            yield f"{capability}: this runtime does not support it; leave it out, or choose another runtime"
    if "\0" in request.script:
        yield "script: it contains a NUL character"
    elif not _is_unicode(request.script):
        yield "script: it cannot be encoded as UTF-8"
    if not request.data.is_absolute() or not request.data.is_dir():
        yield f"data folder: {request.data} is not a folder with an absolute path"
    yield from _environment_reasons(request)


def _environment_reasons(request: RunRequest) -> Iterator[str]:
    secrets = {name: value.get_secret_value() for name, value in request.secrets.items()}
    for name in sorted({EXECUTION_ID_ENV, RUN_ID_ENV} & (request.environment.keys() | secrets.keys())):
        yield f"environment: {name} is set by the runtime"
    for name in sorted(secrets.keys() & request.environment.keys()):
        yield f"environment: {name} is given twice, once as a secret"
    total = 0
    for name, value in (request.environment | secrets).items():
        reason = _variable_reason(name, value)
        if reason:
            yield f"environment: {reason}"
        total += len(name) + len(value.encode(errors="replace"))
    if total > MAX_ENVIRONMENT_BYTES:
        yield f"environment: {total} bytes in total are more than {MAX_ENVIRONMENT_BYTES}; give long values as files"


def _variable_reason(name: str, value: str) -> str | None:
    """Return why a variable cannot be passed on, or None; the message never repeats the value."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a name of a variable: use letters, digits and _, and no digit first"
    if name in _SHELL_VARIABLES or name.startswith("BASH"):
        return f"{name} belongs to the shell, which changes it; choose another name"
    if "\0" in value:
        return f"the value of {name} contains a NUL character; give it as a file"
    if not _is_unicode(value):
        return f"the value of {name} cannot be encoded as UTF-8; give it as a file"
    size = len(name) + 1 + len(value.encode())
    if size > MAX_VARIABLE_BYTES:
        return f"the value of {name} is too long ({size} bytes of at most {MAX_VARIABLE_BYTES}); give it as a file"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
