"""The record of an execution: its documents as values."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self
from uuid import UUID

from pydantic import Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from prefect_executions.documents import Document, Part, Time, canonical
from prefect_executions.errors import BundleError
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import Method
from prefect_executions.settings import ArchiveLevel

NAMESPACE = "https://w3id.org/prefect-executions/"
"""The beginning of every URI that this package gives to an execution or a Method."""


class StagedInput(Part):
    """A file that was staged for an input before the Method started.

    `path` is relative to the bundle when the copy is kept there, and absent when
    the input is kept by reference. `origin` carries no credentials.
    """

    input: str
    name: str
    """The file's own name, as it came."""
    path: str | None = None
    origin: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    media_type: str
    etag: str | None = None


class Relative(Part):
    """Another execution that this one is linked to."""

    execution_id: str
    relation: Literal["parent", "rerun-of", "edited-rerun-of", "retry-of"]
    """A ``rerun-of`` was asked for with the same inputs, an ``edited-rerun-of`` with other ones."""

    @property
    def tag(self) -> str:
        """The tag of a flow run by which who asks for it links it."""
        return f"{self.relation}:{self.execution_id}"


_ASKED_AGAIN = re.compile(r"(rerun-of|edited-rerun-of):(\S+)")


def tagged(tags: Iterable[str]) -> tuple[Relative, ...]:
    """Return the executions that a flow run with *tags* runs again; tags that say anything else are none of it."""
    found = (_ASKED_AGAIN.fullmatch(tag) for tag in tags)
    return tuple(Relative.model_validate({"relation": one[1], "execution_id": one[2]}) for one in found if one)


class Deployment(Part):
    """The Prefect deployment that the request went through."""

    id: UUID
    name: str | None = None


class ExecuteRequest(Document):
    """What was asked for: an OGC ``execute`` document and what Prefect was sent.

    `values` are the validated values of all inputs, with defaults filled in, taken
    inside the run; a file is told by its URL or path. `inputs` are the same as OGC
    API Processes 1.0 writes them, and follow from `values` and `files` (`as_ogc`).
    `parameters` are the raw ones that were sent. A secret is told by the name it was
    resolved from, or as withheld; never by its value.
    """

    file_name: ClassVar[str] = "metadata/request.json"

    inputs: dict[str, Any] = {}
    """Left out by a writer: it is filled in from `values`; a reader refuses one that differs."""
    values: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    response: Literal["raw", "document"] = "document"
    execution_id: str
    method_id: str
    method_version: str
    parameters: dict[str, Any] = {}
    validated: bool = True
    """False when Prefect could not validate the parameters, so that `inputs` are only what was sent."""
    files: tuple[StagedInput, ...] = ()
    archive: ArchiveLevel = ArchiveLevel.FULL
    relatives: tuple[Relative, ...] = ()
    flow_run_name: str | None = None
    deployment: Deployment | None = None
    tags: tuple[str, ...] = ()
    created_by: dict[str, str] | None = None
    """What Prefect says created the flow run: the type, id and name of a schedule or automation."""

    @model_validator(mode="before")
    @classmethod
    def _write_as_ogc(cls, told: Any) -> Any:
        if isinstance(told, dict) and "inputs" not in told:
            files = tuple(StagedInput.model_validate(file) for file in told.get("files", ()))
            return {"inputs": as_ogc(told.get("values", {}), files), **told}
        return told

    @model_validator(mode="after")
    def _tells_one_request(self) -> Self:
        if self.inputs != as_ogc(self.values, self.files):
            raise ValueError("inputs do not say what values and files say")
        return self


def as_ogc(values: Mapping[str, Any], files: Sequence[StagedInput]) -> dict[str, Any]:
    """Return input values as OGC API Processes 1.0, schema ``execute``, accepts them to the letter.

    A file is a link. An object or array is wrapped in ``value``. A string or an
    integer is a list of one occurrence, because as a bare value it matches two
    branches of the schema's ``oneOf`` and is refused. Null has no form there: such
    an input is left out, as one that was not given.
    """
    links: dict[str, list[dict[str, str]]] = {}
    for file in files:
        links.setdefault(file.input, []).append({"href": file.origin, "type": file.media_type})
    told: dict[str, Any] = {}
    for name, value in values.items():
        if name in links:
            told[name] = links[name][0] if len(links[name]) == 1 else {"value": links[name]}
        elif isinstance(value, bool | float):
            told[name] = value
        elif isinstance(value, str | int):
            told[name] = [value]
        elif value is not None:
            told[name] = {"value": value}
    return told


