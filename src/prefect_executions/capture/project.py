"""The files of the author's project: which loaded modules and imported files belong to it, and their names in `code/`.

Installed packages, the standard library and this package do not belong to it; neither does anything in a
virtual or a Conda environment.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect_executions.capture.git import INSTALLED, is_environment
from prefect_executions.capture.imports import import_root, reachable

OUTSIDE = "_outside"
"""The folder below ``code/`` for modules from outside the project; the folder in it has the name of their root."""

_INSTALLED = tuple(f"/{name}/" for name in INSTALLED)
_FOREIGN_FOLDERS = (
    *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")),
    # The project folder may be the virtual environment; its programs are not the author's code.
    *([f"{sysconfig.get_path('scripts')}/"] if sys.prefix != sys.base_prefix else []),
    # This package, installed in place; its version is listed with the packages.
    str(Path(__file__).parents[1]) + "/",
)


def is_installed(file: str) -> bool:
    """Whether *file* is below a folder into which installers write packages."""
    return any(part in file for part in _INSTALLED)


def package_top(file: str, module: str) -> str:
    """Return the folder above the topmost package with *file*, by its module name and the ``__init__.py`` files."""
    folder = os.path.dirname(file)  # noqa: PTH120 - names are text here
    root = import_root(file, module)
    while folder != "/" and (os.path.isfile(f"{folder}/__init__.py")):  # noqa: PTH113 - as above
        folder = os.path.dirname(folder)  # noqa: PTH120 - as above
    return min((path for path in (folder, root) if path and path != "/"), key=len, default=folder)


@dataclass(frozen=True)
class Project:
    """The project below the folder *top*; without a folder, only modules that the Method imports belong to it."""

    top: str | None

    def loaded(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Return the loaded modules below the top folder: their names by real path; all, or those called *names*."""
        if self.top in {None, "/"}:
            return {}
        prefix = f"{self.top}/"
        return {file: name for file, name in self._modules(names) if file.startswith(prefix)}

    def loaded_anywhere(self, names: Iterable[str]) -> dict[str, str]:
        """Return the modules called *names* that are the author's, in whatever folder, by real path."""
        return dict(self._modules(names))

    def with_imported(
        self, files: Mapping[str, str], begin: Iterable[str], text: Callable[[str], str | None]
    ) -> dict[str, str]:
        """Return *files* and everything of the author's that *begin* among them imports.

        *text* returns the source of a file.
        """
        environments = self._environments()
        searched = {os.path.realpath(path) for path in sys.path}
        folders = {os.path.dirname(file) for file in files}  # noqa: PTH120 - names are text here
        roots = [folder for folder in sorted(searched | folders) if self._is_own(f"{folder}/x", environments)]
        return reachable(
            files, begin, roots, text=text, loaded=_loaded_file, allowed=lambda file: self._is_own(file, environments)
        )

    def names(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return the path below ``code/`` of each of *files*, which are module names by path.

        Roots outside the project that have the same name get numbers, in the order of *files*.
        """
        outside: dict[str, str] = {}
        names: dict[str, str] = {}
        for file in files:
            if self.top and file.startswith(f"{self.top.rstrip('/')}/"):
                names[file] = as_text(os.path.relpath(file, self.top))
                continue
            root = import_root(file, files[file]) or os.path.dirname(file)  # noqa: PTH120 - as above
            if root not in outside:
                label = os.path.basename(root) or "root"  # noqa: PTH119 - as above
                taken = set(outside.values())
                outside[root] = next(name for name in _numbered(label) if name not in taken)
            names[file] = as_text(f"{OUTSIDE}/{outside[root]}/{os.path.relpath(file, root)}")
        return names

    def _modules(self, names: Iterable[str] | None) -> Iterator[tuple[str, str]]:
        environments = self._environments()
        # Iterate over a copy: building the pairs may collect garbage, and a finalizer may import.
        modules = sys.modules.copy()
        first: set[str] = set()
        for name in modules if names is None else names:
            file = _file_of(modules.get(name))
            if file is not None and not is_installed(file) and not file.startswith(_FOREIGN_FOLDERS):
                real = os.path.realpath(file)
                if real not in first and self._is_own(real, environments):
                    first.add(real)
                    yield real, name

    def _environments(self) -> dict[str, bool]:
        return {"/": False, "": False} | ({self.top: False} if self.top else {})

    def _is_own(self, file: str, environments: dict[str, bool]) -> bool:
        if is_installed(file) or file.startswith(_FOREIGN_FOLDERS):
            return False
        return not _in_environment(os.path.dirname(file), environments)  # noqa: PTH120 - names are text here


def _in_environment(folder: str, known: dict[str, bool]) -> bool:
    """Whether *folder* is in an environment; *known* caches results and starts with the top folder."""
    if folder not in known:
        known[folder] = is_environment(folder) or _in_environment(os.path.dirname(folder), known)  # noqa: PTH120
    return known[folder]


def _loaded_file(name: str) -> str | None:
    return _file_of(sys.modules.get(name))


def _file_of(module: object) -> str | None:
    try:
        file = getattr(module, "__file__", None)
    except Exception:  # noqa: BLE001 - a module may be any object
        return None
    return file if isinstance(file, str) else None


def _numbered(label: str) -> Iterator[str]:
    yield label
    number = 1
    while True:
        number += 1
        yield f"{label}-{number}"


def as_text(path: str) -> str:
    """Return *path* as text with a JSON form: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
