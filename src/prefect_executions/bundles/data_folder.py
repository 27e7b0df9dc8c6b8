"""Data folders of scripts: a script finds its inputs in one, and the files that it leaves there become outputs.

A data folder is part of the scratch folder, so that its files can be linked into the
bundle instead of copied. Gathering collects the data folders first, so that files that
the scripts of a killed worker have left are not lost.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from filecmp import cmp
from pathlib import Path
from typing import Any

from prefect_executions.bundles.layout import OUTPUTS, STDERR, STDOUT
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.errors import BundleError

INPUTS = "inputs"
"""The subfolder of a data folder with the staged inputs."""

_DATA = "data"
_LOGS = frozenset({STDOUT, STDERR})


def prepare_data_folder(
    bundle: OpenBundle, name: str, inputs: Mapping[str, Path], *, subfolder: str, mount_path: str | None
) -> Path:
    """Create the data folder *name* with a copy of each of *inputs*, by its path in ``inputs/``, and return it.

    The files that scripts leave in it go to *subfolder* of the outputs, or directly to
    the outputs if that is empty. *mount_path* is the folder's path as the scripts see it.
    Every user may write into the folder, because in a container the scripts may run as
    any user; the folder above it is closed to other users.

    Raises:
        BundleError: If the disk is full or not writable.
    """
    folder = data_folder(bundle, name)
    parent = folder.parent
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        _make_folder(folder)
        for path, source in inputs.items():
            target = folder / INPUTS / path
            for above in reversed([ancestor for ancestor in target.parents if ancestor.is_relative_to(folder)]):
                _make_folder(above)
            shutil.copyfile(source, target)
            target.chmod(0o666)
    except OSError as error:
        raise BundleError(
            f"the data folder {folder} cannot be created: {error.strerror or error}; nothing was run"
        ) from error
    stamps = {f"{INPUTS}/{path}": (_stamp(folder / INPUTS / path), str(source)) for path, source in inputs.items()}
    plan = {"to": subfolder, "seen": mount_path or str(folder), "inputs": stamps}
    bundle.put(parent / f"{name}.json", json.dumps(plan).encode())
    return folder


def data_folder(bundle: OpenBundle, name: str) -> Path:
    """Return the path of the data folder *name*, whether it exists or not."""
    return bundle.scratch / _DATA / name


def has_data_folders(bundle: OpenBundle) -> bool:
    """Whether data folders are left, whose files are hard links to the outputs."""
    return next((bundle.scratch / _DATA).glob("*.json"), None) is not None


def collect_outputs(bundle: OpenBundle, name: str | None = None) -> tuple[str, ...]:
    """Link the files of the data folder *name*, or of all, into the outputs; return a note on each failure.

    An unchanged input is not an output. The second time, a file is collected again only if
    it was replaced since. The data folders stay unchanged.
    """
    parent = bundle.scratch / _DATA
    if not parent.is_dir():
        return ()
    return tuple(note for plan in sorted(parent.glob(f"{name or '*'}.json")) for note in _collect(bundle, plan))


def remove_data_folder(bundle: OpenBundle, name: str) -> None:
    """Remove the data folder *name*; files that cannot be removed go with the scratch folder."""
    (bundle.scratch / _DATA / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(data_folder(bundle, name), ignore_errors=True)


def _make_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)


def _stamp(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]


def _collect(bundle: OpenBundle, plan_path: Path) -> Iterator[str]:
    plan: dict[str, Any] = json.loads(plan_path.read_bytes())
    folder = plan_path.with_suffix("")
    for path, is_folder in _walk(folder):
        output = f"{OUTPUTS}/{plan['to']}/{path}" if plan["to"] else f"{OUTPUTS}/{path}"
        if output.casefold() in _LOGS:
            output = f"{OUTPUTS}/script-{path}"
        target = bundle.folder / output
        try:
            if is_folder:
                if path != INPUTS:
                    target.mkdir(parents=True, exist_ok=True)
            elif not _is_input(folder / path, plan["inputs"].get(path)):
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(folder, path, target, plan["seen"], bundle.scratch / f"{plan_path.stem}.fetched")
        except OSError as error:
            shown = path.encode("utf-8", "backslashreplace").decode()
            yield f"{shown} cannot be collected from the data folder and is left out: {error.strerror}"


def _is_input(path: Path, stamp_and_source: tuple[list[int], str] | None) -> bool:
    """Whether *path* is still the staged input; a runtime that copied it back and forth changes only its stamp."""
    if stamp_and_source is None:
        return False
    stamp, source = stamp_and_source
    return stamp == _stamp(path) or (not path.is_symlink() and cmp(source, path, shallow=False))


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the path of each file and empty folder in *folder*, and whether it is an empty folder."""
    waiting = [""]
    while waiting:
        subfolder = waiting.pop()
        try:
            with os.scandir(folder / subfolder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            yield subfolder, True  # its files cannot be listed, but the folder itself is recorded
            continue
        if not entries and subfolder:
            yield subfolder, True
        for entry in entries:
            path = f"{subfolder}/{entry.name}" if subfolder else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                yield path, False


def _link(folder: Path, path: str, target: Path, mount_path: str, temporary: Path) -> None:
    source = folder / path
    temporary.unlink(missing_ok=True)
    if source.is_symlink():
        # In a container, a link may name the data folder by its mount path.
        destination, mount = str(source.readlink()), mount_path.rstrip("/") + "/"
        if destination.startswith(mount):
            destination = os.path.relpath(destination.removeprefix(mount), str(Path(path).parent))
        temporary.symlink_to(destination)
    else:
        try:
            os.link(source, temporary, follow_symlinks=False)
        except PermissionError:  # the kernel may refuse a hard link to another user's file
            shutil.copyfile(source, temporary, follow_symlinks=False)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    temporary.replace(target)
