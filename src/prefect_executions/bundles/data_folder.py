"""The data folders of scripts: inputs are laid out in them, and what is left there becomes outputs.

A data folder lies in the scratch folder, so that what is in it can be renamed
or linked into the bundle and not copied. Who gathers an execution fetches first;
so what the scripts of a killed worker have left is not lost.
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
"""The folder of the staged inputs in a data folder."""

_DATA = "data"
_LOGS = frozenset({STDOUT, STDERR})


def prepare_data_folder(
    bundle: OpenBundle, name: str, inputs: Mapping[str, Path], *, to: str, seen: str | None
) -> Path:
    """Make the data folder *name* with a copy of each of *inputs*, by its path there, and return it.

    What is left in it goes to the folder *to* of the outputs, or to the outputs
    themselves when that is empty. *seen* is the folder's path for the scripts.
    Anybody may write into it, because in a container the scripts may run as any
    user; the folder above it is closed to others.

    Raises:
        BundleError: If the disk is full or cannot be written.
    """
    folder = data_folder(bundle, name)
    above = folder.parent
    try:
        above.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        _open_folder(folder)
        for path, source in inputs.items():
            target = folder / INPUTS / path
            for part in reversed([one for one in target.parents if one.is_relative_to(folder)]):
                _open_folder(part)
            shutil.copyfile(source, target)
            target.chmod(0o666)
    except OSError as error:
        raise BundleError(f"The data folder {folder} cannot be made: {error.strerror or error}. Nothing was run") from (
            error
        )
    laid = {f"{INPUTS}/{path}": (_stamp(folder / INPUTS / path), str(source)) for path, source in inputs.items()}
    told = {"to": to, "seen": seen or str(folder), "inputs": laid}
    bundle.put(above / f"{name}.json", json.dumps(told).encode())
    return folder


def data_folder(bundle: OpenBundle, name: str) -> Path:
    """Return where the data folder *name* lies, or will."""
    return bundle.scratch / _DATA / name


def collect_outputs(bundle: OpenBundle, name: str | None = None) -> tuple[str, ...]:
    """Put what lies in the data folder *name*, or in all, into the outputs; return a note on what could not be.

    An input that nobody changed is no output. A file that was fetched before is
    fetched anew if it was replaced since. The data folders stay as they are.
    """
    above = bundle.scratch / _DATA
    if not above.is_dir():
        return ()
    return tuple(note for told in sorted(above.glob(f"{name or '*'}.json")) for note in _fetch_one(bundle, told))


def remove_data_folder(bundle: OpenBundle, name: str) -> None:
    """Remove the data folder *name*; what cannot be removed goes with the scratch folder."""
    (bundle.scratch / _DATA / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(data_folder(bundle, name), ignore_errors=True)


def _open_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)


def _stamp(path: Path) -> list[int]:
    told = path.lstat()
    return [told.st_mtime_ns, told.st_ctime_ns, told.st_size, told.st_ino]


def _fetch_one(bundle: OpenBundle, told_in: Path) -> Iterator[str]:
    told: dict[str, Any] = json.loads(told_in.read_bytes())
    folder = told_in.with_suffix("")
    for path, is_folder in _left(folder):
        place = f"{OUTPUTS}/{told['to']}/{path}" if told["to"] else f"{OUTPUTS}/{path}"
        if place.casefold() in _LOGS:
            place = f"{OUTPUTS}/script-{path}"
        target = bundle.folder / place
        try:
            if is_folder:
                if path != INPUTS:
                    target.mkdir(parents=True, exist_ok=True)
            elif not _is_input(folder / path, told["inputs"].get(path)):
                target.parent.mkdir(parents=True, exist_ok=True)
                _take(folder, path, target, told["seen"], bundle.scratch / f"{told_in.stem}.fetched")
        except OSError as error:
            shown = path.encode("utf-8", "backslashreplace").decode()
            yield f"{shown} cannot be fetched from the data folder and is left out: {error.strerror}"


def _is_input(place: Path, laid: tuple[list[int], str] | None) -> bool:
    """Whether what lies at *place* is still what was laid there; a runtime may have brought it there and back."""
    if laid is None:
        return False
    stamp, source = laid
    return stamp == _stamp(place) or (not place.is_symlink() and cmp(source, place, shallow=False))


def _left(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield what lies in *folder* by its path there, and whether it is an empty folder."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield inside, True  # its files are told by nobody; that it was there is
            continue
        if not found and inside:
            yield inside, True
        for entry in found:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                yield path, False


def _take(folder: Path, path: str, target: Path, seen: str, fresh: Path) -> None:
    source = folder / path
    fresh.unlink(missing_ok=True)
    if source.is_symlink():
        # Inside a container it may lead to the data folder by another path than here.
        leads = str(source.readlink())
        if leads.startswith(seen.rstrip("/") + "/"):
            leads = os.path.relpath(leads[len(seen.rstrip("/")) + 1 :], str(Path(path).parent))
        fresh.symlink_to(leads)
    else:
        try:
            os.link(source, fresh, follow_symlinks=False)
        except PermissionError:  # of another user's file the kernel may refuse a second name
            shutil.copyfile(source, fresh, follow_symlinks=False)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    fresh.replace(target)
