"""A zip from the web or from object storage, brought to a temporary file to be verified or imported."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from urllib.response import addinfourl

from prefect_executions.capture.secrets import redact_url
from prefect_executions.errors import ExecutionsError, NotFoundError, RequestError, WorldError
from prefect_executions.objectstore.open import open_store

MAX_DOWNLOAD = 20 << 30
"""Bytes that are downloaded at most: what a verification would unfold a zip to."""

_PIECE = 8 << 20
_SILENCE = 60.0
"""Seconds without a byte after which a web server is given up."""

_GONE = frozenset({404, 410})
_STORE_PATIENCE = timedelta(seconds=60)


def is_url(text: str) -> bool:
    """Whether *text* is an address and no path or id."""
    return "://" in text


@contextmanager
def downloaded(url: str, *, largest: int = MAX_DOWNLOAD) -> Iterator[Path]:
    """Bring what *url* (``https://``, ``http://``, ``s3://``) leads to into a file that lives as long as the context.

    Raises:
        RequestError: If the address is of another kind, or it is larger than *largest* bytes or the free space.
        NotFoundError: If there is nothing at it.
        WorldError: If its server fails.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in {"http", "https", "s3"}:
        raise RequestError(
            f"{redact_url(url, query=False)} cannot be read: give an https://, http:// or s3:// address of a zip"
        )
    with tempfile.TemporaryDirectory(prefix="executions-") as folder:
        path = Path(folder) / "bundle.zip"
        limit = min(largest, shutil.disk_usage(folder).free)
        with path.open("wb") as file:
            if scheme == "s3":
                _from_store(url, file, limit)
            else:
                _from_web(url, file, limit)
        yield path


def _from_store(url: str, file: BinaryIO, limit: int) -> None:
    place, _, key = url.rpartition("/")
    store = open_store(place, timeout=_STORE_PATIENCE)
    head = store.head(key)
    if head is None:
        raise NotFoundError(f"There is nothing at {redact_url(url, query=False)}")
    _check_size(redact_url(url, query=False), head.size, limit)
    starts = range(0, head.size, _PIECE)
    file.writelines(store.get_range(key, start, min(start + _PIECE, head.size)) for start in starts)


def _from_web(url: str, file: BinaryIO, limit: int) -> None:
    shown = redact_url(url, query=False)
    try:
        with urlopen(Request(url), timeout=_SILENCE) as answer:  # noqa: S310 - the scheme was looked at
            _copy(answer, file, shown, limit)
    except HTTPError as error:
        kind = NotFoundError if error.code in _GONE else WorldError
        raise kind(f"{shown} answers {error.code} {error.reason}") from None
    except ExecutionsError:
        raise
    except Exception as error:  # noqa: BLE001 - what the web answers with has no common root
        raise WorldError(f"{shown} cannot be read: {getattr(error, 'reason', error)}") from None


def _copy(answer: addinfourl, file: BinaryIO, shown: str, limit: int) -> None:
    # urllib follows a redirection to FTP as well.
    if not answer.geturl().lower().startswith(("http://", "https://")):
        raise RequestError(f"{shown} leads to {redact_url(answer.geturl(), query=False)}, which is no web address")
    told = answer.headers.get("Content-Length", "")
    announced = int(told) if told.isdigit() else None
    _check_size(shown, announced or 0, limit)
    while block := answer.read(_PIECE):
        _check_size(shown, file.tell() + len(block), limit)
        file.write(block)
    if announced is not None and file.tell() != announced:
        raise WorldError(f"{shown} broke off after {file.tell()} of {announced} bytes; try again")


def _check_size(shown: str, size: int, limit: int) -> None:
    if size > limit:
        raise RequestError(f"{shown} has {size} bytes or more; at most {limit} are taken here")