def kept_files(request: ExecuteRequest, paths: Container[str]) -> ExecuteRequest:
    """Return *request* with only the staged inputs at *paths* kept; the others are told by origin and digest alone."""
    told = request.model_dump(exclude={"inputs"}, by_alias=False)
    told["files"] = [file if file.path in paths else file.model_copy(update={"path": None}) for file in request.files]
    return ExecuteRequest(**told)


class Infrastructure(Document):
    """What the execution was assigned to; only what the worker and the platform really said."""

    file_name: ClassVar[str] = "metadata/infrastructure.json"

    type: str
    """``direct`` (called in a process), ``serve``, or the type of the work pool."""
    work_pool: str | None = None
    work_queue: str | None = None
    worker: str | None = None
    worker_id: str | None = None
    image: str | None = None
    image_digest: str | None = None
    """The digest under which the registry has the image; one that came from no registry has none."""
    image_id: str | None = None
    """The digest of the image's configuration, by which an engine knows it."""
    job_variables: dict[str, Any] = {}
    identifier: str | None = None
    """Prefect's infrastructure id: a pid, ``<docker host>:<container id>`` or ``<namespace>:<job>``."""
    prefect_version: str | None = None
    prefect_api: str | None = None


class Gpu(Part):
    """A GPU that was visible to the run; memory in bytes."""

    name: str
    uuid: str | None = None
    memory: int | None = None
    driver: str | None = None


class Python(Part):
    """The interpreter."""

    version: str
    implementation: str
    executable: str | None = None


class Raised(Part):
    """The exception that ended the Method's code."""

    type: str
    message: str
    traceback: str


class Usage(Part):
    """What all attempts of the execution used together, in seconds and bytes, and how the last one ended."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    exit_code: int | None = None
    exception: Raised | None = None


class Process(Part):
    """A process, told so that no other can be taken for it: a pid is given again when its process is gone.

    `boot` is the machine's boot, `pids` the namespace that `pid` is counted in (a
    container has its own), `started` the start of the process in the system's own words.
    `layout` is a digest of where its program lies in memory, drawn by lot at its start:
    what it forks shares it, and nothing else does.
    """

    host: str | None = None
    boot: str | None = None
    pids: str | None = None
    pid: int
    started: str | None = None
    layout: str | None = None


class ScriptRun(Part):
    """One run of a descriptor Method's scripts: where it really was, as the machine or the engine says, and its end."""

    id: str
    """The id by which the runtime finds it."""
    task: str
    """The task id of the replica."""
    runtime: str
    process: Process | None = None
    job: dict[str, str] | None = None
    """Where a batch system ran it, in that system's terms: job id, partition, array index."""
    container: str | None = None
    node: str | None = None
    image: str | None = None
    """The image's own id: the digest of its configuration."""
    image_name: str | None = None
    """The name by which the image was asked for."""
    image_digest: str | None = None
    """``repository@sha256:…``, as a registry knows the image; absent when it came from none."""
    started: Time | None = None
    ended: Time | None = None
    exit_code: int | None = None
    why: str | None = None
    """What the exit code does not say, for example that the time limit ended it."""
    cpu_seconds: float | None = None
    peak_memory: int | None = None


class Instance(Document):
    """Where it really ran: host, process or container, system, Python, packages, usage."""

    file_name: ClassVar[str] = "metadata/instance.json"

    hostname: str | None = None
    pid: int | None = None
    process: Process | None = None
    own_process: bool | None = None
    """True when the process was started for this execution alone, so that it may be ended with it."""
    earlier_processes: tuple[Process, ...] | None = None
    """Processes that it ran in before, each started for it alone, as far as their forks are known by their layout."""
    user: str | None = None
    working_directory: str | None = None
    container_id: str | None = None
    pod: str | None = None
    node: str | None = None
    os: str | None = None
    kernel: str | None = None
    architecture: str | None = None
    cpu_model: str | None = None
    cpu_count: int | None = None
    memory: int | None = None
    gpus: tuple[Gpu, ...] = ()
    python: Python | None = None
    packages: dict[str, str] = {}
    environment: dict[str, str] = {}
    usage: Usage | None = None
    runs: tuple[ScriptRun, ...] | None = None
    """The runs of a descriptor Method's scripts, in the order in which they ended; absent where there are none."""


class Metric(Part):
    """A number that the Method logged."""

    name: str
    value: Annotated[
        int | float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]})
    ]
    step: int | None = None
    time: Time


class Metrics(Document):
    """What the Method logged of itself: parameters and metrics, typed."""

    file_name: ClassVar[str] = "metadata/metrics.json"

    params: dict[str, Any] = {}
    metrics: tuple[Metric, ...] = ()


