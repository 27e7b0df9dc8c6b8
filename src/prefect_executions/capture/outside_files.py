"""Names the data files that a Method opened by a path of its own choice, away from its code and its inputs.

They are not kept with the code. Files of the system, of installed packages and of tools do not count.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import file_digest

from prefect_executions.capture.data_files import may_hold_credentials
from prefect_executions.methods.model import LackingFile

_THIS_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - names are text here

HASHED = 16 * 1024**2
"""Bytes of the largest file whose digest is recorded, and of all of them in one run."""

_SYSTEM = (
    *("/bin/", "/dev/", "/etc/", "/lib", "/proc/", "/run/", "/sbin/", "/snap/", "/sys/", "/usr/"),
    *("/var/cache/", "/var/lib/", "/Library/", "/System/"),
)


def outside_files(
    opened: Iterable[str], *, apart: Iterable[str], before: int, has_secret: Callable[[str], bool]
) -> Iterator[LackingFile]:
    """Yield the *opened* files, real paths, that may be data of the Method.

    Files that are one of *apart* or below it do not count, nor files that changed after the moment *before*, in
    nanoseconds of the epoch. A path that *has_secret* is left out.
    """
    excluded = {os.path.realpath(path) for path in (*apart, _THIS_PACKAGE, sys.prefix, sys.base_prefix)} - {"/"}
    folders = (*_SYSTEM, *(f"{path}/" for path in excluded))
    left, modules = HASHED, set[str]()
    for path in opened:
        if path in excluded or path.startswith(folders) or any(part.startswith(".") for part in path.split("/")):
            continue
        status = _data_status(path, before)
        if status is None:
            continue
        modules = modules or {_real(str(getattr(each, "__file__", ""))) for each in [*sys.modules.values()]}
        if path in modules or has_secret(path):
            continue
        digest = None
        if status.st_size <= left and not may_hold_credentials(path):
            left -= status.st_size
            digest = sha256_of(path)
        why = f"it is not beside the code ({status.st_size} bytes); a file that is an InputFile is kept"
        yield LackingFile(path=path, why=why, size=status.st_size, sha256=digest)


_real = cache(os.path.realpath)
"""The real path of a module's file: a process has thousands of them, and they do not move while it runs."""


def sha256_of(path: str) -> str | None:
    """Return the digest of a file, or None if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - names are text here
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def is_unchanged(file: LackingFile) -> bool:
    """Whether the file at the path of *file* has the recorded size, and the recorded digest if there is one."""
    try:
        size = os.stat(file.path).st_size  # noqa: PTH116 - names are text here
    except OSError:
        return False
    return size == file.size and file.sha256 in {None, sha256_of(file.path)}


def _data_status(path: str, before: int) -> os.stat_result | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None  # it was temporary
    return status if stat.S_ISREG(status.st_mode) and status.st_mtime_ns <= before and status.st_size else None
