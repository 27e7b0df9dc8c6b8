"""The files of a sealed bundle in the archive, for verification, exports and replays.

It gives an archived bundle as it is, without trust in any part of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, cast

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.bundle import ArchivedBundle
from prefect_executions.archive.objects import INCLUSION, folder_of
from prefect_executions.bundles import layout
from prefect_executions.bundles.annotations import annotation_file
from prefect_executions.bundles.export import absent_at_level
from prefect_executions.bundles.layout import MANIFEST, OUTPUT_ZIP, OUTPUTS
from prefect_executions.documents import SMALL_DOCUMENT
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.seekable import open_ranges
from prefect_executions.workbench.beside import Beside, documents_beside, faults_beside

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 1 << 20
_BUFFER = 1 << 16


class ArchivedSource:
    """The files of a sealed bundle in the archive.

    The archive has single outputs only inside output.zip, and leaves out data by the archive level of the request.
    """

    irregular: tuple[str, ...] = ()
    empty_folders: tuple[str, ...] = ()

    def __init__(self, archive: Archive, bundle: ArchivedBundle, *, with_proof: bool = False) -> None:
        """List the files; *with_proof* adds inclusion proof and annotations from beside the seal, as an export does."""
        self._bundle, self._archive = bundle, archive
        folder = folder_of(bundle.seal.execution_id)
        self._proof_key = folder + INCLUSION
        sizes = {path: data.size for path, data in bundle.seal.data.items()}
        for info in archive.store.list(folder + bundle.seal.objects):
            sizes[bundle.seal.path_of(info.key.removeprefix(folder))] = info.size
        proof = archive.store.head(self._proof_key) if with_proof and layout.INCLUSION not in sizes else None
        self._proof_size = proof.size if proof else None
        if proof:
            sizes[layout.INCLUSION] = proof.size
        self._annotations = annotation_file(archive.annotations(bundle.seal.execution_id)) if with_proof else b""
        if self._annotations:
            sizes[layout.ANNOTATIONS] = len(self._annotations)
        self.files: Mapping[str, int] = dict(sorted(sizes.items()))
        zipped = OUTPUT_ZIP in bundle.seal.data
        absent = {f"{OUTPUTS}/": f"the archive keeps them in {OUTPUT_ZIP}"} if zipped else {}
        came = self._beside(archive).imported if bundle.seal.absent else None
        self.absent: Mapping[str, str] = {**absent, **(absent_at_level(came.level) if came else {})}

    def _beside(self, archive: Archive) -> Beside:
        execution_id = self._bundle.seal.execution_id
        return documents_beside(execution_id, archive.beside(execution_id))

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks.

        Raises:
            BundleError: If it is missing, or shorter than the seal says.
            ArchiveError: If the archive is unavailable.
        """
        with self.open(path) as stream:
            while block := stream.read(_BLOCK):
                yield block

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access; only the parts that are read are downloaded.

        Raises:
            BundleError: If it is missing.
            ArchiveError: If the archive is unavailable.
        """
        with _as_bundle_error(path):
            return cast("BinaryIO", io.BufferedReader(_RemoteFile(self._open(path), path), _BUFFER))

    def _open(self, path: str) -> BinaryIO:
        if path == layout.ANNOTATIONS and self._annotations:
            return io.BytesIO(self._annotations)
        return self._proof() if path == layout.INCLUSION and self._proof_size is not None else self._bundle.open(path)

    def _proof(self) -> BinaryIO:
        store = self._archive.store
        return open_ranges(lambda start, end: store.get_range(self._proof_key, start, end), self._proof_size or 0)

    def seal_faults(self) -> Iterator[str]:
        """Yield one sentence for each difference between the seal, the manifest, and the objects beside the seal."""
        seal = self._bundle.seal
        job_status = None
        with suppress(BundleError):  # the checks of the bundle report it
            job_status = JobStatus.from_json(self._document(JobStatus.file_name))
        beside = self._archive.beside(seal.execution_id)
        yield from (what for _, what in faults_beside(seal, beside, job_status))
        try:
            digest = sha256(self._document(MANIFEST)).hexdigest()
        except BundleError as error:
            yield str(error)
        else:
            if digest != seal.manifest_sha256:
                yield f"{MANIFEST} has the digest {digest}; the seal says {seal.manifest_sha256}"

    def _document(self, path: str) -> bytes:
        if self.files.get(path, 0) > SMALL_DOCUMENT:
            raise BundleError(f"{path} has {self.files[path]} bytes; the limit for a document is {SMALL_DOCUMENT}")
        return b"".join(self.blocks(path))


class _RemoteFile(io.RawIOBase):
    """A file of the archive, downloaded as it is read; a failed read raises a BundleError."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._stream = stream
        self._path = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        into = memoryview(buffer).cast("B")
        with _as_bundle_error(self._path):
            data = self._stream.read(len(into))
        into[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextmanager
def _as_bundle_error(path: str) -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise BundleError(f"{path} is missing in the archive") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read from the archive: {error}") from error
