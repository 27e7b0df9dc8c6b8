"""Which code runs: the Method's own file, the project's modules that are loaded, Git, the package, the notebook.

What could not be observed is absent; code outside Git, in a zip, in a notebook
or typed at a prompt is told as far as it is known, and never fails a run.

The notebook that code is run from: where it lies, and its digest without the cells' outputs.
"""

from __future__ import annotations

import inspect
import json
import linecache
import math
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1, sha256
from operator import is_
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from prefect_executions.capture.git import (
    INSTALLED,
    Checkout,
    Stamp,
    find_root,
    git_program,
    is_environment,
    read_checkout,
    stamp,
)
from prefect_executions.capture.packages import Packages, package_of
from prefect_executions.documents import canonical
from prefect_executions.errors import DirtyTreeError
from prefect_executions.methods.model import CodeIdentity, Notebook, Repository, SourceFile
from prefect_executions.settings import DirtyTree, Settings

# Jupyter Server sets it for a kernel; it is a path only when the session is a notebook's.
SESSION_VARIABLE = "JPY_SESSION_NAME"
# VS Code sets it in the notebook's own names.
VSCODE_NAME = "__vsc_ipynb_file__"


def observe_notebook(environment: Mapping[str, str]) -> Notebook | None:
    """Return the notebook around the caller, where its path can be observed and its file be read."""
    shell = _shell()
    if shell is None:
        return None
    for candidate in (getattr(shell, "user_ns", {}).get(VSCODE_NAME), environment.get(SESSION_VARIABLE)):
        if not isinstance(candidate, str) or not candidate.endswith(".ipynb"):
            continue
        try:
            digest = notebook_digest(Path(candidate).read_bytes())
        except (OSError, ValueError):
            continue
        return Notebook(path=candidate, sha256=digest)
    return None


def notebook_digest(data: bytes) -> str:
    """Return the SHA-256 of a notebook's canonical JSON, without what running it changes.

    Left out are outputs, execution counts and times, and the state of widgets.

    Raises:
        ValueError: If *data* is no notebook.
    """
    told = json.loads(data)
    if not isinstance(told, dict) or not isinstance(told.get("cells"), list):
        raise ValueError("this is no notebook of format 4")  # noqa: TRY004 - wrong content, not a wrong type
    cells = [_stripped(cell) for cell in told["cells"]]
    metadata = {key: value for key, value in told.get("metadata", {}).items() if key != "widgets"}
    return sha256(canonical({**told, "cells": cells, "metadata": metadata})).hexdigest()


def _stripped(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in cell.items() if key not in {"outputs", "execution_count"}}
    metadata = {
        key: value for key, value in cell.get("metadata", {}).items() if key not in {"execution", "ExecuteTime"}
    }
    return {**kept, "metadata": metadata}


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    get_ipython = getattr(ipython, "get_ipython", None)
    return get_ipython() if get_ipython else None


DIFF = "code/uncommitted.diff"
REQUIREMENTS = "code/requirements.txt"
TYPED = "cell.py"
"""The name under which code that was typed into a notebook or a prompt is kept."""

