"""Reads names and versions of the installed packages from their metadata, and caches them per folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import threading
from collections import ChainMap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from prefect_executions.capture.probes import Failures, Probe, reason
from prefect_executions.capture.secrets import redact_url
from prefect_executions.executions.record import PackageOrigin

_NAME = re.compile(r"^Name:[ \t]*(\S+)", re.MULTILINE)
_VERSION = re.compile(r"^Version:[ \t]*(\S+)", re.MULTILINE)


class _Folder(NamedTuple):
    """The packages in a folder of ``sys.path``: name and version by normalized name, and the folder's mtime.

    `unread` says which of its packages could not be read, and why.
    """

    changed: int
    packages: Mapping[str, tuple[str, str]]
    unread: tuple[str, ...] = ()
    origins: Mapping[str, PackageOrigin] = MappingProxyType({})
    """Where those packages came from that came from no index, by name."""
    of_conda: frozenset[str] = frozenset()
    """Those of them that Conda installed: they name a folder of the machine that built them."""


class Packages:
    """The installed packages; thread-safe.

    Each folder on ``sys.path`` is cached until its mtime changes, because every installer adds,
    removes or renames a folder there. A folder to which the Method writes changes with every
    run; only that folder is read again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: Mapping[str, _Folder] = {}
        self._versions: Mapping[str, str] = MappingProxyType({})
        self._requirements = b""
        self._origins: Mapping[str, PackageOrigin] = MappingProxyType({})
        self._local_origins: Mapping[str, PackageOrigin] = MappingProxyType({})
        self._failures: Failures = {}

    @property
    def failures(self) -> Mapping[str, str]:
        """Which packages are missing in the result of the last call, and why."""
        return self._failures

    def versions(self) -> Mapping[str, str]:
        """Return the version of each package by name, sorted like pip."""
        with self._lock:
            self._renew()
            return self._versions

    def origins(self) -> Mapping[str, PackageOrigin]:
        """Return where those packages came from that came from no package index, by name."""
        with self._lock:
            self._renew()
            return self._origins

    def local_origins(self) -> Mapping[str, PackageOrigin]:
        """Return the origins of the packages that came from a disk of this machine: not those of Conda, by name."""
        with self._lock:
            self._renew()
            return self._local_origins

    def requirements(self) -> bytes:
        """Return a requirements file with the exact version of each package."""
        with self._lock:
            self._renew()
            return self._requirements

    def _renew(self) -> None:
        before, self._folders = self._folders, {path: _read(path, self._folders.get(path)) for path in sys.path.copy()}
        unread = dict.fromkeys(why for folder in self._folders.values() for why in folder.unread)
        self._failures = {Probe.PACKAGES: "; ".join(unread)} if unread else {}
        if _packages_of(before) != _packages_of(self._folders):
            self._versions = MappingProxyType(_installed(_packages_of(self._folders)))
            folders = self._folders.values()
            origins = dict(ChainMap(*(dict(folder.origins) for folder in folders)))
            self._origins = MappingProxyType({name: origins[name] for name in self._versions if name in origins})
            of_conda = dict(
                ChainMap(*({name: name in folder.of_conda for name in folder.origins} for folder in folders))
            )
            self._local_origins = MappingProxyType(
                {
                    name: origin
                    for name, origin in self._origins.items()
                    if origin.url.startswith("file:") and not of_conda[name]
                }
            )
            self._requirements = requirements_of(self._versions)


def requirements_of(versions: Mapping[str, str]) -> bytes:
    """Return a requirements file with exactly these *versions*, given by name."""
    return "".join(f"{name}=={version}\n" for name, version in versions.items()).encode()


