"""Identifies the code of a run: source files, loaded modules of the project, Git state, package, notebook.

Facts that cannot be observed are absent. Code outside Git, in a zip, in a notebook or typed
at a prompt is identified as far as possible, and never fails a run.
"""

from __future__ import annotations

import inspect
import linecache
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1, sha256
from operator import is_
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any
from weakref import WeakSet

from prefect_executions.capture.git import Checkout, Stamp, find_root, git_program, read_checkout, stamp
from prefect_executions.capture.notebook import needed_cells, observe_notebook
from prefect_executions.capture.opened_files import keep_noting
from prefect_executions.capture.packages import Packages, package_of
from prefect_executions.capture.probes import Failures, Probe, probe
from prefect_executions.capture.project import Project, as_text, is_installed, package_top
from prefect_executions.errors import DirtyTreeError
from prefect_executions.methods.model import (
    DIFF,
    REQUIREMENTS,
    CodeIdentity,
    LackingFile,
    Notebook,
    Repository,
    SourceFile,
)
from prefect_executions.settings import DirtyTree, Settings

TYPED = "cell.py"
"""The file name for code typed into a notebook or a prompt."""

# Limit for the content of a project's modules; digests and the Method's own file are always recorded.
KEPT_BYTES = 8 * 1024**2
# cloudpickle, which transfers a served flow to its process, replaces the file name by this text. The globals keep the
# real name.
_PICKLED = "<dynamic-code>"
# As in `git`: a file changed within this time may change again unnoticed.
_SETTLED = 50_000_000
_MOST_OBSERVED = 256
# The debugger of a notebook writes a cell to this file; its text is the same as that of the cell.
_OF_KERNEL = re.compile(r"/ipykernel_\d+/\d+\.py$")


@dataclass(frozen=True, kw_only=True)
class CodeSource:
    """Where the code of a function is: a file, a member of an archive, or only typed lines."""

    module: str
    name: str
    file: str | None
    typed: bytes | None = None
    archive: str | None = None
    lacking: tuple[LackingFile, ...] = ()
    """What a replay of typed code lacks."""

    @property
    def place(self) -> tuple[str, str, str | None]:
        """What stays when other cells of a notebook are executed during a run."""
        return self.module, self.name, self.file


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """A source file that was read."""

    stamp: Stamp
    content: bytes
    sha256: str
    git_object: str


@dataclass(kw_only=True)
class ObservedCode:
    """A code identity, with the facts that show whether it is still current."""

    identity: CodeIdentity
    files: Mapping[str, bytes]
    root: str | None
    folder: str | None
    project: Project
    local: Mapping[str, str]
    """The module names of the project's files, by path."""
    names: Mapping[str, str]
    """The paths of these files below ``code/``."""
    modules: list[ModuleType]
    tracked: Container[str] | None
    """The files that Git tracks; None outside Git."""
    stamps: dict[str, Stamp]
    checked: float
    """Start of the last check of its files, on the monotonic clock."""
    settled: bool
    requirements: bytes
    failures: Failures


@dataclass(frozen=True, eq=False)
class RunStart:
    """The code when a run begins: where it is, None if this cannot be read, and the names of the loaded modules."""

    source: CodeSource | None
    modules: frozenset[str]


