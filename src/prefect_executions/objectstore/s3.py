"""Objects in an S3 bucket, through s3fs.

The coroutines run in the event loop of fsspec's own thread, so a call may come
from any thread, also from one in which an event loop runs (which then waits).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from s3fs import S3FileSystem  # type: ignore[import-untyped]

from prefect_executions.errors import ArchiveError, NotFoundError
from prefect_executions.objectstore.fetching import Arriving, Expected
from prefect_executions.objectstore.interface import Head, Lasts, checked_key
from prefect_executions.objectstore.patience import Patience
from prefect_executions.objectstore.s3_client import MISSING, Bucket, RefusedError, connect, secrets_of
from prefect_executions.objectstore.together import all_of
from prefect_executions.objectstore.upload import PART, upload
from prefect_executions.tracepoints import Milestone, reach

_AT_ONCE = 8
_PIECE = 8 * 1024**2
_PIECES_AHEAD = 4
_TAKEN = frozenset({"PreconditionFailed", "412"})
_PAST_THE_END = frozenset({"InvalidRange", "416"})
_CLAIM = "claim"
_T = TypeVar("_T")


class S3Store:
    """A `Store` in a bucket, below *prefix*; *options* are those of s3fs."""

    def __init__(self, bucket: str, prefix: str, options: Mapping[str, Any], timeout: timedelta) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = dict(options)
        self._hidden = secrets_of(options)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connected: tuple[int, S3FileSystem] | None = None

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(self, key: str, data: bytes | Path) -> None:
        self.put_many({key: data})

    def put_many(self, objects: Mapping[str, bytes | Path], *, lasts: Lasts = Lasts.AT_ONCE) -> None:  # noqa: ARG002 - S3 keeps whatever it took
        sized = [(self._name(key), data, _size(data)) for key, data in objects.items()]
        self._run(lambda bucket: all_of((_put(bucket, *one) for one in sized), _AT_ONCE))

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:  # noqa: ARG002 - S3 keeps whatever it took
        name = self._name(key)
        return self._run(lambda bucket: _create(bucket, name, data))

    def get(self, key: str) -> bytes:
        found = self.get_many([key])
        if key not in found:
            raise self._absent(key)
        return found[key]

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        names = {key: self._name(key) for key in keys}
        bodies = self._run(lambda bucket: all_of((_get(bucket, name) for name in names.values()), _AT_ONCE))
        return {key: body for key, body in zip(names, bodies, strict=True) if body is not None}

    def get_range(self, key: str, start: int, end: int) -> bytes:
        name = self._name(key)
        found = self._run(lambda bucket: _get_range(bucket, name, start, end)) if end > start else b""
        if found is None:
            raise self._absent(key)
        return found

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        name = self._name(key)
        expected = Expected(f"{self.url}/{key}", size, sha256)
        if not self._run(lambda bucket: _download(bucket, name, to, expected)):
            raise self._absent(key)

    def head(self, key: str) -> Head | None:
        name = self._name(key)
        about = self._run(lambda bucket: _head(bucket, name))
        if about is None:
            return None
        return Head(key, about["ContentLength"], about["ETag"].strip('"'), about["LastModified"])

    def list(self, prefix: str) -> Iterator[Head]:
        for page in self._pages("list_objects_v2", Prefix=self._prefix + prefix):
            for one in page.get("Contents") or ():
                key = one["Key"].removeprefix(self._prefix)
                yield Head(key, one["Size"], one["ETag"].strip('"'), one["LastModified"])

    def list_children(self, prefix: str) -> Iterator[str]:
        full = self._prefix + prefix
        for page in self._pages("list_objects_v2", Prefix=full, Delimiter="/"):
            for one in page.get("CommonPrefixes") or ():
                yield one["Prefix"].removeprefix(full).rstrip("/")

    def delete(self, *keys: str) -> None:
        names = [self._name(key) for key in keys]
        self._run(lambda bucket: all_of((_delete(bucket, name) for name in names), _AT_ONCE))

    def abort_stale(self, older_than: datetime) -> int:
        stale = [
            (one["Key"], one["UploadId"])
            for page in self._pages("list_multipart_uploads", Prefix=self._prefix)
            for one in page.get("Uploads") or ()
            if one["Initiated"] < older_than
        ]
        self._run(lambda bucket: all_of((_abort_stale(bucket, name, upload_id) for name, upload_id in stale), _AT_ONCE))
        return len(stale)

    def presign(self, key: str, seconds: int) -> str:
        name = self._name(key)
        return self._run(lambda bucket: bucket.presign(name, seconds))

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _absent(self, key: str) -> NotFoundError:
        return NotFoundError(f"There is no object {self.url}/{key} in the archive")

    def _pages(self, method: str, **request: Any) -> Iterator[Mapping[str, Any]]:
        more: dict[str, Any] = {}
        while True:
            page = self._page(method, {**request, **more})
            yield page
            if not page.get("IsTruncated"):
                return
            more = _marks(page)

    def _page(self, method: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        what = str(request["Prefix"])
        return self._run(lambda bucket: bucket.ask(method, what, request)).members

    def _filesystem(self) -> S3FileSystem:
        with self._lock:
            # An event loop and its connections do not live on in the child of a fork.
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = (os.getpid(), connect(self._options))
            return self._connected[1]

    def _run(self, work: Callable[[Bucket], Awaitable[_T]]) -> _T:
        filesystem, patience = self._filesystem(), Patience(self._timeout)
        bucket = Bucket(filesystem, self._bucket, patience, self._hidden)

        async def bounded() -> _T:
            try:
                async with asyncio.timeout(patience.left) as limit:
                    return await work(bucket)
            except TimeoutError:
                if limit.expired():
                    raise bucket.time_is_over() from None
                raise

        running = asyncio.run_coroutine_threadsafe(bounded(), filesystem.loop)
        try:
            return running.result()
        except BaseException:
            # Prefect ends a run by an exception in the caller's thread; nothing may go on behind it.
            running.cancel()
            raise


def _size(data: bytes | Path) -> int:
    if isinstance(data, bytes):
        return len(data)
    if not data.is_file():
        raise ArchiveError(f"{data} cannot be archived: there is no such file")
    return data.stat().st_size


async def _put(bucket: Bucket, name: str, data: bytes | Path, size: int) -> None:
    if isinstance(data, Path) and size > PART:
        await upload(bucket, name, data, size)
    else:
        body = await asyncio.to_thread(data.read_bytes) if isinstance(data, Path) else data
        await bucket.ask("put_object", name, {"Body": body})
    reach(Milestone.OBJECT_KEPT, name)


async def _create(bucket: Bucket, name: str, data: bytes) -> bool:
    # The mark tells our own object from another's: the reply to a first attempt may be lost, and aiohttp tries again.
    claim = secrets.token_hex(16)
    try:
        # A single PutObject: some servers (Ceph 16) do not hold the condition for an upload in parts.
        request = {"Body": data, "IfNoneMatch": "*", "Metadata": {_CLAIM: claim}}
        await bucket.ask("put_object", name, request, allowed=_TAKEN)
    except RefusedError:
        about = await _head(bucket, name)
        return about is not None and about["Metadata"].get(_CLAIM) == claim
    reach(Milestone.OBJECT_KEPT, name)
    return True


async def _get(bucket: Bucket, name: str) -> bytes | None:
    try:
        return (await bucket.ask("get_object", name, {}, allowed=MISSING, body=True)).body
    except RefusedError:
        return None


async def _get_range(bucket: Bucket, name: str, start: int, end: int) -> bytes | None:
    asked = {"Range": f"bytes={start}-{end - 1}"}
    try:
        return (await bucket.ask("get_object", name, asked, allowed=MISSING | _PAST_THE_END, body=True)).body
    except RefusedError as refusal:
        return b"" if refusal.code in _PAST_THE_END else None


async def _head(bucket: Bucket, name: str) -> Mapping[str, Any] | None:
    try:
        return (await bucket.ask("head_object", name, {}, allowed=MISSING)).members
    except RefusedError:
        return None


async def _download(bucket: Bucket, name: str, to: Path, expected: Expected) -> bool:
    about = await _head(bucket, name)
    if about is None:
        return False
    if about["ContentLength"] != expected.size:
        raise ArchiveError(f"{expected.name} has {about['ContentLength']} bytes and should have {expected.size}")
    starts = iter(range(0, expected.size, _PIECE))
    ahead: deque[asyncio.Future[bytes | None]] = deque()
    with Arriving(to, expected) as arriving:
        try:
            while True:
                for start in islice(starts, _PIECES_AHEAD - len(ahead)):
                    asked = _get_range(bucket, name, start, min(start + _PIECE, expected.size))
                    ahead.append(asyncio.ensure_future(asked))
                if not ahead:
                    return True
                await asyncio.to_thread(arriving.take, await ahead.popleft() or b"")
        finally:
            for piece in ahead:
                piece.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)


async def _delete(bucket: Bucket, name: str) -> None:
    with suppress(RefusedError):
        await bucket.ask("delete_object", name, {}, allowed=MISSING)
        reach(Milestone.OBJECT_REMOVED, name)


async def _abort_stale(bucket: Bucket, name: str, upload_id: str) -> None:
    with suppress(RefusedError):  # its owner finished it, or another sweep was here
        gone = frozenset({"NoSuchUpload", *MISSING})
        await bucket.ask("abort_multipart_upload", name, {"UploadId": upload_id}, allowed=gone)


def _marks(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to ask for the page after *page*."""
    if "NextContinuationToken" in page:
        return {"ContinuationToken": page["NextContinuationToken"]}
    return {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
