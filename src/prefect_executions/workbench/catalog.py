"""Read what is known of an execution: from this workbench, else from the archive.

Doors parse, call this room and show the answer. Reading changes nothing: it
makes no folder, takes no lock and needs no ledger.

An archived bundle as a source of verification: what lies in the archive, read as it is and trusted in nothing.
"""

from __future__ import annotations

import io
import os
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, cast

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.bundle import ArchivedBundle
from prefect_executions.archive.objects import Imported, folder_of
from prefect_executions.bundles import layout
from prefect_executions.bundles.export import absent_at_level
from prefect_executions.bundles.layout import MANIFEST, OUTPUT_ZIP, OUTPUTS
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.source import FolderSource, Source
from prefect_executions.capture.processes import alive
from prefect_executions.errors import ArchiveError, BundleError, LedgerError, NotFoundError
from prefect_executions.executions.record import ExecutionRecord, Instance
from prefect_executions.ledger.rows import ArchiveState, FileEdge, Relation
from prefect_executions.lifecycle.history import EntryKind, JobStatus
from prefect_executions.mediatypes import media_type
from prefect_executions.workbench.lookup import find
from prefect_executions.workbench.sealing import LateSeal
from prefect_executions.workbench.workbench import Workbench

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 1 << 20
_BUFFER = 1 << 16


class ArchivedSource:
    """The files of a sealed bundle in the archive.

    Single outputs lie there in output.zip only; which data its archive level
    leaves out the request says.
    """

    irregular: tuple[str, ...] = ()

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
        self.absent: Mapping[str, str] = {**absent, **(absent_at_level(came.level) if came else {})}

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


Stream = Literal["stdout", "stderr"]

_LOGS = {"stdout": layout.STDOUT, "stderr": layout.STDERR}
_PAUSE = 0.3
"""Seconds between two looks at a log that is being written."""


class Found(NamedTuple):
    """One output: its name below ``outputs/``, size in bytes, media type, and its digest once it is gathered."""

    name: str
    size: int
    media_type: str
    sha256: str | None

    @property
    def path(self) -> str:
        """Where it lies in the bundle."""
        return f"{layout.OUTPUTS}/{self.name}"


class StorageState(NamedTuple):
    """Where an execution's record is: its folder on this machine, and what of it the archive has."""

    folder: Path | None
    sealed: bool
    archive: ArchiveState


class Links(NamedTuple):
    """What the ledger knows of an execution and others, orchestration and data apart."""

    named_by: tuple[Relation, ...] = ()
    """Those that name it as their parent, or as what they run again."""
    made_from: tuple[FileEdge, ...] = ()
    """Outputs of others that are its inputs."""
    used_by: tuple[FileEdge, ...] = ()
    """Its outputs that are inputs of others."""


