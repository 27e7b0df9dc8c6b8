"""An open bundle: its folder on the workbench, its scratch folder, its lock, and atomic writes.

Law: a document is written in the scratch folder and then renamed into the bundle, so
the bundle is valid at any moment. After the manifest exists, nothing is written any more.

Live writes are not fsynced: they survive the death of the process, and the archive's
opening record, stored within seconds, survives the machine. Sealing calls fsync.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from prefect_executions.bundles import layout
from prefect_executions.bundles.layout import BundlePaths
from prefect_executions.documents import Document
from prefect_executions.errors import BundleError, NotFoundError, SealedError
from prefect_executions.executions.record import Agent, ExecutionRecord
from prefect_executions.tracepoints import TracePoint, trace_point

SCRATCH = ".open"
"""The folder of the workbench with the scratch folders of open bundles."""

ASIDE = ".late"
"""The folder of the workbench for bundles of executions that another process had already sealed."""

WITHHELD = ".withheld"
"""The folder of the workbench for logs that may contain a secret and so are in no bundle."""

DAMAGED = ".damaged"
"""The folder of the workbench for files of sealed bundles that were changed after the seal and are restored."""

LOCK_TIMEOUT = 10.0
"""The default time that `OpenBundle.lock` waits, in seconds."""

_LOCK_PAUSE = 0.005
_STAND_IN = "stand-in"
_CANCEL = "cancel"
_SECRETS = "secrets.json"
_PRIVATE = frozenset({Agent.file_name})

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class OpenBundle:
    """The bundle of one execution on this machine's workbench."""

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
        """Create a bundle with *files*, by their paths in the bundle, in one atomic step.

        *fill* receives the folder before it becomes the bundle, and may write large files into it.

        Raises:
            NameRefusedError: If *execution_id* is not a valid folder name.
            BundleError: If the bundle exists already, the workbench is not writable, or the format does not allow
                one of the files.
        """
        bundle = cls(workbench, layout.check_execution_id(execution_id))
        temporary = bundle._temporary("new")
        with _write_errors_of(bundle.folder):
            _make_scratch(bundle.scratch)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            trace_point(TracePoint.FOLDER_BEGUN, execution_id)
            for name in layout.FOLDERS:
                (temporary / name).mkdir(mode=0o700 if name == layout.AUTH else 0o777)
            for name, data in (files or {}).items():
                _check_allowed(name)
                path = temporary / name
                if name.count("/") > 1:
                    path.parent.mkdir(parents=True, exist_ok=True)
                _write_file(path, data, mode=_mode(name))
                trace_point(TracePoint.FOLDER_FILLED, execution_id, name)
            if fill is not None:
                fill(temporary)
            temporary.rename(bundle.folder)
        trace_point(TracePoint.OPENED, execution_id)
        return bundle

    @classmethod
    def load(cls, workbench: Path, execution_id: str) -> OpenBundle:
        """Return the bundle on *workbench*, open or sealed.

        Raises:
            NameRefusedError: If *execution_id* is not a valid folder name.
            NotFoundError: If the bundle does not exist.
            BundleError: If its scratch folder is not writable.
        """
        bundle = cls(workbench, layout.check_execution_id(execution_id))
        if not bundle.folder.is_dir():
            raise NotFoundError(f"the bundle {execution_id} is not on the workbench {workbench}")
        with _write_errors_of(bundle.scratch):
            _make_scratch(bundle.scratch)
        return bundle

    @cached_property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.workbench / self.id

    @cached_property
    def scratch(self) -> Path:
        """The folder for files that only an open bundle needs: the lock, gathered results, temporary files."""
        return self.workbench / SCRATCH / self.id

    @cached_property
    def paths(self) -> BundlePaths:
        return BundlePaths(self.folder)

    def code_texts(self, limit: int) -> dict[str, str]:
        """Return the Method's text files by their paths in the bundle, at most *limit* bytes of them."""
        files: dict[str, str] = {}
        left = limit
        for above, _, names in sorted(os.walk(self.folder / layout.CODE)):
            for path in (Path(above, name) for name in sorted(names)):
                with suppress(OSError, UnicodeDecodeError):
                    if path.stat().st_size <= left:
                        text = path.read_bytes().decode()
                        files[path.relative_to(self.folder).as_posix()] = text
                        left -= len(text)
        return files

    @property
    def sealed(self) -> bool:
        """Whether the manifest exists, so that the bundle no longer changes."""
        return self.paths.manifest.exists()

    def output_path(self, name: str) -> Path:
        """Return the path for the output *name*, after creating its parent folders.

        Raises:
            NameRefusedError: If the name is not a valid output name.
            SealedError: If the bundle is sealed.
        """
        self._check_open(f"{layout.OUTPUTS}/{name}")
        return layout.output_path(self.paths, name)

    def write_document(self, document: Document) -> None:
        """Write *document* atomically.

        Raises:
            SealedError: If the bundle is sealed.
            BundleError: If the disk is full or not writable.
        """
        self.write(document.file_name, document.to_json())

    def write(self, name: str, data: bytes) -> None:
        """Write *data* atomically to the path *name* in the bundle, creating its parent folders.

        Raises:
            SealedError: If the bundle is sealed.
            BundleError: If the disk is full or not writable, or the format does not allow the file.
        """
        self._check_open(name)
        _check_allowed(name)
        target = self.folder / name
        if name not in layout.FIXED:
            with _write_errors_of(target):
                target.parent.mkdir(parents=True, exist_ok=True)
        self.put(target, data, mode=_mode(name))

    def put(self, target: Path, data: bytes, *, mode: int = 0o666) -> None:
        """Write *data* atomically to *target* in the bundle or its scratch folder, sealed or not.

        Raises:
            BundleError: If the disk is full or not writable.
        """
        temporary = self._temporary(target.name)
        with _write_errors_of(target):
            try:
                _write_file(temporary, data, mode=mode)
                trace_point(TracePoint.FILE_WRITTEN, self.id, target.name)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        trace_point(TracePoint.FILE_KEPT, self.id, target.name)

    def read(self, kind: type[D]) -> D:
        """Return the document of *kind*.

        Raises:
            BundleError: If it is missing or damaged; the message names it.
        """
        try:
            return kind.from_json((self.folder / kind.file_name).read_bytes())
        except OSError as error:
            raise BundleError(f"{self.id}: {kind.file_name} cannot be read: {error.strerror}") from error

    def record(self) -> ExecutionRecord:
        """Return the record: all documents together.

        Raises:
            BundleError: If one is missing or damaged; the message names it.
        """
        return ExecutionRecord.read(self.read, lambda name: (self.folder / name).exists())

    def last_change(self, before: datetime) -> datetime | None:
        """Return when a file of the bundle changed last, not after *before*; None if there was no change until then.

        This is the time of the file system (``st_ctime``); a Method can set the other time of a file.
        """
        limit = before.timestamp()
        times = (change for change in _changes(self.folder) if change <= limit)
        last = max(times, default=None)
        return None if last is None else datetime.fromtimestamp(last, UTC)

    @property
    def aside(self) -> Path:
        """The bundle's path after `set_aside`."""
        return self.workbench / ASIDE / self.id

    @property
    def stand_in(self) -> bool:
        """Whether this bundle was created in place of one that is unreachable."""
        return (self.scratch / _STAND_IN).exists()

    @property
    def cancel_requested(self) -> bool:
        """Whether a process on this machine has requested cancellation of the run."""
        return (self.scratch / _CANCEL).exists()

    def request_cancel(self) -> None:
        """Request cancellation: the run polls `cancel_requested`. It is idempotent.

        Raises:
            BundleError: If the workbench is not writable.
        """
        self.put(self.scratch / _CANCEL, b"")

    def mark_stand_in(self) -> None:
        """Mark the bundle, before it is created, as a stand-in, which is not kept on this workbench.

        Raises:
            BundleError: If the workbench is not writable.
        """
        with _write_errors_of(self.scratch):
            _make_scratch(self.scratch)
        self.put(self.scratch / _STAND_IN, b"")

    def keep_secret_names(self, names: Iterable[str]) -> None:
        """Keep the *names* of the secrets that the logs may contain, in the scratch folder.

        Raises:
            BundleError: If the disk cannot be written.
        """
        self.put(self.scratch / _SECRETS, json.dumps(sorted(names)).encode(), mode=0o600)

    def secret_names(self) -> frozenset[str]:
        """Return the names of the secrets that the logs may contain; none if the execution is not open here."""
        try:
            return frozenset(map(str, json.loads((self.scratch / _SECRETS).read_bytes())))
        except (OSError, ValueError):
            return frozenset()

    def withhold_logs(self) -> Path:
        """Move the logs, which may contain a secret, out of the bundle and return their new folder.

        Raises:
            BundleError: If they cannot be moved.
        """
        folder = self.workbench / WITHHELD / self.id
        with _write_errors_of(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in (layout.STDOUT, layout.STDERR):
                log = self.folder / name
                if log.exists():
                    log.rename(folder / log.name)
                    log.touch()
        return folder

    def set_aside(self) -> None:
        """Move the bundle to `aside`, replacing an earlier one, and remove its scratch folder.

        It is for a bundle whose execution another process has already sealed.

        Raises:
            BundleError: If it cannot be moved.
        """
        with _write_errors_of(self.aside):
            self.aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(self.aside, ignore_errors=True)
            self.folder.rename(self.aside)
            trace_point(TracePoint.SET_ASIDE, self.id)
            shutil.rmtree(self.scratch, ignore_errors=True)

    @contextmanager
    def lock(self, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Lock the bundle against all other processes and threads of this machine.

        The lock ends with its process. It is not reentrant: a second `lock` inside the first blocks.

        Raises:
            NotFoundError: If the bundle no longer exists: the previous holder has removed it.
            BundleError: If the lock is held for longer than *timeout* seconds, or cannot be created.
        """
        descriptor = self._acquire(time.monotonic() + timeout, timeout)
        try:
            if not self.folder.is_dir():
                self._remove_lock()
                raise NotFoundError(f"the bundle {self.id} is no longer on the workbench {self.workbench}")
            yield
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """Remove the bundle and its scratch folder from the workbench. It is idempotent.

        Raises:
            BundleError: If they cannot be removed.
        """
        with _write_errors_of(self.folder):
            for folder in (self.folder, self.scratch):
                if folder.exists():
                    shutil.rmtree(folder)

    def _remove_lock(self) -> None:
        """Remove what `lock` has created; the scratch folder stays if another process has created the bundle again."""
        with suppress(OSError):
            (self.scratch / "lock").unlink()
            self.scratch.rmdir()

    def _acquire(self, deadline: float, timeout: float) -> int:
        path = self.scratch / "lock"
        while True:
            with _write_errors_of(path):
                descriptor = _open_lock(path)
            if _lock_now(descriptor) and _same_file(descriptor, path):
                return descriptor
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise BundleError(
                    f"the bundle {self.id} has been locked for more than {timeout} s by another process; try again"
                )
            time.sleep(_LOCK_PAUSE)

    def _check_open(self, name: str) -> None:
        if self.sealed:
            raise SealedError(f"the bundle {self.id} is sealed: {name} can no longer be written")

    def _temporary(self, name: str) -> Path:
        return self.scratch / f"{name}.{os.getpid()}-{threading.get_ident()}.new"


def _changes(folder: Path) -> Iterator[float]:
    for above, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            with suppress(OSError):  # it is removed meanwhile
                yield os.lstat(f"{above}/{name}").st_ctime


def _check_allowed(name: str) -> None:
    if not layout.is_bundle_path(name):
        raise BundleError(f"{name}: the bundle format does not allow this file")


def _mode(name: str) -> int:
    return 0o600 if name in _PRIVATE else 0o666


def _write_file(path: Path, data: bytes, *, mode: int) -> None:
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
        with suppress(FileNotFoundError):  # the previous holder has removed the scratch folder
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _make_scratch(path.parent)


def _make_scratch(scratch: Path) -> None:
    """Create the scratch folder, in a race with processes that have finished with the bundle and remove it."""
    while True:
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # perhaps removed since
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
    # `discard` may have removed the lock file while this process waited for it.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _write_errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        disk_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "free some space" if disk_full else "check that the workbench is writable"
        raise BundleError(f"{path} cannot be written: {error.strerror or error}; {advice}") from error
