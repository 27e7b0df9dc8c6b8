"""The ledger's row types, and the conversion of an execution's documents to rows (pure functions).

A column holds less than a document: PostgreSQL's text has no NUL characters and no
lone surrogates, and integers have 64 bits. Text gets U+FFFD for such characters. A
number that does not fit is left out. The bundle always has the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from prefect_executions.executions.record import ExecutionRecord, Metrics, StagedInput
from prefect_executions.ledger.columns import EXECUTIONS, ColumnType, names
from prefect_executions.ledger.values import Columns, Stored, clean, digest_bytes, leaf_rows, metric_rows, value_columns
from prefect_executions.lifecycle.history import EntryKind, JobStatus, OutputFile, StatusEntry
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.methods.model import Method, Repository

ArchiveState = Literal["archived", "pending", "local"]
"""Sealed and archived; sealed, with the upload pending; only on this machine."""

_INT64 = range(-(2**63), 2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One execution in the ledger; its fields are the columns `columns.EXECUTIONS`.

    `first_known` is the time of creation or, if that was not observed, of the first
    observed status. `manifest_sha256` is None until the execution is sealed.
    """

    id: str
    method_id: str
    method_version: str
    method_type: str | None
    status: Status
    reason: Reason | None
    first_known: datetime
    created: datetime | None
    scheduled: datetime | None
    started: datetime | None
    finished: datetime | None
    updated: datetime
    duration: timedelta | None
    attempt: int | None
    agent: str | None
    infrastructure: str
    work_pool: str | None
    worker: str | None
    hostname: str | None
    flow_run_name: str | None
    deployment_id: str | None
    deployment_name: str | None
    code_commit: str | None
    code_branch: str | None
    code_remote: str | None
    """The URL of ``origin``, without credentials."""
    code_author: str | None
    code_subject: str | None
    code_dirty: bool | None
    code_sha256: str | None
    python_version: str | None
    gpu: str | None
    """The name of the first visible GPU."""
    gpu_driver: str | None
    cuda_version: str | None
    cpu: timedelta | None
    """The CPU time of all attempts."""
    memory: int | None
    """The largest amount of memory, in bytes."""
    message: str | None
    progress: int | None
    partial: bool | None
    cached_from: str | None
    archive: ArchiveState
    manifest_sha256: str | None
    imported: datetime | None = None
    """When the execution was imported, or None if it was not."""
    origin: str | None = None
    """Where the execution was imported from."""
    signed: bool | None = None
    """Whether the seal is signed, by any key; None until the execution is sealed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One version of a Method, as described by its newest execution.

    `descriptor` is the text of that execution's ``method.json``; `sha256` is its digest.
    """

    id: str
    version: str
    title: str
    type: str | None
    description: str | None
    descriptor: str
    sha256: str
    first_seen: datetime
    last_seen: datetime
    executions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of rows, newest first, and the cursor of the next page, or None on the last page."""

    rows: tuple[Row, ...]
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """The execution `id` refers to another execution as its `relation`, such as its parent."""

    id: str
    relation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEdge:
    """A file that is an output of one execution and an input of another, matched by digest."""

    id: str
    """The other execution."""
    output: str
    input: str
    sha256: str


class AnnotationRow(NamedTuple):
    """An annotation of an execution; the fields are in the order of the columns."""

    kind: str
    text: str
    time: datetime
    agent: str | None
    signer: str | None
    """The key id that its signature claims."""
    sha256: str
    """The digest of its stored form."""

    def columns(self) -> Columns:
        """Return the values of the columns."""
        agent, signer = _text(self.agent), _text(self.signer)
        return clean(self.kind), clean(self.text), micros_of(self.time), agent, signer, digest_bytes(self.sha256)


def in_order(rows: Iterable[Columns]) -> list[Columns]:
    """Return the columns of annotations without repetitions, in the order of their times, then of their digests."""
    unique = {row[-1]: row for row in rows}
    return sorted(unique.values(), key=lambda row: (row[2], row[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrigin:
    """When and from where an execution was imported."""

    at: datetime
    origin: str


ROW_COLUMNS = names(EXECUTIONS)
_DIGESTS = {column.name for column in EXECUTIONS if column.type is ColumnType.DIGEST}


def micros_of(time: datetime) -> int:
    """Return *time* as microseconds since 1970 in UTC, without rounding."""
    return (time - _EPOCH) // _MICROSECOND


def time_of(micros: int) -> datetime:
    """Return the time that `micros_of` stored, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def stored(value: object) -> Stored:
    """Return the column value of a member of a row."""
    if isinstance(value, datetime):
        return micros_of(value)
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a column cannot hold a {type(value).__name__}")


