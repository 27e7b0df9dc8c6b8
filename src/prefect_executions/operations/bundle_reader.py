"""Reads one execution by its id, or from a bundle that is a folder, a zip or the URL of a zip, in the same way.

Reading a bundle needs no workbench, archive or ledger. Nothing in it is verified but the
digest of each output that is read; `executions verify` verifies the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from prefect_executions.bundles.annotations import AnnotationSet, StoredAnnotation, intact_annotations
from prefect_executions.bundles.incoming import find_bundles, open_container
from prefect_executions.bundles.layout import ANNOTATIONS, DOCUMENTS, MANIFEST, BundleKind, is_execution_id
from prefect_executions.bundles.source import Source, record_of
from prefect_executions.bundles.verify import DEFAULT_LIMITS
from prefect_executions.capture.secrets import redact_url
from prefect_executions.errors import BundleError, NotFoundError, RequestError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.operations.download import downloaded, is_url
from prefect_executions.workbench.beside import Beside
from prefect_executions.workbench.catalog import Catalog, StorageState, Stream
from prefect_executions.workbench.lookup import path_of
from prefect_executions.workbench.recorded import Links
from prefect_executions.workbench.stored_outputs import (
    StoredOutput,
    checked_blocks,
    output_named,
    recorded_outputs,
)


class Reader(Protocol):
    """What can be read of an execution by its id; `Catalog` says how each method behaves."""

    def record(self, execution_id: str) -> ExecutionRecord: ...

    def storage_state(self, execution_id: str) -> StorageState | None:
        """Return where it is stored; None if it is in a bundle of its own."""

    def links(self, execution_id: str) -> Links: ...

    def beside(self, execution_id: str) -> Beside: ...

    def annotations(self, execution_id: str) -> tuple[StoredAnnotation, ...]: ...

    def damaged(self, execution_id: str) -> tuple[str, ...]: ...

    def dead_process(self, execution_id: str) -> str | None: ...

    def outputs(self, execution_id: str) -> tuple[StoredOutput, ...]: ...

    def output(self, execution_id: str, name: str) -> StoredOutput: ...

    def blocks(self, execution_id: str, name: str) -> Iterator[bytes]: ...

    def read(self, execution_id: str, path: str) -> bytes: ...

    def follow(self, execution_id: str, stream: Stream) -> Iterator[bytes]: ...


class Opened(NamedTuple):
    """A reader, the full id of the execution to read from it, and the target if that is no id."""

    reader: Reader
    id: str
    bundle: str | None = None


@contextmanager
def open_execution(target: str, open_catalog: Callable[[], Catalog]) -> Iterator[Opened]:
    """Open the execution with the id *target*, or the only one in the folder, zip or URL *target*.

    An existing path precedes an id, but an open bundle on the workbench is read by its id, because it changes.

    Raises:
        NotFoundError: If *target* does not exist.
        RequestError: If it holds several bundles, or none in the format of this package.
        BundleError: If it is not a valid zip, or its documents are damaged.
        WorldError: If a download fails.
    """
    path = None if is_url(target) else path_of(target)
    if is_url(target):
        with downloaded(target) as file, _bundle(file, redact_url(target, query=False)) as opened:
            yield opened
    elif path is None:
        catalog = open_catalog()
        yield Opened(catalog, catalog.find(target))
    elif _is_unsealed(path) and (catalog := open_catalog()).workbench.folder == path.absolute().parent:
        yield Opened(catalog, catalog.find(path.name))
    else:
        with _bundle(path, target) as opened:
            yield opened


def _is_unsealed(path: Path) -> bool:
    return is_execution_id(path.name) and not Path(path, MANIFEST).exists()


@contextmanager
def _bundle(path: Path, target: str) -> Iterator[Opened]:
    with ExitStack() as stack:
        with _naming(target):
            container = stack.enter_context(open_container(path, DEFAULT_LIMITS))
            bundles = find_bundles(container)
        if len(bundles) != 1 or bundles[0].kind is not BundleKind.BUNDLE:
            what = "an export of CCP" if len(bundles) == 1 else f"{len(bundles)} bundles"
            raise RequestError(
                f"{target} holds {what}; give one bundle, or import it first: executions import {target}"
            )
        with _naming(target):
            reader = BundleReader(bundles[0].source, target)
        yield Opened(reader, reader.id, target)


@contextmanager
def _naming(target: str) -> Iterator[None]:
    """Name *target* in the error about a bundle."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{target}: {error}") from error


class BundleReader:
    """Reads the execution in one bundle; the ids in the calls are not used."""

    def __init__(self, source: Source, target: str) -> None:
        self._source, self._target = source, target
        for kind in DOCUMENTS:
            self._check_size(kind.file_name)
        self._record = record_of(source)
        self.id = self._record.id

    def record(self, _execution_id: str) -> ExecutionRecord:
        return self._record

    def storage_state(self, _execution_id: str) -> None:
        return None

    def links(self, _execution_id: str) -> Links:
        return Links()

    def beside(self, _execution_id: str) -> Beside:
        return Beside()

    def annotations(self, execution_id: str) -> tuple[StoredAnnotation, ...]:
        if ANNOTATIONS not in self._source.files:
            return ()
        objects = AnnotationSet.from_json(self.read(execution_id, ANNOTATIONS)).objects()
        return intact_annotations(self.id, objects)

    def damaged(self, _execution_id: str) -> tuple[str, ...]:
        return ()

    def dead_process(self, _execution_id: str) -> None:
        return None

    def outputs(self, _execution_id: str) -> tuple[StoredOutput, ...]:
        return recorded_outputs(self._record)

    def output(self, execution_id: str, name: str) -> StoredOutput:
        return output_named(self.outputs(execution_id), name, of=self._target, target=self._target)

    def blocks(self, execution_id: str, name: str) -> Iterator[bytes]:
        output = self.output(execution_id, name)
        return checked_blocks(self._blocks(output.path), output, of=self._target, target=self._target)

    def read(self, _execution_id: str, path: str) -> bytes:
        self._check_size(path)
        return b"".join(self._blocks(path))

    def follow(self, execution_id: str, stream: Stream) -> Iterator[bytes]:
        return self.blocks(execution_id, f"{stream}.log")

    def _check_size(self, path: str) -> None:
        size = self._source.files.get(path, 0)
        if size > DEFAULT_LIMITS.document:
            raise BundleError(f"{path} has {size} bytes; the limit for a document is {DEFAULT_LIMITS.document}")

    def _blocks(self, path: str) -> Iterator[bytes]:
        if path not in self._source.files:
            raise NotFoundError(f"{self._target} does not have {path}; an export may leave out inputs and outputs")
        return self._source.blocks(path)
