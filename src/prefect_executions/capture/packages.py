"""The installed packages, from their metadata; read once, and again when something was installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import threading
from collections import ChainMap
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_NAME = re.compile(r"^Name:[ \t]*(\S+)", re.MULTILINE)
_VERSION = re.compile(r"^Version:[ \t]*(\S+)", re.MULTILINE)


class _Folder(NamedTuple):
    """What a folder of ``sys.path`` held when it last changed: names and versions by the normalized name."""

    changed: int
    packages: Mapping[str, tuple[str, str]]


class Packages:
    """What is installed; thread-safe.

    What was read of a folder on ``sys.path`` is kept while the folder has not
    changed: every installer adds, removes or renames a folder there. A folder to
    which the Method writes changes with every run; it is read again, and no other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: Mapping[str, _Folder] = {}
        self._versions: Mapping[str, str] = MappingProxyType({})
        self._requirements = b""

    def versions(self) -> Mapping[str, str]:
        """Return the version of each package, by its name, sorted as pip sorts them."""
        with self._lock:
            self._renew()
            return self._versions

    def requirements(self) -> bytes:
        """Return a requirements file that names each package in its exact version."""
        with self._lock:
            self._renew()
            return self._requirements

    def _renew(self) -> None:
        before, self._folders = self._folders, {path: _read(path, self._folders.get(path)) for path in sys.path}
        if _held(before) != _held(self._folders):
            self._versions = MappingProxyType(_installed(_held(self._folders)))
            lines = (f"{name}=={version}\n" for name, version in self._versions.items())
            self._requirements = "".join(lines).encode()


def package_of(module: str, file: str) -> str | None:
    """Return ``name==version`` of the installed package that the *module* in *file* comes from, if one is known.

    An editable installation counts when its project holds the file.
    """
    top = module.partition(".")[0]
    try:
        found = importlib.metadata.distribution(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        names = importlib.metadata.packages_distributions().get(top, ())
        if not names:
            return None
        found = importlib.metadata.distribution(names[0])
    holds = _editable_project(found) or str(Path(str(found.locate_file(""))).resolve())
    return f"{found.name}=={found.version}" if Path(file).is_relative_to(holds) else None


def _editable_project(distribution: importlib.metadata.Distribution) -> str | None:
    told = distribution.read_text("direct_url.json") or ""
    match = re.search(r'"url":\s*"(file:[^"]+)"', told)
    if match is None or not re.search(r'"editable":\s*true', told):
        return None
    return str(Path(unquote(urlsplit(match[1]).path)).resolve())


def _read(folder: str, before: _Folder | None) -> _Folder:
    try:
        changed = os.stat(folder or ".").st_mtime_ns  # noqa: PTH116 - a Path costs more than the stat
    except OSError:
        changed = 0
    if before is not None and before.changed == changed:
        return before
    found: dict[str, tuple[str, str]] = {}
    for distribution in importlib.metadata.distributions(path=[folder]):
        # Only the two lines that are needed: to parse every message takes ten times as long.
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        name, version = _NAME.search(text), _VERSION.search(text)
        if name and version:
            found.setdefault(re.sub(r"[-_.]+", "-", name[1]).lower(), (name[1], version[1]))
    return _Folder(changed, found)


def _held(folders: Mapping[str, _Folder]) -> list[Mapping[str, tuple[str, str]]]:
    return [folder.packages for folder in folders.values()]


def _installed(held: Iterable[Mapping[str, tuple[str, str]]]) -> dict[str, str]:
    # The first on sys.path is the one that is imported.
    found = ChainMap(*map(dict, held))
    return dict(found[key] for key in sorted(found))
