"""Look over an archive: what was changed in it, what is gone, and what is merely not complete.

Law: a violation is what no interruption, no late word and no missing key explains; all
else is incomplete. Each finding names the execution that it is about. It works by
one listing and small reads; only a deep audit reads what is big.

The small files of a sealed execution in the archive, held against its seal and the list of its objects.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from hashlib import sha256
from itertools import groupby, islice
from typing import BinaryIO, Literal, NamedTuple

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.archive.objects import (
    IMPORTED,
    INCLUSION,
    LATE,
    OPENING,
    SEAL,
    SUSPENDED,
    Removed,
    Seal,
    folder_of,
    parse_seal,
)
from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import ArchiveError, BundleError, NameRefusedError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.objectstore.interface import ObjectInfo
from prefect_executions.operations.checkpoints import SealHistory, read_seal_history
from prefect_executions.workbench.catalog import ArchivedSource
from prefect_executions.workbench.sealing import is_bulk

_BESIDE = (layout.ATTESTATION, layout.INCLUSION, layout.SSH_SIGNATURE)
_READ = (layout.MANIFEST, JobStatus.file_name, *_BESIDE)
_LARGEST = 64 << 20

Fault = tuple[str, str]
"""Of which kind a fault is, and a sentence."""


class SealedRecord:
    """A sealed execution as an audit sees it: a source for the verification of its signature, too.

    *objects* are the sizes of all that lies there, by name; *found* the content of those that `wanted` names.
    """

    irregular: tuple[str, ...] = ()
    absent: Mapping[str, str] = {}

    def __init__(self, seal: Seal, objects: Mapping[str, int], found: Mapping[str, bytes]) -> None:
        self.seal, self.objects = seal, objects
        self._data = {path: found[seal.object_of(path)] for path in _READ if seal.object_of(path) in found}
        self._proof = found.get(INCLUSION)
        self.files: Mapping[str, int] = {path: len(data) for path, data in self._data.items()}

    @staticmethod
    def wanted(seal: Seal, objects: Mapping[str, int]) -> Iterator[str]:
        """Yield the names of the objects that are to be read."""
        for path in _READ:
            if 0 <= objects.get(seal.object_of(path), -1) <= _LARGEST:
                yield seal.object_of(path)
        if 0 <= objects.get(INCLUSION, -1) <= _LARGEST:
            yield INCLUSION

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content."""
        yield self._data[path]

    def open(self, path: str) -> BinaryIO:
        """Open a file."""
        return io.BytesIO(self._data[path])

    def proof(self) -> Inclusion | None:
        """Return the proof that its seal is in a checkpoint, where there is one.

        Raises:
            BundleError: If it is damaged, or is that of another seal.
        """
        if self._proof is None:
            return None
        told = Inclusion.from_json(self._proof)
        sealed = (self.seal.execution_id, self.seal.manifest_sha256)
        if not told.holds or (told.seal.execution_id, told.seal.manifest_sha256) != sealed:
            raise BundleError(
                f"{INCLUSION} does not lead from this seal to the root of checkpoint {told.parsed_head().number}"
            )
        return told

    def faults(self) -> Iterator[Fault]:
        """Tell where seal, manifest, job status and objects do not fit each other."""
        data = self._data.get(layout.MANIFEST)
        if data is None:
            yield "missing", f"{layout.MANIFEST} is missing"
            return
        found = sha256(data).hexdigest()
        if found != self.seal.manifest_sha256:
            yield "digest", f"{layout.MANIFEST} is {found}; the seal says {self.seal.manifest_sha256}"
        try:
            listed = manifest.parse(data)
        except BundleError as error:
            yield "damaged", str(error)
            return
        yield from self._object_faults(listed)
        yield from self._status_faults(listed)
        if found == self.seal.manifest_sha256:
            yield from self._name_faults(listed, found)

    def _object_faults(self, listed: Mapping[str, str]) -> Iterator[Fault]:
        seal = self.seal
        zipped = layout.OUTPUT_ZIP in seal.data
        for path in listed:
            if path in seal.absent or (zipped and path.startswith(f"{layout.OUTPUTS}/")):
                continue
            if seal.object_of(path) not in self.objects:
                yield "missing", f"{path!r} is missing: there is no {seal.object_of(path)}"
        for path, data in seal.data.items():
            if listed.get(path) != data.sha256:
                yield "digest", f"{path!r} is {data.sha256} in the seal; the manifest says {listed.get(path)}"
            size = self.objects.get(data.object)
            if size not in {None, data.size}:
                yield "digest", f"{path!r} has {size} bytes; the seal says {data.size}"
        for name in self.objects:
            path = seal.path_of(name)
            if name.startswith(seal.objects) and path not in listed and path not in layout.UNLISTED:
                yield "added", f"{path!r} is there and the manifest does not list it"

    def _status_faults(self, listed: Mapping[str, str]) -> Iterator[Fault]:
        data = self._data.get(JobStatus.file_name)
        if data is None:
            return
        found = sha256(data).hexdigest()
        if found != listed.get(JobStatus.file_name):
            told = listed.get(JobStatus.file_name)
            yield "digest", f"{JobStatus.file_name!r} is {found}; the manifest says {told}"
        try:
            status = JobStatus.from_json(data)
        except BundleError as error:
            yield "damaged", str(error)
            return
        pairs: Mapping[str, tuple[object, object]] = {
            "execution": (status.job_id, self.seal.execution_id),
            "status": (status.execution_status, self.seal.status),
            "end": (status.finished, self.seal.finished),
        }
        for what, (said, sealed) in pairs.items():
            if said != sealed:
                yield "forged", f"the {what} is {sealed} in the seal; {JobStatus.file_name} says {said}"

    def _name_faults(self, listed: Mapping[str, str], found: str) -> Iterator[Fault]:
        """The folder is named by all small files in it, so a signature that is taken away or put there is seen."""
        files = [BundleFile(path, digest, 0) for path, digest in listed.items() if not is_bulk(path)]
        files.append(BundleFile(layout.MANIFEST, found, 0))
        beside = [path for path in _BESIDE if path in self._data]
        files += [BundleFile(path, sha256(self._data[path]).hexdigest(), 0) for path in beside]
        name = f"sealed-{sha256(manifest.render(files)).hexdigest()[:16]}/"
        if name != self.seal.objects:
            what = ", ".join(beside) or "no signature"
            yield "signature", f"what signs it is not what it was sealed with: {what} is there"