class Catalog:
    """The reading side of a workbench, its archive and its ledger."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench

    def find(self, prefix: str) -> str:
        """Return the one full id that begins with *prefix* (see `finding.find`).

        Raises:
            NotFoundError: If there is none.
            AmbiguousIdError: If there are several; it lists them.
        """
        return find(self.workbench, prefix)

    def record(self, execution_id: str) -> ExecutionRecord:
        """Return all documents of an execution as one value.

        Raises:
            NotFoundError: If neither workbench nor archive has it.
            BundleError: If a document is damaged.
        """
        return self.workbench.record(execution_id)

    def standing(self, execution_id: str) -> StorageState:
        """Return where the record of an execution is."""
        bundle = self._local(execution_id)
        if bundle is None:
            archived = self.workbench.archive.seal_of(execution_id) is not None
            return StorageState(None, archived, "archived" if archived else "local")
        if not bundle.sealed:
            return StorageState(bundle.folder, sealed=False, archive="local")
        # The scratch folder goes when a sealed bundle is archived and indexed.
        return StorageState(bundle.folder, sealed=True, archive="pending" if bundle.scratch.is_dir() else "archived")

    def gone(self, execution_id: str) -> str | None:
        """Return words for the process of an open execution that is known to be gone and did not leave it to go on."""
        bundle = self._local(execution_id)
        if bundle is None or bundle.sealed:
            return None
        instance, last = bundle.read(Instance), bundle.read(JobStatus).history[-1]
        leaves = last.kind in {EntryKind.PAUSED, EntryKind.ATTEMPT_FAILED}
        if leaves or instance.process is None or alive(instance.process) is not False:
            return None
        return f"{instance.pid} on {instance.hostname}"

    def links(self, execution_id: str) -> Links:
        """Return how others are linked to an execution; nothing where the ledger is away."""
        try:
            ledger = self.workbench.ledger
            return Links(ledger.naming(execution_id), ledger.made_from(execution_id), ledger.used_by(execution_id))
        except LedgerError:
            return Links()

    def imported(self, execution_id: str) -> Imported | None:
        """Return how an execution was imported, or None; nothing where the archive cannot be asked."""
        with suppress(ArchiveError):
            return self.workbench.archive.imported(execution_id)
        return None

    def late_words(self, execution_id: str) -> tuple[LateSeal, ...]:
        """Return what was heard of an execution after it was sealed; nothing where the archive cannot be asked."""
        with suppress(ArchiveError):
            words = (LateSeal.from_json(data) for data in self.workbench.archive.late_words(execution_id))
            return tuple(sorted(words, key=lambda word: word.noted))
        return ()

    def outputs(self, execution_id: str) -> tuple[Found, ...]:
        """Return the outputs and logs of an execution by name; of a live one, those that are there now."""
        bundle = self._local(execution_id)
        if bundle is not None and not bundle.sealed:
            return tuple(sorted(_live_outputs(bundle.paths.outputs)))
        told = self.record(execution_id).job_status.outputs
        return tuple(
            Found(output.path.removeprefix(f"{layout.OUTPUTS}/"), output.size, output.media_type, output.sha256)
            for output in told
        )

    def output(self, execution_id: str, name: str) -> Found:
        """Return the output *name*, which may be given with ``outputs/`` before it.

        Raises:
            NotFoundError: If there is none; the message says how to list them.
        """
        named = {output.name: output for output in self.outputs(execution_id)}
        found = named.get(name) or named.get(name.removeprefix(f"{layout.OUTPUTS}/"))
        if found is None:
            raise NotFoundError(
                f"execution {execution_id} has no output '{name}'. 'executions outputs {execution_id}' lists them."
            )
        return found

    def open_output(self, execution_id: str, name: str) -> BinaryIO:
        """Open one output: the local file, else its bytes of the archive's output.zip and no others.

        Its digest is the caller's to check; `blocks` does.

        Raises:
            NotFoundError: If there is none, or its archive level left it out and no workbench here has it.
        """
        return self._open(execution_id, self.output(execution_id, name).path)

    def blocks(self, execution_id: str, name: str) -> Iterator[bytes]:
        """Yield an output in blocks and check its digest at the end, where one is recorded.

        Raises:
            NotFoundError: If there is no such output.
            BundleError: If it is damaged or not what was recorded; what came before must not be used.
        """
        output = self.output(execution_id, name)
        digest = sha256()
        with self._open(execution_id, output.path) as stream:
            for block in _whole(stream, f"{output.path} of execution {execution_id}"):
                digest.update(block)
                yield block
        if output.sha256 is not None and digest.hexdigest() != output.sha256:
            raise BundleError(
                f"{output.path} of execution {execution_id} is {digest.hexdigest()} and was recorded as "
                f"{output.sha256}. 'executions verify {execution_id}' tells what else is wrong."
            )

    def read(self, execution_id: str, path: str) -> bytes:
        """Return one file of the bundle by its path there.

        Raises:
            NotFoundError: If it is not there; the message tells whether it will come.
        """
        bundle = self._local(execution_id)
        if bundle is not None:
            with suppress(OSError):
                return (bundle.folder / path).read_bytes()
        return self._archived(execution_id).read(path)

    def log(self, execution_id: str, stream: Stream) -> BinaryIO:
        """Open a log as far as it is written.

        Raises:
            NotFoundError: If it is not here: the execution runs elsewhere, or kept no log.
        """
        return self._open(execution_id, _LOGS[stream])

    def follow(self, execution_id: str, stream: Stream, *, pause: float = _PAUSE) -> Iterator[bytes]:
        """Yield a log as it is written, until its execution is sealed.

        Raises:
            NotFoundError: If it is not here.
        """
        bundle = self._local(execution_id)
        if bundle is None:
            with self.log(execution_id, stream) as opened:
                yield from _whole(opened, f"{_LOGS[stream]} of execution {execution_id}")
            return
        position = 0
        while True:
            sealed = bundle.sealed  # asked before the last look, so that nothing is missed
            # Opened anew each time: a retry appends, and sealing may replace the file by a copy.
            for block in _from(bundle.folder / _LOGS[stream], position):
                position += len(block)
                yield block
            if sealed or not bundle.folder.is_dir():
                return
            time.sleep(pause)

    def local_source(self, execution_id: str) -> Source | None:
        """Return the sealed bundle on this workbench to be verified, or None."""
        bundle = self._local(execution_id)
        return FolderSource(bundle.folder) if bundle is not None and bundle.sealed else None

    def bundle_source(self, execution_id: str) -> ArchivedSource | None:
        """Return the sealed bundle in the archive to be verified, or None."""
        archive = self.workbench.archive
        if archive.seal_of(execution_id) is None:
            return None
        return ArchivedSource(archive, archive.bundle(execution_id))

    # --- inside ------------------------------------------------------------------

    def _local(self, execution_id: str) -> OpenBundle | None:
        bundle = OpenBundle(self.workbench.folder, layout.check_execution_id(execution_id))
        return bundle if bundle.folder.is_dir() else None

    def _archived(self, execution_id: str) -> ArchivedBundle:
        try:
            return self.workbench.archive.bundle(execution_id)
        except NotFoundError:
            record = self.record(execution_id)
            if record.status.terminal:
                raise
            raise NotFoundError(
                f"execution {execution_id} is {record.status}; this is written when it ends, and can be read here then"
            ) from None

    def _open(self, execution_id: str, path: str) -> BinaryIO:
        bundle = self._local(execution_id)
        if bundle is not None:
            with suppress(OSError):
                return _open_plain(bundle.folder / path)
        return self._archived(execution_id).open_output(path)


def _live_outputs(folder: Path) -> Iterator[Found]:
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            with suppress(OSError):  # it may go while we look
                told = path.lstat()
                if stat.S_ISREG(told.st_mode):
                    yield Found(path.relative_to(folder).as_posix(), told.st_size, media_type(name), None)


def _open_plain(path: Path) -> BinaryIO:
    """Open a regular file; a link or a pipe that a live run left there is not followed or waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(path)
        undo.pop_all()
    return os.fdopen(descriptor, "rb")


def _whole(stream: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        yield from iter(lambda: stream.read(_BLOCK), b"")
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{name} cannot be read: {error}") from error


def _from(path: Path, position: int) -> Iterator[bytes]:
    with suppress(FileNotFoundError), _open_plain(path) as stream:
        stream.seek(position)
        yield from iter(lambda: stream.read(_BLOCK), b"")
