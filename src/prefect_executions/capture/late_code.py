"""What a Method's code has loaded when it has run: modules that are imported late, and data files beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from prefect_executions.capture import opened_files
from prefect_executions.capture.code import (
    KEPT_BYTES,
    PROCESS,
    CodeCache,
    ObservedCode,
    RunStart,
    SourceText,
    digest_of,
    has_modules,
    read_source,
    recorded_file,
    source_of,
    source_text,
)
from prefect_executions.capture.data_files import DataFile, IsSecret, data_files
from prefect_executions.capture.outside_files import outside_files
from prefect_executions.capture.project import OUTSIDE, as_text
from prefect_executions.methods.model import CodeIdentity, LackingFile, SourceFile

_MOST_LISTED = 20
_UNNOTED = (
    f"more than {2 * opened_files.MOST_NOTED} files were opened; files here that were opened later may be missing"
)


def run_start(function: Callable[..., Any] | Path, *, cache: CodeCache = PROCESS) -> RunStart:
    """Return where the code of *function* is, and the modules that are loaded when its run begins.

    A module that a concurrent run of the same code has loaded since its own start does not count: this run
    uses it, too.
    """
    source = source_of(function)
    with cache.running_lock:
        running = cache.running.setdefault(source, WeakSet())
        start = RunStart(source, frozenset(sys.modules).intersection(*(other.modules for other in running)))
        running.add(start)
    return start


def late_modules(
    identity: CodeIdentity, start: RunStart, *, cache: CodeCache = PROCESS
) -> tuple[CodeIdentity, Mapping[str, bytes]]:
    """Return *identity* with the modules that were loaded after it was observed, and their files for ``code/``.

    A module loaded by another thread in the
    meantime counts as well. Later runs of the same code in this process have these files from the beginning, so
    that their digest is the same.
    """
    source, names = start.source, sys.modules.keys() - start.modules
    if source is None or not names or not has_modules(source):
        return identity, {}
    with cache.lock:
        observed = _observed(identity, start, cache)
        if observed is None:
            return identity, {}
        loaded = observed.project.loaded_anywhere(names)
        new = loaded.keys() - observed.local.keys()
        if not new:
            return identity, {}
        if not loaded.keys() <= cache.late.get(source, {}).keys():
            cache.late[source] = cache.late.get(source, {}) | loaded
            for key in [key for key in cache.identities if key[0] == source]:
                del cache.identities[key]  # the next run observes the code with these modules
        local = observed.local
        files = observed.project.with_imported({**local, **loaded}, sorted(new), partial(source_text, cache=cache))
        late = [file for file in sorted(files) if file not in local]
        texts = {file: text for file in (*local, *late) if (text := read_source(file, cache)) is not None}
        paths = observed.project.names({file: files.get(file, "") for file in texts})
        complete, kept = _with_late(
            identity, {f"code/{paths[file]}": (texts[file], files[file]) for file in late if file in texts}
        )
        cache.note(source, complete.sha256, replace(observed, local=files, names=paths))
        return complete, kept


def opened_data(
    identity: CodeIdentity,
    start: RunStart,
    *,
    before: int,
    apart: Iterable[str],
    secret: IsSecret,
    cache: CodeCache = PROCESS,
) -> list[DataFile]:
    """Return the data files beside the code that this process has opened.

    *identity* is that of the run, with its late modules. In Git, "beside" is the whole repository; elsewhere the
    folders with source files of the Method, and folders in them, except the home folder. The same holds for
    modules from outside the project, in Git or not. Files that changed after
    *before*, in nanoseconds of the epoch, and files below one of *apart* do not count. *secret* says whether a
    content holds a credential. An entry without a name stands for files whose names were not noted.
    """
    observed = _observed(identity, start, cache)
    if observed is None or start.source is None or observed.project.top is None or not has_modules(start.source):
        return []
    own, top, home = observed.local.keys(), observed.project.top, os.path.expanduser("~")  # noqa: PTH111 - text
    folders = {os.path.dirname(file) for file in own} - {home}  # noqa: PTH120 - text
    outside = {
        os.path.dirname(file): os.path.dirname(name)  # noqa: PTH120 - text
        for file, name in observed.names.items()
        if name.startswith(f"{OUTSIDE}/") and os.path.dirname(file) not in {home, "/"}  # noqa: PTH120 - text
    }
    files = data_files(
        opened_files.opened_files(),
        top=top,
        folders=[observed.root] if observed.root else folders,
        outside=outside,
        apart=apart,
        known=own,
        before=before,
        tracked=observed.tracked.__contains__ if observed.tracked is not None else None,
        secret=secret,
        limit=KEPT_BYTES,
    )
    return [*files, *([DataFile("", None, _UNNOTED)] if opened_files.has_unnoted(top) else [])]


def outside_data(
    identity: CodeIdentity,
    start: RunStart,
    *,
    before: int,
    apart: Iterable[str],
    has_secret: Callable[[str], bool],
    cache: CodeCache = PROCESS,
) -> list[LackingFile]:
    """Return the files that this process opened since *before* and that `opened_data` does not consider.

    They are data that the Method opened by a path of its own choice; the other arguments are those of `opened_data`
    and `outside_files`.
    """
    observed = _observed(identity, start, cache)
    if observed is None or start.source is None or observed.project.top is None or not has_modules(start.source):
        return []
    own, home = observed.local.keys(), os.path.expanduser("~")  # noqa: PTH111 - text
    beside = {os.path.dirname(file) for file in (*own, *observed.names)} - {home, "/"}  # noqa: PTH120 - text
    beside = {observed.root} | beside if observed.root else beside
    return list(
        outside_files(
            opened_files.opened_files(since=before),
            apart=[*apart, *own, *beside],
            before=before,
            has_secret=has_secret,
        )
    )


def written_files(identity: CodeIdentity, start: RunStart, *, since: int, cache: CodeCache = PROCESS) -> list[str]:
    """Return the files that this process wrote *since* this moment, in its working directory or beside the code.

    Names are relative where they can be. Temporary files and files of tools (``.name``) are left out.
    """
    observed = _observed(identity, start, cache)
    top = observed.project.top if observed else None
    folders = {os.getcwd(), *([top] if top else [])} - {"/", os.path.expanduser("~")}  # noqa: PTH109, PTH111 - text
    found: list[str] = []
    for path in opened_files.written_files(since):
        folder = next((folder for folder in sorted(folders) if path.startswith(f"{folder}/")), None)
        relative = folder and os.path.relpath(path, folder)
        if relative and not any(part.startswith((".", "__pycache__")) for part in relative.split("/")):
            found += [relative] if os.path.isfile(path) else []  # noqa: PTH113 - text
    return found


def with_data(
    identity: CodeIdentity, data: Iterable[DataFile], outside: Iterable[LackingFile] = ()
) -> tuple[CodeIdentity, Mapping[str, bytes]]:
    """Return *identity* with *data* files, and those to keep; further ones, and *outside*, are listed as lacking."""
    recorded = {file.path: file for file in identity.data_files or ()}
    lacking = {file.path: file for file in (*outside, *(identity.lacking or ()))}
    kept: dict[str, bytes] = {}
    for file in data:
        path = f"code/{as_text(file.path)}"
        if file.why_missing is not None:
            lacking.setdefault(path, LackingFile(path=path, why=file.why_missing))
        elif path not in recorded and file.content is not None:
            recorded[path], kept[path] = recorded_file(path, file.content, ""), file.content
    update = {"data_files": tuple(recorded[path] for path in sorted(recorded)) or None}
    return identity.model_copy(update=update | {"lacking": tuple(_collapsed(lacking.values())) or None}), kept


def _observed(identity: CodeIdentity, start: RunStart, cache: CodeCache) -> ObservedCode | None:
    # Without the lock, which another run may hold for long: the event loop of an async run also calls this.
    if start.source is None:
        return None
    observed = cache.observed.get((*start.source.place, identity.sha256))
    # Another process observed the code if it began the execution, and this process continues it.
    return observed or cache.observed.get((*start.source.place, None))


def _collapsed(files: Iterable[LackingFile]) -> Iterator[LackingFile]:
    """Yield *files*, and one entry for a folder instead of many for its files."""
    groups: dict[tuple[str, str], list[LackingFile]] = {}
    for file in files:
        groups.setdefault((file.path.rpartition("/")[0], file.why), []).append(file)
    found: dict[tuple[str, str], LackingFile] = {}
    for (folder, why), group in sorted(groups.items()):
        if len(group) > _MOST_LISTED:
            # It replaces the entry for this folder that an earlier attempt has made.
            found[f"{folder}/", why] = LackingFile(path=f"{folder}/", why=f"{len(group)} files: {why}")
        else:
            for file in group:
                found.setdefault((file.path, file.why.partition(" files: ")[2] or file.why), file)
    yield from sorted(found.values(), key=lambda file: file.path)


def _with_late(
    identity: CodeIdentity, late: Mapping[str, tuple[SourceText, str]]
) -> tuple[CodeIdentity, Mapping[str, bytes]]:
    known = {file.path for file in identity.files}
    added, kept, left = list[SourceFile](), dict[str, bytes](), KEPT_BYTES
    for path, (text, module) in late.items():
        if path in known:
            continue
        added.append(recorded_file(path, text.content, module).model_copy(update={"late": True}))
        left -= len(text.content)
        if left >= 0:
            kept[path] = text.content
    files = tuple(sorted((*identity.files, *added), key=lambda file: file.path))
    return identity.model_copy(update={"files": files, "sha256": digest_of(files)}), kept
