"""The object store on an fsspec file system that supports create-if-absent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_executions.capture.secrets import redact_url
from prefect_executions.durations import format_seconds
from prefect_executions.errors import ArchiveError, NotAvailableError, NotFoundError, SettingsError
from prefect_executions.objectstore.interface import (
    Durability,
    Expected,
    ObjectInfo,
    RetryBudget,
    check_key,
    download_verified,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]  # fsspec has no type information

_CHUNK = 8 * 1024**2
_PERMANENT = (
    *(PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ValueError, TypeError),
)
_T = TypeVar("_T")

# According to their sources, memory opens with "x" (under the lock below) and gcsfs sends ifGenerationMatch=0. Most
# others inherit fsspec's "create", which checks and then writes, so that two callers can win.
_CREATE_EXCLUSIVELY = frozenset({"memory", "gs", "gcs"})

# memory:// is one file system for the whole process and checks before it creates, so it needs a lock.
_CREATE_LOCK = threading.Lock()


class FilesystemStore:
    """A `Store` on an fsspec file system, below *root* in it.

    Raises:
        SettingsError: If the file system has no create-if-absent, which a seal needs.
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str, url: str, timeout: timedelta) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._url = redact_url(url, query=False)
        self._timeout = timeout
        if not creates_exclusively(filesystem):
            raise SettingsError(
                f"The archive {self._url} cannot be used: {type(filesystem).__name__} does not support "
                "create-if-absent, so two processes could both seal an execution. Use a folder, s3:// or gs://."
            )

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: bytes | Path) -> None:
        if isinstance(data, Path) and not data.is_file():
            raise ArchiveError(f"{data} cannot be archived: there is no such file")
        if isinstance(data, Path) and self._filesystem.protocol == "memory":
            # Written in chunks, the object would be visible half-written; written in one call, it appears at once.
            data = data.read_bytes()
        if isinstance(data, Path):
            source = str(data)
            self._on(key, lambda path: self._filesystem.put_file(source, path))
        else:
            self._on(key, lambda path: self._filesystem.pipe_file(path, data))

    def put_many(self, objects: Mapping[str, bytes | Path], *, durability: Durability = Durability.SYNCED) -> None:  # noqa: ARG002 - the file system decides when objects are durable
        for key, data in objects.items():
            self.put(key, data)

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:  # noqa: ARG002 - the file system decides when objects are durable
        attempts = 0

        def create(path: str) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                with _CREATE_LOCK:
                    self._filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                # If the reply to an earlier attempt was lost, the existing object may be ours.
                return attempts > 1 and bytes(self._filesystem.cat_file(path)) == data
            return True

        return self._on(key, create)

    def get(self, key: str) -> bytes:
        return self._on(key, lambda path: bytes(self._filesystem.cat_file(path)))

    def get_many(self, keys: Iterable[str], *, limit: int | None = None) -> dict[str, bytes]:
        objects = {}
        for key in keys:
            with suppress(NotFoundError):
                objects[key] = self.get(key) if limit is None else self.get_range(key, 0, limit + 1)
        return objects

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._on(key, lambda path: bytes(self._filesystem.cat_file(path, start=start, end=end)))

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        def chunks() -> Iterator[bytes]:
            for start in range(0, size, _CHUNK):
                yield self.get_range(key, start, min(start + _CHUNK, size))

        info = self.head(key)
        if info is None:
            raise self._not_found(key)
        if info.size != size:
            raise ArchiveError(f"{self._url}/{key} has {info.size} bytes, expected {size}")
        download_verified(chunks(), to, Expected(f"{self._url}/{key}", size, sha256))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            info = self._on(key, self._filesystem.info)
        except NotFoundError:
            return None
        return _object_info(key, info) if info["type"] == "file" else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        files = self._retry(prefix, lambda: self._filesystem.find(f"{self._root}/{prefix}", detail=True))
        for path, info in sorted(files.items()):
            yield _object_info(path.removeprefix(f"{self._root}/"), info)

    def list_children(self, prefix: str) -> Iterator[str]:
        try:
            entries = self._retry(
                prefix, lambda: self._filesystem.ls(f"{self._root}/{prefix}".rstrip("/"), detail=True)
            )
        except NotFoundError:
            return
        folders = (info["name"].rstrip("/") for info in entries if info["type"] == "directory")
        yield from sorted(folder.rpartition("/")[2] for folder in folders)

    def delete(self, *keys: str) -> None:
        for key in keys:
            with suppress(NotFoundError):
                self._on(key, self._filesystem.rm_file)

    def abort_stale(self, older_than: datetime) -> int:  # noqa: ARG002 - such a file system leaves no visible upload behind
        return 0

    def presign(self, key: str, seconds: int) -> str:
        raise NotAvailableError(
            f"{self._url}/{key} cannot be shared for {format_seconds(seconds)} as a presigned URL: "
            "only an archive on S3 has presigned URLs."
        )

    def _on(self, key: str, action: Callable[[str], _T]) -> _T:
        path = f"{self._root}/{check_key(key)}"
        return self._retry(key, lambda: action(path))

    def _not_found(self, key: str) -> NotFoundError:
        return NotFoundError(f"There is no object {self._url}/{key} in the archive")

    def _retry(self, key: str, action: Callable[[], _T]) -> _T:
        budget, attempt = RetryBudget(self._timeout), 0
        while True:
            attempt += 1
            try:
                return action()
            except FileNotFoundError as error:
                raise self._not_found(key) from error
            except Exception as error:  # noqa: BLE001 - errors of fsspec file systems have no common base class
                pause = None if isinstance(error, _PERMANENT) else budget.pause(attempt)
                if pause is None:
                    # Only the error's type is shown: its message may contain a URL with a password.
                    name = type(error).__name__
                    raise ArchiveError(f"{self._url}/{key}: {name} in attempt {attempt}") from None
                time.sleep(pause)


def creates_exclusively(filesystem: AbstractFileSystem) -> bool:
    """Return whether *filesystem* is known to support atomic create-if-absent."""
    protocol = filesystem.protocol
    return not _CREATE_EXCLUSIVELY.isdisjoint({protocol} if isinstance(protocol, str) else protocol)


def _object_info(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    etag = info.get("ETag") or info.get("etag")
    return ObjectInfo(key, int(info["size"] or 0), str(etag) if etag else None, _modified(info))


def _modified(info: Mapping[str, Any]) -> datetime | None:
    # Each file system uses its own field and type for the modification time.
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        match info.get(name):
            case datetime() as time_modified:
                return time_modified if time_modified.tzinfo else time_modified.replace(tzinfo=UTC)
            case int() | float() as seconds:
                return datetime.fromtimestamp(seconds, UTC)
            case str() as text:
                return datetime.fromisoformat(text)
            case _:
                continue
    return None
