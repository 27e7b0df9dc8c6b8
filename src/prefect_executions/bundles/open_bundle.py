"""A live bundle: its folder on the workbench, its scratch folder beside it, and atomic writes between them.

Law: a document is written whole in the scratch folder and then renamed, so the
bundle is valid to open at any moment; once the manifest is there, nothing is
written any more.

Live writes are not synced to the disk one by one: they survive the death of the
process, and the archive's opening record survives the machine, seconds after it
was put. Sealing syncs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from prefect_executions.bundles import layout
from prefect_executions.bundles.layout import BundlePaths
from prefect_executions.documents import Document
from prefect_executions.errors import BundleError, NotFoundError, SealedError
from prefect_executions.executions.record import (
    Agent,
    ExecutionRecord,
)
from prefect_executions.tracepoints import TracePoint, trace_point

SCRATCH = ".open"
"""The folder of the workbench that holds what is open and belongs to no bundle."""

ASIDE = ".late"
"""The folder of the workbench that holds bundles that were sealed after another had sealed the same execution."""

WITHHELD = ".withheld"
"""The folder of the workbench that holds logs that may hold a secret, so that they are in no bundle."""

LOCK_TIMEOUT = 10.0
"""How long `OpenBundle.lock` waits, in seconds, when the caller does not say."""

_LOCK_PAUSE = 0.005
_STAND_IN = "stand-in"
_CANCEL = "cancel"
_PRIVATE = frozenset({Agent.file_name})

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class OpenBundle:
    """The bundle of one execution on the workbench of this machine."""

    workbench: Path
    id: str

    @classmethod
    def create(
        cls,
        workbench: Path,
        execution_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        fill: Callable[[Path], None] | None = None,
    ) -> OpenBundle:
        """Make a new bundle with *files*, by their places in the format; all of it is there at once or nothing is.

        *fill* may write what is too large for that into the folder that is about to become the bundle.

        Raises:
            NameRefusedError: If *execution_id* cannot name a folder.
            BundleError: If the bundle is there already, the workbench cannot be written, or the format has no
                such place.
        """
        bundle = cls(workbench, layout.check_execution_id(execution_id))
        fresh = bundle._temporary("new")
        with _writing(bundle.folder):
            _make(bundle.scratch)
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            trace_point(TracePoint.FOLDER_BEGUN, execution_id)
            for name in layout.FOLDERS:
                (fresh / name).mkdir(mode=0o700 if name == layout.AUTH else 0o777)
            for name, data in (files or {}).items():
                _check_known(name)
                place = fresh / name
                if name.count("/") > 1:
                    place.parent.mkdir(parents=True, exist_ok=True)
                _write_new(place, data, mode=_mode(name))
                trace_point(TracePoint.FOLDER_FILLED, execution_id, name)
            if fill is not None:
                fill(fresh)
            fresh.rename(bundle.folder)
        trace_point(TracePoint.OPENED, execution_id)
        return bundle

    @classmethod
    def load(cls, workbench: Path, execution_id: str) -> OpenBundle:
        """Return the bundle that lies on *workbench*, open or sealed.

        Raises:
            NameRefusedError: If *execution_id* cannot name a folder.
            NotFoundError: If there is none.
            BundleError: If its scratch folder cannot be written.
        """
        bundle = cls(workbench, layout.check_execution_id(execution_id))
        if not bundle.folder.is_dir():
            raise NotFoundError(f"there is no bundle {execution_id} on the workbench {workbench}")
        with _writing(bundle.scratch):
            _make(bundle.scratch)
        return bundle

    @cached_property
    def folder(self) -> Path:
        """The bundle."""
        return self.workbench / self.id

    @cached_property
    def scratch(self) -> Path:
        """What is needed while the bundle is open: the lock, what was gathered, inputs that are not kept."""
        return self.workbench / SCRATCH / self.id

    @cached_property
    def paths(self) -> BundlePaths:
        return BundlePaths(self.folder)

    @property
    def sealed(self) -> bool:
        """Whether the manifest is there, so that nothing changes any more."""
        return self.paths.manifest.exists()

    def output_path(self, name: str) -> Path:
        """Return where the output *name* is to be written.

        Raises:
            NameRefusedError: If the name may not be used.
            SealedError: If the bundle is sealed.
        """
        self._check_open(f"{layout.OUTPUTS}/{name}")
        return layout.output_path(self.paths, name)

    def write_document(self, document: Document) -> None:
        """Put *document* in its place, in one step.

        Raises:
            SealedError: If the bundle is sealed.
            BundleError: If the disk is full or cannot be written.
        """
        self.write(document.file_name, document.to_json())

    def write(self, name: str, data: bytes) -> None:
        """Put *data* at the place *name* of the format, in one step, with the folders above it made.

        Raises:
            SealedError: If the bundle is sealed.
            BundleError: If the disk is full or cannot be written, or the format has no such place.
        """
        self._check_open(name)
        _check_known(name)
        target = self.folder / name
        if name not in layout.FIXED:
            with _writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
        self.put(target, data, mode=_mode(name))

    def put(self, target: Path, data: bytes, *, mode: int = 0o666) -> None:
        """Write *data* to *target* in the bundle or its scratch folder, in one step, sealed or not.

        Raises:
            BundleError: If the disk is full or cannot be written.
        """
        fresh = self._temporary(target.name)
        with _writing(target):
            try:
                _write_new(fresh, data, mode=mode)
                trace_point(TracePoint.FILE_WRITTEN, self.id, target.name)
                fresh.replace(target)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
        trace_point(TracePoint.FILE_KEPT, self.id, target.name)

    def read(self, kind: type[D]) -> D:
        """Return the document of *kind*.

        Raises:
            BundleError: If it is missing or is not that document; the message names it.
        """
        try:
            return kind.from_json((self.folder / kind.file_name).read_bytes())
        except OSError as error:
            raise BundleError(f"{self.id}: {kind.file_name} cannot be read: {error.strerror}") from error

    def record(self) -> ExecutionRecord:
        """Return all documents as one value.

        Raises:
            BundleError: If one is missing or damaged; the message names it.
        """
        return ExecutionRecord.read(self.read, lambda name: (self.folder / name).exists())

    @property
    def aside(self) -> Path:
        """Where the bundle lies when another sealed the execution before."""
        return self.workbench / ASIDE / self.id

    @property
    def stand_in(self) -> bool:
        """Whether this bundle was made for one that cannot be reached."""
        return (self.scratch / _STAND_IN).exists()

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody on this machine has asked the run to stop."""
        return (self.scratch / _CANCEL).exists()

    def request_cancel(self) -> None:
        """Ask the run, which looks for it, to stop; again changes nothing.

        Raises:
            BundleError: If the workbench cannot be written.
        """
        self.put(self.scratch / _CANCEL, b"")

    def mark_stand_in(self) -> None:
        """Say, before it is made, that this bundle stands for one out of reach and is not to be kept here.

        Raises:
            BundleError: If the workbench cannot be written.
        """
        with _writing(self.scratch):
            _make(self.scratch)
        self.put(self.scratch / _STAND_IN, b"")

    def withhold_logs(self) -> Path:
        """Move the logs out of the bundle and return where they lie, because they may hold what must not be shown.

        Raises:
            BundleError: If they cannot be moved.
        """
        kept = self.workbench / WITHHELD / self.id
        with _writing(kept):
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            for log in (layout.STDOUT, layout.STDERR):
                place = self.folder / log
                if place.exists():
                    place.rename(kept / place.name)
                    place.touch()
        return kept

    def set_aside(self) -> None:
        """Move the bundle to `aside` and forget its scratch folder; what lay there before is replaced.

        Raises:
            BundleError: If it cannot be moved.
        """
        with _writing(self.aside):
            self.aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(self.aside, ignore_errors=True)
            self.folder.rename(self.aside)
            trace_point(TracePoint.SET_ASIDE, self.id)
            shutil.rmtree(self.scratch, ignore_errors=True)

    @contextmanager
    def lock(self, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the bundle against every other process and thread of this machine; death lets it go.

        It is not held twice by one holder: a second `lock` inside the first waits for itself.

        Raises:
            NotFoundError: If the bundle is gone: who held it before has finished with it.
            BundleError: If another holds it for longer than *timeout* seconds, or it cannot be made.
        """
        descriptor = self._acquire(time.monotonic() + timeout, timeout)
        try:
            if not self.folder.is_dir():
                self._forget_lock()
                raise NotFoundError(f"the bundle {self.id} is not on the workbench {self.workbench} any more")
            yield
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """Remove the bundle and its scratch folder from the workbench; doing it again changes nothing.

        Raises:
            BundleError: If they cannot be removed.
        """
        with _writing(self.folder):
            for folder in (self.folder, self.scratch):
                if folder.exists():
                    shutil.rmtree(folder)

    def _forget_lock(self) -> None:
        """Take away what `lock` has made; where another makes the bundle anew meanwhile, the rest stays his."""
        with suppress(OSError):
            (self.scratch / "lock").unlink()
            self.scratch.rmdir()

    def _acquire(self, deadline: float, timeout: float) -> int:
        path = self.scratch / "lock"
        while True:
            with _writing(path):
                descriptor = _open_lock(path)
            if _lock_now(descriptor) and _same_file(descriptor, path):
                return descriptor
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise BundleError(
                    f"the bundle {self.id} is held by another process for more than {timeout} s; try again later"
                )
            time.sleep(_LOCK_PAUSE)

    def _check_open(self, name: str) -> None:
        if self.sealed:
            raise SealedError(f"the bundle {self.id} is sealed: {name} cannot be written any more")

    def _temporary(self, name: str) -> Path:
        return self.scratch / f"{name}.{os.getpid()}-{threading.get_ident()}.new"


def _check_known(name: str) -> None:
    if not layout.is_bundle_path(name):
        raise BundleError(f"{name}: bundle format 1 has no file of that name")


def _mode(name: str) -> int:
    return 0o600 if name in _PRIVATE else 0o666


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    # Not O_EXCL: in a container a killed process and its successor often have the same pid.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    while True:
        with suppress(FileNotFoundError):  # who held it has finished, and cleared the scratch folder
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _make(path.parent)


def _make(scratch: Path) -> None:
    """Make the scratch folder, which another who has done with the bundle may remove at any moment."""
    while True:
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # or so it was a moment ago
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(scratch.lstat().st_mode):
                    raise
        else:
            return


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    # `discard` may have removed the lock's file while we waited for it.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = (
            "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check that the workbench is writable"
        )
        raise BundleError(f"{path} cannot be written: {error.strerror or error}; {cure}") from error
