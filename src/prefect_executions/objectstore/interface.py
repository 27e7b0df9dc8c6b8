"""The narrow interface to object storage: all that the archive asks of a store.

Law: an object under its key is whole or it is not there; a reader never meets
half of one, whatever happened to its writer. Only a power cut of the store's own
machine may halve what does not last yet.

How long a store is tried: exponential pauses with jitter, within one total time limit.

Bringing an object to a file that appears only when its size and digest are right.

No client of an object store notices a flipped bit by itself (measured with
s3fs, boto3 and obstore), and a download that was cut leaves a file of the right
size with holes. So what arrives is counted and hashed here.
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

_REFUSED = re.compile(r"[\\\x00-\x1f\x7f]")
UNFINISHED = ".~"
"""How the names of a store's own unfinished files begin; no key may use it."""


class ObjectInfo(NamedTuple):
    """What a store says of an object without reading it; size in bytes.

    `etag` and `modified` are absent where the store does not tell them.
    """

    key: str
    size: int
    etag: str | None = None
    modified: datetime | None = None


class Durability(Enum):
    """From when on an object outlives a power cut of the store's own machine."""

    SYNCED = "when the call returns"
    ASYNC = "in a moment; nobody waits for it"
    WITH_SEAL = "when an object is created after it"


class Store(Protocol):
    """A place for objects under keys such as ``executions/<id>/seal.json``.

    A store may be used by several threads at once. Each call tries for the
    store's time limit and then raises `ArchiveError`, which names the object and
    the cause and carries no credentials.
    """

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Keep *data*, or the content of the file at that path, under *key*; the old object is replaced."""

    def put_many(self, objects: Mapping[str, bytes | Path], *, lasts: Durability = Durability.SYNCED) -> None:
        """Keep several objects; when this returns all of them are kept, when it raises some may be.

        *lasts* says from when on a power cut may not touch them.
        """

    def put_if_absent(self, key: str, data: bytes, *, after: Iterable[str] = ()) -> bool:
        """Keep *data* under *key* unless there is an object; return whether this call made it.

        Of any number of callers, in any number of processes, one gets True. What *data*
        speaks of is named in *after*, keys of objects that need not last yet: a power
        cut never leaves the new object without them.
        """

    def get(self, key: str) -> bytes:
        """Return an object.

        Raises:
            NotFoundError: If there is none.
        """

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return several objects by key; those that are not there are left out."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes from *start* up to, not including, *end*; fewer where the object ends before.

        Raises:
            NotFoundError: If there is no such object.
        """

    def download(self, key: str, to: Path, size: int, sha256: str) -> None:
        """Bring an object to the file *to*, which appears only when size and digest are right.

        Raises:
            NotFoundError: If there is no such object.
        """

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with *prefix*, which ends in a slash or is empty."""

    def list_children(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders right under *prefix*, in an order that each store has of its own.

        A folder whose last object was just removed may still be among them.
        """

    def delete(self, *keys: str) -> None:
        """Remove objects; one that is not there is no error."""

    def abort_stale(self, older_than: datetime) -> int:
        """Remove what uploads begun before *older_than* left behind, and return how many there were.

        Where the store can tell that an upload's process is gone, its age does not matter.
        """

    def presign(self, key: str, seconds: int) -> str:
        """Return a URL that reads the object without credentials for that long.

        Raises:
            NotAvailableError: If this kind of store has no such URLs.
        """


def checked_key(key: str) -> str:
    """Return *key* if every store can hold it as it is.

    Raises:
        NameRefusedError: If it has an empty, ``.`` or ``..`` step, a step beginning with
            ``.~``, a backslash or control character, or is no Unicode text.
    """
    steps = key.split("/")
    # SeaweedFS lists a backslash as a slash.
    if _REFUSED.search(key) or any(step in {"", ".", ".."} or step.startswith(UNFINISHED) for step in steps):
        raise NameRefusedError(f"{key!r} cannot be the key of an archived object")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise NameRefusedError(f"{key!r} is no Unicode text, so it cannot be the key of an archived object") from error
    return key


def honours_create_if_absent(store: Store) -> bool:
    """Try whether *store* really refuses to create an object a second time.

    Some S3-compatible servers accept the condition and ignore it; two sealers
    could then both believe that the seal is theirs.
    """
    key = f"probe/{secrets.token_hex(8)}"
    try:
        return store.put_if_absent(key, b"first") and not store.put_if_absent(key, b"second")
    finally:
        store.delete(key)


FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class RetryBudget:
    """The time left for one call, which all its requests share."""

    def __init__(self, limit: timedelta) -> None:
        self.limit = limit.total_seconds()
        self._end = time.monotonic() + self.limit

    @property
    def left(self) -> float:
        """Seconds until the limit; never negative."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, attempt: int) -> float | None:
        """Return how many seconds to wait after failed *attempt* (from 1), or None when no time is left for another."""
        longest = min(FIRST_PAUSE * 2.0 ** min(attempt - 1, 16), LONGEST_PAUSE)
        # Half of it is by chance, so that many runs that failed together do not come back together.
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - not for secrets
        return pause if pause < self.left else None


class Expected(NamedTuple):
    """What an object must be: the name that errors tell, its size in bytes and its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class VerifiedDownload:
    """The file ``<name>.part`` beside the one that is brought; left well, it takes the name."""

    def __init__(self, to: Path, expected: Expected) -> None:
        self._to = to
        # Two processes may bring the same file: each writes its own.
        self._part = to.with_name(f"{to.name}.{os.getpid()}.part")
        self._expected = expected
        self._digest = sha256()
        self._size = 0

    def __enter__(self) -> Self:
        try:
            self._to.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
        except OSError as error:
            raise self._cannot(error) from error
        return self

    def take(self, piece: bytes) -> None:
        """Append the next piece.

        Raises:
            ArchiveError: If the piece cannot be written, or more arrives than was expected.
        """
        self._size += len(piece)
        if self._size > self._expected.size:
            raise ArchiveError(
                f"{self._expected.name} is longer than the {self._expected.size} bytes that were archived"
            )
        self._digest.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise self._cannot(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._check()
                self._part.replace(self._to)
        except OSError as failure:
            raise self._cannot(failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _check(self) -> None:
        name, size, digest = self._expected
        if self._size != size:
            raise ArchiveError(f"{name} ended after {self._size} of {size} bytes")
        if self._digest.hexdigest() != digest:
            raise ArchiveError(
                f"{name} arrived damaged: its SHA-256 is {self._digest.hexdigest()} and should be {digest}. "
                "Try again; if it stays so, the archived object itself is damaged."
            )

    def _cannot(self, error: OSError) -> ArchiveError:
        return ArchiveError(f"{self._expected.name} cannot be written to {self._to}: {error.strerror or error}")


def download_verified(pieces: Iterable[bytes], to: Path, expected: Expected) -> None:
    """Write *pieces* to the file *to*, if together they are what is expected.

    Raises:
        ArchiveError: If they are not; the file *to* is then as it was before.
    """
    with VerifiedDownload(to, expected) as arriving:
        for piece in pieces:
            arriving.take(piece)
