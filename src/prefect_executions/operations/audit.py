"""Audit of an archive: find tampering and report what is incomplete.

Law: a violation is a state that no interruption, no late seal and no missing key can
explain; everything else is incomplete. Each finding names its execution. An audit
needs one listing and small reads; only a deep audit reads the data.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from itertools import groupby, islice
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.archive.objects import (
    IMPORTED,
    INCLUSION,
    LATE,
    OPENING,
    SEAL,
    Removed,
    Seal,
    folder_of,
    parse_seal,
    small_objects,
)
from prefect_executions.attestation.policy import SignaturePolicy, SignatureState
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.annotations import FOLDER, annotation_faults
from prefect_executions.bundles.verify import verify
from prefect_executions.documents import strict_json
from prefect_executions.errors import ArchiveError, BundleError, NameRefusedError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.objectstore.interface import ObjectInfo
from prefect_executions.operations.checkpoints import SealHistory, read_seal_history
from prefect_executions.settings import SignatureRule
from prefect_executions.workbench.archived_source import ArchivedSource
from prefect_executions.workbench.beside import Fault, belongs, documents_beside, faults_beside, is_beside
from prefect_executions.workbench.sealing import is_bulk

T = TypeVar("T")

Weight = Literal["violation", "incomplete"]

_BATCH = 100
"""Executions whose small files are read together."""

_LATE = timedelta(days=1)
"""Usual delay between the end of an execution and its checkpoint; a longer delay is reported."""

_BESIDE = (layout.ATTESTATION, layout.INCLUSION, layout.SSH_SIGNATURE)
_READ = (layout.MANIFEST, JobStatus.file_name, *_BESIDE)
_LINK = -1
"""The size of a link, which is not read."""

_MAX_READ = 64 << 20
"""Largest object in bytes that is read."""

_READ_TOGETHER = 64 << 20
"""Bytes that are read together, if no single object is larger."""

_READ_OF_EXECUTION = 256 << 20
"""Most bytes that are read of an execution; with 100,000 outputs it has 100 MB."""


class AuditFinding(NamedTuple):
    """One finding of an audit; `execution` is empty if it concerns the archive as a whole."""

    weight: Weight
    kind: str
    execution: str
    what: str


def audit(
    archive: Archive,
    signatures: SignaturePolicy,
    *,
    deep: bool = False,
    witness: bytes | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[AuditFinding]:
    """Yield the violations and incomplete parts of *archive*; *signatures* says which signers are accepted.

    If no key is trusted at all, a signature is unchecked, which is no violation. *witness*
    is a copy of a checkpoint that was kept elsewhere: the archive must still have it, and
    everything that it lists. *progress* is called with the number of executions checked so far.

    Raises:
        RequestError: If *witness* is not a checkpoint with an accepted signature.
        ArchiveError: If the archive is unavailable.
    """
    run = _Audit(archive, signatures, deep=deep, witness=witness)
    yield from run.checkpoints()
    count = 0
    for batch in _batches(archive.listing()):
        yield from run.executions(batch)
        progress(count := count + len(batch))
    yield from run.missing()


class _Audit:
    def __init__(self, archive: Archive, signatures: SignaturePolicy, *, deep: bool, witness: bytes | None) -> None:
        self._archive, self._deep, self._kept = archive, deep, witness
        # A missing key explains an unknown signer, and the law says that it is no violation then.
        self._signatures = signatures.accepting_unknown(when=not signatures.trusted)
        self._seen: set[str] = set()
        self._sealed_count = 0
        self._history = SealHistory()
        self._marks: dict[str, set[str]] = {}

    def checkpoints(self) -> Iterator[AuditFinding]:
        """Read and check the checkpoints, and read the marks of seals."""
        self._history, faults = read_seal_history(self._archive, self._signatures, witness=self._kept)
        for weight, what in faults:
            yield AuditFinding(weight, "checkpoint", "", what)
        for mark in self._archive.marks.sealed_since(LONG_AGO):
            self._marks.setdefault(mark.id, set()).add(mark.manifest_sha256)

    def executions(self, batch: Mapping[str, Mapping[str, int]]) -> Iterator[AuditFinding]:
        """Check some executions, each with the sizes of its objects by their names below its folder."""
        if "" in batch:
            yield _stray("", batch[""])
        batch = {execution_id: objects for execution_id, objects in batch.items() if execution_id}
        self._seen |= batch.keys()
        seals: dict[str, Seal] = {}
        raw = dict(small_objects(self._archive.store, [folder_of(execution_id) + SEAL for execution_id in batch]))
        for execution_id, objects in batch.items():
            data = raw.get(folder_of(execution_id) + SEAL)
            try:
                if data is not None:
                    seals[execution_id] = parse_seal(execution_id, data)
            except ArchiveError as error:
                yield AuditFinding("violation", "damaged", execution_id, str(error))
            if data is None:
                yield self._unsealed(execution_id, objects)
        yield from self._opening_faults(raw, batch)
        names = {execution_id: [*SealedRecord.reads(seal, batch[execution_id])] for execution_id, seal in seals.items()}
        self._sealed_count += len(seals)
        sizes = {id_: sum(batch[id_][name] for name in small) for id_, small in names.items()}
        for part in _within(names, sizes.__getitem__):
            yield from self._read_together({id_: names[id_] for id_ in part}, seals, batch)

    def _read_together(
        self, names: Mapping[str, Sequence[str]], seals: Mapping[str, Seal], batch: Mapping[str, Mapping[str, int]]
    ) -> Iterator[AuditFinding]:
        keys = {folder_of(id_) + name for id_, small in names.items() for name in small}
        content = self._archive.store.get_many(keys)
        for execution_id, small in names.items():
            folder = folder_of(execution_id)
            files = {name: content[folder + name] for name in small if folder + name in content}
            yield from self._sealed(execution_id, SealedRecord(seals[execution_id], batch[execution_id], files))

    def _opening_faults(
        self, seals: Mapping[str, bytes], batch: Mapping[str, Mapping[str, int]]
    ) -> Iterator[AuditFinding]:
        """Check the opening records of the executions without a seal, from which settle may have to seal them."""
        folders = {folder_of(execution_id): execution_id for execution_id in batch}
        keys = [
            folder + OPENING
            for folder, execution_id in folders.items()
            if folder + SEAL not in seals and 0 < batch[execution_id].get(OPENING, 0) <= _MAX_READ
        ]
        for part in _within(keys, lambda key: batch[folders[key.removesuffix(OPENING)]][OPENING]):
            for key, data in self._archive.store.get_many(part).items():
                execution_id = folders[key.removesuffix(OPENING)]
                faults = documents_beside(execution_id, {OPENING: data}).faults
                yield from (AuditFinding("violation", kind, execution_id, what) for kind, what in faults)

    def missing(self) -> Iterator[AuditFinding]:
        """Report executions that are missing from the archive, and an archive without checkpoints."""
        if self._sealed_count and not self._history.last and self._signatures.trusted:
            what = (
                "the archive has no checkpoints. 'executions settle --once' writes them if it has a signing key; "
                "if it had any before, they were deleted"
            )
            yield AuditFinding("incomplete", "no-checkpoint", "", what)
        for execution_id in sorted((self._history.sealed.keys() | self._marks.keys()) - self._seen):
            yield self._removal(execution_id, f"it is missing; {self._witness(execution_id)} says that it was sealed")

    def _witness(self, execution_id: str) -> str:
        number = self._history.number.get(execution_id)
        return f"checkpoint {number}" if number else "its mark"

    def _removal(self, execution_id: str, what: str) -> AuditFinding:
        note, sealed = self._removed(execution_id), self._sealed_as(execution_id)
        if note is None:
            return AuditFinding("violation", "removed", execution_id, what)
        if note.manifest_sha256 and sealed and note.manifest_sha256 not in sealed:
            what = f"{what}; its removal note is on another manifest, {note.manifest_sha256}"
            return AuditFinding("violation", "removed", execution_id, what)
        return AuditFinding("incomplete", "removed", execution_id, _noted(note))

    def _sealed_as(self, execution_id: str) -> set[str]:
        """The digests of the manifests that were sealed, according to the checkpoints, or else to the marks."""
        return self._history.sealed.get(execution_id) or self._marks.get(execution_id, set())

    def _removed(self, execution_id: str) -> Removed | None:
        """The removal note of an execution; a note on another execution is none."""
        try:
            note = self._archive.removed(execution_id)
        except (ArchiveError, NameRefusedError):
            return None
        return note if note and note.execution_id == execution_id else None

    def _unsealed(self, execution_id: str, objects: Mapping[str, int]) -> AuditFinding:
        if execution_id in self._history.sealed or execution_id in self._marks:
            what = f"its {SEAL} is missing; {self._witness(execution_id)} says that it was sealed"
            return self._removal(execution_id, what)
        if OPENING in objects:
            what = "it has not ended, or waits for 'executions settle'"
            return AuditFinding("incomplete", "unsealed", execution_id, what)
        what = f"{len(objects)} objects without a seal, from a writer that died"
        return AuditFinding("incomplete", "stray", execution_id, what)

    def _sealed(self, execution_id: str, record: SealedRecord) -> Iterator[AuditFinding]:
        for name in sorted(name for name, size in record.objects.items() if size == _LINK):
            what = f"{name!r} is a link or a special file, whose content may change, so it is not read"
            yield AuditFinding("violation", "link", execution_id, what)
        yield from (
            AuditFinding("violation", kind, execution_id, what) for kind, what in record.faults(self._signatures)
        )
        strays = [name for name in record.objects if not belongs(name, record.seal)]
        if strays:
            yield _stray(execution_id, strays)
        yield from self._check_history(execution_id, record)
        yield from self._check_import(execution_id, record)
        yield from self._check_proof(execution_id, record)
        report = verify(record, only={"signature", "inclusion"}, signatures=self._signatures)
        faults = (fault for check in report.checks for fault in check.faults)
        yield from (AuditFinding("violation", "signature", execution_id, fault) for fault in faults)
        if report.signature is SignatureState.UNSIGNED and self._signatures.unsigned is SignatureRule.NOTE:
            yield AuditFinding("incomplete", "unsigned", execution_id, "it is not signed")
        elif report.signature is SignatureState.UNKNOWN and self._signatures.allow_unknown:
            what = "its key is not trusted here, so the signature was not checked: executions keys trust FILE"
            yield AuditFinding("incomplete", "unknown-signer", execution_id, what)
        if self._deep:
            yield from self._check_content(execution_id)

    def _check_history(self, execution_id: str, record: SealedRecord) -> Iterator[AuditFinding]:
        """Compare the seal with the checkpoints, or else with its mark."""
        seal, digest = record.seal, record.seal.manifest_sha256
        witnessed = self._history.sealed.get(execution_id, set())
        replaced = self._sealed_as(execution_id) - {digest}
        note = self._removed(execution_id) if replaced else None
        if note and note.manifest_sha256 in replaced:
            what = f"{_noted(note)}; the archive has another execution with its id"
            yield AuditFinding("incomplete", "removed", execution_id, what)
        for other in sorted(replaced - {note.manifest_sha256 if note else None}):
            what = f"{self._witness(execution_id)} says that {other} was sealed; the archive has {digest}"
            yield AuditFinding("violation", "replaced", execution_id, what)
        if digest not in witnessed:
            if self._history.last:
                yield AuditFinding("incomplete", "no-checkpoint", execution_id, "it is in no checkpoint yet")
            return
        since, until = self._history.when[execution_id]
        if seal.finished and IMPORTED not in record.objects:
            if seal.finished > until + SKEW:
                what = f"it ended at {seal.finished}, after the checkpoint that contains its seal"
                yield AuditFinding("violation", "time", execution_id, what)
            elif since and seal.finished < since - _LATE:
                what = f"it ended at {seal.finished} and was sealed after {since}: late, or back-dated"
                yield AuditFinding("incomplete", "late", execution_id, what)

    def _check_import(self, execution_id: str, record: SealedRecord) -> Iterator[AuditFinding]:
        """An execution is sealed here when it is imported, so the checkpoint comes later."""
        imported = documents_beside(execution_id, record.beside).imported
        when = self._history.when.get(execution_id)
        witnessed = record.seal.manifest_sha256 in self._history.sealed.get(execution_id, set())
        if imported and when and witnessed and imported.imported > when[1] + SKEW:
            what = f"it was imported at {imported.imported}, after the checkpoint that contains its seal"
            yield AuditFinding("violation", "time", execution_id, what)

    def _check_proof(self, execution_id: str, record: SealedRecord) -> Iterator[AuditFinding]:
        """Check the inclusion proof beside the seal: it reveals that the newest checkpoints were removed."""
        try:
            proof = record.proof()
        except BundleError as error:
            yield AuditFinding("violation", "damaged", execution_id, str(error))
            return
        number = proof.parsed_head().number if proof else 0
        # Read once more: the checkpoint may have been written since this audit began.
        if number > self._history.last and not list(self._archive.checkpoints.read([number])):
            what = f"checkpoint {number} is missing; the inclusion proof of this seal names it"
            yield AuditFinding("violation", "checkpoint", execution_id, what)

    def _check_content(self, execution_id: str) -> Iterator[AuditFinding]:
        try:
            source = ArchivedSource(self._archive, self._archive.bundle(execution_id))
            faults = [*source.seal_faults(), *verify(source, signatures=self._signatures).faults]
        except (ArchiveError, BundleError) as error:
            faults = [str(error)]
        yield from (AuditFinding("violation", "content", execution_id, fault) for fault in faults)


class SealedRecord:
    """The small files of a sealed execution in the archive, checked against its seal; a source for `verify`.

    *objects* are the sizes of all objects of the execution by name, *content* the bytes of those that `reads` names.
    """

    irregular: tuple[str, ...] = ()
    empty_folders: tuple[str, ...] = ()
    absent: Mapping[str, str] = {}

    def __init__(self, seal: Seal, objects: Mapping[str, int], content: Mapping[str, bytes]) -> None:
        self.seal, self.objects, self._names = seal, objects, content.keys()
        self._data = {path: content[seal.object_of(path)] for path in _READ if seal.object_of(path) in content}
        self._proof = content.get(INCLUSION)
        self.beside = {name: data for name, data in content.items() if is_beside(name)}
        """The objects beside the seal by name."""
        self.files: Mapping[str, int] = {path: len(data) for path, data in self._data.items()}

    @staticmethod
    def reads(seal: Seal, objects: Mapping[str, int]) -> Iterator[str]:
        """Yield the names of the objects to read."""
        left = _READ_OF_EXECUTION
        for name in _small(seal, objects):
            if 0 <= objects[name] <= min(_MAX_READ, left):
                left -= objects[name]
                yield name

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content."""
        yield self._data[path]

    def open(self, path: str) -> BinaryIO:
        """Open a file."""
        return io.BytesIO(self._data[path])

    def proof(self) -> Inclusion | None:
        """Return the inclusion proof of the seal in a checkpoint, or None without one.

        Raises:
            BundleError: If it is damaged, or belongs to another seal.
        """
        if self._proof is None:
            return None
        proof = Inclusion.from_json(self._proof)
        sealed = (self.seal.execution_id, self.seal.manifest_sha256)
        if not proof.holds or (proof.seal.execution_id, proof.seal.manifest_sha256) != sealed:
            raise BundleError(
                f"{INCLUSION} does not lead from this seal to the root of checkpoint {proof.parsed_head().number}"
            )
        return proof

    def faults(self, signatures: SignaturePolicy) -> Iterator[Fault]:
        """Yield the contradictions between the seal, the manifest, the job status and the objects."""
        yield from self._unread()
        yield from annotation_faults(self.seal.execution_id, self.seal.manifest_sha256, self.beside, signatures)
        yield from faults_beside(self.seal, self.beside, self._job_status())
        for name in self.objects:
            if name.startswith((LATE, FOLDER)) and not is_beside(name):
                yield "added", f"{name!r} exists and is not {'a late seal' if LATE in name else 'an annotation'}"
        data = self._data.get(layout.MANIFEST)
        if data is None:
            yield "missing", f"{layout.MANIFEST} is missing"
            return
        digest = sha256(data).hexdigest()
        if digest != self.seal.manifest_sha256:
            yield "digest", f"{layout.MANIFEST} has the digest {digest}; the seal says {self.seal.manifest_sha256}"
        try:
            listed = manifest.parse(data)
        except BundleError as error:
            yield "damaged", str(error)
            return
        for path in self.seal.absent:
            if not is_bulk(path):
                yield "forged", f"{path!r} is not in the archive according to the seal; every archive level keeps it"
        yield from self._object_faults(listed)
        yield from self._status_faults(listed)
        if digest == self.seal.manifest_sha256:
            yield from self._name_faults(listed, digest)

    def _unread(self) -> Iterator[Fault]:
        for name in _small(self.seal, self.objects):
            if name not in self._names and self.objects[name] != _LINK:
                yield "damaged", f"{name!r} was not read: it has {self.objects[name]} bytes, or all have too many"

    def _job_status(self) -> JobStatus | None:
        with suppress(BundleError):  # `_status_faults` reports it
            return JobStatus.from_json(self._data.get(JobStatus.file_name, b""))
        return None

    def _object_faults(self, listed: Mapping[str, str]) -> Iterator[Fault]:
        seal = self.seal
        zipped = layout.OUTPUT_ZIP in seal.data
        for path in listed:
            if path in seal.absent or (zipped and path.startswith(f"{layout.OUTPUTS}/")):
                continue
            if seal.object_of(path) not in self.objects:
                yield "missing", f"{path!r} is missing: the object {seal.object_of(path)} does not exist"
        for path, data in seal.data.items():
            if listed.get(path) != data.sha256:
                yield (
                    "digest",
                    f"{path!r} has the digest {data.sha256} in the seal; the manifest says {listed.get(path)}",
                )
            size = self.objects.get(data.object)
            if size not in {None, data.size}:
                yield "digest", f"{path!r} has {size} bytes; the seal says {data.size}"
        for name in self.objects:
            path = seal.path_of(name)
            if name.startswith(seal.objects) and path not in listed and path not in layout.UNLISTED:
                yield "added", f"{path!r} exists and the manifest does not list it"

    def _status_faults(self, listed: Mapping[str, str]) -> Iterator[Fault]:
        data = self._data.get(JobStatus.file_name)
        if data is None:
            return
        digest, expected = sha256(data).hexdigest(), listed.get(JobStatus.file_name)
        if digest != expected:
            yield "digest", f"{JobStatus.file_name!r} has the digest {digest}; the manifest says {expected}"
        try:
            strict_json(data, JobStatus.file_name)
            status = JobStatus.from_json(data)
        except BundleError as error:
            yield "damaged", str(error)
            return
        pairs: Mapping[str, tuple[object, object]] = {
            "execution": (status.job_id, self.seal.execution_id),
            "status": (status.execution_status, self.seal.status),
            "end": (status.end_found, self.seal.finished),
        }
        for what, (recorded, sealed) in pairs.items():
            if recorded != sealed:
                yield "forged", f"the {what} is {sealed} in the seal; {JobStatus.file_name} says {recorded}"

    def _name_faults(self, listed: Mapping[str, str], manifest_sha256: str) -> Iterator[Fault]:
        """The folder's name is a digest of its small files, so an added or removed signature is detected."""
        files = [BundleFile(path, digest, 0) for path, digest in listed.items() if not is_bulk(path)]
        files.append(BundleFile(layout.MANIFEST, manifest_sha256, 0))
        beside = [path for path in _BESIDE if path in self._data]
        files += [BundleFile(path, sha256(self._data[path]).hexdigest(), 0) for path in beside]
        name = f"sealed-{sha256(manifest.render(files)).hexdigest()[:16]}/"
        if name != self.seal.objects:
            signatures = ", ".join(beside) or "no signature"
            yield "signature", f"its signature files differ from those at the time of sealing: it has {signatures}"


