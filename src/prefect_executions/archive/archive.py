"""The archive of sealed bundles: its layout in an object store and the order of writes.

::

    executions/<id>/
    ├── opening.json           the opening record, stored before user code runs
    ├── suspended.zip          the open bundle of a suspended run, until the run is sealed
    ├── data/<sha256>          large files: output.zip, staged inputs
    ├── sealed-<16 hex>/…      the small files of the bundle, under their paths in the bundle
    ├── imported.json          where and when an imported execution was imported
    ├── seal.json              created last, with create-if-absent
    ├── inclusion.json         the proof that the seal is in a checkpoint
    ├── late/<16 hex>.json     reports that arrived after the seal; they change nothing
    └── annotations/<16 hex>.json
                               tags, names, notes and recalls, one object for each change

Law: write data, then metadata, then the seal; read in reverse order. Without a seal,
readers see the opening record or nothing. Processes that race to seal different
content write to different folders, and the seal names one, so bundles never mix.

Other prefixes hold the marks of open and sealed executions (`Marks`), the signed
checkpoints (`Checkpoints`), and ``removed/<id>.json`` for each removed execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from prefect_executions.archive.bundle import ArchivedBundle
from prefect_executions.archive.marks import Checkpoints, Marks, open_key
from prefect_executions.archive.objects import (
    IMPORTED,
    INCLUSION,
    LATE,
    OPENING,
    SEAL,
    SUSPENDED,
    ArchivedData,
    Imported,
    Removed,
    Seal,
    data_name,
    folder_of,
    parse_seal,
    removed_key,
    small_objects,
)
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles.annotations import FOLDER, name_of
from prefect_executions.bundles.layout import ATTESTATION, MANIFEST, check_execution_id, is_execution_id
from prefect_executions.bundles.manifest import render
from prefect_executions.documents import SMALL_DOCUMENT
from prefect_executions.errors import ArchiveError, BundleError, NotFoundError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.status import Status
from prefect_executions.objectstore.interface import Durability, ObjectInfo, Store
from prefect_executions.objectstore.open import NO_OPTIONS, TIMEOUT, open_store
from prefect_executions.seekable import open_ranges
from prefect_executions.tracepoints import TracePoint, trace_point

_ROOT = "executions/"
# A file up to this size is read and checked against its digest before it is stored; a larger one is streamed.
_SMALL = 8 * 1024**2
_BESIDE = 128 * 1024**2
"""The most bytes of the objects beside a seal that are read together."""

# Up to this total size, sealing sends the data together with the small files without a noticeable delay.
_SENT_WITH_SEAL = 1024**2


class Content(NamedTuple):
    """A finished bundle, ready for the archive.

    `files` are stored as single objects and must include the manifest. `data` must
    already be stored with `Archive.put_data`, unless it is small (`sent_with_seal`).
    `absent` are the files that the archive level leaves out. `at` is the time of
    sealing, for the marks. `extra_objects` are stored beside the bundle, by name.
    `in_memory` holds the contents of files that are not in `folder`, from which the caller took their digests.
    """

    folder: Path
    files: Sequence[BundleFile]
    data: Sequence[BundleFile]
    absent: Sequence[str]
    status: Status
    finished: datetime | None
    at: datetime
    extra_objects: Mapping[str, bytes] = {}
    in_memory: Mapping[str, bytes] = {}


class Sealing(NamedTuple):
    """The result of sealing: the winning seal, and whether it is the seal of our content."""

    seal: Seal
    ours: bool


class Swept(NamedTuple):
    """How much a sweep removed: interrupted uploads, and objects that no seal names."""

    uploads: int
    objects: int


class Archive:
    """The archive in an object store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.marks = Marks(store)
        self.checkpoints = Checkpoints(store)

    def put_opening(self, execution_id: str, data: bytes, *, workbench: str = "") -> None:
        """Store the opening record *data* and mark the execution as open; called before user code runs.

        *workbench* is the path of the Workbench that has the bundle.
        """
        objects = {folder_of(execution_id) + OPENING: data, open_key(execution_id): workbench.encode()}
        # Not synced: user code would wait for the disk, only in case the power fails in its first moment.
        self.store.put_many(objects, durability=Durability.ASYNC)

    def opening(self, execution_id: str) -> bytes | None:
        """Return the opening record, or None if it is missing, or empty after a power cut."""
        return self._get(folder_of(execution_id) + OPENING) or None

    def put_suspended(self, execution_id: str, path: Path) -> None:
        """Store the zip of a suspended run's open bundle; replace an earlier zip."""
        self.store.put(folder_of(execution_id) + SUSPENDED, path)

    def suspended(self, execution_id: str) -> BinaryIO | None:
        """Open the zip that `put_suspended` stored, or return None; treat it as hostile input."""
        key = folder_of(execution_id) + SUSPENDED
        info = self.store.head(key)
        if info is None:
            return None
        return open_ranges(lambda start, end: self.store.get_range(key, start, end), info.size)

    def delete_suspended(self, execution_id: str) -> None:
        """Delete the zip that `put_suspended` stored, if it exists."""
        self.store.delete(folder_of(execution_id) + SUSPENDED)

    def put_data(self, execution_id: str, path: Path, digest: str) -> bool:
        """Store the file at *path*, whose SHA-256 is *digest*; return whether an upload was necessary.

        After an interruption, call it again: the upload resumes.

        Raises:
            BundleError: If the file does not exist.
            ArchiveError: If the store fails.
        """
        key = folder_of(execution_id) + data_name(digest)
        if not path.is_file():
            raise BundleError(f"{path} is gone, so it cannot be archived")
        info = self.store.head(key)
        if info and info.size == path.stat().st_size:
            return False
        self.store.put(key, path)
        trace_point(TracePoint.DATA_SENT, execution_id, digest)
        return True

    def seal(self, execution_id: str, content: Content) -> Sealing:
        """Store the small files of *content*, then create the seal if it is absent.

        A second call changes nothing. If other content has been sealed already, this
        call deletes the objects that it and `put_data` stored, unless the winner names them.

        Raises:
            BundleError: If a file's digest is wrong.
            ArchiveError: If the store fails, or part of the data has not been stored.
        """
        sealing = self._seal(execution_id, content)
        with suppress(ArchiveError):  # the seal is valid; a left-over mark only makes readers look at the seal
            self.marks.close(execution_id, sealing.seal.manifest_sha256, content.at)
            trace_point(TracePoint.MARKED, execution_id)
        return sealing

    def _seal(self, execution_id: str, content: Content) -> Sealing:
        ours = _seal_for(execution_id, content)
        winner = self.seal_of(execution_id)
        if winner is None:
            files = [*content.files]
            if sent_with_seal(content.data):
                files += content.data
            else:
                self._check_data(execution_id, ours)
            folder = folder_of(execution_id)
            objects = {folder + ours.object_of(file.path): _load(content, file) for file in files}
            objects |= {folder + name: data for name, data in content.extra_objects.items()}
            self.store.put_many(objects, durability=Durability.WITH_SEAL)
            trace_point(TracePoint.FILES_SENT, execution_id)
            if self.store.put_if_absent(folder + SEAL, ours.to_json(), after=objects):
                trace_point(TracePoint.SEALED, execution_id)
                return Sealing(ours, ours=True)
            winner = self.bundle(execution_id).seal
        if winner != ours:
            self._remove_loser(execution_id, ours, winner)
        return Sealing(winner, winner == ours)

    def seal_of(self, execution_id: str) -> Seal | None:
        """Return the seal, or None if the execution is not sealed."""
        data = self._get(folder_of(execution_id) + SEAL)
        return None if data is None else parse_seal(execution_id, data)

    def is_signed(self, seal: Seal) -> bool:
        """Return whether a sealed bundle has a signature, valid or not."""
        return self.store.head(folder_of(seal.execution_id) + seal.object_of(ATTESTATION)) is not None

    def seals_of(self, ids: Iterable[str]) -> dict[str, Seal]:
        """Return the seals of several executions by id, fetched together; one without a valid seal is left out."""
        keys = {folder_of(execution_id) + SEAL: execution_id for execution_id in ids}
        seals = {}
        for key, data in small_objects(self.store, keys):
            with suppress(ArchiveError):  # damaged; an audit reports it
                seals[keys[key]] = parse_seal(keys[key], data)
        return seals

    def put_inclusions(self, proofs: Sequence[Inclusion]) -> None:
        """Store each proof of inclusion beside its seal."""
        objects = {folder_of(proof.seal.execution_id) + INCLUSION: proof.to_json() for proof in proofs}
        self.store.put_many(objects, durability=Durability.ASYNC)

    def inclusion(self, execution_id: str) -> bytes | None:
        """Return the proof that the seal is in a checkpoint, or None if no checkpoint has it yet."""
        return self._get(folder_of(execution_id) + INCLUSION)

    def imported(self, execution_id: str) -> Imported | None:
        """Return where and when an execution was imported, or None if it was not imported.

        Raises:
            ArchiveError: If the import record is damaged.
        """
        data = self._get(folder_of(execution_id) + IMPORTED)
        try:
            imported = None if data is None else Imported.from_json(data)
        except BundleError as error:
            raise ArchiveError(f"The import record {IMPORTED} of {execution_id} is damaged: {error}") from error
        if imported is not None and imported.execution_id != execution_id:
            raise ArchiveError(f"The import record {IMPORTED} of {execution_id} is that of {imported.execution_id}")
        return imported

    def put_late_seal(self, execution_id: str, data: bytes) -> None:
        """Store a report that lost the race for the seal; identical reports are stored once."""
        self.store.put(f"{folder_of(execution_id)}{LATE}{sha256(data).hexdigest()[:16]}.json", data)

    def put_annotations(self, execution_id: str, annotations: Iterable[bytes]) -> None:
        """Store annotations in their stored form; an identical annotation is stored once."""
        folder = folder_of(execution_id)
        self.store.put_many({folder + name_of(data): data for data in annotations}, durability=Durability.WITH_SEAL)

    def annotations(self, execution_id: str) -> dict[str, bytes]:
        """Return the annotations of an execution in their stored form, by name; they may be damaged."""
        folder = folder_of(execution_id)
        keys = [info.key for info in self.store.list(folder + FOLDER)]
        return {key.removeprefix(folder): data for key, data in small_objects(self.store, keys)} if keys else {}

    def beside(self, execution_id: str) -> dict[str, bytes]:
        """Return the objects beside a seal by name: the opening and import records, and the late seals.

        If there are very many bytes of them, the last are left out; an audit reports this.
        """
        folder = folder_of(execution_id)
        keys = [info.key for info in self.store.list(folder + LATE)]
        objects = small_objects(self.store, [folder + OPENING, folder + IMPORTED, *keys])
        beside: dict[str, bytes] = {}
        left = _BESIDE
        for key, data in objects:
            left -= len(data)
            if left < 0:
                break
            beside[key.removeprefix(folder)] = data
        return beside

    def bundle(self, execution_id: str) -> ArchivedBundle:
        """Return the sealed bundle for reading.

        Raises:
            NotFoundError: If the execution is not sealed.
        """
        seal = self.seal_of(execution_id)
        if seal is None:
            raise NotFoundError(f"There is no sealed execution {execution_id} in the archive {self.store.url}")
        return ArchivedBundle(self.store, seal)

    def read(self, execution_id: str, path: str) -> bytes:
        """Return one file of a sealed bundle, after checking its digest."""
        return self.bundle(execution_id).read(path)

    def open_file(self, execution_id: str, path: str) -> BinaryIO:
        """Open one file of a sealed bundle for random access; the caller must check its digest."""
        return self.bundle(execution_id).open(path)

    def open_output(self, execution_id: str, member: str) -> BinaryIO:
        """Open one member of output.zip; this fetches only the member's bytes and checks its CRC."""
        return self.bundle(execution_id).open_output(member)

    def download(self, execution_id: str, folder: Path) -> Seal:
        """Download a sealed bundle to *folder*, check every digest, and return the seal; outputs stay zipped."""
        bundle = self.bundle(execution_id)
        bundle.download(folder)
        return bundle.seal

    def listing(self) -> Iterator[ObjectInfo]:
        """Yield every object of every execution, grouped by execution."""
        return self.store.list(_ROOT)

    def check_available(self) -> None:
        """Ask the store for one object.

        Raises:
            ArchiveError: If the archive is unavailable: not only one of its objects is damaged.
        """
        self.store.head(f"{_ROOT}{SEAL}")

    def ids(self) -> Iterator[str]:
        """Yield the ids of all executions, sealed or open; a recently removed id may still be listed.

        A folder whose name is no id is left out; an audit reports it.
        """
        return (name for name in self.store.list_children(_ROOT) if is_execution_id(name))

    def removed(self, execution_id: str) -> Removed | None:
        """Return when and why an execution was removed, or None if it was not removed.

        Raises:
            ArchiveError: If the removal record is damaged.
        """
        data = self._get(removed_key(execution_id))
        try:
            return None if data is None else Removed.from_json(data)
        except BundleError as error:
            raise ArchiveError(f"The removal record of {execution_id} is damaged: {error}") from error

    def put_removal(self, removed: Removed) -> None:
        """Store the removal record; do this before `remove`, so that settle does not recreate the execution."""
        self.store.put(removed_key(removed.execution_id), removed.to_json())

    def remove(self, execution_id: str) -> None:
        """Delete all objects of an execution.

        An interruption leaves a sealed execution readable, or objects that `sweep` deletes.
        """
        folder = folder_of(execution_id)
        # First the opening record: without a seal it would make the execution look unsettled.
        self.store.delete(folder + OPENING, open_key(execution_id))
        self.store.delete(folder + SEAL)
        self.store.delete(*[info.key for info in self.store.list(folder)])

    def sweep(self, older_than: datetime) -> Swept:
        """Abort uploads that began before *older_than*, and delete objects that no seal will ever name."""
        uploads = self.store.abort_stale(older_than)
        return Swept(uploads, sum(self._sweep(execution_id, older_than) for execution_id in self.ids()))

    def _sweep(self, execution_id: str, older_than: datetime) -> int:
        folder = folder_of(execution_id)
        infos = list(self.store.list(folder))
        seal = self.seals_of([execution_id]).get(execution_id)
        names = {info.key.removeprefix(folder) for info in infos}
        if SEAL in names and seal is None:  # it is damaged, so nothing says what belongs to the bundle
            orphans = set()
        elif seal:
            # A seal never changes, so the age of the objects does not matter.
            wanted = {SEAL, OPENING, IMPORTED, INCLUSION}
            wanted |= {name for name in names if name.startswith((LATE, FOLDER))}
            orphans = {name for name in names - wanted if not seal.names(name)}
        elif OPENING in names or any(info.modified is None or info.modified >= older_than for info in infos):
            orphans = set()
        else:
            orphans = names
        self.store.delete(*[folder + name for name in orphans])
        return len(orphans)

    def _check_data(self, execution_id: str, seal: Seal) -> None:
        for path, data in seal.data.items():
            info = self.store.head(folder_of(execution_id) + data.object)
            if info is None or info.size != data.size:
                fault = f"has {info.size} bytes, expected {data.size}" if info else "is missing in the archive"
                raise ArchiveError(f"{execution_id} cannot be sealed: {data.object} ({path}) {fault}")

    def _remove_loser(self, execution_id: str, loser: Seal, winner: Seal) -> None:
        folder = folder_of(execution_id)
        keys = [folder + data.object for data in loser.data.values() if not winner.names(data.object)]
        if loser.objects != winner.objects:
            keys += [info.key for info in self.store.list(folder + loser.objects)]
        self.store.delete(*keys)

    def _get(self, key: str) -> bytes | None:
        return self.store.get_many([key], limit=SMALL_DOCUMENT).get(key)


