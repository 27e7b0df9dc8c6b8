"""The catalog: the read side of a workbench, its archive and its ledger, and the labels of executions.

Reading changes nothing: it creates no folder, takes no lock and needs no ledger. Only `annotate` writes.
"""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, Self, Unpack

from prefect_executions.archive.bundle import ZIP_ERRORS, ArchivedBundle
from prefect_executions.archive.objects import IMPORTED
from prefect_executions.bundles import layout
from prefect_executions.bundles.annotations import (
    StoredAnnotation,
    annotation_faults,
    intact_annotations,
)
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.source import FolderSource, Source
from prefect_executions.capture.host import this_user
from prefect_executions.capture.processes import alive
from prefect_executions.errors import ArchiveError, BundleError, LedgerError, NotFoundError
from prefect_executions.executions.annotations import LabelArguments, LabelChange, label_changes
from prefect_executions.executions.lineage import Direction, Lineage
from prefect_executions.executions.record import ExecutionRecord, Instance
from prefect_executions.ledger.rows import ArchiveState, MethodRow
from prefect_executions.lifecycle.history import EntryKind, JobStatus
from prefect_executions.workbench import lineage as lineages
from prefect_executions.workbench.annotations import annotate
from prefect_executions.workbench.archived_source import ArchivedSource
from prefect_executions.workbench.beside import Beside, documents_beside
from prefect_executions.workbench.lineage import DEPTH, MOST, Impact
from prefect_executions.workbench.local_copy import LocalCopy
from prefect_executions.workbench.lookup import find
from prefect_executions.workbench.recorded import Links, RecordedExecution
from prefect_executions.workbench.stored_outputs import (
    StoredOutput,
    checked_blocks,
    current_outputs,
    output_named,
    recorded_outputs,
)
from prefect_executions.workbench.workbench import Workbench

if TYPE_CHECKING:
    from prefect_executions.ledger.index.index import ColumnIndex
    from prefect_executions.query.tree import QueryTree
    from prefect_executions.workbench.results import SearchResults
    from prefect_executions.workbench.suggestions import Suggestion

Stream = Literal["stdout", "stderr"]

_LOGS = {"stdout": layout.STDOUT, "stderr": layout.STDERR}
_BLOCK = 1 << 20

_POLL = 0.3
"""Seconds between two reads of a log that is being written."""


class StorageState(NamedTuple):
    """Where an execution is stored: its folder on this machine, and its state in the archive."""

    folder: Path | None
    sealed: bool
    archive: ArchiveState


