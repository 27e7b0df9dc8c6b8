"""Stages input files: copies them into the bundle before the Method starts, with digest, size, origin and media type.

Law: a staged file is a copy, never a link, because its origin may change. Credentials in the
URL of an origin are used, and recorded nowhere.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from prefect_executions.capture.secrets import redact_url, redact_urls
from prefect_executions.errors import BundleError, InputError
from prefect_executions.mediatypes import media_type

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]  # fsspec has no type information

BLOCK = 1 << 22
# Most file systems allow 255 bytes; ".part" and a number must fit as well.
LONGEST_NAME = 200
_LONGEST_SUFFIX = 40
# HTTP status Not Found and Gone (RFC 9110, 15.5.5 and 15.5.11).
_NOT_FOUND = (404, 410)
# Control characters, path separators, and characters that some file systems refuse.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff]')

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A staged input and the path of its copy; `origin` contains no credentials."""

    input: str
    name: str
    """The original file name."""
    path: Path
    origin: str
    sha256: str
    size: int
    media_type: str
    etag: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """An opened origin: its metadata and its bytes."""

    url: str
    name: str
    size: int | None
    etag: str | None
    blocks: Iterator[bytes]


def stage(
    inputs: Mapping[str, str | Sequence[str]], to: Path, *, progress: Progress | None = None
) -> tuple[Staged, ...]:
    """Copy each input to ``<to>/<input>/<file name>`` and compute its digest.

    An input is a path, an fsspec URL, or several of them. *progress* is called with the input, the
    copied bytes and, if known, the total. A copy appears completely or not at all. Staging again
    replaces the files.

    Raises:
        InputError: If an input is missing, unreadable, not a file, or shorter than announced; the
            message names it without credentials.
        BundleError: If the copy cannot be written.
    """
    staged: list[Staged] = []
    folders: set[str] = set()
    for name, sources in inputs.items():
        folder = to / _free_name(safe_name(name), folders)
        files: set[str] = set()
        listed = [sources] if isinstance(sources, str) else sources
        staged += [_stage_file(name, source, folder, files, progress) for source in listed]
    return tuple(staged)


def safe_name(name: str) -> str:
    """Return a file name for *name* that every common file system accepts: not empty, not a path, not too long.

    A safe name is returned unchanged.
    """
    clean = _UNSAFE.sub("_", name).rstrip(". ").lstrip(" ") or "_"
    if len(clean.encode()) <= LONGEST_NAME:
        return clean
    stem, dot, suffix = clean.rpartition(".")
    ending = dot + suffix if stem and len(suffix.encode()) <= _LONGEST_SUFFIX else ""
    return clean.encode()[: LONGEST_NAME - len(ending.encode())].decode(errors="ignore") + ending


def _stage_file(name: str, source: str, folder: Path, taken: set[str], progress: Progress | None) -> Staged:
    origin = _open(name, source)
    file_name = _free_name(safe_name(origin.name), taken)
    location = folder / file_name
    digest, size = _copy(name, origin, location, progress)
    if origin.size is not None and size != origin.size:
        location.unlink()
        raise InputError(
            f"Input '{name}': {origin.url} ended after {size} of {origin.size} bytes. Nothing was run; try again."
        )
    return Staged(
        input=name,
        name=origin.name.encode("utf-8", "backslashreplace").decode(),
        path=location,
        origin=origin.url,
        sha256=digest,
        size=size,
        media_type=media_type(file_name),
        etag=origin.etag,
    )