@dataclass
class CodeCache:
    """The code identities of this process; thread-safe when used through `identify`."""

    packages: Packages = field(default_factory=Packages)
    lock: threading.Lock = field(default_factory=threading.Lock)
    identities: dict[tuple[object, ...], ObservedCode] = field(default_factory=dict)
    observed: dict[tuple[object, ...], ObservedCode] = field(default_factory=dict)
    """By place and digest: what a run had observed when it began, although later runs observe something else.

    By place and None: what was observed last.
    """
    late: dict[CodeSource, dict[str, str]] = field(default_factory=dict)
    """Modules that earlier runs of the same code loaded late; every later run has them from the beginning."""
    reads: dict[str, SourceText] = field(default_factory=dict)

    running: dict[CodeSource, WeakSet[RunStart]] = field(default_factory=dict)
    """The runs that have begun and not ended."""
    running_lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards `running`; unlike `lock`, it is never held for long."""

    def note(self, source: CodeSource, digest: str | None, observed: ObservedCode) -> None:
        """Remember what was *observed* at the place of *source*; the oldest entry is forgotten."""
        for key in ((*source.place, digest), (*source.place, None)):
            self.observed.pop(key, None)
            self.observed[key] = observed
        while len(self.observed) > _MOST_OBSERVED:
            del self.observed[next(iter(self.observed))]


PROCESS = CodeCache()
"""The code identities of this process."""


def identify(
    function: Callable[..., Any] | Path,
    *,
    settings: Settings,
    environment: Mapping[str, str] | None = None,
    since: float | None = None,
    cache: CodeCache = PROCESS,
    failures: Failures | None = None,
) -> tuple[CodeIdentity, Mapping[str, bytes]]:
    """Return the identity of *function*'s code, and the files for ``code/`` by their paths in the bundle.

    *function* may also be the path of a descriptor, which has no modules.

    The files are the Method's own source file, the loaded modules of the same repository
    (or of the same folder, outside Git), the uncommitted diff up to `Settings.diff_limit`,
    and the exact versions of all packages. A package installed in an environment inside the
    repository is not the repository's code: it is recorded by name and version.
    *environment* is used only for the path of a Jupyter notebook. Facts that cannot be read
    are absent, and *failures* gets the reasons.

    `dirty` means: a tracked file differs from the commit, or a loaded file is neither
    tracked nor ignored. Other untracked files are not code.

    A cached identity is returned without a subprocess while all of these hold: the
    loaded modules of the project are unchanged; their files, all tracked files, and Git's
    HEAD, branch, index and configuration have the recorded times (mtime and ctime), size and
    inode; none of them changed less than 50 ms before it was read; no folder on ``sys.path``
    changed. Repositories with submodules and notebooks are always read again. Files checked
    after the moment *since* (monotonic clock) are not checked again: in a large repository
    this check takes longer than everything else.

    Raises:
        DirtyTreeError: If `Settings.dirty` is ``refuse``, and the tree is dirty or its state is unknown.
    """
    source = source_of(function)
    failures = {} if failures is None else failures
    notebook = None
    if source.file is None:
        notebook = probe(Probe.NOTEBOOK, lambda: observe_notebook(environment or {}), None, failures)
    folder = _folder(source, notebook)
    options = (settings.diff_limit, settings.code_commit, settings.image, settings.image_digest)
    key = (source, folder, notebook, *options)
    with cache.lock:
        cached = cache.identities.get(key)
        if cached is None or not _is_current(cached, source, math.inf if since is None else since):
            cached = cache.identities[key] = _observe(source, folder, notebook, settings, cache)
        cache.note(source, cached.identity.sha256, cached)
        probe(Probe.PACKAGES, lambda: _renew_requirements(cached, cache.packages), None, failures)
    failures |= cached.failures
    repository = cached.identity.repository
    clean = repository.dirty is False if repository else source.file is None
    if settings.dirty is DirtyTree.REFUSE and cached.root and not clean:
        raise DirtyTreeError(cached.root, repository.changed if repository else ())
    return cached.identity, cached.files


def git_object(content: bytes) -> str:
    """Return the object id of *content* in a SHA-1 repository, without Git's filters."""
    return sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()


def source_of(function: Callable[..., Any] | Path) -> CodeSource:
    """Return where the code of *function*, or of a descriptor, is."""
    if isinstance(function, Path):
        return CodeSource(module="", name="", file=os.path.realpath(function))
    plain: Any = function
    while isinstance(plain, partial):
        plain = plain.func
    plain = inspect.unwrap(plain)
    plain = getattr(plain, "__func__", plain)
    if not hasattr(plain, "__code__") and not hasattr(plain, "__qualname__"):
        plain = getattr(type(plain).__call__, "__wrapped__", type(plain).__call__)
    module = str(getattr(plain, "__module__", None) or "")
    name = str(getattr(plain, "__qualname__", None) or type(plain).__qualname__)
    path = _file_name(plain, module)
    if path and os.path.isfile(path):  # noqa: PTH113 - on every run
        return CodeSource(module=module, name=name, file=os.path.realpath(path))
    archive = _archive_of(path) if path else None
    if path and archive:
        loader = getattr(sys.modules.get(module), "__loader__", None)
        return CodeSource(module=module, name=name, file=None, archive=archive, typed=_member(loader, path))
    lines = "".join(linecache.getlines(plain.__code__.co_filename)) if hasattr(plain, "__code__") else ""
    needed = needed_cells(name.partition(".")[0], lines) if lines else None
    text, lacking = (needed.text, needed.unmet) if needed else (lines, ())
    return CodeSource(
        module=module,
        name=name,
        file=None,
        typed=text.encode("utf-8", "backslashreplace") or None,
        lacking=tuple(LackingFile(path=f"code/{TYPED}:{each.name}", why=each.why) for each in lacking),
    )


def _file_name(plain: Any, module: str) -> str | None:
    code = getattr(plain, "__code__", None)
    path = code.co_filename if code else getattr(sys.modules.get(module), "__file__", None)
    if path == _PICKLED:
        path = plain.__globals__.get("__file__")
    if not path or path.startswith("<") or _OF_KERNEL.search(path):
        return None
    if not os.path.isabs(path):  # noqa: PTH117 - on every run
        of_module = getattr(sys.modules.get(module), "__file__", None)
        if of_module and os.path.basename(of_module) == os.path.basename(path):  # noqa: PTH119 - on every run
            path = of_module
    return os.path.abspath(str(path))  # noqa: PTH100 - on every run


