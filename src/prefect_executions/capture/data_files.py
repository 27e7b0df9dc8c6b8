"""Selects which data files beside the Method's code are recorded with it, among those that it opened.

Law: a file whose name or content may hold credentials is never kept. In a Git repository only tracked files are kept.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import NamedTuple

LARGEST = 1024**2
"""Bytes of the largest data file that is kept."""

_SECRET_NAMES = re.compile(
    r"\.env(\..*)?|.*\.env|\.?netrc|_netrc|\.?pgpass|\.?htpasswd|\.(npmrc|pypirc|git-credentials|dockercfg|boto)"
    r"|(.*[._-])?id_(rsa|dsa|ecdsa|ed25519)(_sk)?([._-].*)?"
    r"|.*\.(pem|key|p8|p12|pfx|jks|keystore|kdbx?|ppk|asc|gpg|pgp|crt|cer|der|token|secrets?|age)"
    r"|(.*[^a-z])?(secrets?|credentials?|passw(or)?ds?|passphrase|tokens?|(api|access|private|ssh|ssl|tls)[-_]?keys?"
    r"|service[-_]?accounts?|auth)([^a-z].*)?|keys?(\.txt)?",
    re.IGNORECASE,
)


IsSecret = Callable[[str, bytes], bool]
"""Says whether a file, by its path and content, may hold a credential."""


class DataFile(NamedTuple):
    """A file that the Method opened, by its path below ``code/``: its bytes, or why they are not kept."""

    path: str
    content: bytes | None
    why_missing: str | None = None


def data_files(
    opened: Iterable[str],
    *,
    top: str,
    folders: Iterable[str],
    outside: Mapping[str, str],
    apart: Iterable[str],
    known: Container[str],
    before: int,
    tracked: Callable[[str], bool] | None,
    secret: IsSecret,
    limit: int,
) -> Iterator[DataFile]:
    """Yield the *opened* files that are below the folder *top* and below one of *folders*, which have source files.

    Files below a folder of *outside*, which have source files of other projects, count as well; its values are the
    paths of these folders below ``code/``.

    *known* files, and files that are one of *apart* or below it, do not count, nor files that changed after
    the moment *before*, in nanoseconds of the epoch: the run has made them. *tracked* says whether Git
    tracks a file; it is None outside Git. *secret* says whether a file may hold a credential. All kept files
    together have at most *limit* bytes.
    """
    above, top_slash = tuple(map(_with_slash, folders)), _with_slash(top)
    others = sorted(outside, key=len, reverse=True)
    everywhere = (*above, *map(_with_slash, others))
    excluded = [os.path.realpath(path) for path in apart]
    excluded_folders, seen = tuple(map(_with_slash, excluded)), set[str]()
    for path in opened:
        if path in seen or path in known or not path.startswith(everywhere):
            continue
        seen.add(path)
        beyond = next((folder for folder in others if path.startswith(f"{folder}/")), None)
        if path.startswith(top_slash) and path.startswith(above):
            relative, judge = os.path.relpath(path, top), tracked
        elif beyond is not None:
            relative, judge = f"{outside[beyond]}/{os.path.relpath(path, beyond)}", None
        else:
            continue
        if path not in excluded and not path.startswith(excluded_folders):
            for file in _judged(path, relative, before, judge, secret=secret, limit=limit):
                limit -= len(file.content or b"")
                yield file


def may_hold_credentials(path: str) -> bool:
    """Whether a part of *path* is a usual name for credentials."""
    return any(_SECRET_NAMES.fullmatch(part) for part in path.split("/"))


def _judged(
    path: str,
    relative: str,
    before: int,
    tracked: Callable[[str], bool] | None,
    *,
    secret: IsSecret,
    limit: int,
) -> Iterator[DataFile]:
    try:
        status = os.lstat(path)
    except OSError:
        return  # it was temporary
    if not stat.S_ISREG(status.st_mode) or status.st_mtime_ns > before:
        return
    if may_hold_credentials(relative):
        yield DataFile(relative, None, "its name says that it may hold credentials")
    elif any(part.startswith(".") for part in relative.split("/")):
        return  # a tool's own file
    elif tracked is not None and not tracked(path):
        yield DataFile(relative, None, "Git does not track it")
    elif status.st_size > LARGEST:
        yield DataFile(relative, None, f"it has {status.st_size} bytes, more than {LARGEST}")
    elif status.st_size > limit:
        yield DataFile(relative, None, "the data files together are too large")
    else:
        yield _read(path, relative, secret)


def _read(path: str, relative: str, secret: IsSecret) -> DataFile:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - names are text here
            content = file.read(LARGEST + 1)
    except OSError as error:
        return DataFile(relative, None, f"it cannot be read: {error.strerror}")
    if secret(relative, content):
        return DataFile(relative, None, "it may hold credentials")
    return DataFile(relative, content)


def _with_slash(folder: str) -> str:
    return folder.rstrip("/") + "/"
