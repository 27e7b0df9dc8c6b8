"""Reading a sealed bundle from the archive: single files, single outputs, or the whole bundle.

Law: every file is verified on reading. The seal has the digest of the manifest, and the
manifest has the digests of all other files.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, cast

from prefect_executions.archive.objects import Seal, folder_of
from prefect_executions.bundles.layout import MANIFEST, OUTPUT_ZIP, OUTPUTS, UNLISTED
from prefect_executions.bundles.manifest import parse
from prefect_executions.errors import ArchiveError, BundleError, NotFoundError
from prefect_executions.objectstore.interface import ObjectInfo, Store
from prefect_executions.seekable import open_ranges

ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error)
"""What reading a zip with `zipfile` raises: damage, an unknown version or compression (`NotImplementedError`),
an encrypted member (`RuntimeError`), offsets that are out of range, an early end."""

# A download holds at most this many bytes of small files in memory.
_BATCH = 32 * 1024**2


_LARGEST = 256 * 1024**2
"""The most bytes of a small file: the limit of a `provo.xml`."""


class ArchivedBundle:
    """One sealed bundle; files are fetched on demand."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self.seal = seal
        self._store = store
        self._folder = folder_of(seal.execution_id)
        self._manifest: Mapping[str, str] | None = None

    @property
    def manifest(self) -> Mapping[str, str]:
        """The SHA-256 of each file of the bundle by path, even of files that are not archived."""
        if self._manifest is None:
            self.read_many([])
        return self._manifest or {}

    def read(self, path: str) -> bytes:
        """Return one file.

        Raises:
            NotFoundError: If the bundle has no such file, or its archive level left it out.
            ArchiveError: If the file differs from what was sealed.
        """
        files = self.read_many([path])
        if path not in files:
            left_out = " (its archive level left it out)" if path in self.seal.absent else ""
            raise NotFoundError(
                f"There is no file {path} of execution {self.seal.execution_id} in the archive{left_out}"
            )
        return files[path]

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return several files by path, fetched together; missing files are left out."""
        keys = {path: self._key(path) for path in paths if path not in self.seal.absent}
        manifest_key = {self._key(MANIFEST)} if self._manifest is None else set()
        limit = max([_LARGEST, *(self.seal.data[path].size for path in keys if path in self.seal.data)])
        objects = self._store.get_many({*keys.values(), *manifest_key}, limit=limit)
        for key, data in objects.items():
            if len(data) > limit:
                raise ArchiveError(f"{self._store.url}/{key} has more than {limit} bytes, and was not sealed like this")
        if self._manifest is None:
            self._manifest = self._parse_manifest(objects.get(self._key(MANIFEST), b""))
        return {path: self._verified(path, objects[key]) for path, key in keys.items() if key in objects}

    def open(self, path: str) -> BinaryIO:
        """Open one file for random access; the caller must check its digest."""
        data = self.seal.data.get(path)
        info = ObjectInfo("", data.size) if data else self._store.head(self._key(path))
        if info is None:
            raise NotFoundError(f"There is no file {path} of execution {self.seal.execution_id} in the archive")
        key = self._key(path)
        return open_ranges(lambda start, end: self._store.get_range(key, start, end), info.size)

    def open_output(self, member: str) -> BinaryIO:
        """Open one member of output.zip; its CRC is checked at the end, and the caller must check its digest.

        Raises:
            NotFoundError: If there is no such member.
            ArchiveError: If output.zip is damaged.
        """
        stream = self.open(OUTPUT_ZIP)
        try:
            zipped = zipfile.ZipFile(stream)
            if zipped.getinfo(member).compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise zipfile.BadZipFile(f"{member} is neither stored nor deflated")
            return cast("BinaryIO", zipped.open(member))
        except KeyError:
            raise NotFoundError(f"There is no output {member} of execution {self.seal.execution_id}") from None
        except ZIP_ERRORS as error:
            raise ArchiveError(f"The archived {OUTPUT_ZIP} of {self.seal.execution_id} is damaged: {error}") from error

    def presign(self, path: str, seconds: int) -> str:
        """Return a URL that reads one file for *seconds* without credentials."""
        return self._store.presign(self._key(path), seconds)

    def download(self, folder: Path) -> None:
        """Download all archived files to *folder*; outputs stay in their zip.

        Raises:
            ArchiveError: If a file is missing, damaged, or not part of this bundle.
        """
        infos = self._store.list(self._folder + self.seal.objects)
        small = {self.seal.path_of(info.key.removeprefix(self._folder)): info.size for info in infos}
        self._check_complete(frozenset(small))
        for path, data in self.seal.data.items():
            self._store.download(self._key(path), folder / _relative_path(path), data.size, self._digest(path))
        for batch in _batches(small):
            for path, content in self.read_many(batch).items():
                target = folder / _relative_path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    def _check_complete(self, archived: frozenset[str]) -> None:
        zipped = OUTPUT_ZIP in self.seal.data or OUTPUT_ZIP in self.seal.absent
        elsewhere = {*self.seal.data, *self.seal.absent}
        expected = {
            path for path in self.manifest if path not in elsewhere and not (zipped and path.startswith(f"{OUTPUTS}/"))
        }
        missing, unexpected = expected - archived, archived - set(self.manifest) - UNLISTED
        for fault, paths in (("lacks", missing), ("has and should not have", unexpected)):
            if paths:
                listed = ", ".join(sorted(paths)[:5])
                raise ArchiveError(f"The archived execution {self.seal.execution_id} {fault} {listed}")

    def _key(self, path: str) -> str:
        return self._folder + self.seal.object_of(path)

    def _digest(self, path: str) -> str:
        digest = self.manifest.get(path)
        if digest is None or digest != self.seal.data[path].sha256:
            raise ArchiveError(
                f"The seal and the manifest of {self.seal.execution_id} have different digests of {path}"
            )
        return digest

    def _parse_manifest(self, manifest: bytes) -> Mapping[str, str]:
        if sha256(manifest).hexdigest() != self.seal.manifest_sha256:
            raise ArchiveError(f"The archived manifest of {self.seal.execution_id} differs from the sealed manifest")
        try:
            return parse(manifest)
        except BundleError as error:
            raise ArchiveError(f"The archived manifest of {self.seal.execution_id} is damaged: {error}") from error

    def _verified(self, path: str, data: bytes) -> bytes:
        expected = self.seal.manifest_sha256 if path == MANIFEST else self.manifest.get(path)
        if expected is None and path not in UNLISTED:
            raise ArchiveError(f"The archived file {path} of {self.seal.execution_id} is not in the manifest")
        if expected is not None and sha256(data).hexdigest() != expected:
            raise ArchiveError(
                f"The archived file {path} of {self.seal.execution_id} is damaged: its SHA-256 is not {expected}"
            )
        return data


def _relative_path(path: str) -> str:
    # The archive is untrusted input: a path must not lead out of the folder.
    if path.startswith("/") or "\0" in path or {"", ".", ".."} & set(path.split("/")):
        raise ArchiveError(f"An archived bundle has a file with the path {path!r}, which leads out of it")
    return path


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    total = 0
    for path, size in sizes.items():
        if batch and total + size > _BATCH:
            yield batch
            batch, total = [], 0
        batch.append(path)
        total += size
    if batch:
        yield batch