class Agent(Document):
    """Who asked. Claims are those of a verified token, or what the system itself says; never a token."""

    file_name: ClassVar[str] = "auth/jwt.json"

    verified: bool = False
    source: Literal["token", "setting", "system", "prefect"] = "system"
    """Where the name comes from: a token, EXECUTIONS_AGENT, the operating system's user, or Prefect."""
    claims: dict[str, Any] = {}
    token_sha256: str | None = None

    @property
    def name(self) -> str | None:
        """The subject's name, if anything said one."""
        subject = self.claims.get("name") or self.claims.get("sub")
        return str(subject) if subject else None


REQUIRED: dict[str, type[Document]] = {
    "agent": Agent,
    "method": Method,
    "request": ExecuteRequest,
    "infrastructure": Infrastructure,
    "instance": Instance,
    "job_status": JobStatus,
}
"""The documents that every record has, by their fields in `ExecutionRecord`, in the bundle's order."""

OPTIONAL: dict[str, type[Document]] = {"metrics": Metrics}
"""The documents that a record has when there is something to record."""

DOCUMENTS = REQUIRED | OPTIONAL


@dataclass(frozen=True, kw_only=True)
class ExecutionRecord:
    """The documents of one bundle as one value."""

    method: Method
    request: ExecuteRequest
    infrastructure: Infrastructure
    instance: Instance
    job_status: JobStatus
    agent: Agent
    metrics: Metrics | None = None

    @classmethod
    def read(cls, read: Callable[[type[Document]], Document], exists: Callable[[str], bool]) -> ExecutionRecord:
        """Return the record whose documents *read* returns; *exists* says which file names a bundle has."""
        optional = {name: kind for name, kind in OPTIONAL.items() if exists(kind.file_name)}
        documents: dict[str, Any] = {name: read(kind) for name, kind in (REQUIRED | optional).items()}
        return cls(**documents)

    @classmethod
    def from_json(cls, documents: Mapping[str, bytes]) -> ExecutionRecord:
        """Return the record with these *documents*, given by file name.

        Raises:
            BundleError: If a document is missing or invalid; the message names it.
        """
        missing = [kind.file_name for kind in REQUIRED.values() if kind.file_name not in documents]
        if missing:
            raise BundleError(f"the record has no {', '.join(missing)}")
        return cls.read(lambda kind: kind.from_json(documents[kind.file_name]), documents.__contains__)

    def documents(self) -> dict[str, Document | None]:
        """Return every document by its name in JSON, in the bundle's order; None for one that the record lacks."""
        return {to_camel(name): getattr(self, name) for name in DOCUMENTS}

    def to_json(self) -> dict[str, bytes]:
        """Return the documents as JSON, by file name."""
        return {document.file_name: document.to_json() for document in self.documents().values() if document}

    @property
    def id(self) -> str:
        return self.job_status.job_id

    @property
    def status(self) -> Status:
        return self.job_status.execution_status

    @property
    def started(self) -> datetime | None:
        return self.job_status.started

    @property
    def finished(self) -> datetime | None:
        return self.job_status.finished


class BundleFile(NamedTuple):
    """A file of a bundle: its path there, SHA-256 in hex, and size in bytes."""

    path: str
    sha256: str
    size: int


def run_name(execution_id: str) -> str:
    """Return the name of an execution after `NAMESPACE`: an XML NCName and a URI segment, whatever the id is."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", execution_id):
        return f"run.{execution_id}"
    return f"run.{value_digest(execution_id)[:32]}"


def method_name(method: Method) -> str:
    """Return the name of a Method after `NAMESPACE`; another version or other code has another name."""
    return f"method.{value_digest([method.id, method.version, method.code and method.code.sha256])[:32]}"


def value_digest(value: object) -> str:
    """Return the SHA-256 of a JSON value's canonical form."""
    return sha256(canonical(value)).hexdigest()


class OpeningRecord(Document):
    """All that is known when user code is about to run, as one object for the archive.

    A worker that dies leaves it, so that the execution can be sealed without the worker's disk.
    """

    file_name: ClassVar[str] = "opening.json"

    method: Method
    request: ExecuteRequest
    infrastructure: Infrastructure
    instance: Instance
    job_status: JobStatus
    agent: Agent
    code: dict[str, str] = {}
    """The Method's own files, by their places in the bundle, so that they are not lost with the worker's disk."""

    @classmethod
    def of(cls, record: ExecutionRecord, *, code: Mapping[str, str] | None = None) -> OpeningRecord:
        """Return the opening record of *record*."""
        return cls(**{name: getattr(record, name) for name in REQUIRED}, code=dict(code or {}))

    def record(self) -> ExecutionRecord:
        """Return the record that this one opened."""
        return ExecutionRecord(**{name: getattr(self, name) for name in REQUIRED})
