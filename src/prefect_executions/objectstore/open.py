"""Opening an object store by its URL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from prefect_executions.capture.secrets import redact_url
from prefect_executions.errors import SettingsError
from prefect_executions.objectstore.interface import Store
from prefect_executions.objectstore.local import FolderStore

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
TIMEOUT = timedelta(minutes=10)


def open_store(url: str, *, options: Mapping[str, Any] = NO_OPTIONS, timeout: timedelta = TIMEOUT) -> Store:
    """Return the store at *url*: a folder, ``file://``, ``s3://bucket/prefix``, ``memory://`` or another fsspec URL.

    *options* are fsspec storage options, for example those of a Prefect block;
    without them S3 finds credentials, region and endpoint by the usual AWS chain.
    *timeout* limits one call of the store, retries included. The first call connects,
    not this function.

    Raises:
        SettingsError: If *url* cannot hold an archive; the message says why.
    """
    scheme, _, rest = url.partition("://")
    if not rest and "://" not in url:
        return FolderStore(Path(url))
    match scheme:
        case "file" | "local":
            return FolderStore(Path(url2pathname(urlsplit(url).path)))
        case "s3" | "s3a":
            return _s3(url, options, timeout)
        case _:
            return _filesystem(url, options, timeout)


def _s3(url: str, options: Mapping[str, Any], timeout: timedelta) -> Store:
    # s3fs takes 0.9 s to import; an archive in a folder must not pay for it.
    from prefect_executions.objectstore.s3 import S3Store  # noqa: PLC0415

    bucket, _, prefix = url.partition("://")[2].rpartition("@")[2].partition("/")
    if not bucket:
        raise SettingsError(f"The archive {redact_url(url, query=False)} names no bucket. Use s3://bucket/prefix")
    return S3Store(bucket, prefix.strip("/"), options, timeout)


def _filesystem(url: str, options: Mapping[str, Any], timeout: timedelta) -> Store:
    # fsspec takes 80 ms to import; an archive in a folder must not pay for it.
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # noqa: PLC0415

    from prefect_executions.objectstore.fsspec import FilesystemStore  # noqa: PLC0415

    # memory:// is one file system for the whole process. The others would cache listings and be reused after a fork.
    defaults = {} if url.startswith("memory:") else {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        filesystem, root = url_to_fs(url, **{**defaults, **options})
    except (ImportError, ValueError) as error:
        raise SettingsError(f"The archive {redact_url(url, query=False)} cannot be used: {error}") from error
    return FilesystemStore(filesystem, root, url, timeout)