def stored_row(row: Row) -> tuple[Stored, ...]:
    """Return *row* as the values of the columns `ROW_COLUMNS`."""
    return tuple(
        digest_bytes(getattr(row, column.name))
        if column.type is ColumnType.DIGEST
        else stored(getattr(row, column.name))
        for column in EXECUTIONS
    )


_BY_TYPE: dict[ColumnType, Callable[[Any], object]] = {
    ColumnType.TIME: time_of,
    ColumnType.DURATION: lambda micros: timedelta(microseconds=micros),
    ColumnType.TRUTH: bool,
    ColumnType.DIGEST: bytes.hex,
}
_CONVERTERS: dict[str, Callable[[Any], object]] = {
    "status": Status,
    "reason": Reason,
    **{column.name: _BY_TYPE[column.type] for column in EXECUTIONS if column.type in _BY_TYPE},
}


def read_row(columns: Sequence[Any]) -> Row:
    """Return the row with the values *columns* of `ROW_COLUMNS`."""
    members: dict[str, Any] = dict(zip(ROW_COLUMNS, columns, strict=True))
    for name, convert in _CONVERTERS.items():
        if members[name] is not None:
            members[name] = convert(members[name])
    return Row(**members)


def method_row(columns: tuple[Any, ...]) -> MethodRow:
    """Return the row of a Method with the columns of `queries.DESCRIPTORS`."""
    method_id, version, title, kind, description, descriptor, sha256, first_seen, last_seen, count = columns
    return MethodRow(
        id=method_id,
        version=version,
        title=title,
        type=kind,
        description=description,
        descriptor=descriptor,
        sha256=sha256,
        first_seen=time_of(first_seen),
        last_seen=time_of(last_seen),
        executions=count,
    )


def merge_rows(left: MethodRow, right: MethodRow) -> MethodRow:
    """Merge two descriptors of the same version into one row; the newer descriptor wins."""
    newer = max(left, right, key=lambda row: (row.last_seen, row.sha256))
    return replace(
        newer,
        first_seen=min(left.first_seen, right.first_seen),
        executions=left.executions + right.executions,
    )


class MethodEntry(NamedTuple):
    """A row of the table ``methods``; the fields are in the order of its columns."""

    sha256: str
    id: str
    version: str
    title: str
    type: str | None
    description: str | None
    descriptor: str


class LedgerEntry(NamedTuple):
    """All rows of one execution; `parts` has the rows by table, without execution and position."""

    method: MethodEntry
    row: Row
    parts: Mapping[str, list[Columns]]


def ledger_entry(
    record: ExecutionRecord,
    *,
    archive: ArchiveState,
    manifest_sha256: str | None,
    imported: ImportOrigin | None = None,
    signed: bool | None = None,
    annotations: Iterable[AnnotationRow] = (),
) -> LedgerEntry:
    """Return the rows of *record*; equal arguments give equal rows."""
    job_status, request = record.job_status, record.request
    metrics = record.metrics or Metrics()
    return LedgerEntry(
        method=_method(record.method),
        row=replace(_row(record, archive, manifest_sha256, imported), signed=signed),
        parts={
            "inputs": [value_columns(name, value) for name, value in request.values.items()],
            "leaves": leaf_rows({"params": metrics.params, "inputs": request.values}),
            "input_files": [_input_file(file) for file in request.files],
            "outputs": [_output(file) for file in job_status.outputs],
            "params": [value_columns(name, value) for name, value in metrics.params.items()],
            "metrics": list(metric_rows(metrics.metrics)),
            "history": [_history(entry) for entry in job_status.history],
            "tags": [(clean(tag),) for tag in request.tags],
            "annotations": in_order(row.columns() for row in annotations),
            "relatives": [(clean(other.execution_id), other.relation) for other in request.relatives],
        },
    )


