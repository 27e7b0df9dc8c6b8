"""The copy of a sealed bundle on this workbench: which of its files are as they were sealed, and their restoration.

Nothing prevents a process from opening a file of a sealed bundle by its path and changing it. The
archive has the same bundle, so readers take a damaged file from there, and `restore_copy` repairs the copy.

Law: a file that differs from the manifest is never served as the recorded one. A file is hashed again only
if its inode was changed after the manifest was written.
"""

from __future__ import annotations

import os
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.bundle import ArchivedBundle
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.open_bundle import DAMAGED, OpenBundle
from prefect_executions.bundles.sanitize import free_path
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.executions.record import DOCUMENTS, ExecutionRecord

_BLOCK = 1 << 20


class LocalCopy:
    """A sealed bundle on the workbench."""

    def __init__(self, bundle: OpenBundle) -> None:
        self.bundle = bundle
        self.hashed = False
        """Whether a file was hashed again, because its inode was changed."""
        self._linked: dict[str, bool] = {"": False}

    @cached_property
    def listed(self) -> Mapping[str, str]:
        """The digest of each file in the manifest.

        Raises:
            BundleError: If the manifest is damaged.
        """
        try:
            return manifest.parse(self.bundle.paths.manifest.read_bytes())
        except OSError as error:
            raise BundleError(f"{self.bundle.paths.manifest} cannot be read: {error.strerror}") from error

    def is_intact(self, path: str) -> bool:
        """Whether a file is as it was sealed; false for a file that the manifest does not list."""
        with suppress(BundleError, LookupError, OSError):
            digest, status = self.listed[path], os.lstat(self.bundle.folder / path)
            if not stat.S_ISREG(status.st_mode) or self._is_below_link(path):
                return False
            # An inode changes with each write, rename or link. Equal times: the clock of the kernel ticks slowly.
            if status.st_ctime_ns < self._sealed_at:
                return True
            self.hashed = True
            return _has_digest(self.bundle.folder / path, digest)
        return False

    def _is_below_link(self, path: str) -> bool:
        """Whether a folder above a file is a symbolic link, which may lead out of the bundle."""
        folder = path.rpartition("/")[0]
        if folder not in self._linked:
            self._linked[folder] = (self.bundle.folder / folder).is_symlink() or self._is_below_link(folder)
        return self._linked[folder]

    def damaged(self) -> Iterator[str]:
        """Yield the paths of all files that were changed, removed or added since the seal.

        Raises:
            BundleError: If the manifest is damaged.
        """
        yield from (path for path in self.listed if not self.is_intact(path))
        yield from sorted(_paths(self.bundle.folder) - self.listed.keys() - layout.UNLISTED)

    def record(self) -> ExecutionRecord:
        """Return the record.

        Raises:
            BundleError: If a document was changed after the seal.
        """
        files = {}
        for kind in DOCUMENTS.values():
            name = kind.file_name
            if name in self.listed:
                files[name] = self._read(name)
        return ExecutionRecord.from_json(files)

    def _read(self, path: str) -> bytes:
        try:
            data = (self.bundle.folder / path).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.bundle.id}: {path} cannot be read: {error.strerror}") from error
        if sha256(data).hexdigest() != self.listed[path]:
            raise self.changed(path)
        return data

    def changed(self, path: str) -> BundleError:
        """Return the error for a file that differs from the manifest."""
        return BundleError(
            f"{path} of execution {self.bundle.id} was changed on this workbench after it was sealed. "
            f"Next: executions verify {self.bundle.id} --restore"
        )

    def open_zipped(self, path: str) -> BinaryIO | None:
        """Open an output in the local output.zip; None if the zip was changed or does not have it."""
        if path.startswith(f"{layout.OUTPUTS}/") and self._zip is not None:
            with suppress(OSError, KeyError, zipfile.BadZipFile):
                return cast("BinaryIO", self._zip.open(path))
        return None

    @cached_property
    def _zip(self) -> zipfile.ZipFile | None:
        """The local output.zip, if it is as it was sealed."""
        with suppress(OSError, zipfile.BadZipFile):
            if self.is_intact(layout.OUTPUT_ZIP):
                return zipfile.ZipFile(self.bundle.paths.output_zip)
        return None

    @property
    def _sealed_at(self) -> int:
        return os.lstat(self.bundle.paths.manifest).st_mtime_ns


def trust_if_intact(bundle: OpenBundle) -> bool:
    """Return whether every file is as sealed; if one was hashed for that, none is hashed again until it changes."""
    copy, now = LocalCopy(bundle), time.time_ns()  # a write after this moment is noticed
    if any(copy.damaged()):
        return False
    if copy.hashed:
        os.utime(bundle.paths.manifest, ns=(now, now))
    return True


def check_archivable(bundle: OpenBundle) -> None:
    """Check the files that the archive receives singly; outputs are in output.zip.

    Raises:
        BundleError: If one was changed after the seal.
    """
    copy = LocalCopy(bundle)
    for path in copy.listed:
        if not path.startswith(f"{layout.OUTPUTS}/") and not copy.is_intact(path):
            raise copy.changed(path)


