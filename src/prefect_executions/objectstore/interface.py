"""The narrow interface to object storage: all that the archive asks of a store.

Law: an object under its key is whole or it is not there; a reader never meets
half of one, whatever happened to its writer. Only a power cut of the store's own
machine may halve what does not last yet.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from prefect_executions.errors import NameRefusedError

_REFUSED = re.compile(r"[\\\x00-\x1f\x7f]")
UNFINISHED = ".~"
"""How the names of a store's own unfinished files begin; no key may use it."""


class Head(NamedTuple):
    """What a store says of an object without reading it; size in bytes.

    `etag` and `modified` are absent where the store does not tell them.
    """

    key: str
    size: int
    etag: str | None = None
    modified: datetime | None = None


class Lasts(Enum):
    """From when on an object outlives a power cut of the store's own machine."""

    AT_ONCE = "when the call returns"
    SOON = "in a moment; nobody waits for it"
    LATER = "when an object is created after it"


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

    def put_many(self, objects: Mapping[str, bytes | Path], *, lasts: Lasts = Lasts.AT_ONCE) -> None:
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

    def head(self, key: str) -> Head | None:
        """Return what is known of an object, or None where there is none."""

    def list(self, prefix: str) -> Iterator[Head]:
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


def public_url(url: str) -> str:
    """Return *url* without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


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
