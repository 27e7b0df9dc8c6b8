"""One big file to S3 in parts: bounded in memory, and resumed where an interrupted upload left it.

s3fs's own loop holds 500 MiB in memory, sends in lock-step and leaves what was
sent behind when it is cancelled (measured). Here an upload that was broken off is
left open on purpose: the next try finds it and sends only what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import md5
from pathlib import Path
from typing import Any, NamedTuple

from prefect_executions.errors import ArchiveError
from prefect_executions.objectstore.s3_client import MISSING, Bucket, RefusedError
from prefect_executions.objectstore.together import all_of
from prefect_executions.tracepoints import Milestone, reach

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
    reach(Milestone.PART_SENT, sending.key, str(number))
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