def package_of(module: str, file: str) -> str | None:
    """Return ``name==version`` of the installed package that contains *module* in *file*, or None.

    An editable installation counts if its project folder contains the file.
    """
    top = module.partition(".")[0]
    try:
        distribution = importlib.metadata.distribution(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return next(filter(None, (_named_with(top, file, one) for one in importlib.metadata.distributions())), None)
    return _pin(distribution) if _holds(distribution, file) else None


def _named_with(top: str, file: str, distribution: importlib.metadata.Distribution) -> str | None:
    with suppress(Exception):  # a broken package must not hide the others
        # Its folder comes first: to parse the file lists of all packages takes a second.
        if _holds(distribution, file) and _provides(distribution, top):
            return _pin(distribution)
    return None


def _pin(distribution: importlib.metadata.Distribution) -> str:
    return f"{distribution.name}=={distribution.version}"


def _holds(distribution: importlib.metadata.Distribution, file: str) -> bool:
    folder = _editable_project(distribution) or str(Path(str(distribution.locate_file(""))).resolve())
    return Path(file).is_relative_to(folder)


def _provides(distribution: importlib.metadata.Distribution, top: str) -> bool:
    """Return whether the module *top* is in the list of its modules or of its files."""
    if top in (distribution.read_text("top_level.txt") or "").split():
        return True
    files = distribution.read_text("RECORD") or distribution.read_text("SOURCES.txt") or ""
    return re.search(rf'^"?{re.escape(top)}(?:/|\.py\b)', files, re.MULTILINE) is not None


def _editable_project(distribution: importlib.metadata.Distribution) -> str | None:
    direct_url = distribution.read_text("direct_url.json") or ""
    match = re.search(r'"url":\s*"(file:[^"]+)"', direct_url)
    if match is None or not re.search(r'"editable":\s*true', direct_url):
        return None
    return str(Path(unquote(urlsplit(match[1]).path)).resolve())


def _read(folder: str, before: _Folder | None) -> _Folder:
    try:
        changed = os.stat(folder or ".").st_mtime_ns  # noqa: PTH116 - a Path costs more than the stat
    except (OSError, ValueError, TypeError):  # sys.path may contain anything
        changed = 0
    if before is not None and before.changed == changed:
        return before
    packages: dict[str, tuple[str, str]] = {}
    unread: list[str] = []
    origins: dict[str, PackageOrigin] = {}
    of_conda: set[str] = set()
    try:
        for distribution in importlib.metadata.distributions(path=[folder]):
            try:
                name, version = _name_and_version(distribution)
            except Exception as error:  # noqa: BLE001 - a broken package must not hide the others
                unread.append(f"{_place(distribution)}: {reason(error)}")
                continue
            if name and version:
                packages.setdefault(re.sub(r"[-_.]+", "-", name).lower(), (name, version))
                if (origin := _origin(distribution)) is not None:
                    if name not in origins and _is_of_conda(distribution):
                        of_conda.add(name)
                    origins.setdefault(name, origin)
    except Exception as error:  # noqa: BLE001 - a finder of another package may fail in any way
        unread.append(f"{folder}: {reason(error)}")
    return _Folder(changed, packages, tuple(unread), origins, frozenset(of_conda))


def _origin(distribution: importlib.metadata.Distribution) -> PackageOrigin | None:
    try:
        text = distribution.read_text("direct_url.json")
        direct = json.loads(text) if text else None
        if direct is None:
            return None
        url, vcs = redact_url(direct["url"]), direct.get("vcs_info")
        if vcs:
            url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
        return PackageOrigin(url=url, editable=bool(direct.get("dir_info", {}).get("editable")) or None)
    except Exception:  # noqa: BLE001 - it may contain anything; then the package must not be taken from an index
        return PackageOrigin(url="unknown")


def _is_of_conda(distribution: importlib.metadata.Distribution) -> bool:
    with suppress(Exception):  # it may contain anything
        return (distribution.read_text("INSTALLER") or "").strip() == "conda"
    return False


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str | None, str | None]:
    # Search the two needed lines; parsing every message takes ten times as long.
    text = _metadata(distribution, "METADATA") or _metadata(distribution, "PKG-INFO") or ""
    name, version = _NAME.search(text), _VERSION.search(text)
    return (name and name[1], version and version[1])


def _metadata(distribution: importlib.metadata.Distribution, file: str) -> str | None:
    try:
        return distribution.read_text(file)
    except UnicodeDecodeError as error:  # old packages have authors in Latin-1; the error has the file's bytes
        return error.object.decode("utf-8", "replace")


def _place(distribution: importlib.metadata.Distribution) -> str:
    return str(getattr(distribution, "_path", None) or type(distribution).__name__)


def _packages_of(folders: Mapping[str, _Folder]) -> list[Mapping[str, tuple[str, str]]]:
    return [folder.packages for folder in folders.values()]


def _installed(folders: Iterable[Mapping[str, tuple[str, str]]]) -> dict[str, str]:
    # The first package on sys.path is imported.
    packages = ChainMap(*map(dict, folders))
    return dict(packages[key] for key in sorted(packages))