class Restored(NamedTuple):
    """The result of a restoration, by paths in the bundle."""

    restored: tuple[str, ...]
    """Files that are as sealed again; the changed ones are in `aside`."""
    lost: tuple[str, ...]
    """Files that neither output.zip nor the archive has as they were sealed."""
    aside: Path


def restore_copy(archive: Archive, bundle: OpenBundle) -> Restored:
    """Replace each damaged file of a sealed *bundle* by the sealed one, from its output.zip or the archive; idempotent.

    What was changed or added is moved aside, not deleted.

    Raises:
        NotFoundError: If the bundle is not on the workbench, or not sealed.
        ArchiveError: If the archive is unavailable.
        BundleError: If the manifest is damaged and the archive does not have the bundle, or the disk is not writable.
    """
    if not bundle.sealed:
        raise NotFoundError(f"the workbench {bundle.workbench} has no sealed bundle {bundle.id}")
    aside = bundle.workbench / DAMAGED / bundle.id
    archived = archive.bundle(bundle.id) if archive.seal_of(bundle.id) is not None else None
    try:
        restored, lost = _restore(LocalCopy(bundle), archived, aside)
    except OSError as error:
        raise BundleError(f"the bundle {bundle.id} cannot be restored: {error}") from error
    return Restored(tuple(restored), tuple(lost), aside)


def _restore(copy: LocalCopy, archived: ArchivedBundle | None, aside: Path) -> tuple[list[str], list[str]]:
    restored, lost = list[str](), list[str]()
    folder = copy.bundle.folder
    if archived is not None and not _has_digest(folder / layout.MANIFEST, archived.seal.manifest_sha256):
        sealed = archived.read(layout.MANIFEST)
        _check_same_bundle(copy, manifest.parse(sealed), archived.seal.manifest_sha256)
        _put(folder, layout.MANIFEST, iter([sealed]), archived.seal.manifest_sha256, aside)
        restored.append(layout.MANIFEST)
        copy = LocalCopy(copy.bundle)
    for path in [path for path in copy.damaged() if path not in copy.listed]:  # first: it may be in the way of a file
        _move(folder / path, aside / path)
        restored.append(path)
    copy = LocalCopy(copy.bundle)
    for path in sorted(copy.damaged(), key=lambda path: path != layout.OUTPUT_ZIP):  # the zip has the outputs
        if any(_put(folder, path, blocks, copy.listed[path], aside) for blocks in _sealed(copy, archived, path)):
            restored.append(path)
            if path == layout.OUTPUT_ZIP:
                copy = LocalCopy(copy.bundle)
        else:
            lost.append(path)
    if restored and not lost:
        trust_if_intact(copy.bundle)
    return restored, lost


def _check_same_bundle(copy: LocalCopy, archived: Mapping[str, str], manifest_sha256: str) -> None:
    """Refuse to replace the manifest if it fits the files here better than that of the archive does.

    A damaged manifest fits fewer files. One that fits more files belongs to another bundle: either copy was
    replaced, and restoring would destroy the evidence.
    """
    try:
        local = copy.listed
    except BundleError:
        return
    disputed = [path for path in local.keys() | archived.keys() if local.get(path) != archived.get(path)]
    fits = [
        sum(_has_digest(copy.bundle.folder / path, listed.get(path, "")) for path in disputed)
        for listed in (local, archived)
    ]
    if fits[0] > fits[1]:
        raise BundleError(
            f"nothing was restored: the archive has another bundle {copy.bundle.id}, with the manifest "
            f"{manifest_sha256}. Next: executions audit, which says whether it was replaced there"
        )


def _sealed(copy: LocalCopy, archived: ArchivedBundle | None, path: str) -> Iterator[Iterator[bytes]]:
    """Yield the blocks of each source of a sealed file."""
    zipped = copy.open_zipped(path)
    if zipped is not None:
        with zipped:
            yield _blocks(zipped)
    if archived is None:
        return
    is_output = path.startswith(f"{layout.OUTPUTS}/")
    with suppress(NotFoundError), archived.open_output(path) if is_output else archived.open(path) as stream:
        yield _blocks(stream)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: stream.read(_BLOCK), b"")


def _put(folder: Path, path: str, blocks: Iterator[bytes], expected: str, aside: Path) -> bool:
    """Write *blocks* to *path* if their digest is the *expected* one; move the file that is there aside."""
    aside.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary, digest = aside / ".new", sha256()
    try:
        with temporary.open("wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
    except (EOFError, zipfile.BadZipFile, zlib.error):
        return False
    if digest.hexdigest() != expected:
        temporary.unlink()
        return False
    target = folder / path
    if os.path.lexists(target):
        _move(target, aside / path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)
    return True


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.rename(free_path(to.parent, to.name))  # what was moved aside earlier stays


def _paths(folder: Path) -> set[str]:
    """The paths of everything below *folder* that is not a folder."""
    paths = set[str]()
    for above, folders, names in os.walk(folder):
        links = [name for name in folders if Path(above, name).is_symlink()]
        paths |= {Path(above, name).relative_to(folder).as_posix() for name in (*names, *links)}
    return paths


def _has_digest(path: Path, expected: str) -> bool:
    """Whether *path* is a plain file with that digest."""
    digest = sha256()
    with suppress(OSError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            for block in _blocks(file):
                digest.update(block)
        return digest.hexdigest() == expected
    return False
