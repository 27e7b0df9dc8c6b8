"""Finds the files of a project that its source files import, by reading their import statements.

An import inside a function is found although the function has not run yet, and so is an import in a
process that the Method starts. The search follows text, so it may also find files
that are never loaded; a module name that is computed when the code runs is not found.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

# A search for the word comes first: it takes a tenth of the time of one expression for whole statements.
_IMPORT = re.compile(r"import\b")
# Text before a statement on its line ends in a semicolon or colon. Strings may contain matches; they do no harm.
_BEFORE = re.compile(r"(?:^|[;:])\s*(?:from(?:\s+|(?=\.))(?P<base>\.*[\w.]*)\s*)?$")
_AFTER = re.compile(r"[^\S\n]*(\([^)]*\)|(?:[^\\\n#;]|\\\r?\n)*)")
_CALL = re.compile(r"""(?:import_module|__import__|run_module)\(\s*["']([\w.]+)["']""")
_NAME = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
_INIT = "__init__.py"
_NOT_THE_AUTHORS = sys.stdlib_module_names | {"prefect_executions"}


class ImportedName(NamedTuple):
    """A name in an import statement: dots of a relative import, the module, and perhaps one of its members."""

    level: int
    module: tuple[str, ...]
    member: str | None = None


def imported_names(source: str) -> frozenset[ImportedName]:
    """Return the names in the import statements of *source*, whether or not the statements ever run."""
    names: set[ImportedName] = set()
    for match in _IMPORT.finditer(source):
        before = _BEFORE.search(source[source.rfind("\n", 0, match.start()) + 1 : match.start()])
        after = _AFTER.match(source, match.end())
        if before is None or after is None:
            continue
        base = before["base"]
        if base is None:
            names |= {ImportedName(0, name) for name in _listed(after[1])}
            continue
        module = base.lstrip(".")
        of = ImportedName(len(base) - len(module), tuple(module.split(".")) if module else ())
        names |= {of, *(of._replace(member=name[0]) for name in _listed(after[1]))}
    for match in _CALL.finditer(source) if "import_" in source or "run_module" in source else ():
        name = match[1].lstrip(".")
        names.add(ImportedName(len(match[1]) - len(name), tuple(name.split("."))))
    return frozenset(names)


def _listed(text: str) -> Iterator[tuple[str, ...]]:
    for part in re.sub(r"#[^\n]*", "", text).replace("\\", " ").strip(" \t()").split(","):
        if name := _NAME.match(part.strip()):
            yield tuple(name[0].split("."))


class _Finder:
    """Finds the files of modules below some folders; remembers the names in each folder."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def files(self, name: ImportedName, file: str, module: str, roots: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield the files, with their module names, that importing *name* in *file* loads, if they exist.

        An absolute name is searched below each of *roots*, a relative one from the folder of *file*, whose name is
        *module*.
        """
        if not name.level:
            first = next((root for root in roots if self._has(root, name.module)), None)
            yield from () if first is None else self._walk(first, (), name)
            return
        folder, package = file, tuple(module.split("."))
        if os.path.basename(file) == _INIT:  # noqa: PTH119 - runs for every import statement of the project
            package = (*package, _INIT)
        for _ in range(name.level):
            folder, package = os.path.dirname(folder), package[:-1]  # noqa: PTH120 - as above
        if _INIT in self._in(folder):
            yield f"{folder}/{_INIT}", ".".join(package)
        yield from self._walk(folder, package, name)

    def _has(self, root: str, module: tuple[str, ...]) -> bool:
        if not module or module[0] in _NOT_THE_AUTHORS:
            return False
        names = self._in(root)
        return f"{module[0]}.py" in names or (module[0] in names and bool(self._in(f"{root}/{module[0]}")))

    def _walk(self, folder: str, package: tuple[str, ...], name: ImportedName) -> Iterator[tuple[str, str]]:
        for part in (*name.module, *([name.member] if name.member else [])):
            names, package = self._in(folder), (*package, part)
            below = self._in(f"{folder}/{part}") if part in names else frozenset()
            if _INIT not in below and f"{part}.py" in names:
                yield f"{folder}/{part}.py", ".".join(package)
                return
            if not below:
                return
            folder = f"{folder}/{part}"
            if _INIT in below:
                yield f"{folder}/{_INIT}", ".".join(package)

    def _in(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - as above
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def import_root(file: str, module: str) -> str | None:
    """Return the folder from which *module* in *file* was imported; None if the names do not match."""
    path = file.removesuffix(f"/{_INIT}") if file.endswith(f"/{_INIT}") else os.path.splitext(file)[0]  # noqa: PTH122
    suffix = "/" + module.replace(".", "/")
    return (path.removesuffix(suffix) or "/") if module and path.endswith(suffix) else None


def reachable(
    files: Mapping[str, str],
    begin: Iterable[str],
    roots: Iterable[str],
    *,
    text: Callable[[str], str | None],
    loaded: Callable[[str], str | None],
    allowed: Callable[[str], bool],
) -> dict[str, str]:
    """Return *files*, which are module names by path, and all that *begin* among them imports, also indirectly.

    *roots* are the folders from which modules are imported. *text* returns the source of a file,
    and *loaded* the file of a loaded module. Files that are not *allowed* do not count.
    """
    finder, result, waiting, seen = _Finder(), dict(files), list(begin), set[str]()
    all_roots = dict.fromkeys((*roots, *filter(None, (import_root(*item) for item in files.items()))))
    while waiting:
        file = waiting.pop()
        source = text(file) if file.endswith(".py") else None
        for name in imported_names(source) if source else ():
            loaded_files = list(_of_loaded(name, loaded))
            if loaded_files and not allowed(os.path.realpath(loaded_files[0][0])):
                continue
            # The top module, if it is loaded, tells where its other modules are.
            top = import_root(*loaded_files[0]) if loaded_files else None
            search = (top,) if top else tuple(all_roots)
            for path, module in (*loaded_files, *finder.files(name, file, result[file], search)):
                if path in seen:
                    continue
                seen.add(path)
                found = os.path.realpath(path)
                if found not in result and allowed(found):
                    result[found] = module
                    waiting.append(found)
                    if (root := import_root(found, module)) is not None:
                        all_roots[root] = None
    return result


def _of_loaded(name: ImportedName, loaded: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    parts = () if name.level else (*name.module, *([name.member] if name.member else []))
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if (file := loaded(module)) is not None:
            yield file, module
