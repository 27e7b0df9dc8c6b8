"""The object store in an S3 bucket, through s3fs, with resumable multipart uploads.

The coroutines run in the event loop of fsspec's own thread, so any thread may call
the store, even one with a running event loop (which blocks meanwhile).

Large files are uploaded in parts with bounded memory. s3fs's own upload holds
500 MiB in memory, waits for each batch of parts, and leaves parts behind when it is
cancelled (measured). Here an interrupted upload stays open on purpose: the next
attempt finds it and sends only the missing parts.
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
from hashlib import md5
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from s3fs import S3FileSystem  # type: ignore[import-untyped]

from prefect_executions.errors import ArchiveError, NotFoundError
from prefect_executions.objectstore.interface import (
    Durability,
    Expected,
    ObjectInfo,
    RetryBudget,
    VerifiedDownload,
    check_key,
)
from prefect_executions.objectstore.s3_client import MISSING, Bucket, RefusedError, connect, credentials_in
from prefect_executions.tracepoints import TracePoint, trace_point

PART = 8 * 1024**2
# The measured peak is three times this: aiohttp copies each body, and the C library keeps some freed memory.
_UPLOAD_BUFFER = 4 * PART
_MAX_PARTS = 10_000  # S3's limit
_CHUNK = 8 * 1024**2
_CHUNKS_AHEAD = 4
_CONCURRENT_OBJECTS = 8

_UPLOAD_GONE = frozenset({"NoSuchUpload", "InvalidPart", "404"})
_EXISTS = frozenset({"PreconditionFailed", "412"})
_PAST_THE_END = frozenset({"InvalidRange", "416"})
_CLAIM = "claim"  # the metadata field by which `put_if_absent` recognises its own object

_T = TypeVar("_T")


class S3Store:
    """A `Store` in a bucket, below *prefix*; *options* are s3fs options."""

    def __init__(self, bucket: str, prefix: str, options: Mapping[str, Any], timeout: timedelta) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = dict(options)
        self._credentials = credentials_in(options)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connected: tuple[int, S3FileSystem] | None = None

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(self, key: str, data: bytes | Path) -> None:
        self.put_many({key: data})

    def put_many(self, objects: Mapping[str, bytes | Path], *, durability: Durability = Durability.SYNCED) -> None:  # noqa: ARG002 - S3 is durable at once
        sized = [(self._name(key), data, _size(data)) for key, data in objects.items()]
        self._run(lambda bucket: gather_bounded((_put(bucket, *item) for item in sized), _CONCURRENT_OBJECTS))

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:  # noqa: ARG002 - S3 is durable at once
        name = self._name(key)
        return self._run(lambda bucket: _create(bucket, name, data))

    def get(self, key: str) -> bytes:
        objects = self.get_many([key])
        if key not in objects:
            raise self._not_found(key)
        return objects[key]

    def get_many(self, keys: Iterable[str], *, limit: int | None = None) -> dict[str, bytes]:
        names = {key: self._name(key) for key in keys}
        bodies = self._run(
            lambda bucket: gather_bounded((_get(bucket, name, limit) for name in names.values()), _CONCURRENT_OBJECTS)
        )
        return {key: body for key, body in zip(names, bodies, strict=True) if body is not None}

    def get_range(self, key: str, start: int, end: int) -> bytes:
        name = self._name(key)
        data = self._run(lambda bucket: _get_range(bucket, name, start, end)) if end > start else b""
        if data is None:
            raise self._not_found(key)
        return data

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        name = self._name(key)
        expected = Expected(f"{self.url}/{key}", size, sha256)
        if not self._run(lambda bucket: _download(bucket, name, to, expected)):
            raise self._not_found(key)

    def head(self, key: str) -> ObjectInfo | None:
        name = self._name(key)
        head = self._run(lambda bucket: _head(bucket, name))
        if head is None:
            return None
        return ObjectInfo(key, head["ContentLength"], head["ETag"].strip('"'), head["LastModified"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages("list_objects_v2", Prefix=self._prefix + prefix):
            for item in page.get("Contents") or ():
                key = item["Key"].removeprefix(self._prefix)
                yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'), item["LastModified"])

    def list_children(self, prefix: str) -> Iterator[str]:
        full = self._prefix + prefix
        for page in self._pages("list_objects_v2", Prefix=full, Delimiter="/"):
            for item in page.get("CommonPrefixes") or ():
                yield item["Prefix"].removeprefix(full).rstrip("/")

    def delete(self, *keys: str) -> None:
        names = [self._name(key) for key in keys]
        self._run(lambda bucket: gather_bounded((_delete(bucket, name) for name in names), _CONCURRENT_OBJECTS))

    def abort_stale(self, older_than: datetime) -> int:
        stale = [
            (upload["Key"], upload["UploadId"])
            for page in self._pages("list_multipart_uploads", Prefix=self._prefix)
            for upload in page.get("Uploads") or ()
            if upload["Initiated"] < older_than
        ]
        self._run(
            lambda bucket: gather_bounded(
                (_abort(bucket, name, upload_id) for name, upload_id in stale), _CONCURRENT_OBJECTS
            )
        )
        return len(stale)

    def presign(self, key: str, seconds: int) -> str:
        name = self._name(key)
        return self._run(lambda bucket: bucket.presign(name, seconds))

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _not_found(self, key: str) -> NotFoundError:
        return NotFoundError(f"There is no object {self.url}/{key} in the archive")

    def _pages(self, method: str, **request: Any) -> Iterator[Mapping[str, Any]]:
        position: dict[str, Any] = {}
        while True:
            page = self._page(method, {**request, **position})
            yield page
            if not page.get("IsTruncated"):
                return
            position = _next_page(page)

    def _page(self, method: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        prefix = str(request["Prefix"])
        return self._run(lambda bucket: bucket.call(method, prefix, request)).members

    def _filesystem(self) -> S3FileSystem:
        with self._lock:
            # The event loop and its connections do not work in a forked child.
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = (os.getpid(), connect(self._options))
            return self._connected[1]

    def _run(self, work: Callable[[Bucket], Awaitable[_T]]) -> _T:
        filesystem, budget = self._filesystem(), RetryBudget(self._timeout)
        bucket = Bucket(filesystem, self._bucket, budget, self._credentials)

        async def bounded() -> _T:
            try:
                async with asyncio.timeout(budget.left) as limit:
                    return await work(bucket)
            except TimeoutError:
                if limit.expired():
                    raise bucket.timeout_error() from None
                raise

        future = asyncio.run_coroutine_threadsafe(bounded(), filesystem.loop)
        try:
            return future.result()
        except BaseException:
            # Prefect cancels a run by raising in the caller's thread; the request must not continue after that.
            future.cancel()
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
        await bucket.call("put_object", name, {"Body": body})
    trace_point(TracePoint.OBJECT_KEPT, name)


async def _create(bucket: Bucket, name: str, data: bytes) -> bool:
    # The claim identifies our own object: the reply to a first attempt may be lost, and aiohttp retries by itself.
    claim = secrets.token_hex(16)
    try:
        # A single PutObject, because some servers (Ceph 16) ignore the condition for multipart uploads.
        request = {"Body": data, "IfNoneMatch": "*", "Metadata": {_CLAIM: claim}}
        await bucket.call("put_object", name, request, allowed=_EXISTS)
    except RefusedError:
        head = await _head(bucket, name)
        return head is not None and head["Metadata"].get(_CLAIM) == claim
    trace_point(TracePoint.OBJECT_KEPT, name)
    return True


async def _get(bucket: Bucket, name: str, limit: int | None) -> bytes | None:
    most = None if limit is None else limit + 1
    try:
        return (await bucket.call("get_object", name, {}, allowed=MISSING, body=True, most=most)).body
    except RefusedError:
        return None


async def _get_range(bucket: Bucket, name: str, start: int, end: int) -> bytes | None:
    request = {"Range": f"bytes={start}-{end - 1}"}
    try:
        return (await bucket.call("get_object", name, request, allowed=MISSING | _PAST_THE_END, body=True)).body
    except RefusedError as refusal:
        return b"" if refusal.code in _PAST_THE_END else None


async def _head(bucket: Bucket, name: str) -> Mapping[str, Any] | None:
    try:
        return (await bucket.call("head_object", name, {}, allowed=MISSING)).members
    except RefusedError:
        return None


async def _download(bucket: Bucket, name: str, to: Path, expected: Expected) -> bool:
    head = await _head(bucket, name)
    if head is None:
        return False
    if head["ContentLength"] != expected.size:
        raise ArchiveError(f"{expected.name} has {head['ContentLength']} bytes, expected {expected.size}")
    starts = iter(range(0, expected.size, _CHUNK))
    ahead: deque[asyncio.Future[bytes | None]] = deque()
    with VerifiedDownload(to, expected) as download:
        try:
            while True:
                for start in islice(starts, _CHUNKS_AHEAD - len(ahead)):
                    chunk = _get_range(bucket, name, start, min(start + _CHUNK, expected.size))
                    ahead.append(asyncio.ensure_future(chunk))
                if not ahead:
                    return True
                await asyncio.to_thread(download.write, await ahead.popleft() or b"")
        finally:
            for pending in ahead:
                pending.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)


async def _delete(bucket: Bucket, name: str) -> None:
    with suppress(RefusedError):
        await bucket.call("delete_object", name, {}, allowed=MISSING)
        trace_point(TracePoint.OBJECT_REMOVED, name)


def _next_page(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request members that fetch the page after *page*."""
    if "NextContinuationToken" in page:
        return {"ContinuationToken": page["NextContinuationToken"]}
    return {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


class UploadedPart(NamedTuple):
    """A part of a multipart upload that the server has received."""

    etag: str
    size: int


async def upload(bucket: Bucket, key: str, path: Path, size: int) -> None:
    """Upload the file at *path*, of *size* bytes, to *key* in parts.

    Raises:
        ArchiveError: If it fails; the uploaded parts stay, and the next call resumes from them.
    """
    while True:
        upload_id, uploaded = await _find_interrupted(bucket, key) or (await _create_upload(bucket, key), {})
        try:
            etags = await _send(_Upload(bucket, key, upload_id, path, size, part_size(size), uploaded))
            parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
            request = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
            await bucket.call("complete_multipart_upload", key, request, allowed=_UPLOAD_GONE)
        except RefusedError:
            # Another process completed or aborted this upload, or the reply to our completion was lost.
            if await _exists(bucket, key, size):
                return
            await _abort(bucket, key, upload_id)
        else:
            return


def part_size(size: int) -> int:
    """Return the part size for a file of *size* bytes: 8 MiB, or more to stay within 10,000 parts."""
    mebibyte = 1024**2
    return max(PART, -(-size // _MAX_PARTS // mebibyte) * mebibyte)


class _Upload(NamedTuple):
    bucket: Bucket
    key: str
    upload_id: str
    path: Path
    size: int
    part_size: int
    uploaded: Mapping[int, UploadedPart]


async def _send(upload: _Upload) -> list[str]:
    limit = max(1, _UPLOAD_BUFFER // upload.part_size)
    numbers = range(1, max(1, -(-upload.size // upload.part_size)) + 1)
    return await gather_bounded((_send_part(upload, number) for number in numbers), limit)


async def _send_part(upload: _Upload, number: int) -> str:
    start = (number - 1) * upload.part_size
    data = await asyncio.to_thread(_read, upload.path, start, min(upload.part_size, upload.size - start))
    part = upload.uploaded.get(number)
    if part and part.size == len(data) and part.etag == await asyncio.to_thread(_md5, data):
        return part.etag
    request = {"UploadId": upload.upload_id, "PartNumber": number, "Body": data}
    reply = await upload.bucket.call("upload_part", upload.key, request, allowed=_UPLOAD_GONE)
    trace_point(TracePoint.PART_SENT, upload.key, str(number))
    return str(reply.members["ETag"]).strip('"')


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read during its upload to the archive: {error.strerror}") from error
    if len(data) != size:
        raise ArchiveError(f"{path} was truncated during its upload to the archive")
    return data


def _md5(data: bytes) -> str:
    return md5(data, usedforsecurity=False).hexdigest()


async def _create_upload(bucket: Bucket, key: str) -> str:
    return str((await bucket.call("create_multipart_upload", key, {})).members["UploadId"])


async def _find_interrupted(bucket: Bucket, key: str) -> tuple[str, dict[int, UploadedPart]] | None:
    """Return the newest open upload of *key* and its uploaded parts."""
    reply = await bucket.call("list_multipart_uploads", key, {"Prefix": key})
    uploads = [upload for upload in reply.members.get("Uploads") or () if upload["Key"] == key]
    if not uploads:
        return None
    newest = str(max(uploads, key=lambda upload: upload["Initiated"])["UploadId"])
    try:
        return newest, await _list_parts(bucket, key, newest)
    except RefusedError:
        return None


async def _list_parts(bucket: Bucket, key: str, upload_id: str) -> dict[int, UploadedPart]:
    parts: dict[int, UploadedPart] = {}
    position: dict[str, Any] = {}
    while True:
        reply = await bucket.call("list_parts", key, {"UploadId": upload_id, **position}, allowed=_UPLOAD_GONE)
        for part in reply.members.get("Parts") or ():
            parts[part["PartNumber"]] = UploadedPart(part["ETag"].strip('"'), part["Size"])
        if not reply.members.get("IsTruncated"):
            return parts
        position = {"PartNumberMarker": reply.members["NextPartNumberMarker"]}


async def _exists(bucket: Bucket, key: str, size: int) -> bool:
    head = await _head(bucket, key)
    return head is not None and head["ContentLength"] == size


async def _abort(bucket: Bucket, key: str, upload_id: str) -> None:
    with suppress(RefusedError):  # another process has completed or aborted it
        request = {"UploadId": upload_id}
        await bucket.call("abort_multipart_upload", key, request, allowed=_UPLOAD_GONE | MISSING)


async def gather_bounded(awaitables: Iterable[Awaitable[_T]], limit: int) -> list[_T]:
    """Await *awaitables*, at most *limit* at a time, and return their results in order.

    The iterable is consumed lazily. If one fails, the others are cancelled and have
    ended before the error is raised.
    """
    results: dict[int, _T] = {}
    numbered = enumerate(awaitables)

    async def work() -> None:
        for number, awaitable in numbered:
            results[number] = await awaitable

    workers = [asyncio.ensure_future(work()) for _ in range(limit)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[number] for number in sorted(results)]