class Catalog:
    """Reads executions from a workbench, its archive and its ledger."""

    def __init__(self, workbench: Workbench, *, agent: str | None = None) -> None:
        """Read from *workbench*; *agent* is who adds labels, by default the user of this process."""
        self.workbench = workbench
        self._agent = agent
        self._index: ColumnIndex | None = None
        self._scratch: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the ledger, and remove downloaded files; a later call opens them again."""
        with suppress(LedgerError):  # it could not be opened
            self.workbench.ledger.close()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    @property
    def scratch(self) -> Path:
        """A temporary folder for downloaded files; `close` removes it."""
        if self._scratch is None:
            self._scratch = TemporaryDirectory(prefix="executions-")
        return Path(self._scratch.name)

    def get(self, prefix: str) -> RecordedExecution:
        """Return the execution whose id begins with *prefix*.

        Raises:
            NotFoundError: If no id matches.
            AmbiguousIdError: If several ids match; the error lists them.
        """
        return RecordedExecution(self, self.find(prefix))

    def methods(self) -> tuple[MethodRow, ...]:
        """Return every version of every Method that has executions."""
        return self.workbench.ledger.methods()

    def suggest(self, text: str) -> tuple[Suggestion, ...]:
        """Return what the query *text*, which is being typed, may become; any text has an answer."""
        from prefect_executions.workbench.suggestions import suggestions  # noqa: PLC0415  imports NumPy, as below

        return suggestions(self._open_index(), text)

    def output_versions(self, method: str, name: str) -> tuple[str, ...]:
        """Return the first 32 digits of each distinct digest of an output of a Method; version 1 is the first."""
        from prefect_executions.workbench import results  # noqa: PLC0415  imports NumPy, as below

        return results.output_versions(self._open_index(), method, name)

    def find(self, prefix: str) -> str:
        """Return the full id that begins with *prefix* (see `lookup.find`).

        Raises:
            NotFoundError: If no id matches.
            AmbiguousIdError: If several ids match; the error lists them.
        """
        return find(self.workbench, prefix)

    def search(
        self,
        query: str | QueryTree = "",
        *,
        sort: Sequence[str] = (),
        limit: int | None = None,
        after: str | None = None,
        columns: Sequence[str] = (),
    ) -> SearchResults:
        """Return the executions that *query* finds, in the search language: see docs/search.md.

        Iterate over the results for their rows, at most *limit* of them. *sort* has names of
        fields and values, descending with a minus in front; further results are newest
        first. *after* is the cursor of an earlier page. The first search of a ledger
        builds its column index.

        Raises:
            QueryError: If the query or a name cannot be read.
            RequestError: If *limit* is not positive.
            LedgerError: If the ledger is unavailable.
        """
        from prefect_executions.workbench import results  # noqa: PLC0415  imports NumPy, which other commands lack

        return results.find_results(
            self._open_index(), query, datetime.now(UTC), sort=sort, limit=limit, after=after, columns=columns
        )

    def lineage(
        self, target: str | Path, *, up: bool = False, down: bool = False, depth: int = DEPTH, limit: int = MOST
    ) -> Lineage:
        """Return where *target* came from (*up*), and what came from it (*down*); without either, both.

        *target* is an id or its beginning, ``sha256:`` with a digest, or a file. The result has
        at most *limit* executions in each direction, none of them farther away than *depth*.

        Raises:
            RequestError: If a limit is negative, or *target* is an empty file.
            NotFoundError: If *target* does not exist.
            LedgerError: If the ledger is unavailable.
        """
        chosen = [each for each, wanted in ((Direction.UP, up), (Direction.DOWN, down)) if wanted]
        return lineages.lineage(self.workbench, str(target), chosen or lineages.BOTH, depth=depth, most=limit)

    def impact(self, target: str | Path) -> Impact:
        """Return everything that was made from *target*, on any path of files; see `lineage` for the targets.

        Raises:
            RequestError: If *target* is an empty file.
            NotFoundError: If *target* does not exist.
            LedgerError: If the ledger is unavailable.
        """
        return lineages.impact(self.workbench, str(target), datetime.now(UTC))

    def annotate(self, executions: str | Iterable[str], **labels: Unpack[LabelArguments]) -> None:
        """Change the labels of *executions*, an id or several, as the command `executions annotate`.

        The arguments are ``tag``, ``untag`` and ``note`` (a text or several), ``name``, ``experiment``,
        ``star`` (true or false), and the reasons ``recall`` and ``reinstate``. The bundle stays as it
        is; the archive keeps each change with time and agent, and the next search finds it.

        Raises:
            RequestError: If there is no change, or a text is empty or too long.
            NotFoundError: If an execution does not exist.
            ArchiveError: If the archive is unavailable.
            LedgerError: If the ledger fails; the labels are stored, and a rebuild reads them.
        """
        ids = [executions] if isinstance(executions, str) else executions
        self.add_labels(list(map(self.find, ids)), label_changes(**labels))

    def add_labels(self, executions: Iterable[str], changes: Sequence[LabelChange]) -> None:
        """Store *changes* of the labels of *executions*, with time and agent; see `annotate`."""
        agent, at = self._agent or this_user(), datetime.now(UTC)
        for execution_id in executions:
            annotate(self.workbench, execution_id, changes, agent=agent, at=at)

    def record(self, execution_id: str) -> ExecutionRecord:
        """Return all documents of an execution as one value.

        Raises:
            NotFoundError: If neither the workbench nor the archive has it.
            BundleError: If a document is damaged.
        """
        return self.workbench.record(execution_id)

    def storage_state(self, execution_id: str) -> StorageState:
        """Return where an execution is stored."""
        bundle = self._local(execution_id)
        if bundle is None:
            archived = self.workbench.archive.seal_of(execution_id) is not None
            return StorageState(None, archived, "archived" if archived else "local")
        if not bundle.sealed:
            return StorageState(bundle.folder, sealed=False, archive="local")
        # The scratch folder is removed when a sealed bundle is archived and indexed.
        return StorageState(bundle.folder, sealed=True, archive="pending" if bundle.scratch.is_dir() else "archived")

    def dead_process(self, execution_id: str) -> str | None:
        """Return "PID on HOST" if the process of an open execution is dead and nothing will continue it, else None."""
        bundle = self._local(execution_id)
        if bundle is None or bundle.sealed:
            return None
        instance, last = bundle.read(Instance), bundle.read(JobStatus).history[-1]
        continues = last.kind in {EntryKind.PAUSED, EntryKind.ATTEMPT_FAILED}
        if continues or instance.process is None or alive(instance.process) is not False:
            return None
        return f"{instance.pid} on {instance.hostname}"

    def links(self, execution_id: str) -> Links:
        """Return the links between an execution and others; empty if the ledger is unavailable."""
        try:
            ledger = self.workbench.ledger
            return Links(ledger.referrers(execution_id), ledger.made_from(execution_id), ledger.used_by(execution_id))
        except LedgerError:
            return Links()

    def is_imported(self, execution_id: str) -> bool:
        """Whether an execution has an import record, damaged or not; false if the archive is unavailable."""
        with suppress(ArchiveError):
            return IMPORTED in self.workbench.archive.beside(execution_id)
        return False

    def beside(self, execution_id: str) -> Beside:
        """Return what is beside a seal: the import record, and the results that lost the race to seal the execution.

        Empty if the archive is unavailable. An object that is damaged is among the faults.
        """
        with suppress(ArchiveError):
            beside = documents_beside(execution_id, self.workbench.archive.beside(execution_id))
            faults = annotation_faults(execution_id, None, self.workbench.archive.annotations(execution_id))
            late = tuple(sorted(beside.late, key=lambda seal: seal.noted))
            return beside._replace(late=late, faults=(*beside.faults, *faults))
        return Beside()

    def annotations(self, execution_id: str) -> tuple[StoredAnnotation, ...]:
        """Return the intact annotations of an execution in their order; none if the archive is unavailable."""
        with suppress(ArchiveError):
            return intact_annotations(execution_id, self.workbench.archive.annotations(execution_id))
        return ()

    def outputs(self, execution_id: str) -> tuple[StoredOutput, ...]:
        """Return the outputs and logs of an execution by name; for an open one, the current files."""
        bundle = self._local(execution_id)
        if bundle is not None and not bundle.sealed:
            return current_outputs(bundle.paths.outputs)
        return recorded_outputs(self.record(execution_id))

    def output(self, execution_id: str, name: str) -> StoredOutput:
        """Return the output *name*, which may begin with ``outputs/``.

        Raises:
            NotFoundError: If there is no such output; the message says how to list them.
        """
        outputs = self.outputs(execution_id)
        return output_named(outputs, name, of=f"execution {execution_id}", target=execution_id)

    def open_output(self, execution_id: str, name: str) -> BinaryIO:
        """Open one output: the local file, or else its byte range in the archive's output.zip.

        The digest is not checked; `blocks` checks it.

        Raises:
            NotFoundError: If there is no such output, or its archive level left it out and it is not here.
        """
        return self._open(execution_id, self.output(execution_id, name).path)

    def open(self, execution_id: str, path: str) -> BinaryIO:
        """Open any file by its path in the bundle; the digest is not checked.

        Raises:
            NotFoundError: If it is missing; the message says whether it will be written later.
        """
        return self._open(execution_id, path)

    def local_file(self, execution_id: str, path: str) -> Path | None:
        """Return the file on this workbench, if it is there and a sealed one is unchanged."""
        bundle = self._local(execution_id)
        if bundle is None:
            return None
        if bundle.sealed:
            return bundle.folder / path if LocalCopy(bundle).is_intact(path) else None
        with suppress(OSError), _open_plain(bundle.folder / path):
            return bundle.folder / path
        return None

    def blocks(self, execution_id: str, name: str) -> Iterator[bytes]:
        """Yield an output in blocks and check the recorded digest, if any, after the last one.

        Raises:
            NotFoundError: If there is no such output.
            BundleError: If it is damaged or differs from its record; discard the blocks yielded so far.
        """
        output, of = self.output(execution_id, name), f"execution {execution_id}"
        with self._open(execution_id, output.path) as stream:
            blocks = _read_all(stream, f"{output.path} of {of}")
            yield from checked_blocks(blocks, output, of=of, target=execution_id)

    def read(self, execution_id: str, path: str) -> bytes:
        """Return the content of one file by its path in the bundle.

        Raises:
            NotFoundError: If it is missing; the message says whether it will be written later.
        """
        bundle = self._local(execution_id)
        if bundle is not None and not bundle.sealed:
            with suppress(OSError):
                return (bundle.folder / path).read_bytes()
        if path.startswith(f"{layout.OUTPUTS}/"):
            return b"".join(self.blocks(execution_id, path))
        with self._open(execution_id, path) as stream:
            return b"".join(_read_all(stream, f"{path} of execution {execution_id}"))

    def log(self, execution_id: str, stream: Stream) -> BinaryIO:
        """Open a log, as far as it is written.

        Raises:
            NotFoundError: If it is not here: the execution runs elsewhere, or keeps no log.
        """
        return self._open(execution_id, _LOGS[stream])

    def follow(self, execution_id: str, stream: Stream, *, pause: float = _POLL) -> Iterator[bytes]:
        """Yield a log as it is written, until its execution is sealed.

        Raises:
            NotFoundError: If it is not here.
        """
        bundle = self._local(execution_id)
        if bundle is None or bundle.sealed:
            with self.log(execution_id, stream) as opened:
                yield from _read_all(opened, f"{_LOGS[stream]} of execution {execution_id}")
            return
        position = 0
        while True:
            sealed = bundle.sealed  # checked before the last read, so that no output is missed
            # Opened again each time: a retry appends, and sealing may replace the file by a copy.
            for block in _read_from(bundle.folder / _LOGS[stream], position):
                position += len(block)
                yield block
            if sealed or not bundle.folder.is_dir():
                return
            time.sleep(pause)

    def local_source(self, execution_id: str) -> Source | None:
        """Return the sealed bundle on this workbench for verification, or None."""
        bundle = self._local(execution_id)
        return FolderSource(bundle.folder) if bundle is not None and bundle.sealed else None

    def intact_source(self, execution_id: str) -> Source | None:
        """Return a sealed bundle from this workbench, or from the archive if a file was changed here; or None.

        Raises:
            ArchiveError: If the archive is needed and unavailable.
        """
        local = self.local_source(execution_id)
        if local is not None and not self.damaged(execution_id):
            return local
        return self.bundle_source(execution_id) or local

    def damaged(self, execution_id: str) -> tuple[str, ...]:
        """Return the paths of the files of a sealed bundle on this workbench that were changed after the seal."""
        bundle = self._local(execution_id)
        if bundle is None or not bundle.sealed:
            return ()
        try:
            return tuple(LocalCopy(bundle).damaged())
        except BundleError:
            return (layout.MANIFEST,)

    def bundle_source(self, execution_id: str) -> ArchivedSource | None:
        """Return the sealed bundle in the archive for verification, or None."""
        archive = self.workbench.archive
        if archive.seal_of(execution_id) is None:
            return None
        return ArchivedSource(archive, archive.bundle(execution_id), with_proof=True)

    # --- private -----------------------------------------------------------------

    def _open_index(self) -> ColumnIndex:
        from prefect_executions.workbench import results  # noqa: PLC0415  as above

        if self._index is None:
            self._index = results.open_index(self.workbench.ledger, self.workbench.folder.parent / "index")
        return self._index

    def _local(self, execution_id: str) -> OpenBundle | None:
        bundle = OpenBundle(self.workbench.folder, layout.check_execution_id(execution_id))
        return bundle if bundle.folder.is_dir() else None

    def _archived(self, execution_id: str) -> ArchivedBundle:
        try:
            return self.workbench.archive.bundle(execution_id)
        except NotFoundError:
            record = self.record(execution_id)
            if record.status.terminal:
                raise
            raise NotFoundError(
                f"execution {execution_id} is {record.status}; this file is written when it ends"
            ) from None

    def _open(self, execution_id: str, path: str) -> BinaryIO:
        """Open a file here, or in the archive if it is not here or was changed after the seal."""
        bundle = self._local(execution_id)
        if bundle is None:
            return self._open_archived(execution_id, path)
        copy = LocalCopy(bundle) if bundle.sealed else None
        if copy is None or copy.is_intact(path) or path in layout.UNLISTED:
            with suppress(OSError):
                return _open_plain(bundle.folder / path)
        try:
            return self._open_archived(execution_id, path)
        except (ArchiveError, NotFoundError) as error:
            if copy is None or not os.path.lexists(bundle.folder / path):
                raise
            if stream := copy.open_zipped(path):
                return stream
            raise copy.changed(path) from error

    def _open_archived(self, execution_id: str, path: str) -> BinaryIO:
        archived = self._archived(execution_id)
        if path.startswith(f"{layout.OUTPUTS}/"):
            return archived.open_output(path)
        return io.BytesIO(archived.read(path))


def _open_plain(path: Path) -> BinaryIO:
    """Open a regular file; links are not followed and pipes do not block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(path)
        undo.pop_all()
    return os.fdopen(descriptor, "rb")


def _read_all(stream: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        yield from iter(lambda: stream.read(_BLOCK), b"")
    except (OSError, *ZIP_ERRORS) as error:
        raise BundleError(f"{name} cannot be read: {error}") from error


def _read_from(path: Path, position: int) -> Iterator[bytes]:
    with suppress(FileNotFoundError), _open_plain(path) as stream:
        stream.seek(position)
        yield from iter(lambda: stream.read(_BLOCK), b"")