def _archive_of(path: str) -> str | None:
    while path not in {"", "/"}:
        path = os.path.dirname(path)  # noqa: PTH120 - the text may not be a path of the file system
        if os.path.exists(path):  # noqa: PTH110 - as above
            return path if os.path.isfile(path) else None  # noqa: PTH113 - as above
    return None


def _member(loader: Any, path: str) -> bytes | None:
    try:
        return bytes(loader.get_data(path))
    except (AttributeError, OSError):
        return None


def _is_current(cached: ObservedCode, source: CodeSource, since: float) -> bool:
    fresh = cached.checked >= since
    if not (fresh or cached.settled) or (cached.folder and find_root(f"{cached.folder}/x") != cached.root):
        return False
    modules = list(sys.modules.values())
    if len(modules) != len(cached.modules) or not all(map(is_, modules, cached.modules)):
        loaded = cached.project.loaded() if has_modules(source) else {}
        if not loaded.keys() <= cached.local.keys():
            return False
        cached.modules = modules
    if not fresh:
        begun = time.monotonic()
        if any(stamp(path) != recorded for path, recorded in cached.stamps.items()):
            return False
        cached.checked = begun
    return True


def _observe(
    source: CodeSource, folder: str | None, notebook: Notebook | None, settings: Settings, cache: CodeCache
) -> ObservedCode:
    modules, begun = list(sys.modules.values()), time.monotonic()
    before = time.time_ns()
    root = find_root(f"{folder}/x") if folder else None
    project = Project(root or _folder_of_project(source) or folder)
    if project.top and has_modules(source):
        keep_noting(project.top)
    local = _files(source, folder, project, cache)
    texts = {file: text for file in sorted(local) if (text := read_source(file, cache)) is not None}
    names = project.names({file: local[file] for file in texts})
    relative = [os.path.relpath(file, root) for file in texts if file.startswith(f"{root}/")]
    # The working folder of a prompt is unrelated to the code typed there.
    repository = root if source.file or notebook or relative else None
    failures: Failures = {}
    checkout: Checkout | None = None
    if repository:
        read = partial(read_checkout, repository, relative, settings.diff_limit)
        checkout = probe(Probe.REPOSITORY, read, None, failures)
    entry, files, contents = _bundle_files(source, local, texts, names)
    identity = CodeIdentity(
        entrypoint=f"{entry}:{source.name}".rstrip(":") if entry else None,
        sha256=digest_of(files),
        repository=_repository(checkout, names.get(source.file or ""), set(names.values()), settings),
        files=files,
        lacking=(*source.lacking, *_without_text(source)) or None,
        package=probe(Probe.METHOD_PACKAGE, lambda: _package(source), None, failures),
        notebook=notebook,
        image=settings.image or None,
        image_digest=settings.image_digest or None,
    )
    if checkout and checkout.diff:
        contents[DIFF] = checkout.diff
    stamps = {file: text.stamp for file, text in texts.items()} | (checkout.stamps if checkout else {})
    newest = max((max(text.stamp[:2]) for text in texts.values() if text.stamp), default=0)
    return ObservedCode(
        identity=identity,
        files=MappingProxyType(contents),
        root=root,
        folder=folder,
        project=project,
        local=local,
        names=names,
        modules=modules,
        tracked=checkout.stamps if checkout else None,
        stamps=stamps,
        checked=begun,
        settled=newest < before - _SETTLED and (checkout.settled if checkout else not repository or not git_program()),
        requirements=b"",
        failures=failures,
    )


def has_modules(source: CodeSource) -> bool:
    """Whether the modules beside the code belong to it: not for a descriptor or an installed package."""
    return bool(source.name) and not (source.file and is_installed(source.file))


def _folder_of_project(source: CodeSource) -> str | None:
    return package_top(source.file, source.module) if source.file and has_modules(source) else None


def _files(source: CodeSource, folder: str | None, project: Project, cache: CodeCache) -> dict[str, str]:
    """Return the module names of the files to record, by path: loaded modules, their imports, late modules."""
    own = {source.file: source.module} if source.file else {}
    if not has_modules(source) or project.top is None:
        return own
    typed = f"{folder}/<typed>.py"

    def text(file: str) -> str | None:
        return (source.typed or b"").decode(errors="replace") if file == typed else source_text(file, cache)

    begin = {**project.loaded(), **cache.late.get(source, {}), **(own or {typed: source.module})}
    files = project.with_imported(begin, begin, text)
    return {file: name for file, name in files.items() if file != typed}


