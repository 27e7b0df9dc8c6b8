"""The packages of a record that came from the disk of its machine, and which of them the bundle keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prefect_executions.executions.record import ExecutionRecord, Instance
from prefect_executions.methods.model import CodeIdentity

_ADDRESS = re.compile(r"((git|hg|bzr|svn)\+)?(https?|ssh)://[!-~]+")
_KEPT = re.compile(r"code/_outside/site-packages/([^/]+)-([^/-]+)\.dist-info/METADATA")


DISTRIBUTION = "prefect-executions"
"""This package, which a replay takes from the machine that it runs on."""
_SHOWN = 5


class LocalPackage(NamedTuple):
    """A package that no index may be asked for."""

    name: str
    version: str
    url: str
    kept: bool
    """Whether the bundle has its files, or, if it is editable, the modules that the code used."""
    editable: bool

    @property
    def missing(self) -> str:
        """The sentence that says that it is missing."""
        return f"package {self.name} {self.version}: it was installed from {self.url} and is not in the bundle"


def summary(packages: Iterable[LocalPackage]) -> str | None:
    """Return the names of those *packages* that the bundle lacks, the first few of them; None if it lacks none."""
    missing = [f"{package.name} {package.version} ({package.url})" for package in packages if not package.kept]
    more = [f"{len(missing) - _SHOWN} more"] if len(missing) > _SHOWN else []
    return ", ".join((*missing[:_SHOWN], *more)) or None


def local_packages(record: ExecutionRecord) -> Iterator[LocalPackage]:
    """Yield the packages of *record* that came neither from an index nor from a repository or address."""
    return local_packages_of(record.instance, record.method.code)


def local_packages_of(instance: Instance, code: CodeIdentity | None) -> Iterator[LocalPackage]:
    """Yield them from the two documents that name them."""
    matches = (_KEPT.fullmatch(file.path) for file in (code.data_files if code else None) or ())
    kept = {(_normalized(match[1]), match[2]) for match in matches if match}
    for name, origin in (instance.package_origins or {}).items():
        version = instance.packages.get(name)
        if version is not None and name != DISTRIBUTION and not _ADDRESS.fullmatch(origin.url):
            editable = bool(origin.editable)
            has_files = (_normalized(name), version) in kept
            yield LocalPackage(name, version, origin.url, editable or has_files, editable)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