_AT_ONCE = 100
"""Executions whose small files are read together."""

_LATE = timedelta(days=1)
"""How long after its end an execution may be sealed and nobody asks why."""

Weight = Literal["violation", "incomplete"]


class AuditFinding(NamedTuple):
    """One thing that an audit found; `execution` is empty where it is about the archive itself."""

    weight: Weight
    kind: str
    execution: str
    what: str


def audit(
    archive: Archive,
    trusted: Mapping[str, VerifyingKey],
    *,
    deep: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[AuditFinding]:
    """Yield what is wrong or not complete in *archive*; *trusted* are the keys of those whose signature is believed.

    *progress* is called with the number of executions checked so far.

    Raises:
        ArchiveError: If the archive cannot be asked.
    """
    looking = _Audit(archive, trusted, deep=deep)
    yield from looking.checkpoints()
    count = 0
    for batch in _batches(archive.listing()):
        yield from looking.executions(batch)
        progress(count := count + len(batch))
    yield from looking.gone()


class _Audit:
    def __init__(self, archive: Archive, trusted: Mapping[str, VerifyingKey], *, deep: bool) -> None:
        self._archive, self._trusted, self._deep = archive, trusted, deep
        self._seen: set[str] = set()
        self._witness = SealHistory()
        self._marks: dict[str, set[str]] = {}

    def checkpoints(self) -> Iterator[AuditFinding]:
        """Read what witnesses there are: the checkpoints, which are checked, and the marks of seals."""
        self._witness, faults = read_seal_history(self._archive, self._trusted)
        for weight, what in faults:
            yield AuditFinding(weight, "checkpoint", "", what)
        for mark in self._archive.marks.sealed_since(LONG_AGO):
            self._marks.setdefault(mark.id, set()).add(mark.manifest_sha256)

    def executions(self, batch: Mapping[str, Mapping[str, int]]) -> Iterator[AuditFinding]:
        """Look at some executions, each with the sizes of its objects by their names below its folder."""
        if "" in batch:
            strays = sorted(batch[""])
            yield AuditFinding(
                "incomplete", "stray", "", f"{strays[0]!r} belongs to nothing ({len(strays)} such objects)"
            )
        batch = {one: objects for one, objects in batch.items() if one}
        self._seen |= batch.keys()
        seals: dict[str, Seal] = {}
        raw = self._archive.store.get_many([folder_of(one) + SEAL for one in batch])
        for one in batch:
            data = raw.get(folder_of(one) + SEAL)
            try:
                if data is not None:
                    seals[one] = parse_seal(one, data)
            except ArchiveError as error:
                yield AuditFinding("violation", "damaged", one, str(error))
            if data is None:
                yield self._unsealed(one, batch[one])
        wanted = {one: [*SealedRecord.wanted(seal, batch[one])] for one, seal in seals.items()}
        keys = {folder_of(one) + name for one, names in wanted.items() for name in names}
        found = self._archive.store.get_many(keys)
        for one, seal in seals.items():
            files = {name: found[folder_of(one) + name] for name in wanted[one] if folder_of(one) + name in found}
            yield from self._sealed(one, SealedRecord(seal, batch[one], files))

    def gone(self) -> Iterator[AuditFinding]:
        """Tell which executions were sealed, as a checkpoint or a mark says, and are not there."""
        for one in sorted((self._witness.sealed.keys() | self._marks.keys()) - self._seen):
            yield self._removal(one, f"it is gone; {self._said_by(one)} says that it was sealed")

    def _said_by(self, one: str) -> str:
        number = self._witness.number.get(one)
        return f"checkpoint {number}" if number else "its mark"

    def _removal(self, one: str, what: str) -> AuditFinding:
        note = self._removed(one)
        if note is None:
            return AuditFinding("violation", "removed", one, what)
        return AuditFinding("incomplete", "removed", one, f"it was removed on {note.removed:%Y-%m-%d}: {note.why}")

    def _removed(self, one: str) -> Removed | None:
        try:
            return self._archive.removed(one)
        except (ArchiveError, NameRefusedError):
            return None

    def _unsealed(self, one: str, objects: Mapping[str, int]) -> AuditFinding:
        if one in self._witness.sealed or one in self._marks:
            return self._removal(one, f"its {SEAL} is gone; {self._said_by(one)} says that it was sealed")
        if OPENING in objects:
            return AuditFinding("incomplete", "unsealed", one, "it has not ended, or waits for 'executions settle'")
        return AuditFinding("incomplete", "stray", one, f"{len(objects)} objects without a seal, of a writer that died")

    def _sealed(self, one: str, record: SealedRecord) -> Iterator[AuditFinding]:
        yield from (AuditFinding("violation", kind, one, what) for kind, what in record.faults())
        strays = [name for name in record.objects if not _belongs(name, record.seal)]
        if strays:
            yield AuditFinding(
                "incomplete", "stray", one, f"{strays[0]!r} belongs to nothing ({len(strays)} such objects)"
            )
        yield from self._witnessed(one, record)
        yield from self._proved(one, record)
        report = verify(record, only={"signature", "inclusion"}, trusted=self._trusted)
        yield from (
            AuditFinding("violation", "signature", one, fault) for check in report.checks for fault in check.faults
        )
        if layout.ATTESTATION not in record.files:
            yield AuditFinding("incomplete", "unsigned", one, "it is not signed")
        elif not self._trusted:
            yield AuditFinding(
                "incomplete", "unknown-signer", one, "no key is trusted here: executions keys trust FILE"
            )
        if self._deep:
            yield from self._read_whole(one)

    def _witnessed(self, one: str, record: SealedRecord) -> Iterator[AuditFinding]:
        found, seal = record.seal.manifest_sha256, record.seal
        said = self._witness.sealed.get(one, set())
        replaced = (said or self._marks.get(one, set())) - {found}
        note = self._removed(one) if replaced else None
        for digest in sorted(replaced - {note.manifest_sha256 if note else None}):
            yield AuditFinding(
                "violation", "replaced", one, f"{self._said_by(one)} says that {digest} was sealed; there is {found}"
            )
        if found not in said:
            if self._witness.last:
                yield AuditFinding("incomplete", "no-checkpoint", one, "it is in no checkpoint yet")
            return
        since, until = self._witness.when[one]
        if seal.finished and IMPORTED not in record.objects:
            if seal.finished > until + SKEW:
                yield AuditFinding(
                    "violation", "time", one, f"it ended at {seal.finished}, after the checkpoint that has its seal"
                )
            elif since and seal.finished < since - _LATE:
                what = f"it ended at {seal.finished} and was sealed after {since}: late, or back-dated"
                yield AuditFinding("incomplete", "late", one, what)

    def _proved(self, one: str, record: SealedRecord) -> Iterator[AuditFinding]:
        """The proof beside a seal outlives its checkpoint, so the newest ones are missed as well."""
        try:
            told = record.proof()
        except BundleError as error:
            yield AuditFinding("violation", "damaged", one, str(error))
            return
        number = told.parsed_head().number if told else 0
        # Looked for once more: it may have been written since this audit began.
        if number > self._witness.last and not list(self._archive.checkpoints.read([number])):
            yield AuditFinding(
                "violation", "checkpoint", one, f"checkpoint {number} is gone, which the proof of it is of"
            )

    def _read_whole(self, one: str) -> Iterator[AuditFinding]:
        try:
            source = ArchivedSource(self._archive, self._archive.bundle(one))
            faults = [*source.seal_faults(), *verify(source, trusted=self._trusted).faults]
        except (ArchiveError, BundleError) as error:
            faults = [str(error)]
        yield from (AuditFinding("violation", "content", one, fault) for fault in faults)


def _belongs(name: str, seal: Seal) -> bool:
    return name in {SEAL, OPENING, IMPORTED, INCLUSION, SUSPENDED} or name.startswith(LATE) or seal.names(name)


def _place(key: str) -> tuple[str, str]:
    """Return of which execution an object is, and its name there; of none, and its key, where no execution can be."""
    execution_id, _, name = key.partition("/")[2].partition("/")
    try:
        return (layout.check_execution_id(execution_id), name) if name else ("", key)
    except NameRefusedError:
        return "", key


def _batches(listing: Iterable[ObjectInfo]) -> Iterator[dict[str, dict[str, int]]]:
    """The executions of a listing, some at a time: what belongs to one stands together in it."""
    grouped = groupby(listing, key=lambda head: _place(head.key)[0])
    each = ((one, {_place(head.key)[1]: head.size for head in heads}) for one, heads in grouped)
    while batch := dict(islice(each, _AT_ONCE)):
        yield batch
