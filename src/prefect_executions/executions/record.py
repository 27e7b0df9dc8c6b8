"""The record of an execution: the models of its JSON documents, and the table of all documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self
from uuid import UUID

from pydantic import Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from prefect_executions.documents import ArchiveDocument, Document, Part, Time, canonical_json
from prefect_executions.errors import BundleError
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import Method
from prefect_executions.settings import ArchiveLevel

NAMESPACE = "https://w3id.org/prefect-executions/"
"""The prefix of every URI that this package gives to an execution or a Method."""


class StagedInput(Part):
    """A file that was staged for an input before the Method started.

    `path` is relative to the bundle; it is absent if the input is recorded by reference. `origin` has no credentials.
    """

    input: str
    name: str
    """The original file name."""
    path: str | None = None
    origin: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    media_type: str
    etag: str | None = None


class Relative(Part):
    """A link to another execution."""

    execution_id: str
    relation: Literal["parent", "rerun-of", "edited-rerun-of", "retry-of"]
    """A ``rerun-of`` has the inputs of the other execution, an ``edited-rerun-of`` has changed inputs."""

    @property
    def tag(self) -> str:
        """The tag that links a requested flow run to the other execution."""
        return f"{self.relation}:{self.execution_id}"


_RERUN_TAG = re.compile(r"(rerun-of|edited-rerun-of):(\S+)")


def relatives_from_tags(tags: Iterable[str]) -> tuple[Relative, ...]:
    """Return the executions that a flow run with *tags* reruns; other tags are ignored."""
    matches = filter(None, map(_RERUN_TAG.fullmatch, tags))
    return tuple(Relative.model_validate({"relation": match[1], "execution_id": match[2]}) for match in matches)


class Deployment(Part):
    """The Prefect deployment that the request went through."""

    id: UUID
    name: str | None = None


RerunSource = Literal["caller", "default"]
"""Where a rerun gets an input that the record cannot supply: from its caller, or from the Method's default."""


class ExecuteRequest(Document):
    """The request: an OGC ``execute`` document, and the parameters that Prefect was sent.

    `values` are the validated values of all inputs, with defaults, taken inside the
    run; the value of a file is its URL or path. `inputs` are these values in the form of
    OGC API Processes 1.0; they follow from `values` and `files` (`as_ogc`). `parameters`
    are the raw parameters. A secret is recorded as its reference or as withheld, never
    as its value.
    """

    file_name: ClassVar[str] = "metadata/request.json"

    inputs: dict[str, Any] = {}
    """Writers leave this out: it is computed from `values`. Readers refuse other inputs."""
    values: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    response: Literal["raw", "document"] = "document"
    execution_id: str
    method_id: str
    method_version: str
    parameters: dict[str, Any] = {}
    validated: bool = True
    """False if Prefect could not validate the parameters; `inputs` are then the raw parameters."""
    files: tuple[StagedInput, ...] = ()
    rerun: dict[str, RerunSource] | None = None
    """The inputs whose recorded value would not give the Method the same value again; absent if there are none."""
    archive: ArchiveLevel = ArchiveLevel.FULL
    relatives: tuple[Relative, ...] = ()
    flow_run_name: str | None = None
    deployment: Deployment | None = None
    tags: tuple[str, ...] = ()
    created_by: dict[str, str] | None = None
    """What created the flow run, from Prefect: the type, id and name of a schedule or automation."""

    @model_validator(mode="before")
    @classmethod
    def _compute_inputs(cls, members: Any) -> Any:
        if isinstance(members, dict) and "inputs" not in members:
            files = tuple(StagedInput.model_validate(file) for file in members.get("files", ()))
            return {"inputs": as_ogc(members.get("values", {}), files), **members}
        return members

    @model_validator(mode="after")
    def _inputs_agree(self) -> Self:
        if self.inputs != as_ogc(self.values, self.files):
            raise ValueError("inputs do not match values and files")
        return self


def as_ogc(values: Mapping[str, Any], files: Sequence[StagedInput]) -> dict[str, Any]:
    """Return input values in a form that is valid in OGC API Processes 1.0, schema ``execute``.

    A file is a link. An object or array is wrapped in ``value``. A string or integer
    becomes a list of one occurrence: as a bare value it is invalid, because it matches
    two branches of the schema's ``oneOf``. Null has no form, so the input is left out.
    """
    links: dict[str, list[dict[str, str]]] = {}
    for file in files:
        links.setdefault(file.input, []).append({"href": file.origin, "type": file.media_type})
    inputs: dict[str, Any] = {}
    for name, value in values.items():
        if name in links:
            inputs[name] = links[name][0] if len(links[name]) == 1 else {"value": links[name]}
        elif isinstance(value, bool | float):
            inputs[name] = value
        elif isinstance(value, str | int):
            inputs[name] = [value]
        elif value is not None:
            inputs[name] = {"value": value}
    return inputs