def _method(method: Method) -> MethodEntry:
    descriptor = method.to_json()
    return MethodEntry(
        sha256=sha256(descriptor).hexdigest(),
        id=clean(method.id),
        version=clean(method.version),
        title=clean(method.title),
        type=_text(method.type),
        description=_text(method.description),
        descriptor=descriptor.decode(),
    )


def _row(
    record: ExecutionRecord, archive: ArchiveState, manifest_sha256: str | None, imported: ImportOrigin | None
) -> Row:
    job_status, request, infrastructure = record.job_status, record.request, record.infrastructure
    code, instance = record.method.code, record.instance
    repository = (code.repository if code else None) or Repository()
    gpu, usage = instance.gpus[0] if instance.gpus else None, instance.usage
    times = dict(_first_times(job_status))
    started, finished = job_status.started, job_status.finished
    return Row(
        id=clean(record.id),
        method_id=clean(record.method.id),
        method_version=clean(record.method.version),
        method_type=_text(record.method.type),
        status=record.status,
        reason=job_status.reason,
        first_known=job_status.created or next(iter(times.values()), job_status.updated),
        created=job_status.created,
        scheduled=times.get(Status.SCHEDULED),
        started=started,
        finished=finished,
        updated=job_status.updated,
        duration=finished - started if started and finished else None,
        attempt=_int64(job_status.attempt),
        agent=_text(record.agent.name),
        infrastructure=clean(infrastructure.type),
        work_pool=_text(infrastructure.work_pool),
        worker=_text(infrastructure.worker),
        hostname=_text(instance.hostname),
        flow_run_name=_text(request.flow_run_name),
        deployment_id=str(request.deployment.id) if request.deployment else None,
        deployment_name=_text(request.deployment.name) if request.deployment else None,
        code_commit=_text(repository.commit),
        code_branch=_text(repository.branch),
        code_remote=_text(repository.remote),
        code_author=_text(repository.author),
        code_subject=_text(repository.subject),
        code_dirty=repository.dirty,
        code_sha256=_text(code.sha256) if code else None,
        python_version=_text(instance.python.version) if instance.python else None,
        gpu=_text(gpu.name) if gpu else None,
        gpu_driver=_text(gpu.driver) if gpu else None,
        cuda_version=_text(gpu.cuda) if gpu else None,
        cpu=_seconds(usage.cpu_seconds) if usage else None,
        memory=_int64(usage.peak_memory) if usage and usage.peak_memory is not None else None,
        message=_text(job_status.message),
        progress=job_status.progress,
        partial=job_status.partial,
        cached_from=_text(job_status.cached_from),
        archive=archive,
        manifest_sha256=manifest_sha256,
        imported=imported.at if imported else None,
        origin=clean(imported.origin) if imported else None,
    )


def _first_times(job_status: JobStatus) -> Iterator[tuple[Status, Any]]:
    seen: set[Status] = set()
    for entry in job_status.history:
        if entry.kind is EntryKind.STATUS and entry.status not in seen:
            seen.add(entry.status)
            yield entry.status, entry.time


def _input_file(file: StagedInput) -> Columns:
    digest, size = digest_bytes(file.sha256), _int64(file.size)
    return clean(file.input), clean(file.name), digest, size, clean(file.origin), clean(file.media_type)


def _output(file: OutputFile) -> Columns:
    return clean(file.path), digest_bytes(file.sha256), _int64(file.size), clean(file.media_type)


def _history(entry: StatusEntry) -> Columns:
    state = entry.prefect_state
    return (
        entry.kind.value,
        entry.status.value,
        micros_of(entry.time),
        entry.observer.value,
        _int64(entry.attempt),
        clean(state.type) if state else None,
        clean(state.name) if state else None,
        str(state.id) if state and state.id else None,
        entry.reason.value if entry.reason else None,
        entry.progress,
        _text(entry.message),
    )


def _text(text: str | None) -> str | None:
    return None if text is None else clean(text)


_MOST_SECONDS = 2**63 / 1e6 / 2


def _seconds(seconds: float | None) -> timedelta | None:
    """Return a duration; None for NaN, and for one that the column cannot hold."""
    return timedelta(seconds=seconds) if seconds is not None and 0 <= seconds < _MOST_SECONDS else None


def _int64(number: int) -> int | None:
    return number if number in _INT64 else None
