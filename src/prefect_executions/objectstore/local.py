"""The object store in a local folder: each object is a temporary file, fsynced and renamed into place."""

# For a small bundle, Path objects would cost as much time as the disk does (measured).
# ruff: noqa: PTH103, PTH105, PTH108, PTH112, PTH114, PTH120, PTH123

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import ELOOP, ENXIO, EROFS
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, NamedTuple

from prefect_executions.capture.processes import gone, mark
from prefect_executions.durations import format_seconds
from prefect_executions.errors import ArchiveError, NotAvailableError, NotFoundError
from prefect_executions.fsync import sync, sync_in_background
from prefect_executions.objectstore.interface import (
    TEMP_PREFIX,
    Durability,
    Expected,
    ObjectInfo,
    check_key,
    download_verified,
)
from prefect_executions.tracepoints import TracePoint, trace_point

_CHUNK = 8 * 1024**2
_ATTEMPTS = 5


class _TempFile(NamedTuple):
    """An object written to the temporary file `temp`, to be renamed to `path`."""

    key: str
    path: str
    temp: str


class FolderStore:
    """A `Store` in a local folder, or in a folder of a shared file system that supports hard links."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def put(self, key: str, data: bytes | Path) -> None:
        self.put_many({key: data})

    def put_many(self, objects: Mapping[str, bytes | Path], *, durability: Durability = Durability.SYNCED) -> None:
        files: list[_TempFile] = []
        folders: set[str] = set()
        try:
            # Write all files, then fsync them together: the disk writes one journal entry, not one for each file.
            for key, data in objects.items():
                files.append(self._write_temp(key, data, folders))
            if durability is Durability.SYNCED:
                with self._translated(files[0].key if len(files) == 1 else "fsync of objects"):
                    sync(file.temp for file in files)
            for file in files:
                with self._translated(file.key):
                    os.replace(file.temp, file.path)
                    trace_point(TracePoint.OBJECT_KEPT, file.key)
            if durability is Durability.SYNCED:
                with self._translated("fsync of folders"):
                    _fsync(folders | self._folders_of(objects))
            elif durability is Durability.ASYNC:
                sync_in_background(file.path for file in files if objects[file.key])
        except BaseException:
            for file in files:
                _unlink_temp(file.temp)
            raise

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:
        if self._path(key).exists():
            return False
        folders = self._folders_of(after)
        file = self._write_temp(key, data, folders)
        try:
            with self._translated(key):
                _fsync(folders, file.temp, *(f"{self._root}/{before}" for before in after))
                # Only a hard link creates a complete file atomically and fails if the name exists.
                os.link(file.temp, file.path)
                trace_point(TracePoint.OBJECT_KEPT, key)
                _fsync({os.path.dirname(file.path)} if after else self._folders_of([key]))
        except ArchiveError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        finally:
            _unlink_temp(file.temp)
        return True

    def get(self, key: str) -> bytes:
        with self._opened(key) as file:
            return file.read()

    def get_many(self, keys: Iterable[str], *, limit: int | None = None) -> dict[str, bytes]:
        objects = {}
        for key in keys:
            with suppress(NotFoundError), self._opened(key) as file:
                # A read allocates what it is asked for, so it asks for no more than the file has.
                size = os.fstat(file.fileno()).st_size
                objects[key] = file.read(-1 if limit is None else min(limit, size) + 1)
        return objects

    def get_range(self, key: str, start: int, end: int) -> bytes:
        with self._opened(key) as file:
            file.seek(start)
            return file.read(max(0, end - start))

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        with self._opened(key) as file:
            download_verified(iter(lambda: file.read(_CHUNK), b""), to, Expected(f"{self.url}/{key}", size, sha256))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._translated(key, reading=True):
                self._refuse_linked_folder(key)
                status = self._path(key).lstat()
        except NotFoundError:
            return None
        return _object_info(key, status) if S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self._root / prefix
        try:
            with self._translated(prefix, reading=True):
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except NotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self.list(f"{prefix}{entry.name}/")
            elif not entry.name.startswith(TEMP_PREFIX):
                with suppress(FileNotFoundError):  # deleted since the folder was listed
                    status = entry.stat(follow_symlinks=False)
                    yield _object_info(f"{prefix}{entry.name}", status)

    def list_children(self, prefix: str) -> Iterator[str]:
        try:
            with self._translated(prefix, reading=True), os.scandir(self._root / prefix) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except NotFoundError:
            return
        yield from sorted(names)

    def delete(self, *keys: str) -> None:
        for key in keys:
            with self._translated(key):
                path = self._path(key)
                path.unlink(missing_ok=True)
                trace_point(TracePoint.OBJECT_REMOVED, key)
                self._prune(path.parent)

    def abort_stale(self, older_than: datetime) -> int:
        removed = 0
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # its writer has just finished
                    if name.startswith(TEMP_PREFIX) and _is_stale(path, older_than):
                        path.unlink()
                        removed += 1
        return removed

    def presign(self, key: str, seconds: int) -> str:
        raise NotAvailableError(
            f"{self.url} is a folder, so {key} cannot be shared for {format_seconds(seconds)} as a presigned URL: "
            "only an archive on S3 has presigned URLs."
        )

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        """Open an object.

        A link is not an object, because its content may change outside the archive. A pipe or device is none
        either: it is opened without waiting for its writer, and refused.
        """
        with self._translated(key, reading=True):
            self._refuse_linked_folder(key)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(self._path(key), flags), "rb") as file:
                if not S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(ELOOP, os.strerror(ELOOP))
                yield file

    def _refuse_linked_folder(self, key: str) -> None:
        for folder in _parents(key):
            if folder and os.path.islink(f"{self._root}/{folder}"):
                raise OSError(ELOOP, os.strerror(ELOOP))

    def _write_temp(self, key: str, data: bytes | Path, folders: set[str]) -> _TempFile:
        path = f"{self._root}/{check_key(key)}"
        folder = path.rpartition("/")[0]
        file = _TempFile(key, path, f"{folder}/{TEMP_PREFIX}{mark()}.{secrets.token_hex(4)}")
        if isinstance(data, Path) and not data.is_file():
            raise ArchiveError(f"{data} cannot be archived: there is no such file")
        # The folder is missing, or another process has just removed it with its last object.
        for _ in range(_ATTEMPTS):
            with self._translated(key):
                try:
                    _write(file.temp, data)
                except FileNotFoundError:
                    folders |= _make_folder(folder)
                else:
                    trace_point(TracePoint.OBJECT_WRITTEN, key)
                    return file
        raise ArchiveError(
            f"{self.url}/{key} cannot be written: another process removed its folder {_ATTEMPTS} times. Try again."
        )

    def _folders_of(self, keys: Iterable[str]) -> set[str]:
        """Return all folders above *keys*; another writer may have created one without fsync yet."""
        below = {key.rpartition("/")[0] for key in keys}
        return {f"{self._root}/{folder}" for part in below for folder in (part, *_parents(part))}

    def _prune(self, folder: Path) -> None:
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                folder.rmdir()
            except OSError:  # not empty
                return
            folder = folder.parent

    def _translated(self, key: str, *, reading: bool = False) -> _Translated:
        return _Translated(self, key, reading=reading)


class _Translated:
    """A context that translates an `OSError` about the object *key* of *store*; it is entered for each file."""

    __slots__ = ("_key", "_reading", "_store")

    def __init__(self, store: FolderStore, key: str, *, reading: bool) -> None:
        self._store, self._key, self._reading = store, key, reading

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, OSError):
            return
        where = f"{self._store.url}/{self._key}"
        if self._reading and error.errno in {ELOOP, ENXIO}:  # ENXIO: a socket
            what = "it is a link or a special file"
            raise NotFoundError(f"There is no object {where} in the archive: {what}") from error
        if self._reading and isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise NotFoundError(f"There is no object {where} in the archive") from error
        if error.errno == EROFS:
            advice = "Mount it for writing, or correct EXECUTIONS_ARCHIVE."
            raise ArchiveError(f"The archive {self._store.url} is read-only. {advice}") from error
        raise ArchiveError(f"{where}: {error.strerror or error}") from error


def _write(path: str, data: bytes | Path) -> None:
    try:
        if isinstance(data, Path):
            shutil.copyfile(data, path)
        else:
            with open(path, "xb", buffering=0) as file:
                _write_all(file, data)
    except BaseException as error:
        if not isinstance(error, FileNotFoundError):
            _unlink_temp(path)
        raise


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _is_stale(path: Path, older_than: datetime) -> bool:
    writer = path.name.removeprefix(TEMP_PREFIX).partition(".")[0]
    return gone(writer) or path.stat().st_mtime < older_than.timestamp()


def _unlink_temp(path: str) -> None:
    with suppress(OSError):  # `abort_stale` removes what is left
        os.unlink(path)


def _make_folder(folder: str) -> set[str]:
    """Create *folder* and return the existing and new folders that got an entry, which need an fsync."""
    changed = set()
    parent = folder
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
        changed.add(parent)
    os.makedirs(folder, exist_ok=True)
    return changed


def _object_info(key: str, stat: os.stat_result) -> ObjectInfo:
    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
    return ObjectInfo(key, stat.st_size, modified=modified, is_link=not S_ISREG(stat.st_mode))


def _parents(key: str) -> Iterator[str]:
    while key:
        key = key.rpartition("/")[0]
        yield key


def _fsync(folders: Iterable[str], *files: str) -> None:
    try:
        sync([*files, *folders])
    except (PermissionError, NotADirectoryError):
        # Some systems cannot open or fsync a folder; syncing the files is all that is possible.
        sync(files)