def open_archive(url: str, *, options: Mapping[str, Any] = NO_OPTIONS, timeout: timedelta = TIMEOUT) -> Archive:
    """Return the archive at *url*; see `open_store`.

    Raises:
        SettingsError: If *url* cannot hold an archive.
    """
    return Archive(open_store(url, options=options, timeout=timeout))


def sent_with_seal(data: Iterable[BundleFile]) -> bool:
    """Return whether *data* is so small that `Archive.seal` stores it together with the small files."""
    return sum(file.size for file in data) <= _SENT_WITH_SEAL


def _seal_for(execution_id: str, content: Content) -> Seal:
    manifest = next((file for file in content.files if file.path == MANIFEST), None)
    if manifest is None:
        raise BundleError(f"{execution_id} cannot be sealed without its {MANIFEST}")
    # The name is a digest of all files, because the manifest does not list the attestation.
    name = sha256(render(content.files)).hexdigest()[:16]
    return Seal(
        execution_id=check_execution_id(execution_id),
        manifest_sha256=manifest.sha256,
        objects=f"sealed-{name}/",
        data={file.path: ArchivedData(object=data_name(file.sha256), size=file.size) for file in sorted(content.data)},
        absent=tuple(sorted(content.absent)),
        status=content.status,
        finished=content.finished,
    )


def _load(content: Content, file: BundleFile) -> bytes | Path:
    held = content.in_memory.get(file.path)
    if held is not None:
        return held
    path = content.folder / file.path
    if file.size > _SMALL:
        return path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read for the archive: {error.strerror}") from error
    if sha256(data).hexdigest() != file.sha256:
        raise BundleError(f"{path} has changed since the bundle was sealed")
    return data
