"""The code in a bundle: what it lacks, its copy for a replay, and the entrypoint that runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from prefect_executions.bundles import layout
from prefect_executions.bundles.source import Source
from prefect_executions.capture.imports import import_root
from prefect_executions.capture.local_packages import FOLDER as KEPT_PACKAGES
from prefect_executions.capture.outside_files import is_unchanged
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.methods.model import LackingFile, SourceFile

CODE_LACKS = "code: the bundle lacks "
"""The beginning of the sentence for a file, other than the file of the Method, that a bundle lacks."""


class CodeCopy(NamedTuple):
    """A copy of recorded code: its entrypoint for Prefect, and the folders from which its modules are imported."""

    entrypoint: str
    paths: tuple[str, ...]
    packages: tuple[str, ...]
    """The folder with kept packages, if there are any: a package that is installed here comes first."""


def entrypoint_of(record: ExecutionRecord) -> str:
    """Return the recorded entrypoint, ``path.py:function``; empty if there is none."""
    return (record.method.code.entrypoint if record.method.code else None) or ""


def missing_code(
    record: ExecutionRecord, source: Source, edits: Container[str] = (), *, main_only: bool = False
) -> Iterator[str]:
    """Yield a sentence for each file that the recorded code used and *source* lacks; or only for its main file.

    A file that is the text of an input counts only if it is absent here as well and *edits* do not have the input;
    a file that the code opened away from itself, only if it is not as it was.
    """
    main = entrypoint_of(record).partition(":")[0]
    if not main or f"{layout.CODE}/{main}" not in source.files:
        yield f"code: the file of the Method is not in the bundle, {main or 'because it had none'}"
    if main_only:
        return
    lacking = {
        file.path: f"{file.why}; name a file with -p {file.input}=FILE" if file.input else file.why
        for file in (record.method.code.lacking if record.method.code else None) or ()
        if not _is_available(file, edits)
    }
    recorded = [file.path for file in (*_files(record), *_data_files(record)) if file.path not in source.files]
    for path in dict.fromkeys((*recorded, *lacking)):
        if path != f"{layout.CODE}/{main}":
            why = f": {lacking[path]}" if path in lacking else ""
            yield f"{CODE_LACKS}{path}{why}"


def _is_available(file: LackingFile, edits: Container[str]) -> bool:
    if file.input is not None:
        return file.input in edits or os.path.isfile(file.path)  # noqa: PTH113 - any text
    return file.is_outside and is_unchanged(file)


def copy_code(record: ExecutionRecord, source: Source, folder: Path) -> CodeCopy:
    """Copy the code in *source* into *folder* and return how to run it.

    A Method in a package runs by the name of its module, so that relative imports work; any other by its file.
    """
    for path in source.files:
        if path.startswith(f"{layout.CODE}/"):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"".join(source.blocks(path)))
    paths = tuple(
        dict.fromkeys(
            filter(None, (import_root(str(folder / file.path), file.module or "") for file in _files(record)))
        )
    )
    kept = folder / layout.CODE / KEPT_PACKAGES
    packages = (str(kept),) if kept.is_dir() else ()
    main, _, function = entrypoint_of(record).partition(":")
    module = next((file.module for file in _files(record) if file.path == f"{layout.CODE}/{main}"), None)
    file = folder / layout.CODE / main
    if function and module and "." in module and import_root(str(file), module) and _finds_copy(module, paths, folder):
        return CodeCopy(f"{module}:{function}", paths, packages)
    return CodeCopy(f"{file}:{function}" if function else str(file), paths, packages)


def _finds_copy(module: str, paths: Sequence[str], folder: Path) -> bool:
    """Whether this process would import *module* from *folder* if *paths* came first on ``sys.path``."""
    top = module.partition(".")[0]
    if top in sys.modules or top in sys.stdlib_module_names:
        return False
    found = PathFinder.find_spec(top, [*paths, *sys.path])
    places = [found.origin] if found and found.has_location else (found and found.submodule_search_locations) or []
    return bool(places) and Path(next(iter(places)) or "/").is_relative_to(folder)


def _data_files(record: ExecutionRecord) -> tuple[SourceFile, ...]:
    return (record.method.code.data_files if record.method.code else None) or ()


def _files(record: ExecutionRecord) -> tuple[SourceFile, ...]:
    return record.method.code.files if record.method.code else ()
