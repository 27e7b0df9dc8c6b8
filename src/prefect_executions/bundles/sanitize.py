"""What lies in the bundle's open folders, and how what is no plain file leaves them.

A bundle holds plain files with UTF-8 names: nothing else can be hashed, zipped,
archived and read in twenty years. So before the files are read

- a link to a file of the same folder becomes that file (a second name for the same bytes);
- any other link is taken away and noted with where it led: it is never followed,
  because what lies outside was not written by the Method and may be secret;
- a pipe, socket or device is taken away and noted: it holds no data;
- a name that is not UTF-8 is written with ``%XX`` for each wrong byte, and noted.

The notes are on disk before anything is moved, so that dying half-way loses none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prefect_executions.bundles.layout import OPEN_FOLDERS, is_bundle_path
from prefect_executions.bundles.open_bundle import OpenBundle

_NOTES = "notes.json"

# How Python shows a byte of a file name that is not UTF-8 (PEP 383).
_WRONG_BYTE = re.compile("[\udc80-\udcff]")


@dataclass
class FolderListing:
    """What lies in one open folder; paths are relative to the bundle and sorted."""

    files: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    strangers: list[tuple[str, str]] = field(default_factory=list)
    """Paths of what is no plain file with a UTF-8 name (as the system gives them), with what each is."""
    unreadable: list[str] = field(default_factory=list)
    """One sentence for each folder that cannot be listed."""


def list_files(root: str, top: str) -> FolderListing:
    """List the folder *top* of the bundle at *root*, following no link."""
    found = FolderListing()
    waiting = [top] if Path(root, top).is_dir() else []
    while waiting:
        folder = waiting.pop()
        entries = _entries(root, folder, found)
        if not entries:
            found.empty_folders.append(folder)
        for entry in entries:
            path = f"{folder}/{entry.name}"
            stranger = _stranger(entry)
            if stranger:
                found.strangers.append((path, stranger))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                found.files.append(path)
    found.files.sort()
    found.empty_folders.sort()
    return found


def sanitize(bundle: OpenBundle) -> tuple[dict[str, FolderListing], tuple[str, ...]]:
    """Make *bundle* hold plain files with UTF-8 names only.

    Returns what lies in each open folder now, and all notes ever made of what was put right.
    Doing it again, also after a death half-way, gives the same folders and notes.
    """
    notes = _read_notes(bundle)
    root = str(bundle.folder)
    found = {}
    for top in OPEN_FOLDERS:
        while strangers := (there := list_files(root, top)).strangers:
            told = {_note(bundle, path, what) for path, what in strangers} - {None}
            notes = notes | {note for note in told if note}
            bundle.put(bundle.scratch / _NOTES, json.dumps(sorted(notes)).encode())
            for path, what in strangers:
                _resolve(bundle, path, what)
        found[top] = there
    return found, tuple(sorted(notes | set(_misplaced(bundle.folder))))


def _read_notes(bundle: OpenBundle) -> frozenset[str]:
    path = bundle.scratch / _NOTES
    return frozenset(json.loads(path.read_bytes())) if path.exists() else frozenset()


def _entries(root: str, folder: str, found: FolderListing) -> list[os.DirEntry[str]]:
    path = f"{root}/{folder}"
    try:
        return _scan(path)
    except PermissionError:
        pass
    except OSError as error:
        found.unreadable.append(f"{folder}/ cannot be listed: {error.strerror}")
        return []
    try:
        # The Method may have closed a folder of its own to itself.
        Path(path).chmod(0o700)
        return _scan(path)
    except OSError as error:
        found.unreadable.append(f"{folder}/ cannot be listed: {error.strerror}")
        return []


def _scan(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def _stranger(entry: os.DirEntry[str]) -> str | None:
    if not _is_text(entry.name):
        return "name"
    if entry.is_symlink():
        return "link"
    plain = entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
    return None if plain else "special"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _note(bundle: OpenBundle, path: str, what: str) -> str | None:
    shown = _as_text(path)
    if what == "name":
        return f"{shown} has a name that was not UTF-8; its wrong bytes are written as %XX"
    if what == "special":
        return f"{shown} was a pipe, socket or device and is left out"
    if _inner_file(bundle, path):
        return None
    target = _as_text(str((bundle.folder / path).readlink()))
    return f"{shown} was a link to {target}, which is no file of the same folder; it was not followed and is left out"


def _resolve(bundle: OpenBundle, path: str, what: str) -> None:
    place = bundle.folder / path
    if what == "name":
        place.rename(_free(place.parent, _as_text(place.name)))
        return
    inner = _inner_file(bundle, path) if what == "link" else None
    if inner is None:
        place.unlink()
        return
    second = bundle.scratch / "link.new"
    second.unlink(missing_ok=True)
    second.hardlink_to(inner)
    second.replace(place)


def _inner_file(bundle: OpenBundle, path: str) -> Path | None:
    top = (bundle.folder / path.partition("/")[0]).resolve()
    try:
        target = (bundle.folder / path).resolve(strict=True)
    except (OSError, RuntimeError):  # a link in a circle is a RuntimeError up to Python 3.12
        return None
    return target if target.is_file() and target.is_relative_to(top) else None


def _as_text(name: str) -> str:
    return _WRONG_BYTE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)


def _free(folder: Path, name: str) -> Path:
    number = 1
    place = folder / name
    while os.path.lexists(place):
        number += 1
        place = folder / f"{name}.{number}"
    return place


def _misplaced(root: Path) -> Iterator[str]:
    for folder in ("", "metadata/", "auth/"):
        for entry in sorted(_scan(f"{root}/{folder}"), key=lambda entry: entry.name):
            path = f"{folder}{entry.name}"
            if not entry.is_dir() and not is_bundle_path(path):
                yield f"{_as_text(path)} has no place in a bundle and is in no manifest"
