"""Import of bundles from elsewhere: all bundles of an import are verified before the first one is recorded.

Law: an imported bundle is archived like any other, with its own manifest and seal,
and never changed; a mark beside the seal records its origin and the time. A refused
import leaves nothing behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from prefect_executions.archive.archive import Content, sent_with_seal
from prefect_executions.archive.objects import IMPORTED, Imported
from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy, SignatureState
from prefect_executions.bundles import ccp, layout, manifest
from prefect_executions.bundles.annotations import AnnotationSet
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.incoming import Container, IncomingBundle, open_container, read_container
from prefect_executions.bundles.layout import BundleKind
from prefect_executions.bundles.open_bundle import SCRATCH, OpenBundle
from prefect_executions.bundles.portable_names import check_names
from prefect_executions.bundles.seal import seal
from prefect_executions.bundles.source import FolderSource, HeldSource, Source, record_of
from prefect_executions.bundles.verify import verified_record
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.capture.processes import gone, mark
from prefect_executions.capture.secrets import redact_url
from prefect_executions.errors import ArchiveError, BundleError, ExecutionsError, ImportRefusedError
from prefect_executions.executions.record import DOCUMENTS, BundleFile, ExecutionRecord
from prefect_executions.ledger.bulk import Bulk
from prefect_executions.operations.download import downloaded, is_url
from prefect_executions.settings import ImportNames, Settings
from prefect_executions.workbench.keyring import KeyRing
from prefect_executions.workbench.origin import archived_facts
from prefect_executions.workbench.sealing import is_bulk
from prefect_executions.workbench.workbench import Workbench

_STAGING = "import-"
"""Prefix of the temporary folders of imports."""

_UPLOADS = 4
"""Bundles that are archived in parallel."""

_HELD = 1 << 20
"""Largest bundle in bytes that is held in memory while it is archived; larger ones are staged on disk."""


_RECORDS_HELD = 8 << 20
"""Bytes of documents whose records stay in memory from their verification on; a record takes five times as much."""

_BUNDLES_HELD = 32 << 20
"""Bytes of bundles that stay in memory from their verification on."""


class ImportResult(NamedTuple):
    """The result of importing one bundle: it was recorded now, or before."""

    id: str
    result: Literal["imported", "unchanged"]
    kind: BundleKind
    manifest_sha256: str
    signature: SignatureState = SignatureState.UNSIGNED


class _VerifiedBundle(NamedTuple):
    """A verified bundle that may be recorded."""

    id: str
    incoming: IncomingBundle
    source: Source
    """The bundle in the format of this package."""
    manifest_sha256: str
    known: bool
    source_sha256: str | None = None
    signature: SignatureState = SignatureState.UNSIGNED
    record: ExecutionRecord | None = None
    """The verified record; None if it is read again, because too many are in memory."""


class ImportPolicy(NamedTuple):
    """The policy of an import: limits on resources, rules for file names, the time, and the accepted signers."""

    limits: Limits
    names: ImportNames
    at: datetime
    signatures: SignaturePolicy = TRUST_NOBODY

    @classmethod
    def of(cls, settings: Settings, at: datetime, signatures: SignaturePolicy | None = None) -> ImportPolicy:
        """Return the policy that the operator configured; *signatures* replaces that of the key ring."""
        limits = Limits(entries=settings.import_entries, allowance=settings.import_limit, expansion=0)
        return cls(limits, settings.import_names, at, signatures or KeyRing(settings).policy())


def import_bundles(
    workbench: Workbench,
    target: str,
    policy: ImportPolicy,
    *,
    progress: Callable[[str, int], object] = lambda _id, _steps: None,
    note: Callable[[str], object] = lambda _: None,
) -> tuple[ImportResult, ...]:
    """Import a zip, a folder, or the https://, http:// or s3:// URL of a zip.

    *target* may contain one or more bundles, a bag around them, or exports of CCP. Importing
    a bundle again changes nothing. *progress* is called twice for each execution, when it
    is verified and when it is recorded, with its id and the total number of steps. *note* is
    called with a sentence on each file that was skipped.

    Raises:
        NotFoundError: If *target* does not exist.
        ImportRefusedError: If a bundle is damaged or hostile, or its id is taken; nothing is recorded then.
        ArchiveError: If the archive fails; the bundles recorded so far are complete, and a second call continues.
    """
    if is_url(target):
        with downloaded(target, largest=policy.limits.allowance) as path:
            return _import(workbench, path, redact_url(target, query=False), policy, progress=progress, note=note)
    path = Path(target)
    return _import(workbench, path, path.resolve().name or str(path), policy, progress=progress, note=note)


def _import(
    workbench: Workbench,
    path: Path,
    origin: str,
    policy: ImportPolicy,
    *,
    progress: Callable[[str, int], object],
    note: Callable[[str], object],
) -> tuple[ImportResult, ...]:
    with ExitStack() as stack:
        staging = stack.enter_context(_staging_folder(workbench.folder))
        try:
            container = stack.enter_context(open_container(path, policy.limits, folders_too=True))
            if policy.names is ImportNames.PORTABLE:
                check_names(container.files, policy.limits.entries)
            found = read_container(container)
            incoming = found.some_bundles()
            _check_renamed(incoming, policy)
            verifier = _Verifier(workbench, staging, policy)
            bundles, steps = [], 2 * len(incoming)
            for bundle in incoming:
                bundles.append(verifier.verify(bundle))
                progress(bundles[-1].id, steps)
            _check_unique(bundles)
            _check_container(found.reading([bundle.source for bundle in bundles]))
            for sentence in (*found.notes(), *verifier.absences):
                note(sentence)
        except BundleError as error:
            raise ImportRefusedError(f"{origin} is not imported: {error}") from error
        workbench.archive_identity.claim()
        recorder = _Recorder(workbench, staging, origin, policy.at)
        with _flushed_bulk(workbench) as bulk:
            results = []
            for result in recorder.record_all(bundles, bulk):
                progress(result.id, steps)
                results.append(result)
            return tuple(results)


class _Verifier:
    """The first half of an import: verify all bundles, record nothing."""

    def __init__(self, workbench: Workbench, staging: Path, policy: ImportPolicy) -> None:
        self._workbench, self._staging, self._policy = workbench, staging, policy
        self._may_hold = _RECORDS_HELD
        self._bytes_left = _BUNDLES_HELD
        self.absences: list[str] = []
        """A sentence for each bundle that lacks files of its manifest."""

    def verify(self, incoming: IncomingBundle) -> _VerifiedBundle:
        """Return *incoming* as a verified bundle in the format of this package."""
        where = f"{incoming.path}: " if incoming.path else ""
        try:
            if incoming.kind is BundleKind.BUNDLE:
                return self._verify(incoming, self._held(incoming.source), None)
            return self._translate(incoming)
        except BundleError as error:
            raise BundleError(f"{where}{error}") from error

    def _translate(self, incoming: IncomingBundle) -> _VerifiedBundle:
        if self._policy.signatures.required:  # our own signature of the translation would say nothing of its origin
            raise BundleError("an export of CCP is not signed, and a signature is required")
        execution = ccp.translate(incoming, self._policy.at, self._policy.limits)
        mark = self._workbench.archive.imported(execution.id)
        if mark and mark.source_sha256 == execution.source_sha256:
            sealed = self._workbench.archive.bundle(execution.id).seal
            return _VerifiedBundle(execution.id, incoming, incoming.source, sealed.manifest_sha256, known=True)
        if mark and mark.source_sha256:
            raise _id_taken(execution.id, mark.source_sha256, execution.source_sha256)
        folder = self._seal(execution, incoming.source).folder
        return self._verify(incoming, FolderSource(folder), execution.source_sha256)

    def _verify(self, incoming: IncomingBundle, source: Source, source_sha256: str | None) -> _VerifiedBundle:
        report, record = verified_record(source, limits=self._policy.limits, signatures=self._signatures(incoming))
        if record is None:
            raise BundleError(report.summary)
        execution_id = layout.check_execution_id(record.id)
        digest = report.manifest_sha256 or ""
        known = self._is_archived(execution_id, digest)
        absences = (sentence for check in report.checks if check.name == "digests" for sentence in check.unchecked)
        self.absences += [f"{execution_id}: {sentence}" for sentence in absences]
        signature = report.signature if incoming.kind is BundleKind.BUNDLE else SignatureState.UNSIGNED
        held = record if self._holds(source) else None
        return _VerifiedBundle(execution_id, incoming, source, digest, known, source_sha256, signature, held)

    def _held(self, source: Source) -> Source:
        """Return *source*, or a copy in memory if it is small; a damaged one stays as it is, to be reported."""
        size = sum(source.files.values())
        if size > min(_HELD, self._bytes_left):
            return source
        with suppress(BundleError):
            copy = HeldSource(source)
            self._bytes_left -= size
            return copy
        return source

    def _holds(self, source: Source) -> bool:
        """Whether the record in *source* may stay in memory until it is recorded."""
        self._may_hold -= sum(source.files.get(kind.file_name, 0) for kind in DOCUMENTS.values())
        return self._may_hold >= 0

    def _signatures(self, incoming: IncomingBundle) -> SignaturePolicy:
        """The policy for a bundle; a translated one has our own signature, if any."""
        if incoming.kind is BundleKind.BUNDLE:
            return self._policy.signatures
        key = self._workbench.signing_key()
        return SignaturePolicy(trusted={key.public.id: key.public} if key else {})

    def _is_archived(self, execution_id: str, manifest_sha256: str) -> bool:
        """Whether the archive has this bundle already; another bundle with its id is an error."""
        archive = self._workbench.archive
        sealed = archive.seal_of(execution_id)
        if sealed is not None:
            if sealed.manifest_sha256 != manifest_sha256:
                raise _id_taken(execution_id, sealed.manifest_sha256, manifest_sha256)
            return True
        local = OpenBundle(self._workbench.folder, execution_id)
        if local.sealed:
            digest = sha256(local.paths.manifest.read_bytes()).hexdigest()
            where = " and waits to be archived: executions settle --once"
            raise _id_taken(execution_id, digest, manifest_sha256, where=where)
        if local.folder.is_dir() or archive.opening(execution_id) is not None:
            raise BundleError(f"execution {execution_id} is here and has not been sealed; settle it first")
        return False

    def _seal(self, execution: ccp.CcpExecution, source: Source) -> OpenBundle:
        def fill(folder: Path) -> None:
            for path, name in execution.outputs.items():
                _write(folder / path, execution, path, source.blocks(name))
            if execution.zipped:
                with source.open(execution.zipped) as stream:
                    reader = ZipReader.open(stream, self._policy.limits)
                    if self._policy.names is ImportNames.PORTABLE:
                        check_names(name for name, entry in reader.entries.items() if not entry.is_folder)
                    for name, path in ccp.zipped_outputs(reader):
                        _write(folder / path, execution, path, reader.blocks(reader.entries[name]))

        documents = {document.file_name: document.to_json() for document in execution.documents}
        bundle = OpenBundle.create(self._staging, execution.id, documents, fill=fill)
        gathered = gather(bundle)
        bundle.write_document(execution.job_status.model_copy(update={"outputs": gathered.outputs}))
        seal(bundle, self._workbench.signing_key())
        return bundle


class _Recorder:
    """The second half of an import: archive and index each bundle."""

    def __init__(self, workbench: Workbench, staging: Path, origin: str, at: datetime) -> None:
        self._workbench, self._staging, self._origin, self._at = workbench, staging, origin, at

    def record_all(self, bundles: Iterable[_VerifiedBundle], bulk: Bulk) -> Iterator[ImportResult]:
        """Record bundles in their order and yield each when it is archived; several are archived in parallel.

        If one fails, those that are being archived are recorded before the error is raised.
        """
        uploads: deque[tuple[_VerifiedBundle, ExecutionRecord, Future[None]]] = deque()
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="import") as pool:
            try:
                for bundle in bundles:
                    if len(uploads) == _UPLOADS:
                        yield self._index(bulk, *uploads.popleft())
                    if bundle.known:
                        record = self._workbench.archived_record(bundle.id)
                        uploads.append((bundle, record, pool.submit(_nothing)))
                    else:
                        record = bundle.record or record_of(bundle.source)
                        content = self._content(bundle, record)
                        uploads.append((bundle, record, pool.submit(self._archive, bundle, content)))
                while uploads:
                    yield self._index(bulk, *uploads.popleft())
            finally:
                for upload in uploads:
                    with suppress(ExecutionsError):
                        self._index(bulk, *upload)

    def _index(
        self, bulk: Bulk, bundle: _VerifiedBundle, record: ExecutionRecord, upload: Future[None]
    ) -> ImportResult:
        upload.result()
        archive = self._workbench.archive
        annotations = _annotations(bundle.source)
        if annotations:
            archive.put_annotations(bundle.id, annotations.values())
        facts = archived_facts(archive, bundle.id, archive.seal_of(bundle.id))
        bulk.record(
            record,
            archive="archived",
            manifest_sha256=bundle.manifest_sha256,
            imported=facts.imported,
            signed=facts.signed,
            annotations=facts.annotations,
        )
        result: Literal["imported", "unchanged"] = "unchanged" if bundle.known else "imported"
        return ImportResult(bundle.id, result, bundle.incoming.kind, bundle.manifest_sha256, bundle.signature)

    def _archive(self, bundle: _VerifiedBundle, content: Content) -> None:
        archive = self._workbench.archive
        try:
            for file in () if sent_with_seal(content.data) else content.data:
                archive.put_data(bundle.id, content.folder / file.path, file.sha256)
            sealing = archive.seal(bundle.id, content)
        except BaseException:
            self._undo(bundle.id)
            raise
        finally:
            if not content.in_memory:
                shutil.rmtree(content.folder, ignore_errors=True)
        if sealing.seal.manifest_sha256 != bundle.manifest_sha256:
            raise ImportRefusedError(str(_id_taken(bundle.id, sealing.seal.manifest_sha256, bundle.manifest_sha256)))

    def _content(self, bundle: _VerifiedBundle, record: ExecutionRecord) -> Content:
        source, folder, outputs = bundle.source, self._staging / f"big-{bundle.id}", layout.OUTPUTS + "/"
        data = b"".join(source.blocks(layout.MANIFEST))
        if sha256(data).hexdigest() != bundle.manifest_sha256:
            raise ImportRefusedError(f"{layout.MANIFEST} of {bundle.id} changed while it was imported")
        listed = manifest.parse(data)
        kept = {path for path in listed if not path.startswith(outputs)} | layout.UNLISTED
        kept -= {layout.ANNOTATIONS}  # they are stored beside the seal
        sizes = {path: size for path, size in source.files.items() if path in kept}
        # Staging a file on disk takes as long as archiving it; but all parallel uploads must fit into memory.
        in_memory = sum(sizes.values()) <= _HELD
        held = {path: b"".join(source.blocks(path)) for path in sizes} if in_memory else {}
        verified = listed if isinstance(source, HeldSource) else {}  # the same bytes in memory had these digests
        files = {
            path: _described(path, held[path], verified.get(path))
            if in_memory
            else _staged(source, path, folder / path)
            for path in sizes
        }
        for path, file in files.items():
            if listed.get(path, file.sha256) != file.sha256:
                raise ImportRefusedError(f"{path} of {bundle.id} changed while it was imported")
        zipped = layout.OUTPUT_ZIP in files
        return Content(
            folder=folder,
            files=[file for path, file in files.items() if not is_bulk(path)],
            data=[file for path, file in files.items() if is_bulk(path)],
            absent=[path for path in listed if path not in files and not (zipped and path.startswith(outputs))],
            status=record.status,
            finished=record.job_status.end_found,
            at=self._at,
            extra_objects={IMPORTED: self._mark(bundle).to_json()},
            in_memory=held,
        )

    def _mark(self, bundle: _VerifiedBundle) -> Imported:
        return Imported(
            execution_id=bundle.id,
            origin=self._origin,
            kind=bundle.incoming.kind,
            imported=self._at,
            manifest_sha256=bundle.manifest_sha256,
            level=bundle.incoming.level,
            source_sha256=bundle.source_sha256,
        )

    def _undo(self, execution_id: str) -> None:
        archive = self._workbench.archive
        with suppress(ArchiveError):  # a later sweep removes the rest
            if archive.seal_of(execution_id) is None:
                archive.remove(execution_id)


def _check_unique(bundles: Sequence[_VerifiedBundle]) -> None:
    by_id: dict[str, _VerifiedBundle] = {}
    for bundle in bundles:
        first = by_id.setdefault(bundle.id, bundle)
        if first is not bundle:
            paths = f"{first.incoming.path!r} and {bundle.incoming.path!r}"
            raise BundleError(f"execution {bundle.id} is in it twice, at {paths}")


def _check_renamed(bundles: Iterable[IncomingBundle], policy: ImportPolicy) -> None:
    """Check the original names of files that a bag renamed; the names in the bag are checked already."""
    if policy.names is ImportNames.PORTABLE:
        for bundle in bundles:
            if bundle.export and any(exported.renamed for exported in bundle.export.executions):
                check_names(bundle.source.files, policy.limits.entries)


def _check_container(found: Container) -> None:
    fault = next(found.faults(), None)
    if fault:
        raise BundleError(fault)


def _described(path: str, data: bytes, digest: str | None) -> BundleFile:
    return BundleFile(path, digest or sha256(data).hexdigest(), len(data))


def _staged(source: Source, path: str, target: Path) -> BundleFile:
    digest, size = sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for block in source.blocks(path):
            digest.update(block)
            size += file.write(block)
    return BundleFile(path, digest.hexdigest(), size)


def _annotations(source: Source) -> Mapping[str, bytes]:
    """Return the verified annotations in *source*."""
    if layout.ANNOTATIONS not in source.files:
        return {}
    return AnnotationSet.from_json(b"".join(source.blocks(layout.ANNOTATIONS))).objects()


def _nothing() -> None:
    """The upload of a bundle that the archive has already."""


def _write(target: Path, execution: ccp.CcpExecution, path: str, blocks: Iterator[bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        if not execution.masked(path):
            file.writelines(blocks)
            return
        masked = execution.mask.stream()
        file.writelines(masked.feed(block) for block in blocks)
        file.write(masked.finish())


def _id_taken(execution_id: str, existing: str, imported: str, *, where: str = "") -> BundleError:
    return BundleError(
        f"another execution {execution_id} is here{where}. Its digest is {existing}, the digest to import {imported}"
    )


@contextmanager
def _flushed_bulk(workbench: Workbench) -> Iterator[Bulk]:
    """Index in bulk; after an error the ledger still gets the bundles that were archived before."""
    with workbench.ledger.bulk() as bulk:
        try:
            yield bulk
        finally:
            bulk.flush()


@contextmanager
def _staging_folder(workbench: Path) -> Iterator[Path]:
    """Create a temporary folder on the workbench, and remove those of imports that were killed."""
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