def source_text(file: str, cache: CodeCache) -> str | None:
    """Return the text of *file*, from the *cache* if it is unchanged; None if it cannot be read."""
    read = read_source(file, cache)
    return read.content.decode(errors="replace") if read else None


def _without_text(source: CodeSource) -> Iterator[LackingFile]:
    """Yield what a replay lacks of code that is not in files."""
    if source.name and source.file is None and source.typed is None:
        yield LackingFile(path=f"code/{TYPED}", why="the text of the code is unknown; put it into a file")
    if source.archive:
        archive = os.path.realpath(source.archive)
        why = f"of {os.path.basename(archive)} only the file of the Method is kept"  # noqa: PTH119 - names are text here
        for file, name in sorted(
            Project(None).loaded_anywhere(sys.modules.keys() - {source.module, "__main__"}).items()
        ):
            if file.startswith(f"{archive}/"):
                yield LackingFile(path=f"code/{as_text(os.path.relpath(file, archive))}", why=f"module {name}: {why}")


def _folder(source: CodeSource, notebook: Notebook | None) -> str | None:
    if source.file:
        return os.path.dirname(source.file)  # noqa: PTH120 - as in _file_name
    if source.archive or (source.typed is None and source.module != "__main__"):
        return None
    try:
        return os.path.dirname(os.path.realpath(notebook.path)) if notebook else os.path.realpath(".")  # noqa: PTH120
    except OSError:
        return None


def read_source(file: str, cache: CodeCache) -> SourceText | None:
    """Return *file* with its digests, from the *cache* if it is unchanged; None if it cannot be read."""
    current = stamp(file)
    cached = cache.reads.get(file)
    if cached and cached.stamp == current:
        return cached
    try:
        with open(file, "rb") as opened:  # noqa: PTH123 - names are text here
            content = opened.read()
    except OSError:
        return None
    text = SourceText(
        stamp=current, content=content, sha256=sha256(content).hexdigest(), git_object=git_object(content)
    )
    cache.reads[file] = text
    return text


def _bundle_files(
    source: CodeSource, local: Mapping[str, str], texts: Mapping[str, SourceText], names: Mapping[str, str]
) -> tuple[str | None, tuple[SourceFile, ...], dict[str, bytes]]:
    entry = names.get(source.file or "")
    contents = {names[file]: (text.content, local[file]) for file, text in texts.items()}
    if source.typed is not None:
        entry = TYPED if source.archive is None else source.module.replace(".", "/") + ".py"
        contents[entry] = (source.typed, source.module)
    files: list[SourceFile] = []
    in_bundle: dict[str, bytes] = {}
    bytes_left = KEPT_BYTES
    for name in sorted(contents, key=lambda name: (name != entry, name)):
        content, module = contents[name]
        files.append(recorded_file(f"code/{name}", content, module))
        bytes_left -= len(content)
        if bytes_left >= 0 or name == entry:
            in_bundle[f"code/{name}"] = content
    return entry, tuple(sorted(files, key=lambda file: file.path)), in_bundle


def recorded_file(path: str, content: bytes, module: str) -> SourceFile:
    """Return the record of the file at *path* in the bundle."""
    digest = sha256(content).hexdigest()
    return SourceFile(path=path, sha256=digest, git_object=git_object(content), module=_module_name(module))


def _module_name(name: str) -> str | None:
    # Prefect's loader of scripts makes up a name.
    return None if not name or name.startswith("__prefect_loader_") else name


def digest_of(files: tuple[SourceFile, ...]) -> str | None:
    """Return the digest of the manifest lines of *files*; None without files."""
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    return sha256(listing.encode()).hexdigest() if files else None


def _repository(checkout: Checkout | None, entry: str | None, names: set[str], settings: Settings) -> Repository | None:
    if checkout is None:
        return Repository(commit=settings.code_commit) if settings.code_commit else None
    changed = sorted(
        {as_text(name) for name in checkout.changed} | ({as_text(name) for name in checkout.untracked} & names)
    )
    return Repository(
        remote=checkout.remote,
        commit=checkout.commit or settings.code_commit or None,
        branch=checkout.branch,
        author=checkout.author,
        subject=checkout.subject,
        path=entry,
        dirty=bool(changed),
        changed=tuple(changed),
        diff_sha256=checkout.diff_sha256,
        diff_kept=None if checkout.diff_sha256 is None else checkout.diff is not None,
    )


def _package(source: CodeSource) -> str | None:
    path = source.file or source.archive
    return package_of(source.module, path) if path and source.module not in {"", "__main__"} else None


def _renew_requirements(cached: ObservedCode, packages: Packages) -> None:
    requirements = packages.requirements()
    if requirements is not cached.requirements:
        cached.requirements = requirements
        cached.files = MappingProxyType({**cached.files, REQUIREMENTS: requirements})
