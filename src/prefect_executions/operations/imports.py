"""Take in bundles that come from elsewhere: all that were handed in are verified before one of them is recorded.

Law: an imported bundle is archived as any other, with its own manifest and seal, and
never changed; beside the seal lies where it came from and when. What is refused
leaves nothing behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from prefect_executions.archive.archive import Content, sent_with_seal
from prefect_executions.archive.objects import IMPORTED, Imported
from prefect_executions.bundles import ccp, layout, manifest
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.incoming import IncomingBundle, find_bundles, open_container
from prefect_executions.bundles.layout import BundleKind
from prefect_executions.bundles.open_bundle import SCRATCH, OpenBundle
from prefect_executions.bundles.portable_names import check_names
from prefect_executions.bundles.seal import seal
from prefect_executions.bundles.source import FolderSource, Source, record_of
from prefect_executions.bundles.verify import verify
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.capture.processes import gone, mark
from prefect_executions.capture.secrets import redact_url
from prefect_executions.errors import ArchiveError, BundleError, ExecutionsError, ImportRefusedError
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.ledger.ledger import Bulk
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.operations.download import downloaded, is_url
from prefect_executions.settings import ImportNames, Settings
from prefect_executions.workbench.sealing import is_bulk
from prefect_executions.workbench.workbench import Workbench, import_origin

_STAGING = "import-"
_SHOWN = 5

_AT_ONCE = 4
"""How many bundles are on their way to the archive at the same time."""

_HELD = 1 << 20
"""Bytes of a bundle up to which it is in memory while it is archived; it is what goes along with a seal."""


class ImportResult(NamedTuple):
    """What became of one bundle: it is recorded now, or was before."""

    id: str
    result: Literal["imported", "unchanged"]
    kind: BundleKind
    manifest_sha256: str


class _Checked(NamedTuple):
    """A bundle that was found to be whole and may be recorded."""

    id: str
    arrival: IncomingBundle
    source: Source
    """The bundle in our own format."""
    manifest_sha256: str
    known: bool
    source_sha256: str | None = None


class ImportPolicy(NamedTuple):
    """On which terms something is imported: what it may ask of this machine, which names it may have, and when."""

    limits: Limits
    names: ImportNames
    at: datetime

    @classmethod
    def of(cls, settings: Settings, at: datetime) -> ImportPolicy:
        """Return the terms that the operator set."""
        limits = Limits(entries=settings.import_entries, allowance=settings.import_limit, expansion=0)
        return cls(limits, settings.import_names, at)


def import_bundles(
    workbench: Workbench,
    target: str,
    terms: ImportPolicy,
    *,
    progress: Callable[[str, int], object] = lambda _id, _steps: None,
) -> tuple[ImportResult, ...]:
    """Import what *target* names: a zip, a folder, or the https://, http:// or s3:// address of a zip.

    It may hold one bundle of ours or many, a bag around them, or exports of CCP. To
    import the same once more changes nothing. *progress* is called with an id and the number
    of all steps at each step: an execution is verified, and later it is recorded.

    Raises:
        NotFoundError: If there is nothing.
        ImportRefusedError: If something in it is damaged or hostile, or an id is taken; nothing is recorded then.
        ArchiveError: If the archive fails; what was recorded by then is whole, and the same call goes on.
    """
    if is_url(target):
        with downloaded(target, largest=terms.limits.allowance) as path:
            return _take_in(workbench, path, redact_url(target, query=False), terms, progress)
    return _take_in(workbench, Path(target), Path(target).resolve().name, terms, progress)


def _take_in(
    workbench: Workbench, path: Path, origin: str, terms: ImportPolicy, progress: Callable[[str, int], object]
) -> tuple[ImportResult, ...]:
    with ExitStack() as stack:
        room = stack.enter_context(_room(workbench.folder))
        try:
            whole = stack.enter_context(open_container(path, terms.limits))
            if terms.names is ImportNames.PORTABLE:
                check_names(whole.files, terms.limits.entries)
            found = find_bundles(whole)
            checking = _Checking(workbench, room, terms)
            checked, steps = [], 2 * len(found)
            for arrival in found:
                checked.append(checking.checked(arrival))
                progress(checked[-1].id, steps)
            _check_different(checked)
        except BundleError as error:
            raise ImportRefusedError(f"{origin} is not imported: {error}") from error
        taking = _Taking(workbench, room, origin, terms.at)
        with _flushed(workbench) as bulk:
            taken = []
            for one in taking.take(checked, bulk):
                progress(one.id, steps)
                taken.append(one)
            return tuple(taken)


class _Checking:
    """The first half: nothing is recorded, and what cannot be is refused."""

    def __init__(self, workbench: Workbench, room: Path, terms: ImportPolicy) -> None:
        self._workbench, self._room, self._terms = workbench, room, terms

    def checked(self, arrival: IncomingBundle) -> _Checked:
        """Return *arrival* as a verified bundle of ours."""
        where = f"{arrival.path}: " if arrival.path else ""
        try:
            if arrival.kind is BundleKind.BUNDLE:
                return self._verified(arrival, arrival.source, None)
            return self._translated(arrival)
        except BundleError as error:
            raise BundleError(f"{where}{error}") from error

    def _translated(self, arrival: IncomingBundle) -> _Checked:
        told = ccp.translate(arrival, self._terms.at, self._terms.limits)
        known = self._workbench.archive.imported(told.id)
        if known and known.source_sha256 == told.source_sha256:
            sealed = self._workbench.archive.bundle(told.id).seal
            return _Checked(told.id, arrival, arrival.source, sealed.manifest_sha256, known=True)
        if known and known.source_sha256:
            raise _taken(told.id, known.source_sha256, told.source_sha256)
        folder = self._sealed(told, arrival.source).folder
        return self._verified(arrival, FolderSource(folder), told.source_sha256)

    def _verified(self, arrival: IncomingBundle, source: Source, source_sha256: str | None) -> _Checked:
        faults = verify(source, limits=self._terms.limits).faults
        if faults:
            more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
            raise BundleError("; ".join(faults[:_SHOWN]) + more)
        told = JobStatus.from_json(b"".join(source.blocks(JobStatus.file_name)))
        execution_id = layout.check_execution_id(told.job_id)
        found = sha256(b"".join(source.blocks(layout.MANIFEST))).hexdigest()
        known = self._known(execution_id, found)
        return _Checked(execution_id, arrival, source, found, known, source_sha256)

    def _known(self, execution_id: str, found: str) -> bool:
        """Whether the archive has this very bundle; another one of that id is refused."""
        archive = self._workbench.archive
        sealed = archive.seal_of(execution_id)
        if sealed is not None:
            if sealed.manifest_sha256 != found:
                raise _taken(execution_id, sealed.manifest_sha256, found)
            return True
        here = OpenBundle(self._workbench.folder, execution_id)
        if here.sealed:
            kept = sha256(here.paths.manifest.read_bytes()).hexdigest()
            raise _taken(execution_id, kept, found, where=" and waits to be archived: executions settle --once")
        if here.folder.is_dir() or archive.opening(execution_id) is not None:
            raise BundleError(f"execution {execution_id} is here and has not been sealed; settle it first")
        return False

    def _sealed(self, told: ccp.CcpExecution, source: Source) -> OpenBundle:
        def fill(folder: Path) -> None:
            for path, name in told.outputs.items():
                _write(folder / path, told, path, source.blocks(name))
            if told.zipped:
                with source.open(told.zipped) as stream:
                    reader = ZipReader.open(stream, self._terms.limits)
                    if self._terms.names is ImportNames.PORTABLE:
                        check_names(name for name, entry in reader.entries.items() if not entry.is_folder)
                    for name, path in ccp.zipped_outputs(reader):
                        _write(folder / path, told, path, reader.blocks(reader.entries[name]))

        documents = {document.file_name: document.to_json() for document in told.documents}
        bundle = OpenBundle.create(self._room, told.id, documents, fill=fill)
        gathered = gather(bundle)
        bundle.write_document(told.job_status.model_copy(update={"outputs": gathered.outputs}))
        seal(bundle, self._workbench.signing_key())
        return bundle


class _Taking:
    """The second half: each bundle is archived and indexed, and nobody has to look at it again."""

    def __init__(self, workbench: Workbench, room: Path, origin: str, at: datetime) -> None:
        self._workbench, self._room, self._origin, self._at = workbench, room, origin, at

    def take(self, checked: Iterable[_Checked], bulk: Bulk) -> Iterator[ImportResult]:
        """Record bundles in their order, and yield each when the archive has it; some are sent at once.

        When one fails, those that were on their way are recorded before the error is told.
        """
        coming: deque[tuple[_Checked, ExecutionRecord, Future[None]]] = deque()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="import") as pool:
            try:
                for one in checked:
                    if len(coming) == _AT_ONCE:
                        yield self._taken(bulk, *coming.popleft())
                    if one.known:
                        record = self._workbench.archived_record(one.id)
                        coming.append((one, record, pool.submit(_nothing)))
                    else:
                        record = record_of(one.source)
                        content = self._content(one, record)
                        coming.append((one, record, pool.submit(self._archive, one, content)))
                while coming:
                    yield self._taken(bulk, *coming.popleft())
            finally:
                for late in coming:
                    with suppress(ExecutionsError):
                        self._taken(bulk, *late)

    def _taken(self, bulk: Bulk, one: _Checked, record: ExecutionRecord, sent: Future[None]) -> ImportResult:
        sent.result()
        mark = self._workbench.archive.imported(one.id) if one.known else self._mark(one)
        bulk.record(record, archive="archived", manifest_sha256=one.manifest_sha256, came=import_origin(mark))
        return ImportResult(one.id, "unchanged" if one.known else "imported", one.arrival.kind, one.manifest_sha256)

    def _archive(self, one: _Checked, content: Content) -> None:
        archive = self._workbench.archive
        try:
            for file in () if sent_with_seal(content.data) else content.data:
                archive.put_data(one.id, content.folder / file.path, file.sha256)
            sealing = archive.seal(one.id, content)
        except BaseException:
            self._undo(one.id)
            raise
        finally:
            shutil.rmtree(content.folder, ignore_errors=True)
        if sealing.seal.manifest_sha256 != one.manifest_sha256:
            raise ImportRefusedError(str(_taken(one.id, sealing.seal.manifest_sha256, one.manifest_sha256)))

    def _content(self, one: _Checked, record: ExecutionRecord) -> Content:
        source, folder, outputs = one.source, self._room / f"big-{one.id}", layout.OUTPUTS + "/"
        listed = manifest.parse(b"".join(source.blocks(layout.MANIFEST)))
        there = {path: size for path, size in source.files.items() if not path.startswith(outputs)}
        # Making a file takes as long as archiving it does; together they may not fill the memory.
        little = sum(there.values()) <= _HELD
        held = {path: b"".join(source.blocks(path)) for path in there} if little else {}
        files = {
            path: _described(path, held[path]) if little else _staged(source, path, folder / path) for path in there
        }
        for path, file in files.items():
            if listed.get(path, file.sha256) != file.sha256:
                raise ImportRefusedError(f"{path} of {one.id} changed while it was imported")
        zipped = layout.OUTPUT_ZIP in files
        return Content(
            folder=folder,
            files=[file for path, file in files.items() if not is_bulk(path)],
            data=[file for path, file in files.items() if is_bulk(path)],
            absent=[path for path in listed if path not in files and not (zipped and path.startswith(outputs))],
            status=record.status,
            finished=record.finished,
            at=self._at,
            extra_objects={IMPORTED: self._mark(one).to_json()},
            in_memory=held,
        )

    def _mark(self, one: _Checked) -> Imported:
        return Imported(
            execution_id=one.id,
            origin=self._origin,
            kind=one.arrival.kind,
            imported=self._at,
            manifest_sha256=one.manifest_sha256,
            level=one.arrival.level,
            source_sha256=one.source_sha256,
        )

    def _undo(self, execution_id: str) -> None:
        archive = self._workbench.archive
        with suppress(ArchiveError):  # a sweep takes what stays
            if archive.seal_of(execution_id) is None:
                archive.remove(execution_id)


def _check_different(checked: Sequence[_Checked]) -> None:
    seen: dict[str, _Checked] = {}
    for one in checked:
        other = seen.setdefault(one.id, one)
        if other is not one:
            raise BundleError(f"execution {one.id} is in it twice, at {other.arrival.path!r} and {one.arrival.path!r}")


def _described(path: str, data: bytes) -> BundleFile:
    return BundleFile(path, sha256(data).hexdigest(), len(data))


def _staged(source: Source, path: str, target: Path) -> BundleFile:
    digest, size = sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for block in source.blocks(path):
            digest.update(block)
            size += file.write(block)
    return BundleFile(path, digest.hexdigest(), size)


def _nothing() -> None:
    """Stand for the archiving of what is archived."""


def _write(target: Path, told: ccp.CcpExecution, path: str, blocks: Iterator[bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        if not told.masked(path):
            file.writelines(blocks)
            return
        masked = told.mask.stream()
        file.writelines(masked.feed(block) for block in blocks)
        file.write(masked.finish())


def _taken(execution_id: str, kept: str, found: str, *, where: str = "") -> BundleError:
    return BundleError(
        f"another execution {execution_id} is here{where}. That here is {kept}, that to be imported {found}"
    )


@contextmanager
def _flushed(workbench: Workbench) -> Iterator[Bulk]:
    """Record in bulk; also when it breaks off, what was archived by then is in the ledger."""
    with workbench.ledger.bulk() as bulk:
        try:
            yield bulk
        finally:
            bulk.flush()


@contextmanager
def _room(workbench: Path) -> Iterator[Path]:
    """Make a folder that goes at the end; what an import that was killed has left goes, too."""
    scratch = workbench / SCRATCH
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for left in scratch.glob(f"{_STAGING}*"):
            if gone(left.name.removeprefix(_STAGING).rpartition(".")[0]):
                shutil.rmtree(left, ignore_errors=True)
        folder = tempfile.TemporaryDirectory(dir=scratch, prefix=f"{_STAGING}{mark()}.")
    except OSError as error:
        raise BundleError(f"{scratch} cannot be written: {error.strerror or error}; free some space") from error
    with folder as name:
        yield Path(name)