def keep_files(request: ExecuteRequest, paths: Container[str]) -> ExecuteRequest:
    """Return *request* with the staged inputs at *paths*; the other inputs keep only origin and digest."""
    members = request.model_dump(exclude={"inputs"}, by_alias=False)
    files = [file if file.path in paths else file.model_copy(update={"path": None}) for file in request.files]
    return ExecuteRequest(**members | {"files": files})


class Infrastructure(Document):
    """The infrastructure of the execution, as the worker and the platform reported it."""

    file_name: ClassVar[str] = "metadata/infrastructure.json"

    type: str
    """``direct`` (called in a process), ``serve``, or the type of the work pool."""
    work_pool: str | None = None
    work_queue: str | None = None
    worker: str | None = None
    worker_id: str | None = None
    image: str | None = None
    image_digest: str | None = None
    """The image's digest in its registry; absent if it was not pulled from a registry."""
    image_id: str | None = None
    """The digest of the image's configuration: the image id of a container engine."""
    job_variables: dict[str, Any] = {}
    identifier: str | None = None
    """Prefect's infrastructure id: a pid, ``<docker host>:<container id>`` or ``<namespace>:<job>``."""
    prefect_version: str | None = None
    prefect_api: str | None = None


class Gpu(Part):
    """A GPU that was visible to the run; memory in bytes; `cuda` is the newest version that the driver supports."""

    name: str
    uuid: str | None = None
    memory: int | None = None
    driver: str | None = None
    cuda: str | None = None


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


class Returned(Part):
    """The value that the Method's function returned: its JSON, without secrets, or the beginning of its text."""

    type: str
    value: Any = None
    text: str | None = None


class Usage(Part):
    """The resource usage of all attempts together, in seconds and bytes, and how the last attempt ended."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    exit_code: int | None = None
    exception: Raised | None = None
    returned: Returned | None = None


class Process(Part):
    """The identity of a process; a pid alone is not unique, because the system reuses it.

    `boot` identifies the machine's boot, `pids` the PID namespace (a container has its
    own), `started` is the start time in the system's notation. `layout` is a digest of
    the program's memory layout, which is randomized at its start: only its forks share it.
    """

    host: str | None = None
    boot: str | None = None
    pids: str | None = None
    pid: int
    started: str | None = None
    layout: str | None = None


class ScriptRun(Part):
    """One run of a descriptor Method's scripts: its end, and where the machine or container engine says it ran."""

    id: str
    """The runtime's id of the run."""
    task: str
    """The task id of the replica."""
    runtime: str
    process: Process | None = None
    job: dict[str, str] | None = None
    """Where a batch system ran it, in that system's terms: job id, partition, array index."""
    container: str | None = None
    node: str | None = None
    image: str | None = None
    """The image id: the digest of the image's configuration."""
    image_name: str | None = None
    """The requested name of the image."""
    image_digest: str | None = None
    """The image's digest in its registry, ``repository@sha256:…``; absent if it was not pulled from a registry."""
    started: Time | None = None
    ended: Time | None = None
    exit_code: int | None = None
    why: str | None = None
    """The reason for the end if the exit code does not show it, for example the time limit."""
    cpu_seconds: float | None = None
    peak_memory: int | None = None


class PackageOrigin(Part):
    """Where a package was installed from that came from no package index (PEP 610), without credentials."""

    url: str
    editable: bool | None = None


class Instance(Document):
    """Where the execution ran: host, process or container, system, Python, packages, usage."""

    file_name: ClassVar[str] = "metadata/instance.json"

    hostname: str | None = None
    pid: int | None = None
    process: Process | None = None
    own_process: bool | None = None
    """True if the process was started for this execution only, so that it may be killed with it."""
    earlier_processes: tuple[Process, ...] | None = None
    """Processes of earlier attempts, each started for this execution only; their `layout` identifies their forks."""
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
    package_origins: dict[str, PackageOrigin] | None = None
    """The `packages` that came from no package index: from a folder, a file, a repository or another address."""
    environment: dict[str, str] = {}
    usage: Usage | None = None
    runs: tuple[ScriptRun, ...] | None = None
    """The runs of a descriptor Method's scripts, in the order of their ends; absent if there are none."""


