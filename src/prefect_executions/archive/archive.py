"""What lies where in the archive, and in which order it is written.

::

    executions/<id>/
    ├── opening.json           the opening record, put before user code runs
    ├── suspended.zip          the open bundle of a run that is suspended, until it is sealed
    ├── data/<sha256>          what is big: output.zip, staged inputs
    ├── sealed-<16 hex>/…      the small files of the bundle, under their paths in it
    ├── imported.json          of an imported execution: from where and when
    ├── seal.json              created last, and only if it is not there
    ├── inclusion.json         the proof that the seal is in a checkpoint
    └── late/<16 hex>.json     what was heard after the seal and changed nothing

Law: data, then metadata, then the seal; readers go the other way, and without a
seal there is an opening record or nothing. Sealers of different content write to
different folders and the seal decides, so a bundle is never a mixture of two.

Beside them lie the marks (`marks`), which say at a glance what is open, the signed
`checkpoints`, and ``removed/<id>.json``, which says of an execution that somebody removed it.
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
)
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles.layout import MANIFEST, check_execution_id
from prefect_executions.bundles.manifest import render
from prefect_executions.errors import ArchiveError, BundleError, NotFoundError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.status import Status
from prefect_executions.objectstore.interface import Durability, ObjectInfo, Store
from prefect_executions.objectstore.open import NO_OPTIONS, TIMEOUT, open_store
from prefect_executions.seekable import open_ranges
from prefect_executions.tracepoints import TracePoint, trace_point

_ROOT = "executions/"
# A file up to this size is read and checked against its digest before it is put; a larger one streams.
_SMALL = 8 * 1024**2
# What all data of a bundle may have together to go along: less than what sealing can send without anybody noticing.
_ALONG = 1024**2


class Content(NamedTuple):
    """A finished bundle as it is to be archived.

    `files` are put as single objects and must hold the manifest; `data` are kept
    already by `Archive.keep_data`, unless they are so little that they go along
    (`goes_along`); `absent` are the files of the bundle that its archive level
    leaves out. `at` is the time of sealing, for the marks. `beside` are objects that
    go with the bundle and are none of its files, by name; `held` are files that are in
    memory and not in the folder.
    """

    folder: Path
    files: Sequence[BundleFile]
    data: Sequence[BundleFile]
    absent: Sequence[str]
    status: Status
    finished: datetime | None
    at: datetime
    beside: Mapping[str, bytes] = {}
    held: Mapping[str, bytes] = {}


class Sealing(NamedTuple):
    """What came of a sealing: the one seal there is, and whether it is of the content that was given."""

    seal: Seal
    ours: bool


class Swept(NamedTuple):
    """What a sweep removed: broken-off uploads, and objects that no seal names."""

    uploads: int
    objects: int


class Archive:
    """The sealed bundles in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.marks = Marks(store)
        self.checkpoints = Checkpoints(store)

    def open_record(self, execution_id: str, data: bytes, *, place: str = "") -> None:
        """Keep the opening record *data* and mark the execution as open; called before user code runs.

        *place* is the path of the Workbench that has the bundle.
        """
        objects = {folder_of(execution_id) + OPENING: data, open_key(execution_id): place.encode()}
        # User code would wait for the disk, for the case that the power fails in its first moment.
        self.store.put_many(objects, durability=Durability.ASYNC)

    def opening(self, execution_id: str) -> bytes | None:
        """Return the opening record, or None where none was kept, or a power cut left nothing in it."""
        return self.store.get_many([folder_of(execution_id) + OPENING]).get(folder_of(execution_id) + OPENING) or None

    def keep_suspended(self, execution_id: str, path: Path) -> None:
        """Keep the open bundle of a run that is suspended, a zip; it replaces the one before."""
        self.store.put(folder_of(execution_id) + SUSPENDED, path)

    def suspended(self, execution_id: str) -> BinaryIO | None:
        """Open what `keep_suspended` kept, or return None where nothing is kept; it is to be read as hostile input."""
        key = folder_of(execution_id) + SUSPENDED
        there = self.store.head(key)
        if there is None:
            return None
        return open_ranges(lambda start, end: self.store.get_range(key, start, end), there.size)

    def forget_suspended(self, execution_id: str) -> None:
        """Remove what `keep_suspended` kept; where nothing is, nothing changes."""
        self.store.delete(folder_of(execution_id) + SUSPENDED)

    def keep_data(self, execution_id: str, path: Path, digest: str) -> bool:
        """Keep the file at *path*, whose SHA-256 is *digest*; return whether it had to be sent.

        A call that was broken off is to be repeated: it goes on where it was.

        Raises:
            BundleError: If there is no such file.
            ArchiveError: If the store fails.
        """
        key = folder_of(execution_id) + data_name(digest)
        if not path.is_file():
            raise BundleError(f"{path} is gone and cannot be archived")
        there = self.store.head(key)
        if there and there.size == path.stat().st_size:
            return False
        self.store.put(key, path)
        trace_point(TracePoint.DATA_SENT, execution_id, digest)
        return True

    def seal(self, execution_id: str, content: Content) -> Sealing:
        """Put the small files of *content*, then create the seal, unless there is one.

        Doing it twice changes nothing. Where another content was sealed before,
        what this call and its `keep_data` put, and the winner does not name, is removed.

        Raises:
            BundleError: If a file does not have the digest it should have.
            ArchiveError: If the store fails, or some of the data were not kept.
        """
        sealing = self._seal(execution_id, content)
        with suppress(ArchiveError):  # the seal stands; a mark that is left says only that somebody should look
            self.marks.close(execution_id, sealing.seal.manifest_sha256, content.at)
            trace_point(TracePoint.MARKED, execution_id)
        return sealing

    def _seal(self, execution_id: str, content: Content) -> Sealing:
        ours = _seal_for(execution_id, content)
        winner = self.seal_of(execution_id)
        if winner is None:
            files = [*content.files]
            if goes_along(content.data):
                files += content.data
            else:
                self._check_data(execution_id, ours)
            folder = folder_of(execution_id)
            objects = {folder + ours.object_of(file.path): _load(content, file) for file in files}
            objects |= {folder + name: data for name, data in content.beside.items()}
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
        """Return the seal, or None where the execution is not sealed."""
        key = folder_of(execution_id) + SEAL
        data = self.store.get_many([key]).get(key)
        return None if data is None else parse_seal(execution_id, data)

    def seals_of(self, ids: Iterable[str]) -> dict[str, Seal]:
        """Return the seals of several executions, fetched together; of one that is not sealed there is none.

        Raises:
            ArchiveError: If one is damaged.
        """
        keys = {folder_of(execution_id) + SEAL: execution_id for execution_id in ids}
        found = self.store.get_many(keys)
        return {keys[key]: parse_seal(keys[key], data) for key, data in found.items()}

    def keep_inclusions(self, proofs: Sequence[Inclusion]) -> None:
        """Keep the proof of each seal that is in a checkpoint beside it."""
        objects = {folder_of(one.seal.execution_id) + INCLUSION: one.to_json() for one in proofs}
        self.store.put_many(objects, durability=Durability.ASYNC)

    def inclusion(self, execution_id: str) -> bytes | None:
        """Return the proof that the seal of an execution is in a checkpoint, or None where it is in none yet."""
        key = folder_of(execution_id) + INCLUSION
        return self.store.get_many([key]).get(key)

    def imported(self, execution_id: str) -> Imported | None:
        """Return how an execution came here that was imported, or None for one that was not.

        Raises:
            ArchiveError: If the mark is damaged.
        """
        key = folder_of(execution_id) + IMPORTED
        data = self.store.get_many([key]).get(key)
        try:
            return None if data is None else Imported.from_json(data)
        except BundleError as error:
            raise ArchiveError(f"The mark of the import of {execution_id} is damaged: {error}") from error

    def note_late(self, execution_id: str, data: bytes) -> None:
        """Keep what was heard of an execution after another had sealed it; the same words are kept once."""
        self.store.put(f"{folder_of(execution_id)}{LATE}{sha256(data).hexdigest()[:16]}.json", data)

    def late_words(self, execution_id: str) -> list[bytes]:
        """Return what was heard of an execution after it was sealed, in no order."""
        keys = [found.key for found in self.store.list(folder_of(execution_id) + LATE)]
        return list(self.store.get_many(keys).values())

    def bundle(self, execution_id: str) -> ArchivedBundle:
        """Return the sealed bundle for reading.

        Raises:
            NotFoundError: If there is no seal.
        """
        seal = self.seal_of(execution_id)
        if seal is None:
            raise NotFoundError(f"There is no sealed execution {execution_id} in the archive {self.store.url}")
        return ArchivedBundle(self.store, seal)

    def read(self, execution_id: str, path: str) -> bytes:
        """Return one file of a sealed bundle; its digest is checked."""
        return self.bundle(execution_id).read(path)

    def open_file(self, execution_id: str, path: str) -> BinaryIO:
        """Return one file of a sealed bundle to be read in pieces; its digest is the caller's to check."""
        return self.bundle(execution_id).open(path)

    def open_output(self, execution_id: str, member: str) -> BinaryIO:
        """Return one member of the bundle's output.zip; only its own bytes are fetched, and its CRC is checked."""
        return self.bundle(execution_id).open_output(member)

    def download(self, execution_id: str, folder: Path) -> Seal:
        """Bring a sealed bundle into *folder*, outputs as their zip, every digest checked; return its seal."""
        bundle = self.bundle(execution_id)
        bundle.download(folder)
        return bundle.seal

    def listing(self) -> Iterator[ObjectInfo]:
        """Yield every object of every execution; those of one stand together."""
        return self.store.list(_ROOT)

    def ids(self) -> Iterator[str]:
        """Yield the ids of all executions, sealed or opened; one that was just removed may still be among them."""
        return self.store.list_children(_ROOT)

    def removed(self, execution_id: str) -> Removed | None:
        """Return when and why an execution was removed, or None for one that was not.

        Raises:
            ArchiveError: If the note is damaged.
        """
        key = removed_key(execution_id)
        data = self.store.get_many([key]).get(key)
        try:
            return None if data is None else Removed.from_json(data)
        except BundleError as error:
            raise ArchiveError(f"The note of the removal of {execution_id} is damaged: {error}") from error

    def note_removal(self, removed: Removed) -> None:
        """Say, before it is done, that an execution is removed, so that nobody makes its record anew."""
        self.store.put(removed_key(removed.execution_id), removed.to_json())

    def remove(self, execution_id: str) -> None:
        """Remove an execution. Broken off, it leaves a sealed one as it was, or objects that a sweep takes."""
        folder = folder_of(execution_id)
        # Without its seal but with its opening record it would look like one that has yet to be settled.
        self.store.delete(folder + OPENING, open_key(execution_id))
        self.store.delete(folder + SEAL)
        self.store.delete(*[found.key for found in self.store.list(folder)])

    def sweep(self, older_than: datetime) -> Swept:
        """Remove uploads that were begun before *older_than*, and objects that no seal will ever name."""
        uploads = self.store.abort_stale(older_than)
        return Swept(uploads, sum(self._sweep(execution_id, older_than) for execution_id in self.ids()))

    def _sweep(self, execution_id: str, older_than: datetime) -> int:
        folder = folder_of(execution_id)
        seal = self.seal_of(execution_id)
        found = list(self.store.list(folder))
        names = {one.key.removeprefix(folder) for one in found}
        if seal:
            # A seal never changes, so age does not matter here.
            kept = {SEAL, OPENING, IMPORTED, INCLUSION} | {name for name in names if name.startswith(LATE)}
            orphans = {name for name in names - kept if not seal.names(name)}
        elif OPENING in names or any(one.modified is None or one.modified >= older_than for one in found):
            orphans = set()
        else:
            orphans = names
        self.store.delete(*[folder + name for name in orphans])
        return len(orphans)

    def _check_data(self, execution_id: str, seal: Seal) -> None:
        for path, data in seal.data.items():
            there = self.store.head(folder_of(execution_id) + data.object)
            if there is None or there.size != data.size:
                found = f"has {there.size} bytes" if there else "is not there"
                raise ArchiveError(
                    f"{path} of {execution_id} cannot be sealed: {data.object} of {data.size} bytes {found}"
                )

    def _remove_loser(self, execution_id: str, loser: Seal, winner: Seal) -> None:
        folder = folder_of(execution_id)
        put = (
            [found.key for found in self.store.list(folder + loser.objects)] if loser.objects != winner.objects else []
        )
        kept = [folder + data.object for data in loser.data.values() if not winner.names(data.object)]
        self.store.delete(*put, *kept)


def open_archive(url: str, *, options: Mapping[str, Any] = NO_OPTIONS, timeout: timedelta = TIMEOUT) -> Archive:
    """Return the archive at *url*; see `open_store`.

    Raises:
        SettingsError: If nothing can be kept at such a URL.
    """
    return Archive(open_store(url, options=options, timeout=timeout))


def goes_along(data: Iterable[BundleFile]) -> bool:
    """Whether *data* is so little that `Archive.seal` puts it with the small files, in the same breath."""
    return sum(file.size for file in data) <= _ALONG


def _seal_for(execution_id: str, content: Content) -> Seal:
    manifest = next((file for file in content.files if file.path == MANIFEST), None)
    if manifest is None:
        raise BundleError(f"{execution_id} cannot be sealed without its {MANIFEST}")
    # Named by all the files and not by the manifest alone, which does not list the attestation.
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
    path = content.folder / file.path
    if file.size > _SMALL and file.path not in content.held:
        return path
    try:
        data = content.held[file.path] if file.path in content.held else path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read to be archived: {error.strerror}") from error
    if sha256(data).hexdigest() != file.sha256:
        raise BundleError(f"{path} has changed since the bundle was sealed")
    return data
