"""Objects as files below one folder: each is written aside, flushed to the disk and renamed into place."""

# Path objects take as long as the disk does when a small bundle is sealed (measured).
# ruff: noqa: PTH103, PTH105, PTH108, PTH112, PTH120, PTH123

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from prefect_executions.capture.processes import gone, mark
from prefect_executions.errors import ArchiveError, NotAvailableError, NotFoundError
from prefect_executions.fsync import sync, sync_in_background
from prefect_executions.objectstore.interface import (
    UNFINISHED,
    Durability,
    Expected,
    ObjectInfo,
    checked_key,
    download_verified,
)
from prefect_executions.tracepoints import TracePoint, trace_point

_PIECE = 8 * 1024**2
_TRIES = 5


class _Written(NamedTuple):
    """A file that is written aside, and where it is to be."""

    key: str
    path: str
    unfinished: str


class FolderStore:
    """A `Store` in a folder of this machine, or of a shared file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def put(self, key: str, data: bytes | Path) -> None:
        self.put_many({key: data})

    def put_many(self, objects: Mapping[str, bytes | Path], *, lasts: Durability = Durability.SYNCED) -> None:
        written: list[_Written] = []
        folders: set[str] = set()
        try:
            # Written first and flushed together: the disk then has one journal to write, not one for each file.
            for key, data in objects.items():
                written.append(self._write_aside(key, data, folders))
            if lasts is Durability.SYNCED:
                with self._told(written[0].key if len(written) == 1 else "its objects"):
                    sync(one.unfinished for one in written)
            for one in written:
                with self._told(one.key):
                    os.replace(one.unfinished, one.path)
                    trace_point(TracePoint.OBJECT_KEPT, one.key)
            if lasts is Durability.SYNCED:
                with self._told("its folders"):
                    _flush(folders | self._folders_of(objects))
            elif lasts is Durability.ASYNC:
                sync_in_background(one.path for one in written if objects[one.key])
        except BaseException:
            for one in written:
                _forget(one.unfinished)
            raise

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:
        if self._path(key).exists():
            return False
        folders = self._folders_of(after)
        one = self._write_aside(key, data, folders)
        try:
            with self._told(key):
                _flush(folders, one.unfinished, *(f"{self._root}/{before}" for before in after))
                # A hard link is the one way to create a file that is whole at once and replaces none.
                os.link(one.unfinished, one.path)
                trace_point(TracePoint.OBJECT_KEPT, key)
                _flush({os.path.dirname(one.path)} if after else self._folders_of([key]))
        except ArchiveError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        finally:
            _forget(one.unfinished)
        return True

    def get(self, key: str) -> bytes:
        with self._told(key, reading=True):
            return self._path(key).read_bytes()

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for key in keys:
            with suppress(NotFoundError):
                found[key] = self.get(key)
        return found

    def get_range(self, key: str, start: int, end: int) -> bytes:
        with self._told(key, reading=True), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(max(0, end - start))

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        with self._told(key, reading=True), self._path(key).open("rb") as file:
            download_verified(iter(lambda: file.read(_PIECE), b""), to, Expected(f"{self.url}/{key}", size, sha256))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._told(key, reading=True):
                return _head(key, self._path(key).stat())
        except NotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self._root / prefix
        try:
            with self._told(prefix, reading=True):
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except NotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self.list(f"{prefix}{entry.name}/")
            elif not entry.name.startswith(UNFINISHED):
                with suppress(FileNotFoundError):  # removed since the folder was read
                    yield _head(f"{prefix}{entry.name}", entry.stat())

    def list_children(self, prefix: str) -> Iterator[str]:
        try:
            with self._told(prefix, reading=True), os.scandir(self._root / prefix) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except NotFoundError:
            return
        yield from sorted(names)

    def delete(self, *keys: str) -> None:
        for key in keys:
            with self._told(key):
                path = self._path(key)
                path.unlink(missing_ok=True)
                trace_point(TracePoint.OBJECT_REMOVED, key)
                self._prune(path.parent)

    def abort_stale(self, older_than: datetime) -> int:
        removed = 0
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # its writer finished in the meantime
                    if name.startswith(UNFINISHED) and _is_stale(path, older_than):
                        path.unlink()
                        removed += 1
        return removed

    def presign(self, key: str, seconds: int) -> str:
        raise NotAvailableError(
            f"{self.url} is a folder and has no web address for {key} to be read at for {seconds} s; "
            "only an archive on S3 has."
        )

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _write_aside(self, key: str, data: bytes | Path, folders: set[str]) -> _Written:
        path = f"{self._root}/{checked_key(key)}"
        folder = os.path.dirname(path)
        one = _Written(key, path, f"{folder}/{UNFINISHED}{mark()}.{secrets.token_hex(4)}")
        if isinstance(data, Path) and not data.is_file():
            raise ArchiveError(f"{data} cannot be archived: there is no such file")
        # Its folder is not there yet, or another process removed the last object in it, and the folder, just now.
        for _ in range(_TRIES):
            with self._told(key):
                try:
                    _write(one.unfinished, data)
                except FileNotFoundError:
                    folders |= _make_folder(folder)
                else:
                    trace_point(TracePoint.OBJECT_WRITTEN, key)
                    return one
        raise ArchiveError(f"{self.url}/{key}: the folder {folder} is removed again and again")

    def _folders_of(self, keys: Iterable[str]) -> set[str]:
        """The folders through which *keys* are found; who made one may have left it to others to make it last."""
        return {f"{self._root}/{folder}" for key in keys for folder in _above(key)}

    def _prune(self, folder: Path) -> None:
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                folder.rmdir()
            except OSError:  # something is in it
                return
            folder = folder.parent

    @contextmanager
    def _told(self, key: str, *, reading: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if reading and isinstance(error, FileNotFoundError | NotADirectoryError):
                raise NotFoundError(f"There is no object {self.url}/{key} in the archive") from error
            raise ArchiveError(f"{self.url}/{key}: {error.strerror or error}") from error


def _write(path: str, data: bytes | Path) -> None:
    try:
        if isinstance(data, Path):
            shutil.copyfile(data, path)
        else:
            with open(path, "xb", buffering=0) as file:
                _write_all(file, data)
    except BaseException as error:
        if not isinstance(error, FileNotFoundError):
            _forget(path)
        raise


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _is_stale(path: Path, older_than: datetime) -> bool:
    writer = path.name.removeprefix(UNFINISHED).partition(".")[0]
    return gone(writer) or path.stat().st_mtime < older_than.timestamp()


def _forget(path: str) -> None:
    with suppress(OSError):  # what stays is swept later
        os.unlink(path)


def _make_folder(folder: str) -> set[str]:
    """Make *folder*, and return the folders that got a new name in them."""
    changed = set()
    above = folder
    while not os.path.isdir(above):
        above = os.path.dirname(above)
        changed.add(above)
    os.makedirs(folder, exist_ok=True)
    return changed


def _head(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, modified=datetime.fromtimestamp(found.st_mtime, UTC))


def _above(key: str) -> Iterator[str]:
    while key:
        key = key.rpartition("/")[0]
        yield key


def _flush(folders: Iterable[str], *files: str) -> None:
    try:
        sync([*files, *folders])
    except (PermissionError, NotADirectoryError):
        # Not every system can open a folder or flush one; there its names are as safe as they can be.
        sync(files)
