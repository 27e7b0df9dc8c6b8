"""Download of a zip from the web or an object store into a temporary file, to verify or import it."""

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
"""Largest download in bytes: the limit of a verification on the unpacked size of a zip."""

_BLOCK = 8 << 20
_SILENCE = 60.0
"""Seconds to wait for the next byte of a web server."""

_GONE = frozenset({404, 410})
_STORE_PATIENCE = timedelta(seconds=60)


def is_url(text: str) -> bool:
    """Whether *text* is a URL, not a path or an id."""
    return "://" in text


@contextmanager
def downloaded(url: str, *, largest: int = MAX_DOWNLOAD) -> Iterator[Path]:
    """Download *url* (``https://``, ``http://``, ``s3://``) into a file that is removed when the context ends.

    Raises:
        RequestError: If the URL has another scheme, or the file exceeds *largest* bytes or the free disk space.
        NotFoundError: If the URL does not exist.
        WorldError: If the server fails.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in {"http", "https", "s3"}:
        raise RequestError(
            f"{redact_url(url, query=False)} cannot be read: give the https://, http:// or s3:// URL of a zip"
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
    folder, _, key = url.rpartition("/")
    store = open_store(folder, timeout=_STORE_PATIENCE)
    info = store.head(key)
    if info is None:
        raise NotFoundError(f"{redact_url(url, query=False)} does not exist")
    _check_size(redact_url(url, query=False), info.size, limit)
    starts = range(0, info.size, _BLOCK)
    file.writelines(store.get_range(key, start, min(start + _BLOCK, info.size)) for start in starts)


def _from_web(url: str, file: BinaryIO, limit: int) -> None:
    shown = redact_url(url, query=False)
    try:
        with urlopen(Request(url), timeout=_SILENCE) as response:  # noqa: S310 - the scheme was checked
            _copy(response, file, shown, limit)
    except HTTPError as error:
        kind = NotFoundError if error.code in _GONE else WorldError
        raise kind(f"{shown} answered {error.code} {error.reason}") from None
    except ExecutionsError:
        raise
    except Exception as error:  # noqa: BLE001 - the errors of urllib and its protocols have no common root
        raise WorldError(f"{shown} cannot be read: {getattr(error, 'reason', error)}") from None


def _copy(response: addinfourl, file: BinaryIO, shown: str, limit: int) -> None:
    # urllib would follow a redirect to FTP.
    if not response.geturl().lower().startswith(("http://", "https://")):
        raise RequestError(
            f"{shown} redirects to {redact_url(response.geturl(), query=False)}, which is not an HTTP URL"
        )
    length = response.headers.get("Content-Length", "")
    announced = int(length) if length.isdigit() else None
    _check_size(shown, announced or 0, limit)
    while block := response.read(_BLOCK):
        _check_size(shown, file.tell() + len(block), limit)
        file.write(block)
    if announced is not None and file.tell() != announced:
        raise WorldError(f"the download of {shown} stopped after {file.tell()} of {announced} bytes; try again")


def _check_size(shown: str, size: int, limit: int) -> None:
    if size > limit:
        raise RequestError(f"{shown} has {size} bytes or more; the limit here is {limit}")