# Of a project's modules; each has its digest all the same, and the Method's own file is always kept.
KEPT_BYTES = 8 * 1024**2
_INSTALLED = tuple(f"/{name}/" for name in INSTALLED)
_NOT_THE_AUTHORS = (
    *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")),
    # The project folder may itself be the virtual environment; its programs are not the author's code.
    *([f"{sysconfig.get_path('scripts')}/"] if sys.prefix != sys.base_prefix else []),
    # Installed in place; its version is among the packages.
    str(Path(__file__).parents[1]) + "/",
)
# What cloudpickle, by which a served flow comes to its process, writes in the place of the file; it keeps the name of
# that among the globals.
_PICKLED = "<dynamic-code>"
# As in `repository`: what changed so shortly ago may change again without a trace.
_SETTLED = 50_000_000


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a function's code lies: a file, a member of an archive, or nothing but the lines that were typed."""

    module: str
    name: str
    file: str | None
    typed: bytes | None = None
    archive: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A source file as it was read."""

    stamp: Stamp
    content: bytes
    sha256: str
    git_object: str


@dataclass(kw_only=True)
class _CachedIdentity:
    """A code identity, and by what one sees whether it is still true."""

    identity: CodeIdentity
    files: Mapping[str, bytes]
    root: str | None
    folder: str | None
    local: frozenset[str]
    modules: list[ModuleType]
    stamps: dict[str, Stamp]
    looked: float
    """When the last look at its files began, by the monotonic clock."""
    settled: bool
    requirements: bytes


@dataclass
class CodeCache:
    """What a process has found out about its code; thread-safe when used through `identify`."""

    packages: Packages = field(default_factory=Packages)
    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: dict[tuple[object, ...], _CachedIdentity] = field(default_factory=dict)
    reads: dict[str, _Read] = field(default_factory=dict)


_PROCESS = CodeCache()


def identify(
    function: Callable[..., Any] | Path,
    *,
    settings: Settings,
    environment: Mapping[str, str] | None = None,
    since: float | None = None,
    cache: CodeCache = _PROCESS,
) -> tuple[CodeIdentity, Mapping[str, bytes]]:
    """Return which code *function* is, and the files to keep under ``code/`` by their paths in the bundle.

    In the place of a function the file of a descriptor may be given. It has no modules.

    The files are the Method's own source file, the modules of the same
    repository (or of the same folder, outside Git) that are loaded now, the
    uncommitted diff up to `Settings.diff_limit`, and exact versions of all packages.
    A package that is installed in an environment inside the repository is not the
    repository's code: it is recorded by its name and version.
    *environment* is asked only for the path of a Jupyter notebook.

    `dirty` means: a tracked file differs from the commit, or a file whose code
    is loaded is neither tracked nor ignored. Other untracked files are not code.

    An earlier answer in *cache* is given again, without a subprocess, while all of
    this holds: the same project-local modules are loaded; each file of them, each
    file that Git tracks, and Git's HEAD, branch, index and configuration have the
    same times (mtime and ctime), size and inode; nothing of them changed less than
    50 ms before it was read; no folder on ``sys.path`` has changed. Repositories
    with submodules are asked anew each time, and so is a notebook. What was looked at
    after the moment *since* of the monotonic clock is not looked at again: in a large
    repository the times of all files take longer than all the rest.

    Raises:
        DirtyTreeError: If `Settings.dirty` says refuse, and the tree is dirty or Git cannot say.
    """
    source = _source_of(function)
    notebook = observe_notebook(environment or {}) if source.file is None else None
    folder = _folder(source, notebook)
    wanted = (settings.diff_limit, settings.code_commit, settings.image, settings.image_digest)
    key = (source, folder, notebook, *wanted)
    with cache.lock:
        answer = cache.answers.get(key)
        if answer is None or not _still_true(answer, source, math.inf if since is None else since):
            answer = cache.answers[key] = _observe(source, folder, notebook, settings, cache)
        _renew_requirements(answer, cache.packages)
    repository = answer.identity.repository
    clean = repository.dirty is False if repository else source.file is None
    if settings.dirty is DirtyTree.REFUSE and answer.root and not clean:
        raise DirtyTreeError(answer.root, repository.changed if repository else ())
    return answer.identity, answer.files


def git_object(content: bytes) -> str:
    """Return the hash that Git gives *content* in a repository of SHA-1, without its filters."""
    return sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()


def _source_of(function: Callable[..., Any] | Path) -> _Source:
    if isinstance(function, Path):
        return _Source(module="", name="", file=os.path.realpath(function))
    plain: Any = function
    while isinstance(plain, partial):
        plain = plain.func
    plain = inspect.unwrap(plain)
    plain = getattr(plain, "__func__", plain)
    if not hasattr(plain, "__code__") and not hasattr(plain, "__qualname__"):
        plain = getattr(type(plain).__call__, "__wrapped__", type(plain).__call__)
    module = str(getattr(plain, "__module__", None) or "")
    name = str(getattr(plain, "__qualname__", None) or type(plain).__qualname__)
    told = _file_name(plain, module)
    if told and os.path.isfile(told):  # noqa: PTH113 - on every run
        return _Source(module=module, name=name, file=os.path.realpath(told))
    archive = _archive_of(told) if told else None
    if told and archive:
        loader = getattr(sys.modules.get(module), "__loader__", None)
        return _Source(module=module, name=name, file=None, archive=archive, typed=_member(loader, told))
    lines = "".join(linecache.getlines(plain.__code__.co_filename)) if hasattr(plain, "__code__") else ""
    return _Source(module=module, name=name, file=None, typed=lines.encode("utf-8", "backslashreplace") or None)


def _file_name(plain: Any, module: str) -> str | None:
    code = getattr(plain, "__code__", None)
    told = code.co_filename if code else getattr(sys.modules.get(module), "__file__", None)
    if told == _PICKLED:
        told = plain.__globals__.get("__file__")
    if not told or told.startswith("<"):
        return None
    if not os.path.isabs(told):  # noqa: PTH117 - on every run
        of_module = getattr(sys.modules.get(module), "__file__", None)
        if of_module and os.path.basename(of_module) == os.path.basename(told):  # noqa: PTH119 - on every run
            told = of_module
    return os.path.abspath(str(told))  # noqa: PTH100 - on every run


def _archive_of(path: str) -> str | None:
    while path not in {"", "/"}:
        path = os.path.dirname(path)  # noqa: PTH120 - text that need not be a path of the file system
        if os.path.exists(path):  # noqa: PTH110 - as above
            return path if os.path.isfile(path) else None  # noqa: PTH113 - as above
    return None


def _member(loader: Any, path: str) -> bytes | None:
    try:
        return bytes(loader.get_data(path))
    except (AttributeError, OSError):
        return None


def _still_true(answer: _CachedIdentity, source: _Source, since: float) -> bool:
    fresh = answer.looked >= since
    if not (fresh or answer.settled) or (answer.folder and find_root(f"{answer.folder}/x") != answer.root):
        return False
    modules = list(sys.modules.values())
    if len(modules) != len(answer.modules) or not all(map(is_, modules, answer.modules)):
        if _local_modules(answer.root or answer.folder, source).keys() != answer.local:
            return False
        answer.modules = modules
    if not fresh:
        begun = time.monotonic()
        if any(stamp(path) != seen for path, seen in answer.stamps.items()):
            return False
        answer.looked = begun
    return True


def _observe(
    source: _Source, folder: str | None, notebook: Notebook | None, settings: Settings, cache: CodeCache
) -> _CachedIdentity:
    modules, begun = list(sys.modules.values()), time.monotonic()
    before = time.time_ns()
    root = find_root(f"{folder}/x") if folder else None
    top = root or folder
    local = _local_modules(top, source)
    read = {file: found for file in local if (found := _read(file, cache)) is not None}
    names = {file: _text(os.path.relpath(file, top)) for file in read}
    # A prompt's working folder says nothing about what is typed there.
    asked = root if source.file or notebook or read else None
    inside = [os.path.relpath(file, root) for file in read]
    checkout = read_checkout(asked, inside, settings.diff_limit) if asked else None
    entry, files, kept = _kept_files(source, local, read, names)
    identity = CodeIdentity(
        entrypoint=f"{entry}:{source.name}".rstrip(":") if entry else None,
        sha256=_digest(files),
        repository=_repository(checkout, names.get(source.file or ""), set(names.values()), settings),
        files=files,
        package=_package(source),
        notebook=notebook,
        image=settings.image or None,
        image_digest=settings.image_digest or None,
    )
    if checkout and checkout.diff:
        kept[DIFF] = checkout.diff
    stamps = {file: found.stamp for file, found in read.items()} | (checkout.stamps if checkout else {})
    newest = max((max(found.stamp[:2]) for found in read.values() if found.stamp), default=0)
    return _CachedIdentity(
        identity=identity,
        files=MappingProxyType(kept),
        root=root,
        folder=folder,
        local=frozenset(local),
        modules=modules,
        stamps=stamps,
        looked=begun,
        settled=newest < before - _SETTLED and (checkout.settled if checkout else not asked or not git_program()),
        requirements=b"",
    )


def _folder(source: _Source, notebook: Notebook | None) -> str | None:
    if source.file:
        return os.path.dirname(source.file)  # noqa: PTH120 - as in _file_name
    if source.archive or (source.typed is None and source.module != "__main__"):
        return None
    try:
        return os.path.dirname(os.path.realpath(notebook.path)) if notebook else os.path.realpath(".")  # noqa: PTH120
    except OSError:
        return None


def _local_modules(top: str | None, source: _Source) -> dict[str, str]:
    found: dict[str, str] = {}
    installed = source.file is not None and any(part in source.file for part in _INSTALLED)
    if top and top != "/" and not installed and source.name:
        prefix = f"{top}/"
        environments: dict[str, bool] = {top: False}
        # A copy first: making pairs may collect garbage, and a finalizer may import.
        for name, module in sys.modules.copy().items():
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or any(part in file for part in _INSTALLED):
                continue
            if file.startswith(_NOT_THE_AUTHORS):
                continue
            real = os.path.realpath(file)
            if real.startswith(prefix) and not _in_environment(os.path.dirname(real), environments):  # noqa: PTH120
                found.setdefault(real, name)
    if source.file:
        found[source.file] = source.module
    return found


def _in_environment(folder: str, known: dict[str, bool]) -> bool:
    """Whether *folder* is, or lies in, an environment below the folder that *known* starts with."""
    if folder not in known:
        known[folder] = is_environment(folder) or _in_environment(os.path.dirname(folder), known)  # noqa: PTH120
    return known[folder]


def _read(file: str, cache: CodeCache) -> _Read | None:
    seen = stamp(file)
    known = cache.reads.get(file)
    if known and known.stamp == seen:
        return known
    try:
        with open(file, "rb") as opened:  # noqa: PTH123 - names are text here
            content = opened.read()
    except OSError:
        return None
    found = _Read(stamp=seen, content=content, sha256=sha256(content).hexdigest(), git_object=git_object(content))
    cache.reads[file] = found
    return found


def _kept_files(
    source: _Source, local: Mapping[str, str], read: Mapping[str, _Read], names: Mapping[str, str]
) -> tuple[str | None, tuple[SourceFile, ...], dict[str, bytes]]:
    entry = names.get(source.file or "")
    contents = {names[file]: (found.content, local[file]) for file, found in read.items()}
    if source.typed is not None:
        entry = TYPED if source.archive is None else source.module.replace(".", "/") + ".py"
        contents[entry] = (source.typed, source.module)
    files: list[SourceFile] = []
    kept: dict[str, bytes] = {}
    room = KEPT_BYTES
    for name in sorted(contents, key=lambda name: (name != entry, name)):
        content, module = contents[name]
        files.append(
            SourceFile(
                path=f"code/{name}",
                sha256=sha256(content).hexdigest(),
                git_object=git_object(content),
                module=module or None,
            )
        )
        room -= len(content)
        if room >= 0 or name == entry:
            kept[f"code/{name}"] = content
    return entry, tuple(sorted(files, key=lambda file: file.path)), kept


def _digest(files: tuple[SourceFile, ...]) -> str | None:
    told = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    return sha256(told.encode()).hexdigest() if files else None


def _repository(checkout: Checkout | None, entry: str | None, names: set[str], settings: Settings) -> Repository | None:
    if checkout is None:
        return Repository(commit=settings.code_commit) if settings.code_commit else None
    changed = sorted(
        {_text(name) for name in checkout.changed} | ({_text(name) for name in checkout.untracked} & names)
    )
    return Repository(
        remote=checkout.remote,
        commit=checkout.commit or settings.code_commit or None,
        branch=checkout.branch,
        path=entry,
        dirty=bool(changed),
        changed=tuple(changed),
        diff_sha256=checkout.diff_sha256,
        diff_kept=None if checkout.diff_sha256 is None else checkout.diff is not None,
    )


def _package(source: _Source) -> str | None:
    place = source.file or source.archive
    return package_of(source.module, place) if place and source.module not in {"", "__main__"} else None


def _renew_requirements(answer: _CachedIdentity, packages: Packages) -> None:
    requirements = packages.requirements()
    if requirements is not answer.requirements:
        answer.requirements = requirements
        answer.files = MappingProxyType({**answer.files, REQUIREMENTS: requirements})


def _text(path: str) -> str:
    # A name that is no UTF-8 cannot stand in JSON; its bytes are told escaped.
    return os.fsencode(path).decode("utf-8", "backslashreplace")
