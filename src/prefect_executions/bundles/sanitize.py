"""Sanitizes the folders of a bundle that the user's code writes: only plain files with UTF-8 names remain.

Nothing else can be hashed, zipped, archived and read in twenty years. So, before the
files are read:

- a link to a file in the same folder becomes a hard link to that file;
- any other link is removed and its target noted. It is never followed, because the
  Method did not write what is outside, and it may be secret;
- a pipe, socket or device is removed and noted, because it has no data;
- in a name that is not UTF-8, ``%XX`` replaces each invalid byte, and a note says so.

The notes are on disk before anything is changed, so that a crash loses none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefect_executions.bundles.layout import OPEN_FOLDERS, is_bundle_path
from prefect_executions.bundles.open_bundle import OpenBundle

_NOTES = "notes.json"

_Irregular = Literal["name", "link", "special"]
"""Why an entry is not a plain file with a UTF-8 name."""

# Python decodes a byte of a file name that is not UTF-8 to one of these (PEP 383).
_INVALID_BYTE = re.compile("[\udc80-\udcff]")


@dataclass
class FolderListing:
    """The entries of one folder and its subfolders; paths are relative to the bundle and sorted."""

    files: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    irregular: list[tuple[str, _Irregular]] = field(default_factory=list)
    """The paths of entries that are not plain files with UTF-8 names, as the system gives them, and the reason."""
    unreadable: list[str] = field(default_factory=list)
    """One sentence for each folder that cannot be listed."""


def list_files(root: str, top: str) -> FolderListing:
    """List the folder *top* of the bundle at *root* without following links."""
    listing = FolderListing()
    waiting = [top] if Path(root, top).is_dir() else []
    while waiting:
        folder = waiting.pop()
        entries = _entries(root, folder, listing)
        if not entries:
            listing.empty_folders.append(folder)
        for entry in entries:
            path = f"{folder}/{entry.name}"
            irregularity = _irregularity(entry)
            if irregularity:
                listing.irregular.append((path, irregularity))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                listing.files.append(path)
    listing.files.sort()
    listing.empty_folders.sort()
    return listing


def sanitize(bundle: OpenBundle) -> tuple[dict[str, FolderListing], tuple[str, ...]]:
    """Remove or rename every entry of *bundle* that is not a plain file with a UTF-8 name.

    Returns the listing of each folder, and a note on each change that this or an earlier
    call has made. It is idempotent, even if a call was interrupted.
    """
    notes = _read_notes(bundle)
    root = str(bundle.folder)
    listings = {}
    for top in OPEN_FOLDERS:
        while irregular := (listing := list_files(root, top)).irregular:
            notes |= {note for path, reason in irregular if (note := _note(bundle, path, reason))}
            bundle.put(bundle.scratch / _NOTES, json.dumps(sorted(notes)).encode())
            for path, reason in irregular:
                _resolve(bundle, path, reason)
        listings[top] = listing
    return listings, tuple(sorted(notes | set(_misplaced(bundle.folder))))


def _read_notes(bundle: OpenBundle) -> frozenset[str]:
    path = bundle.scratch / _NOTES
    if not path.exists():
        return frozenset()
    try:
        return frozenset(map(str, json.loads(path.read_bytes())))
    except (ValueError, TypeError, RecursionError):  # damaged by a power cut
        return frozenset({"the notes on outputs that were renamed or left out are lost"})


def _entries(root: str, folder: str, listing: FolderListing) -> list[os.DirEntry[str]]:
    path = f"{root}/{folder}"
    try:
        return _scan(path)
    except PermissionError:
        pass
    except OSError as error:
        listing.unreadable.append(f"{folder}/ cannot be listed: {error.strerror}")
        return []
    try:
        # The Method may have removed its own permission.
        Path(path).chmod(0o700)
        return _scan(path)
    except OSError as error:
        listing.unreadable.append(f"{folder}/ cannot be listed: {error.strerror}")
        return []


def _scan(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def _irregularity(entry: os.DirEntry[str]) -> _Irregular | None:
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


def _note(bundle: OpenBundle, path: str, reason: _Irregular) -> str | None:
    shown = _as_text(path)
    if reason == "name":
        return f"{shown} had a name that was not UTF-8; %XX replaces each invalid byte"
    if reason == "special":
        return f"{shown} was a pipe, socket or device and is left out"
    if _target_inside(bundle, path):
        return None
    target = _as_text(str((bundle.folder / path).readlink()))
    return (
        f"{shown} was a link to {target}, which is not a file of the same folder; it was not followed and is left out"
    )


def _resolve(bundle: OpenBundle, path: str, reason: _Irregular) -> None:
    entry = bundle.folder / path
    if reason == "name":
        entry.rename(free_path(entry.parent, _as_text(entry.name)))
        return
    target = _target_inside(bundle, path) if reason == "link" else None
    if target is None:
        entry.unlink()
        return
    temporary = bundle.scratch / "link.new"
    temporary.unlink(missing_ok=True)
    temporary.hardlink_to(target)
    temporary.replace(entry)


def _target_inside(bundle: OpenBundle, path: str) -> Path | None:
    top = (bundle.folder / path.partition("/")[0]).resolve()
    try:
        target = (bundle.folder / path).resolve(strict=True)
    except (OSError, RuntimeError):  # a cycle of links raises RuntimeError up to Python 3.12
        return None
    return target if target.is_file() and target.is_relative_to(top) else None


def _as_text(name: str) -> str:
    return _INVALID_BYTE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)


def free_path(folder: Path, name: str) -> Path:
    """Return *name* in *folder*, or the first of ``name.2``, ``name.3``, … that does not exist."""
    number = 1
    path = folder / name
    while os.path.lexists(path):
        number += 1
        path = folder / f"{name}.{number}"
    return path


def _misplaced(root: Path) -> Iterator[str]:
    for folder in ("", "metadata/", "auth/"):
        for entry in sorted(_scan(f"{root}/{folder}"), key=lambda entry: entry.name):
            path = f"{folder}{entry.name}"
            if not entry.is_dir() and not is_bundle_path(path):
                yield f"{_as_text(path)} is not part of the bundle format and is not in the manifest"
