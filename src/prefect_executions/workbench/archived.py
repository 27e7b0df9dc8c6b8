"""An archived bundle as a source of verification: what lies in the archive, read as it is and trusted in nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, cast

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.bundle import ArchivedBundle
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles.export import left_out
from prefect_executions.bundles.layout import MANIFEST, OUTPUT_ZIP, OUTPUTS
from prefect_executions.errors import BundleError, NotFoundError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 1 << 20
_BUFFER = 1 << 16


class ArchivedSource:
    """The files of a sealed bundle in the archive.

    Single outputs lie there in output.zip only; which data its archive level
    leaves out the request says.
    """

    oddities: tuple[str, ...] = ()

    def __init__(self, archive: Archive, bundle: ArchivedBundle) -> None:
        self._bundle = bundle
        folder = folder_of(bundle.seal.execution_id)
        sizes = {path: data.size for path, data in bundle.seal.data.items()}
        for found in archive.store.list(folder + bundle.seal.objects):
            sizes[bundle.seal.path_of(found.key.removeprefix(folder))] = found.size
        self.files: Mapping[str, int] = dict(sorted(sizes.items()))
        zipped = OUTPUT_ZIP in bundle.seal.data
        absent = {f"{OUTPUTS}/": f"the archive keeps them in {OUTPUT_ZIP}"} if zipped else {}
        came = archive.imported(bundle.seal.execution_id) if bundle.seal.absent else None
        self.absent: Mapping[str, str] = {**absent, **(left_out(came.level) if came else {})}

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks.

        Raises:
            BundleError: If it is gone, or shorter than the seal says.
            ArchiveError: If the archive cannot be asked.
        """
        with self.open(path) as stream:
            while block := stream.read(_BLOCK):
                yield block

    def open(self, path: str) -> BinaryIO:
        """Open a file to be read here and there; only what is read is fetched.

        Raises:
            BundleError: If it is gone.
            ArchiveError: If the archive cannot be asked.
        """
        with _telling(path):
            return cast("BinaryIO", io.BufferedReader(_Told(self._bundle.open(path), path), _BUFFER))

    def seal_faults(self) -> Iterator[str]:
        """Tell, one sentence each, where the seal does not name what lies there."""
        seal = self._bundle.seal
        try:
            found = sha256(b"".join(self.blocks(MANIFEST))).hexdigest()
        except BundleError as error:
            yield str(error)
        else:
            if found != seal.manifest_sha256:
                yield f"{MANIFEST} is {found}; the seal says {seal.manifest_sha256}"


class _Told(io.RawIOBase):
    """A file that is fetched while it is read; what goes wrong then is told as a fault of the bundle."""

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
        with _telling(self._path):
            found = self._stream.read(len(into))
        into[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise BundleError(f"{path} is gone from the archive") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read from the archive: {error}") from error
