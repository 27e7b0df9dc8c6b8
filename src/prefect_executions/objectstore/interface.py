"""The object store interface: the `Store` protocol, the retry budget, and verified downloads.

Law: a reader sees a complete object or none, even if its writer crashed. Only a
power cut of the store's own machine can truncate an object that is not durable yet.

Downloads are counted and hashed here, because no object store client does it: a
flipped bit goes unnoticed (measured with s3fs, boto3 and obstore), and an
interrupted download leaves a file of the right size with holes.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from enum import Enum
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from prefect_executions.errors import ArchiveError, NameRefusedError

TEMP_PREFIX = ".~"
"""The prefix of a store's temporary files; no segment of a key may begin with it."""

# A backslash is refused because SeaweedFS lists it as a slash.
_FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f]|(?:\A|/)(?:\.{0,2}(?:/|\Z)|" + re.escape(TEMP_PREFIX) + ")")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class ObjectInfo(NamedTuple):
    """An object's metadata; `size` is in bytes.

    `etag` and `modified` are None if the store does not report them. `is_link` marks a
    symbolic link or special file in a folder: a listing names it, and it cannot be read.
    """

    key: str
    size: int
    etag: str | None = None
    modified: datetime | None = None
    is_link: bool = False


class Durability(Enum):
    """When an object becomes durable, that is, survives a power cut of the store's own machine."""

    SYNCED = "before the call returns"
    ASYNC = "soon after the call returns"
    WITH_SEAL = "before `put_if_absent` creates an object that names it in `after`"


class Store(Protocol):
    """A store of objects under keys such as ``executions/<id>/seal.json``.

    A store is safe for use by several threads. Each call retries until the store's
    time limit, then raises `ArchiveError`, which names the object and the cause but
    contains no credentials.
    """

    @property
    def url(self) -> str:
        """The store's URL, without credentials."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Store *data*, or the content of the file at that path, under *key*; replace an existing object."""

    def put_many(self, objects: Mapping[str, bytes | Path], *, durability: Durability = Durability.SYNCED) -> None:
        """Store several objects. If the call fails, some of them may have been stored."""

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:
        """Create an object only if *key* is free; return whether this call created it.

        If any number of processes race, exactly one gets True. *after* lists the keys
        that *data* refers to; they are made durable first, so that a power cut never
        leaves the new object without them.
        """

    def get(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            NotFoundError: If there is no such object.
        """

    def get_many(self, keys: Iterable[str], *, limit: int | None = None) -> dict[str, bytes]:
        """Return the contents of several objects by key; missing objects are left out.

        Of an object with more than *limit* bytes, only the first *limit* + 1 bytes are returned.
        """

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes from *start* up to, not including, *end*; fewer if the object is shorter.

        Raises:
            NotFoundError: If there is no such object.
        """

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        """Download an object to the file *to*, which appears only if size and digest match.

        Raises:
            NotFoundError: If there is no such object.
            ArchiveError: If size or digest differ.
        """

    def head(self, key: str) -> ObjectInfo | None:
        """Return the metadata of an object, or None if there is no such object."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with *prefix*, which must be empty or end with a slash."""

    def list_children(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders directly below *prefix*, in the store's own order.

        A folder whose last object was just deleted may still be listed.
        """

    def delete(self, *keys: str) -> None:
        """Delete objects; missing objects are ignored."""

    def abort_stale(self, older_than: datetime) -> int:
        """Remove the remains of interrupted uploads that began before *older_than*; return how many.

        If the store can see that the uploading process has ended, the upload's age does not matter.
        """

    def presign(self, key: str, seconds: int) -> str:
        """Return a URL that reads the object without credentials for *seconds*.

        Raises:
            NotAvailableError: If this kind of store has no presigned URLs.
        """


def check_key(key: str) -> str:
    """Return *key* if every kind of store accepts it unchanged.

    Raises:
        NameRefusedError: If it has an empty, ``.`` or ``..`` segment, a segment that begins with
            ``.~``, a backslash or a control character, or is not valid Unicode.
    """
    if _FORBIDDEN.search(key):
        raise NameRefusedError(
            f"{key!r} cannot be the key of an archived object: it has an empty, '.' or '..' segment, a segment that "
            "begins with '.~', a backslash or a control character"
        )
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise NameRefusedError(f"{key!r} cannot be the key of an archived object: it is not valid Unicode") from error
    return key


def honours_create_if_absent(store: Store) -> bool:
    """Check that *store* really refuses to create an object that exists already.

    Some S3-compatible servers accept the condition but ignore it. Two processes
    that seal the same execution could then both believe that they won.
    """
    key = f"probe/{secrets.token_hex(8)}"
    try:
        return store.put_if_absent(key, b"first") and not store.put_if_absent(key, b"second")
    finally:
        store.delete(key)


class RetryBudget:
    """The time limit of one store call, shared by all its requests; pauses grow exponentially, with jitter."""

    def __init__(self, limit: timedelta) -> None:
        self.limit = limit.total_seconds()
        self._end = time.monotonic() + self.limit

    @property
    def left(self) -> float:
        """Seconds until the limit; never negative."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, attempt: int) -> float | None:
        """Return the seconds to wait after the failed *attempt* (from 1), or None if the time is used up."""
        longest = min(FIRST_PAUSE * 2.0 ** min(attempt - 1, 16), LONGEST_PAUSE)
        # Jitter keeps many runs that failed together from retrying together.
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - not for secrets
        return pause if pause < self.left else None


class Expected(NamedTuple):
    """What a download must match: the size in bytes and the SHA-256 in hex; errors use `name`."""

    name: str
    size: int
    sha256: str


class VerifiedDownload:
    """A context that writes ``<name>.<pid>.part`` and renames it to *to* if size and digest match."""

    def __init__(self, to: Path, expected: Expected) -> None:
        self._to = to
        # Two processes may download the same file, so each writes its own.
        self._part = to.with_name(f"{to.name}.{os.getpid()}.part")
        self._expected = expected
        self._digest = sha256()
        self._size = 0

    def __enter__(self) -> Self:
        try:
            self._to.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
        except OSError as error:
            raise self._write_error(error) from error
        return self

    def write(self, chunk: bytes) -> None:
        """Append the next chunk.

        Raises:
            ArchiveError: If the chunk cannot be written, or the object is longer than expected.
        """
        self._size += len(chunk)
        if self._size > self._expected.size:
            raise ArchiveError(
                f"{self._expected.name} is longer than the {self._expected.size} bytes that were archived. "
                "Run 'executions audit'."
            )
        self._digest.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise self._write_error(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._check()
                self._part.replace(self._to)
        except OSError as failure:
            raise self._write_error(failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _check(self) -> None:
        name, size, digest = self._expected
        if self._size != size:
            raise ArchiveError(f"{name} ended after {self._size} of {size} bytes. Try again.")
        if self._digest.hexdigest() != digest:
            raise ArchiveError(
                f"The download of {name} is damaged: its SHA-256 is {self._digest.hexdigest()}, expected {digest}. "
                "Try again; if the error persists, the archived object itself is damaged."
            )

    def _write_error(self, error: OSError) -> ArchiveError:
        return ArchiveError(f"{self._expected.name} cannot be written to {self._to}: {error.strerror or error}")


def download_verified(chunks: Iterable[bytes], to: Path, expected: Expected) -> None:
    """Write *chunks* to the file *to* if size and digest match.

    Raises:
        ArchiveError: If they do not match, or the file cannot be written; *to* is then unchanged.
    """
    with VerifiedDownload(to, expected) as download:
        for chunk in chunks:
            download.write(chunk)
