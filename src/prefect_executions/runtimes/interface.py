"""A run while it runs and after it: its status, its end, its logs; and the one interface of all runtimes.

What a runtime is asked to run, and the plan that it makes of it: values, to be read before anything is started.

Law: a plan says all that will happen and no secret. A runtime that cannot do
what was asked refuses it; nothing is ever left out in silence.

What is refused before anything is started, with all reasons at once.
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
from prefect_executions.documents import Part, Time, canonical
from prefect_executions.errors import NameRefusedError, PlanError
from prefect_executions.executions.record import Process

DATA = "/ccp_data"
"""Where a container sees the data folder (CCP's contract with its scripts)."""

RUN_ID_ENV = "EXECUTION_RUN"
"""The environment variable that all processes of one run inherit: the id of the run."""

LABEL_PREFIX = "prefect-executions"
"""The beginning of the names of all labels."""

RUN_LABEL = f"{LABEL_PREFIX}.run"
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
        return check_run_id(name)


@dataclass(frozen=True, slots=True)
class SharedClaim:
    """A volume claim of a cluster that this machine sees as well: *root* is the folder that the claim *name* holds."""

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


def requested_capabilities(request: RunRequest) -> Iterator[Capability]:
    """Yield what *request* asks for; the pull policy is a part of the image."""
    asked: Mapping[Capability, object] = {
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


def check_run_id(name: str) -> str:
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


GRACE = 3.0
"""Seconds that the processes of a run have to end by themselves after SIGTERM."""

StreamName = Literal["stdout", "stderr"]
STREAMS: tuple[StreamName, StreamName] = ("stdout", "stderr")


class RunStatus(StrEnum):
    """How a run stands."""

    WAITING = "waiting"
    """Made, and not begun."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """The time limit ended it."""
    LOST = "lost"
    """It runs no more, and nobody saw how it ended."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in {RunStatus.WAITING, RunStatus.RUNNING}


class Exit(Part):
    """How a run ended; what was not seen is absent.

    `code` is the script's own, or 128 and the number of the signal that ended it,
    as a shell tells it. `why` says what the code does not.
    """

    status: RunStatus
    code: int | None = None
    why: str | None = None
    started: Time | None = None
    ended: Time | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None


class RunLocation(Part):
    """Where a run really is or was, as the machine or the platform says it; nothing is taken from the request."""

    process: Process | None = None
    job: dict[str, str] | None = None
    """Where a batch system runs it, in that system's terms: job id, partition, array index."""
    container: str | None = None
    pod: str | None = None
    node: str | None = None
    image: str | None = None
    """The image's own id: the digest of its configuration."""
    image_digest: str | None = None
    """``repository@sha256:…``, as a registry knows the image; absent when it came from none."""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Some bytes of one stream, in their order; a line may be cut anywhere."""

    stream: StreamName
    data: bytes


class Run(Protocol):
    """One run of a script; any process that knows its id can have one."""

    @property
    def id(self) -> str:
        """The id that the caller gave it."""

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and when nobody saw it."""

    def status(self) -> RunStatus:
        """Return how it stands now."""

    def seen(self) -> RunLocation:
        """Return where it really is or was."""

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has.

        Raises:
            TimeoutError: If it still runs after *timeout* seconds.
            InfrastructureError: If the infrastructure is away.
        """

    def logs(self) -> Iterator[LogChunk]:
        """Yield what it has written and will write, from its beginning, until it is over and all was told."""

    def cancel(self, grace: float = GRACE) -> Exit:
        """End every process of it; return its end when none is left. One that is over stays as it ended."""

    def discard(self) -> None:
        """Forget it: end what is left of it, remove its logs and its state; again changes nothing."""


class Runtime(Protocol):
    """Runs scripts on one kind of infrastructure."""

    name: str
    capabilities: Mapping[Capability, str]
    """How it honours each wish; one that is not here is refused."""

    @classmethod
    def open(cls, options: RuntimeOptions) -> Runtime:
        """Return the runtime with *options*.

        Raises:
            RequestError: If it does not take an option.
            InfrastructureError: If the infrastructure is away.
        """

    def mount_path(self, data: Path) -> str:
        """Return how a script sees the folder *data* of the machine that asks."""

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan, and write it into the folder *into*; with an image this takes as long as its pull.

        Raises:
            PlanError: If something that is asked for cannot be honoured; all of it is told at once.
            InfrastructureError: If the infrastructure is away.
        """

    def run(self, plan: Plan) -> Run:
        """Start what *plan* says, and return at once. An id is started once and never again.

        Raises:
            PlanError: If the id was used before, or the infrastructure refuses the plan.
            InfrastructureError: If the infrastructure is away.
        """

    def find(self, run_id: str) -> Run:
        """Return the run with this id, whoever started it.

        Raises:
            NotFoundError: If there is none.
        """

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:
        """Return a name of exactly the image with this id or *digest* (``repository@sha256:…``).

        It is pulled by its digest if it is not there; None when it is not to be had. A cluster pulls when it runs it.

        Raises:
            InfrastructureError: If the infrastructure is away.
        """

    def close(self) -> None:
        """Close the connections, if there are any; runs go on."""


MAX_VARIABLE_BYTES = 128 * 1024 - 1
"""Bytes of ``NAME=value`` that Linux hands to a program (execve(2), MAX_ARG_STRLEN)."""

MAX_ENVIRONMENT_BYTES = 1536 * 1024
"""Bytes of all variables together; Linux takes a quarter of the stack's limit, which is 8 MiB nearly everywhere."""

# A shell passes on no other names, and says nothing.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What dash or bash do not pass on as it came.
_OF_THE_SHELL = frozenset(
    {"_", "PWD", "OLDPWD", "PPID", "SHLVL", "OPTIND", "OPTERR", "IFS", "PS1", "PS2", "PS4", "LINENO", "RANDOM"}
    | {"SRANDOM", "SHELLOPTS", "HISTCMD", "EPOCHSECONDS", "EPOCHREALTIME", "COMP_WORDBREAKS"}
)


def full_environment(plan: Plan) -> dict[str, str]:
    """Return all variables that the script gets from its caller, secrets too.

    Raises:
        PlanError: If the plan was read from a file, so that the values of its secrets are not there.
    """
    request = plan.request
    missing = sorted(set(plan.secret_names) - request.secrets.keys())
    if missing:
        raise refusal(plan.runtime, request, [f"secrets: no value of {', '.join(missing)} is in a plan; compile anew"])
    return plan_environment(request) | {name: value.get_secret_value() for name, value in request.secrets.items()}


def plan_environment(request: RunRequest) -> dict[str, str]:
    """Return the variables that a plan shows: those of the request, and by which the run's processes are known."""
    return request.environment | {EXECUTION_ID_ENV: request.execution_id, RUN_ID_ENV: request.id}


def refusal(runtime: str, request: RunRequest, reasons: Iterable[str]) -> PlanError:
    """Return the error that tells all *reasons*."""
    listed = "\n  ".join(reasons)
    return PlanError(f"The runtime '{runtime}' cannot run {request.id} as asked, and nothing was started:\n  {listed}")


def common_reasons(request: RunRequest, capabilities: Mapping[Capability, str]) -> Iterator[str]:
    """Yield what no runtime takes, and what the one that honours *honours* does not."""
    for wish in requested_capabilities(request):
        if wish not in capabilities:
            yield f"{wish}: this runtime has no such thing; leave it out, or choose another runtime"
    if "\0" in request.script:
        yield "script: it has a NUL character"
    elif not _is_unicode(request.script):
        yield "script: it cannot be written as UTF-8"
    if not request.data.is_absolute() or not request.data.is_dir():
        yield f"data folder: {request.data} is no folder with an absolute path"
    yield from _of_environment(request)


def _of_environment(request: RunRequest) -> Iterator[str]:
    secrets = {name: value.get_secret_value() for name, value in request.secrets.items()}
    for name in sorted({EXECUTION_ID_ENV, RUN_ID_ENV} & (request.environment.keys() | secrets.keys())):
        yield f"environment: {name} is given by the runtime"
    for name in sorted(secrets.keys() & request.environment.keys()):
        yield f"environment: {name} is given twice, once as a secret"
    together = 0
    for name, value in (request.environment | secrets).items():
        reason = _against(name, value)
        if reason:
            yield f"environment: {reason}"
        together += len(name) + len(value.encode(errors="replace"))
    if together > MAX_ENVIRONMENT_BYTES:
        yield f"environment: {together} bytes together are more than {MAX_ENVIRONMENT_BYTES}; give long values as files"


def _against(name: str, value: str) -> str | None:
    """Why a variable cannot be handed on; the message never repeats the value."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name of a variable: letters, digits and _ only, and no digit first"
    if name in _OF_THE_SHELL or name.startswith("BASH"):
        return f"{name} belongs to the shell, which changes it; choose another name"
    if "\0" in value:
        return f"the value of {name} has a NUL character; give it as a file"
    if not _is_unicode(value):
        return f"the value of {name} cannot be written as UTF-8; give it as a file"
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
