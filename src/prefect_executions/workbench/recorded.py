"""A recorded execution as Python objects: params, metrics with their series, inputs, outputs, logs, provenance.

Law: nothing is read before it is asked for, and a file is checked against its recorded digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Unpack

from prefect_executions.bundles import layout
from prefect_executions.bundles.annotations import StoredAnnotation, labels_of
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.executions.annotations import LabelArguments, LabelChange, Labels, label_changes
from prefect_executions.executions.lineage import Lineage
from prefect_executions.executions.record import ExecutionRecord, Metric, StagedInput
from prefect_executions.ledger.rows import FileEdge, Relation
from prefect_executions.lifecycle.status import Status
from prefect_executions.workbench.lineage import Impact
from prefect_executions.workbench.stored_outputs import StoredOutput

_BLOCK = 1 << 20
_RERUNS = frozenset({"rerun-of", "edited-rerun-of", "retry-of"})


class MetricPoint(NamedTuple):
    """One logged value of a metric."""

    step: int | None
    value: int | float
    time: datetime


class Links(NamedTuple):
    """The links between an execution and others in the ledger."""

    named_by: tuple[Relation, ...] = ()
    """Executions that name this one as their parent, or as the execution they run again."""
    made_from: tuple[FileEdge, ...] = ()
    """Outputs of other executions that are inputs of this one."""
    used_by: tuple[FileEdge, ...] = ()
    """Outputs of this execution that are inputs of others."""


class RecordReader(Protocol):
    """Reads the records and files of executions: the `Catalog`."""

    @property
    def scratch(self) -> Path: ...

    def record(self, execution_id: str, /) -> ExecutionRecord: ...

    def links(self, execution_id: str, /) -> Links: ...

    def outputs(self, execution_id: str, /) -> tuple[StoredOutput, ...]: ...

    def output_versions(self, method: str, name: str, /) -> tuple[str, ...]: ...

    def read(self, execution_id: str, path: str, /) -> bytes: ...

    def open(self, execution_id: str, path: str, /) -> BinaryIO: ...

    def local_file(self, execution_id: str, path: str, /) -> Path | None: ...

    def annotations(self, execution_id: str, /) -> tuple[StoredAnnotation, ...]: ...

    def add_labels(self, executions: Iterable[str], changes: Sequence[LabelChange], /) -> None: ...

    def lineage(self, target: str, /, *, up: bool, down: bool) -> Lineage: ...

    def impact(self, target: str, /) -> Impact: ...


@dataclass(frozen=True)
class RecordedMetric:
    """All values of a metric in the order in which they were logged."""

    name: str
    series: tuple[MetricPoint, ...]
    """Never empty. A DataFrame of it has the columns step, value and time."""

    def __float__(self) -> float:
        return float(self.last)

    @property
    def values(self) -> tuple[int | float, ...]:
        return tuple(point.value for point in self.series)

    @property
    def first(self) -> int | float:
        return self.series[0].value

    @property
    def last(self) -> int | float:
        return self.series[-1].value

    @property
    def min(self) -> int | float | None:
        """The smallest value that is not NaN."""
        return min(self._numbers, default=None)

    @property
    def max(self) -> int | float | None:
        """The largest value that is not NaN."""
        return max(self._numbers, default=None)

    @property
    def _numbers(self) -> Iterator[int | float]:
        return (value for value in self.values if value == value)  # noqa: PLR0124  only NaN differs from itself


@dataclass(frozen=True, kw_only=True)
class RecordedFile:
    """An input file, an output or a log of an execution: what is recorded of it, and its content."""

    execution_id: str
    name: str
    """The name of an output below ``outputs/``; the original name of an input file."""
    size: int
    media_type: str
    sha256: str | None
    """None while the execution is open."""
    origin: str | None = None
    """Where an input file came from, without credentials."""
    bundle_path: str | None = None
    """Its path in the bundle; None for an input that is recorded by reference only."""
    method: str | None = field(default=None, repr=False)
    """The Method whose output it is."""
    catalog: RecordReader = field(repr=False, compare=False)

    def open(self) -> BinaryIO:
        """Open the file for reading bytes; from the archive only the parts that are read are downloaded.

        The digest is not checked; `read_bytes`, `read_text` and `path` check it.

        Raises:
            NotFoundError: If its bundle does not keep it; the message says where it came from.
        """
        if self.bundle_path is None:
            raise NotFoundError(
                f"the bundle of execution {self.execution_id} does not keep the input file {self.name}. "
                f"It was read from {self.origin}"
            )
        return self.catalog.open(self.execution_id, self.bundle_path)

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            NotFoundError: As `open`.
            BundleError: If it is not the recorded content.
        """
        return b"".join(self._blocks())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text; raises as `read_bytes`."""
        return self.read_bytes().decode(encoding)

    def path(self, folder: str | Path | None = None) -> Path:
        """Return a local file with the content, for libraries that need a path.

        Without *folder* it may be the file of the sealed bundle, so do not change it; a file
        that only the archive has is downloaded to a temporary folder that `Catalog.close`
        removes. With *folder* it is a copy, named like the file and yours to change.

        Raises:
            NotFoundError: As `open`.
            BundleError: If it is not the recorded content.
        """
        if folder is None and self.bundle_path is not None:
            local = self.catalog.local_file(self.execution_id, self.bundle_path)
            if local is not None:
                return local
        target = Path(folder) if folder is not None else self.catalog.scratch / self.execution_id
        target /= Path(self.bundle_path or self.name).name if folder is not None else self.bundle_path or self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        try:
            with part.open("wb") as file:
                file.writelines(self._blocks())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    @property
    def version(self) -> int | None:
        """The version of an output: its digest is the n-th distinct one of this name for its Method.

        Versions count from 1, in the order in which the executions were first known. None for
        an input file, a log, and while the execution is open.
        """
        if self.method is None or self.sha256 is None or self.bundle_path in {layout.STDOUT, layout.STDERR}:
            return None
        digests = self.catalog.output_versions(self.method, self.name)
        return digests.index(self.sha256[:32]) + 1 if self.sha256[:32] in digests else None

    def _blocks(self) -> Iterator[bytes]:
        digest = sha256()
        with self.open() as stream:
            for block in iter(lambda: stream.read(_BLOCK), b""):
                digest.update(block)
                yield block
        if self.sha256 is not None and digest.hexdigest() != self.sha256:
            raise BundleError(
                f"{self.name} of execution {self.execution_id} has the digest {digest.hexdigest()} and was recorded as "
                f"{self.sha256}. 'executions verify {self.execution_id}' checks the other files."
            )


@dataclass(frozen=True, kw_only=True)
class RecordedProvenance:
    """How an execution is linked to others, each by its id, and its provenance in W3C PROV."""

    parent: str | None
    """The execution that called it."""
    children: tuple[str, ...]
    """The executions that it called."""
    rerun_of: str | None
    """The execution that it runs again: a rerun, a replay or a retry."""
    reruns: tuple[str, ...]
    made_from: tuple[FileEdge, ...]
    """Outputs of other executions that are inputs of this one; `FileEdge.id` is the other execution."""
    used_by: tuple[FileEdge, ...]
    """Outputs of this execution that are inputs of others."""
    read: Callable[[], bytes] = field(repr=False, compare=False)

    def prov_xml(self) -> str:
        """Return the record in PROV-XML.

        Raises:
            NotFoundError: If the execution has not ended.
        """
        return self.read().decode()


def _input(value: Any, files: list[RecordedFile]) -> Any:
    if not files:
        return value
    return files[0] if len(files) == 1 and isinstance(value, str) else tuple(files)


class RecordedExecution:
    """What is recorded of one execution. An open execution is seen as it was when its record was first read."""

    def __init__(self, catalog: RecordReader, execution_id: str) -> None:
        self.id = execution_id
        self._catalog = catalog

    def __repr__(self) -> str:
        return f"<execution {self.id}: {self.method} {self.version}, {self.status}>"

    @cached_property
    def record(self) -> ExecutionRecord:
        """All documents of the record."""
        return self._catalog.record(self.id)

    @property
    def method(self) -> str:
        """The id of the Method."""
        return self.record.method.id

    @property
    def version(self) -> str:
        """The version of the Method."""
        return self.record.method.version

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def message(self) -> str | None:
        """The last message, for example that of the exception."""
        return self.record.job_status.message

    @property
    def started(self) -> datetime | None:
        return self.record.started

    @property
    def finished(self) -> datetime | None:
        return self.record.finished

    @property
    def duration(self) -> timedelta | None:
        return self.finished - self.started if self.started and self.finished else None

    @property
    def agent(self) -> str | None:
        """The name of the requester."""
        return self.record.agent.name

    @property
    def labels(self) -> Labels:
        """The tags, name, experiment, notes and star that it has now, and whether it is recalled."""
        return labels_of(self._catalog.annotations(self.id), self.record.request.tags)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.labels.tags

    def annotate(self, **labels: Unpack[LabelArguments]) -> None:
        """Change its labels: tag, untag, name, experiment, note, star, recall, reinstate; see `Catalog.annotate`."""
        self._catalog.add_labels([self.id], label_changes(**labels))

    def lineage(self, *, up: bool = False, down: bool = False) -> Lineage:
        """Return where it came from (*up*), and what came from it (*down*); without either, both."""
        return self._catalog.lineage(self.id, up=up, down=down)

    def impact(self) -> Impact:
        """Return everything that was made from it, on any path of files."""
        return self._catalog.impact(self.id)

    @property
    def params(self) -> dict[str, Any]:
        """The params that the Method logged, with their types."""
        return dict(self.record.metrics.params) if self.record.metrics else {}

    @cached_property
    def metrics(self) -> dict[str, RecordedMetric]:
        """The metrics by name, in the order of their first values."""
        series: dict[str, list[Metric]] = {}
        for point in self.record.metrics.metrics if self.record.metrics else ():
            series.setdefault(point.name, []).append(point)
        return {
            name: RecordedMetric(name, tuple(MetricPoint(one.step, one.value, one.time) for one in points))
            for name, points in series.items()
        }

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The inputs by name: the value, or for files a `RecordedFile`, or a tuple of them for a list of files."""
        values, files = self.record.request.values, dict[str, list[RecordedFile]]()
        for file in self.record.request.files:
            files.setdefault(file.input, []).append(self._input_file(file))
        return {name: _input(values.get(name), files.get(name, [])) for name in {**values, **files}}

    @cached_property
    def outputs(self) -> dict[str, RecordedFile]:
        """The outputs and logs by name; for an open execution the current files."""
        return {output.name: self._output(output) for output in self._catalog.outputs(self.id)}

    @property
    def logs(self) -> Mapping[str, RecordedFile]:
        """What the execution wrote: ``stdout`` and ``stderr``, as far as it has them."""
        names = {"stdout": layout.STDOUT, "stderr": layout.STDERR}
        found = {stream: self.outputs.get(path.removeprefix(f"{layout.OUTPUTS}/")) for stream, path in names.items()}
        return {stream: file for stream, file in found.items() if file is not None}

    @cached_property
    def provenance(self) -> RecordedProvenance:
        """The links to other executions, as far as the ledger has them, and the PROV document."""
        links, own = self._catalog.links(self.id), self.record.request.relatives
        parents = [other.execution_id for other in own if other.relation == "parent"]
        originals = [other.execution_id for other in own if other.relation in _RERUNS]
        return RecordedProvenance(
            parent=next(iter(parents), None),
            children=tuple(other.id for other in links.named_by if other.relation == "parent"),
            rerun_of=next(iter(originals), None),
            reruns=tuple(other.id for other in links.named_by if other.relation in _RERUNS),
            made_from=links.made_from,
            used_by=links.used_by,
            read=lambda: self._catalog.read(self.id, layout.PROVENANCE),
        )

    def _input_file(self, file: StagedInput) -> RecordedFile:
        return RecordedFile(
            execution_id=self.id,
            name=file.name,
            size=file.size,
            media_type=file.media_type,
            sha256=file.sha256,
            origin=file.origin,
            bundle_path=file.path,
            catalog=self._catalog,
        )

    def _output(self, output: StoredOutput) -> RecordedFile:
        return RecordedFile(
            execution_id=self.id,
            name=output.name,
            size=output.size,
            media_type=output.media_type,
            sha256=output.sha256,
            bundle_path=output.path,
            method=self.method,
            catalog=self._catalog,
        )
