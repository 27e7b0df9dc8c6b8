"""Objects in an S3 bucket, through s3fs.

The coroutines run in the event loop of fsspec's own thread, so a call may come
from any thread, also from one in which an event loop runs (which then waits).

One big file to S3 in parts: bounded in memory, and resumed where an interrupted upload left it.

s3fs's own loop holds 500 MiB in memory, sends in lock-step and leaves what was
sent behind when it is cancelled (measured). Here an upload that was broken off is
left open on purpose: the next try finds it and sends only what is missing.

Several coroutines at once, but never more than a number of them.
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
    checked_key,
)
from prefect_executions.objectstore.s3_client import MISSING, Bucket, RefusedError, connect, secrets_of
from prefect_executions.tracepoints import TracePoint, trace_point

_T = TypeVar("_T")


async def all_of(works: Iterable[Awaitable[_T]], at_once: int) -> list[_T]:
    """Await *works*, at most *at_once* at a time, and return their results in the same order.

    *works* is drawn from only as fast as it is worked on. At the first failure the
    others are cancelled, and nothing of them runs any more when it is raised.
    """
    results: dict[int, _T] = {}
    numbered = enumerate(works)

    async def work_on() -> None:
        for number, work in numbered:
            results[number] = await work

    workers = [asyncio.ensure_future(work_on()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[number] for number in sorted(results)]


PART = 8 * 1024**2
_IN_FLIGHT = 4 * PART
# aiohttp makes a second copy of each body and the C library keeps some of what is freed: three times this is measured.
_MOST_PARTS = 10_000  # S3's limit
_GONE = frozenset({"NoSuchUpload", "InvalidPart", "404"})


class Finished(NamedTuple):
    """A part that the server has."""

    etag: str
    size: int


async def upload(bucket: Bucket, key: str, path: Path, size: int) -> None:
    """Send the file at *path*, of *size* bytes, to *key*.

    Raises:
        ArchiveError: If it fails; what was sent stays and the next call goes on from there.
    """
    while True:
        upload_id, finished = await _interrupted(bucket, key) or (await _begin(bucket, key), {})
        try:
            etags = await _send(_Sending(bucket, key, upload_id, path, size, part_size(size), finished))
            listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
            request = {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}}
            await bucket.ask("complete_multipart_upload", key, request, allowed=_GONE)
        except RefusedError:
            # Another process completed or swept this upload, or the reply to our own completion was lost.
            if await _is_there(bucket, key, size):
                return
            await _abort(bucket, key, upload_id)
        else:
            return


def part_size(size: int) -> int:
    """Return the size of the parts of a file: 8 MiB, or what 10,000 parts need."""
    mebibyte = 1024**2
    return max(PART, -(-size // _MOST_PARTS // mebibyte) * mebibyte)


class _Sending(NamedTuple):
    bucket: Bucket
    key: str
    upload_id: str
    path: Path
    size: int
    part: int
    finished: Mapping[int, Finished]


async def _send(sending: _Sending) -> list[str]:
    at_once = max(1, _IN_FLIGHT // sending.part)
    numbers = range(1, max(1, -(-sending.size // sending.part)) + 1)
    return await all_of((_send_part(sending, number) for number in numbers), at_once)


async def _send_part(sending: _Sending, number: int) -> str:
    start = (number - 1) * sending.part
    data = await asyncio.to_thread(_read, sending.path, start, min(sending.part, sending.size - start))
    finished = sending.finished.get(number)
    if finished and finished.size == len(data) and finished.etag == await asyncio.to_thread(_md5, data):
        return finished.etag
    request = {"UploadId": sending.upload_id, "PartNumber": number, "Body": data}
    reply = await sending.bucket.ask("upload_part", sending.key, request, allowed=_GONE)
    trace_point(TracePoint.PART_SENT, sending.key, str(number))
    return str(reply.members["ETag"]).strip('"')


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read while it is archived: {error.strerror}") from error
    if len(data) != size:
        raise ArchiveError(f"{path} became shorter while it was archived")
    return data


def _md5(data: bytes) -> str:
    return md5(data, usedforsecurity=False).hexdigest()


async def _begin(bucket: Bucket, key: str) -> str:
    return str((await bucket.ask("create_multipart_upload", key, {})).members["UploadId"])


async def _interrupted(bucket: Bucket, key: str) -> tuple[str, dict[int, Finished]] | None:
    """Return the newest open upload of *key* and its finished parts."""
    reply = await bucket.ask("list_multipart_uploads", key, {"Prefix": key})
    opened = [one for one in reply.members.get("Uploads") or () if one["Key"] == key]
    if not opened:
        return None
    newest = str(max(opened, key=lambda one: one["Initiated"])["UploadId"])
    try:
        return newest, await _parts(bucket, key, newest)
    except RefusedError:
        return None


async def _parts(bucket: Bucket, key: str, upload_id: str) -> dict[int, Finished]:
    finished: dict[int, Finished] = {}
    more: dict[str, Any] = {}
    while True:
        reply = await bucket.ask("list_parts", key, {"UploadId": upload_id, **more}, allowed=_GONE)
        for part in reply.members.get("Parts") or ():
            finished[part["PartNumber"]] = Finished(part["ETag"].strip('"'), part["Size"])
        if not reply.members.get("IsTruncated"):
            return finished
        more = {"PartNumberMarker": reply.members["NextPartNumberMarker"]}


async def _is_there(bucket: Bucket, key: str, size: int) -> bool:
    try:
        about = (await bucket.ask("head_object", key, {}, allowed=MISSING)).members
    except RefusedError:
        return False
    return bool(about["ContentLength"] == size)


async def _abort(bucket: Bucket, key: str, upload_id: str) -> None:
    try:
        await bucket.ask("abort_multipart_upload", key, {"UploadId": upload_id}, allowed=_GONE)
    except RefusedError:
        return  # it is gone already


_AT_ONCE = 8
_PIECE = 8 * 1024**2
_PIECES_AHEAD = 4
_TAKEN = frozenset({"PreconditionFailed", "412"})
_PAST_THE_END = frozenset({"InvalidRange", "416"})
_CLAIM = "claim"


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

    def put_many(self, objects: Mapping[str, bytes | Path], *, lasts: Durability = Durability.SYNCED) -> None:  # noqa: ARG002 - S3 keeps whatever it took
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

    def head(self, key: str) -> ObjectInfo | None:
        name = self._name(key)
        about = self._run(lambda bucket: _head(bucket, name))
        if about is None:
            return None
        return ObjectInfo(key, about["ContentLength"], about["ETag"].strip('"'), about["LastModified"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages("list_objects_v2", Prefix=self._prefix + prefix):
            for one in page.get("Contents") or ():
                key = one["Key"].removeprefix(self._prefix)
                yield ObjectInfo(key, one["Size"], one["ETag"].strip('"'), one["LastModified"])

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
        filesystem, patience = self._filesystem(), RetryBudget(self._timeout)
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
    trace_point(TracePoint.OBJECT_KEPT, name)


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
    trace_point(TracePoint.OBJECT_KEPT, name)
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
    with VerifiedDownload(to, expected) as arriving:
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
        trace_point(TracePoint.OBJECT_REMOVED, name)


async def _abort_stale(bucket: Bucket, name: str, upload_id: str) -> None:
    with suppress(RefusedError):  # its owner finished it, or another sweep was here
        gone = frozenset({"NoSuchUpload", *MISSING})
        await bucket.ask("abort_multipart_upload", name, {"UploadId": upload_id}, allowed=gone)


def _marks(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to ask for the page after *page*."""
    if "NextContinuationToken" in page:
        return {"ContinuationToken": page["NextContinuationToken"]}
    return {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
