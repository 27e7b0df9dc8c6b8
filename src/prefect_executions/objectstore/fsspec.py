"""Objects through any fsspec file system that can create a file only where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_executions.capture.secrets import redact_url
from prefect_executions.errors import ArchiveError, NotAvailableError, NotFoundError, SettingsError
from prefect_executions.objectstore.interface import (
    Durability,
    Expected,
    ObjectInfo,
    RetryBudget,
    checked_key,
    download_verified,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]  # fsspec has no type information

_PIECE = 8 * 1024**2
_LASTING = (
    *(PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ValueError, TypeError),
)
_T = TypeVar("_T")

# By reading their sources: memory opens with "x" (under the lock below), gcsfs sends ifGenerationMatch=0. Most others
# fall back to fsspec's own "create", which looks first and then writes, so that two can win.
_CREATE_EXCLUSIVELY = frozenset({"memory", "gs", "gcs"})

# The file system of memory:// is one for the whole process and checks before it creates, so it needs a lock.
_CREATING = threading.Lock()


class FilesystemStore:
    """A `Store` on an fsspec file system, below *root* in it.

    Raises:
        SettingsError: If the file system cannot create a file only where there is none, which a seal needs.
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str, url: str, timeout: timedelta) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._url = redact_url(url, query=False)
        self._timeout = timeout
        if not creates_exclusively(filesystem):
            raise SettingsError(
                f"The archive {self._url} cannot be used: {type(filesystem).__name__} cannot create an object only "
                "where there is none, so two sealers could both win. Use a folder, s3:// or gs://."
            )

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: bytes | Path) -> None:
        if isinstance(data, Path) and not data.is_file():
            raise ArchiveError(f"{data} cannot be archived: there is no such file")
        if isinstance(data, Path) and self._filesystem.protocol == "memory":
            # Written piece by piece, its objects are seen half; given whole, they are there at once.
            data = data.read_bytes()
        if isinstance(data, Path):
            source = str(data)
            self._on(key, lambda path: self._filesystem.put_file(source, path))
        else:
            self._on(key, lambda path: self._filesystem.pipe_file(path, data))

    def put_many(self, objects: Mapping[str, bytes | Path], *, lasts: Durability = Durability.SYNCED) -> None:  # noqa: ARG002 - whether an object lasts is the file system's own
        for key, data in objects.items():
            self.put(key, data)

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:  # noqa: ARG002 - whether an object lasts is the file system's own
        attempts = 0

        def create(path: str) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                with _CREATING:
                    self._filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                # After an attempt whose reply was lost, the object that is there may be our own.
                return attempts > 1 and bytes(self._filesystem.cat_file(path)) == data
            return True

        return self._on(key, create)

    def get(self, key: str) -> bytes:
        return self._on(key, lambda path: bytes(self._filesystem.cat_file(path)))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for key in keys:
            with suppress(NotFoundError):
                found[key] = self.get(key)
        return found

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._on(key, lambda path: bytes(self._filesystem.cat_file(path, start=start, end=end)))

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        def pieces() -> Iterator[bytes]:
            for start in range(0, size, _PIECE):
                yield self.get_range(key, start, min(start + _PIECE, size))

        found = self.head(key)
        if found is None:
            raise self._absent(key)
        if found.size != size:
            raise ArchiveError(f"{self._url}/{key} has {found.size} bytes and should have {size}")
        download_verified(pieces(), to, Expected(f"{self._url}/{key}", size, sha256))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            about = self._on(key, self._filesystem.info)
        except NotFoundError:
            return None
        return _head(key, about) if about["type"] == "file" else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = self._try(prefix, lambda: self._filesystem.find(f"{self._root}/{prefix}", detail=True))
        for path, about in sorted(found.items()):
            yield _head(path.removeprefix(f"{self._root}/"), about)

    def list_children(self, prefix: str) -> Iterator[str]:
        try:
            found = self._try(prefix, lambda: self._filesystem.ls(f"{self._root}/{prefix}".rstrip("/"), detail=True))
        except NotFoundError:
            return
        folders = (about["name"].rstrip("/") for about in found if about["type"] == "directory")
        yield from sorted(folder.rpartition("/")[2] for folder in folders)

    def delete(self, *keys: str) -> None:
        for key in keys:
            with suppress(NotFoundError):
                self._on(key, self._filesystem.rm_file)

    def abort_stale(self, older_than: datetime) -> int:  # noqa: ARG002 - such a file system begins no upload that others see
        return 0

    def presign(self, key: str, seconds: int) -> str:
        raise NotAvailableError(
            f"{self._url} has no web address for {key} to be read at for {seconds} s; only an archive on S3 has."
        )

    def _on(self, key: str, action: Callable[[str], _T]) -> _T:
        path = f"{self._root}/{checked_key(key)}"
        return self._try(key, lambda: action(path))

    def _absent(self, key: str) -> NotFoundError:
        return NotFoundError(f"There is no object {self._url}/{key} in the archive")

    def _try(self, key: str, action: Callable[[], _T]) -> _T:
        patience, attempt = RetryBudget(self._timeout), 0
        while True:
            attempt += 1
            try:
                return action()
            except FileNotFoundError as error:
                raise self._absent(key) from error
            except Exception as error:  # noqa: BLE001 - the errors of fsspec's file systems have no common root
                pause = None if isinstance(error, _LASTING) else patience.pause(attempt)
                if pause is None:
                    # Told by its kind alone: a file system's own words may hold an address with a password.
                    kind = type(error).__name__
                    raise ArchiveError(f"{self._url}/{key}: {kind} in attempt {attempt}") from None
                time.sleep(pause)


def creates_exclusively(filesystem: AbstractFileSystem) -> bool:
    """Tell whether *filesystem* is one that is known to create an object only where there is none."""
    named = filesystem.protocol
    return not _CREATE_EXCLUSIVELY.isdisjoint({named} if isinstance(named, str) else named)


def _head(key: str, about: Mapping[str, Any]) -> ObjectInfo:
    etag = about.get("ETag") or about.get("etag")
    return ObjectInfo(key, int(about["size"] or 0), str(etag) if etag else None, _modified(about))


def _modified(about: Mapping[str, Any]) -> datetime | None:
    # Each file system has its own name and form for it.
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        match about.get(name):
            case datetime() as time_of_it:
                return time_of_it if time_of_it.tzinfo else time_of_it.replace(tzinfo=UTC)
            case int() | float() as seconds:
                return datetime.fromtimestamp(seconds, UTC)
            case str() as text:
                return datetime.fromisoformat(text)
            case _:
                continue
    return None