def _copy(name: str, origin: _Origin, location: Path, progress: Progress | None) -> tuple[str, int]:
    digest, size = sha256(), 0
    part = location.with_name(location.name + ".part")
    try:
        location.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as target:
            for block in origin.blocks:
                digest.update(block)
                target.write(block)
                size += len(block)
                if progress:
                    progress(name, size, origin.size)
        part.replace(location)
    except OSError as error:
        raise BundleError(f"Input '{name}' cannot be written to {location}: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    if progress and not size:
        progress(name, 0, 0)
    return digest.hexdigest(), size


def _open(name: str, source: str) -> _Origin:
    if not source:
        raise InputError(f"Input '{name}' is empty; give a path or a URL.")
    path = _local_path(source)
    return _open_remote(name, source) if path is None else _open_local(name, path)


def _local_path(source: str) -> Path | None:
    if "::" in source:
        return None
    scheme, separator, rest = source.partition("://")
    if not separator:
        return Path(source).expanduser()
    if scheme not in {"file", "local"}:
        return None
    path = Path(rest)
    return path if path.exists() else Path(unquote(urlsplit(source).path))


def _open_local(name: str, path: Path) -> _Origin:
    path = path.absolute()
    blocks = _blocks_of_file(name, path)
    # Read the first block now, so that a bad file is reported before anything is written.
    first = next(blocks, b"")
    return _Origin(
        url=path.as_uri(), name=path.name, size=None, etag=None, blocks=chain((first,) if first else (), blocks)
    )


def _blocks_of_file(name: str, path: Path) -> Iterator[bytes]:
    shown = str(path).encode("utf-8", "backslashreplace").decode()
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        with open(path, "rb", buffering=0, opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as source:
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise _not_a_file(name, shown, is_folder=False)
            while block := source.read(BLOCK):
                yield block
    except IsADirectoryError:
        raise _not_a_file(name, shown, is_folder=True) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Input '{name}': {shown} cannot be read: {reason}. Nothing was computed.") from error


def _open_remote(name: str, url: str) -> _Origin:
    try:
        # Imported late: fsspec's backends are slow to import, and most inputs are local.
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # noqa: PLC0415

        system, path = url_to_fs(url)
        info = system.info(path)
    except Exception as error:  # noqa: BLE001 - a backend of fsspec may raise any type
        raise _unreadable(name, url, error) from None
    if info.get("type") == "directory":
        raise _not_a_file(name, redact_url(url), is_folder=True)
    size = info.get("size")
    etag = info.get("ETag") or info.get("etag")
    return _Origin(
        url=redact_url(url),
        name=_name_in(url),
        size=size if isinstance(size, int) else None,
        etag=str(etag).removeprefix("W/").strip('"') if etag else None,
        blocks=_blocks_of_url(name, url, system, path),
    )


def _blocks_of_url(name: str, url: str, system: AbstractFileSystem, path: str) -> Iterator[bytes]:
    source: Any = None
    try:
        source = _opened(system, path)
        while block := source.read(BLOCK):
            yield block
    except Exception as error:  # noqa: BLE001 - a backend of fsspec may raise any type
        raise _unreadable(name, url, error) from None
    finally:
        if source is not None:
            source.close()


def _opened(system: AbstractFileSystem, path: str) -> Any:
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    if "http" in protocols:
        # One request for the whole uncompressed file instead of one request per block.
        return system.open(path, "rb", block_size=0, headers={"Accept-Encoding": "identity"})
    return system.open(path, "rb", block_size=2 * BLOCK)


def _unreadable(name: str, url: str, error: Exception) -> InputError:
    # Report the cause as text only: its traceback would contain the URL with its credentials.
    shown = redact_url(url)
    reason = redact_urls(_reason(error)).strip().rstrip(".").replace(url, shown)
    return InputError(f"Input '{name}': {shown} cannot be read: {reason}. Nothing was computed.")


def _reason(error: Exception) -> str:
    if not isinstance(error, FileNotFoundError):
        return str(error) or type(error).__name__
    # For HTTP, fsspec raises FileNotFoundError for every answer of the server, and also without a server.
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None and status not in _NOT_FOUND:
        return f"the server answers {status} {getattr(cause, 'message', '')}"
    has_reason = status is None and (isinstance(cause, ValueError) or type(cause).__module__.startswith("aiohttp"))
    return str(cause) if has_reason else "there is no such file"


def _not_a_file(name: str, shown: str, *, is_folder: bool) -> InputError:
    kind = "a folder" if is_folder else "not a regular file"
    return InputError(f"Input '{name}': {shown} is {kind}; give a file, such as an archive of the folder.")


def _name_in(url: str) -> str:
    first = url.partition("::")[0]
    scheme, _, rest = first.rpartition("://")
    if scheme in {"http", "https"}:
        rest = unquote(urlsplit(first).path)
    elif "://" not in first:
        # A chain that starts with a bare protocol (simplecache::s3://…) is named by its target.
        return _name_in(url.partition("::")[2]) if "::" in url else first
    return rest.rstrip("/").rpartition("/")[2] or "file"


def _free_name(name: str, taken: set[str]) -> str:
    stem, dot, suffix = name.rpartition(".")
    stem, ending = (stem, dot + suffix) if stem else (name, "")
    free, number = name, 1
    # Some file systems are case-insensitive.
    while free.casefold() in taken:
        number += 1
        free = f"{stem}-{number}{ending}"
    taken.add(free.casefold())
    return free
