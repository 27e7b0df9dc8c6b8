"""The installed files of packages that came from a folder or file of this machine, which no index has.

They are kept as they are installed, below ``code/_outside/site-packages/``: a replay needs no build and no index.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prefect_executions.capture.data_files import DataFile, IsSecret, may_hold_credentials
from prefect_executions.capture.project import OUTSIDE
from prefect_executions.executions.local_packages import DISTRIBUTION
from prefect_executions.executions.record import PackageOrigin

FOLDER = f"{OUTSIDE}/site-packages"
_OF_INSTALLERS = {"INSTALLER", "REQUESTED", "uv_build.json", "uv_cache.json"}


def local_packages(origins: Mapping[str, PackageOrigin], *, secret: IsSecret, limit: int) -> Iterator[DataFile]:
    """Yield the files of each package that has a loaded module and came from a disk, except editable packages.

    The modules of an editable package are kept with the author's code. A package is left out as a whole if it does
    not fit into what is left of *limit* bytes, or if one of its files may be a *secret* or cannot be read. *origins*
    lack the packages of Conda.
    """
    for name, origin in origins.items():
        if origin.editable or name == DISTRIBUTION or not origin.url.startswith("file:"):
            continue
        try:
            files = _files(name)
            size = sum(path.stat().st_size for path in files.values())
            contents = {} if size > limit else {relative: path.read_bytes() for relative, path in files.items()}
        except Exception:  # noqa: BLE001, S112 - its metadata may be missing or damaged
            continue
        if contents and not any(_is_secret(*item, secret) for item in contents.items()):
            limit -= size
            for relative, content in contents.items():
                yield DataFile(f"{FOLDER}/{relative}", content)


def _files(name: str) -> Mapping[str, Path]:
    """Return the files of a package, except bytecode and programs; none unless one of its modules is loaded."""
    distribution = importlib.metadata.distribution(name)
    listed = [file for file in distribution.files or () if ".." not in file.parts and not file.is_absolute()]
    if not any(module in sys.modules for module in _modules(str(file) for file in listed)):
        return {}
    kept = [file for file in listed if file.suffix != ".pyc" and file.name not in _OF_INSTALLERS]
    paths = {str(file): Path(str(distribution.locate_file(file))) for file in kept}
    return {relative: path for relative, path in paths.items() if path.is_file()}


def _modules(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        if file.endswith((".py", ".so")):
            yield file.split("/")[0].partition(".")[0]


def _is_secret(relative: str, content: bytes, secret: IsSecret) -> bool:
    return (not relative.endswith(".py") and may_hold_credentials(relative)) or secret(relative, content)