def _noted(note: Removed) -> str:
    return f"it was removed on {note.removed:%Y-%m-%d}: {note.why}"


def _stray(execution_id: str, names: Iterable[str]) -> AuditFinding:
    first, *others = sorted(names)
    what = f"{first!r} does not belong to a bundle ({len(others) + 1} such objects)"
    return AuditFinding("incomplete", "stray", execution_id, what)


def _split_key(key: str) -> tuple[str, str]:
    """The execution id and the name of an object below its folder; ("", key) if it belongs to no execution."""
    execution_id, _, name = key.partition("/")[2].partition("/")
    try:
        return (layout.check_execution_id(execution_id), name) if name else ("", key)
    except NameRefusedError:
        return "", key


def _small(seal: Seal, objects: Mapping[str, int]) -> Iterator[str]:
    """Yield the names of the small files that an audit reads, once each, those of the bundle first."""
    ours = dict.fromkeys(seal.object_of(path) for path in _READ)
    yield from (name for name in ours if name in objects)
    yield from (name for name in objects if (name == INCLUSION or is_beside(name)) and name not in ours)


def _within(things: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Split *things* into parts of at most `_READ_TOGETHER` bytes, or of a single thing."""
    part: list[T] = []
    total = 0
    for thing in things:
        if part and total + size_of(thing) > _READ_TOGETHER:
            yield part
            part, total = [], 0
        part.append(thing)
        total += size_of(thing)
    if part:
        yield part


def _batches(listing: Iterable[ObjectInfo]) -> Iterator[dict[str, dict[str, int]]]:
    """The executions of a sorted listing in batches, each with the sizes of its objects by name."""
    groups = groupby(listing, key=lambda info: _split_key(info.key)[0])
    each = (
        (execution_id, {_split_key(info.key)[1]: _LINK if info.is_link else info.size for info in infos})
        for execution_id, infos in groups
    )
    while batch := dict(islice(each, _BATCH)):
        sizes = {execution_id: objects.get(SEAL, 0) for execution_id, objects in batch.items()}
        for part in _within(batch, sizes.__getitem__):
            yield {execution_id: batch[execution_id] for execution_id in part}