class Metric(Part):
    """A number that the Method logged."""

    name: str
    value: Annotated[
        int | float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]})
    ]
    step: int | None = None
    time: Time


class Metrics(Document):
    """The parameters and metrics that the Method logged, typed."""

    file_name: ClassVar[str] = "metadata/metrics.json"

    params: dict[str, Any] = {}
    metrics: tuple[Metric, ...] = ()


class Agent(Document):
    """The requester. Claims come from a verified token or from the system; the token itself is never recorded."""

    file_name: ClassVar[str] = "auth/jwt.json"

    verified: bool = False
    source: Literal["token", "setting", "system", "prefect"] = "system"
    """Where the name comes from: a token, EXECUTIONS_AGENT, the operating system's user, or Prefect."""
    claims: dict[str, Any] = {}
    token_sha256: str | None = None

    @property
    def name(self) -> str | None:
        """The subject's name, if known."""
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
"""The documents that every record has, by their fields in `ExecutionRecord`, in the bundle's order.

Add a new document to this table or to `OPTIONAL`, and as a field to `ExecutionRecord`.
"""

OPTIONAL: dict[str, type[Document]] = {"metrics": Metrics}
"""The documents that a record has only if there is something to record."""

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
            BundleError: If a document is missing, invalid, or of another format than the others; the message names it.
        """
        missing = [kind.file_name for kind in REQUIRED.values() if kind.file_name not in documents]
        if missing:
            raise BundleError(f"the record has no {', '.join(missing)}")
        record = cls.read(lambda kind: kind.from_json(documents[kind.file_name]), documents.__contains__)
        for fault in mixed_formats(document for document in record.documents().values() if document):
            raise BundleError(fault)
        return record

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
    def format(self) -> int:
        """The bundle format of the documents, which decides what PROV and crate contain."""
        return self.job_status.format

    @property
    def status(self) -> Status:
        return self.job_status.execution_status

    @property
    def started(self) -> datetime | None:
        return self.job_status.started

    @property
    def finished(self) -> datetime | None:
        return self.job_status.finished


def mixed_formats(documents: Iterable[Document]) -> Iterator[str]:
    """Yield one sentence for each of *documents* whose format differs from that of `jobStatus.json`."""
    formats = {document.file_name: document.format for document in documents}
    expected = formats.get(JobStatus.file_name)
    for name, number in formats.items():
        if expected is not None and number != expected:
            yield f"{name} has format {number}; {JobStatus.file_name} has format {expected}"


class BundleFile(NamedTuple):
    """A file of a bundle: its path there, SHA-256 in hex, and size in bytes."""

    path: str
    sha256: str
    size: int


def run_name(execution_id: str) -> str:
    """Return the name of an execution in `NAMESPACE`: an XML NCName and a URI segment for any id."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", execution_id):
        return f"run.{execution_id}"
    return f"run.{value_digest(execution_id)[:32]}"


def method_name(method: Method) -> str:
    """Return the name of a Method in `NAMESPACE`; it depends on the Method's version and code."""
    return f"method.{value_digest([method.id, method.version, method.code and method.code.sha256])[:32]}"


def value_digest(value: object) -> str:
    """Return the SHA-256 of a JSON value's canonical form."""
    return sha256(canonical_json(value)).hexdigest()


class OpeningRecord(ArchiveDocument):
    """The record before user code runs, as one object in the archive.

    If the worker dies, settle can seal the execution from it without the worker's disk.
    """

    file_name: ClassVar[str] = "opening.json"

    method: Method
    request: ExecuteRequest
    infrastructure: Infrastructure
    instance: Instance
    job_status: JobStatus
    agent: Agent
    code: dict[str, str] = {}
    """The Method's source files, by their paths in the bundle."""

    @classmethod
    def of(cls, record: ExecutionRecord, *, code: Mapping[str, str] | None = None) -> OpeningRecord:
        """Return the opening record of *record*."""
        return cls(**{name: getattr(record, name) for name in REQUIRED}, code=dict(code or {}))

    @classmethod
    def of_execution(cls, execution_id: str, data: bytes) -> OpeningRecord:
        """Read the opening record of an execution.

        Raises:
            BundleError: If it is damaged or belongs to another execution.
        """
        opening = cls.from_json(data)
        if opening.job_status.job_id != execution_id:
            raise BundleError(f"{cls.file_name} of {execution_id} is that of {opening.job_status.job_id}")
        return opening

    def record(self) -> ExecutionRecord:
        """Return the record at its opening."""
        return ExecutionRecord(**{name: getattr(self, name) for name in REQUIRED})
