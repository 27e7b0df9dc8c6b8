"""Notes the files that this process opens for reading, and those that it writes, with an audit hook of the interpreter.

Law: the hook is permanent and runs for every audit event of the process, so it does next to nothing: it notes
names, and reads no file. It never raises, because an exception would fail the author's call.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from contextlib import suppress
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any

from prefect_executions.capture.git import INSTALLED

# A Method that reads more files has data, which belongs into its inputs.
MOST_NOTED = 10_000
"""The largest number of names that are noted; of files below the folders of `keep_noting`, as many again."""

_WRITING = os.O_WRONLY | os.O_RDWR
_PACKAGE = f"{Path(__file__).parents[1]}/"
"""This package, which lies below the Method's folder if both are in one repository."""
_STANDARD = {f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")}
_SYSTEM = (*_STANDARD, "/proc/", "/sys/", "/dev/", _PACKAGE)
_INSTALLED = tuple(f"/{name}/" for name in INSTALLED)

_read: dict[str, str] = {}
"""The real path by the absolute path as it was opened."""
_last_read: dict[str, int] = {}
"""When each of these files was last opened, in nanoseconds of the epoch."""
_written: dict[str, int] = {}
"""When each file was last opened for writing, in nanoseconds of the epoch; emptied when it is full."""
_ignored = _SYSTEM
_watching = False
_near: tuple[str, ...] = ()
_dropped: set[str] = set()
"""The folders of `keep_noting` with files whose names were not noted."""


def watch() -> None:
    """Begin to note the files that this process opens; calling it again changes nothing."""
    global _watching  # noqa: PLW0603 - an audit hook cannot be removed, so it is installed once
    if not _watching:
        _watching = True
        sys.addaudithook(_hook)


def ignore(*folders: str) -> None:
    """Do not note files in *folders* any more."""
    global _ignored  # noqa: PLW0603 - a tuple, because the hook tests all of it in one call
    new = tuple(f"{folder}/" for folder in folders if f"{folder}/" not in _ignored)
    _ignored += new


def keep_noting(folder: str) -> None:
    """Note files below *folder* although many other files were opened."""
    global _near  # noqa: PLW0603 - as above
    if f"{folder}/" not in _near:
        _near += (f"{folder}/",)


def has_unnoted(folder: str) -> bool:
    """Whether so many files were opened that names of files below *folder*, given to `keep_noting`, were not noted."""
    return f"{folder}/" in _dropped


def opened_files(since: int = 0) -> list[str]:
    """Return the real paths of the files that this process has opened for reading, in the order of the first time.

    *since* leaves out those that it has not opened after this moment.

    Installed packages, this package, the standard library, files of the system and ignored folders are left out.
    Libraries in other languages than Python may open files unnoticed.
    """
    paths = [path for path in list(_read) if _last_read.get(path, 0) >= since and not path.startswith(_ignored)]
    for path in paths:
        _read[path] = _read[path] or os.path.realpath(_source(path))
    return list(dict.fromkeys(_read[path] for path in paths))


def written_files(since: int) -> list[str]:
    """Return the absolute paths of the files that this process has opened for writing *since* this moment."""
    written = [path for path, at in list(_written.items()) if at >= since]
    return [path for path in written if not path.startswith(_ignored)]


def _source(path: str) -> str:
    """Return the source file of a file with bytecode; for any other file, itself."""
    if path.endswith(".pyc"):
        with suppress(ValueError):  # it is in no cache, neither beside the source nor below PYTHONPYCACHEPREFIX
            return source_from_cache(path)
    return path


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        try:  # noqa: SIM105 - `suppress` takes longer
            _note(*arguments)
        except Exception:  # noqa: BLE001, S110 - the author's call must not fail
            pass


def _note(file: object, _mode: object, flags: int) -> None:
    if isinstance(file, int) or file is None:
        return
    if file in _read and not flags & _WRITING:
        _last_read[file] = time.time_ns()
        return
    name = os.fsdecode(file)  # type: ignore[arg-type]  # anything else raises, which the hook ignores
    if name.startswith(_ignored) or any(part in name for part in _INSTALLED):
        return
    path = os.path.abspath(name)  # noqa: PTH100 - on every opened file
    if flags & _WRITING:
        if len(_written) >= MOST_NOTED:
            _written.clear()
        _written[path] = time.time_ns()
        return
    if len(_read) < MOST_NOTED:
        _read.setdefault(path, "")
    elif path not in _read and path.startswith(_near):
        if len(_read) < 2 * MOST_NOTED:
            _read[path] = ""
        else:
            _dropped.update(folder for folder in _near if path.startswith(folder))
    if path in _read:
        _last_read[path] = time.time_ns()
