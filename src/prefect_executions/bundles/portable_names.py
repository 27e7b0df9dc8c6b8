"""Portable file names: refuses paths that are invalid, or name the same file twice, on some operating system."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from itertools import count

from prefect_executions.bundles.layout import NAME_BYTES
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError

# Windows, "Naming Files, Paths, and Namespaces": reserved with any extension, in upper and lower case.
_DEVICE = re.compile(
    r"/(?=[CPANL])(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³])(?:[./]|\Z)", re.IGNORECASE
)
_LOST_END = re.compile(r"[ .](?:/|\Z)")
# A short path of this form can only fail for the name of a device, so it needs one check.
_PLAIN = re.compile(rf"(?=.{{1,{NAME_BYTES}}}\Z)(?:\w[\w-]*(?:\.[\w-]+)*(?:/|\Z))+", re.ASCII)
_DRIVE = re.compile(r"[A-Za-z]:")


def check_names(paths: Iterable[str], most_folders: int = Limits().entries) -> None:
    """Check that each path is a plain relative path on every system, and that no two are one file on any.

    Memory grows with the number of distinct folders and files, not with the length of paths.

    Raises:
        BundleError: If a path fails the check (the message names it and the reason), or
            if the paths have more than *most_folders* folders.
    """
    numbers = count(1)
    folders: dict[tuple[int, str], tuple[int, str]] = {}
    files: dict[tuple[int, str], str] = {}
    last: list[str] = []
    trail = [0]  # the number of each folder above the last path: neighbours share most of them
    for path in paths:
        fault = _fault(path)
        if fault:
            raise BundleError(f"{path!r}: {fault}")
        *above, name = path.split("/")
        if above != last:
            del trail[1 + len(os.path.commonprefix([last, above])) :]  # noqa: RUF071 - it also compares lists
        for part in above[len(trail) - 1 :]:
            key = (trail[-1], _key(part))
            if key not in folders:
                folders[key] = (next(numbers), part)
            inside, other = folders[key]
            if other != part:
                raise BundleError(f"{path!r}: some systems treat its folder {part!r} and {other!r} as the same folder")
            trail.append(inside)
        last, inside = above, trail[-1]
        if len(folders) > most_folders:
            raise BundleError(f"{path!r}: with this path there are more than {most_folders} folders")
        key = (inside, _key(name))
        if key in files:
            raise BundleError(f"{path!r}: some systems treat it and {files[key]!r} as the same file")
        files[key] = path
    for key in files.keys() & folders.keys():
        raise BundleError(f"{files[key]!r}: it is a file, and a folder has the same name")


def _fault(path: str) -> str | None:
    if _PLAIN.fullmatch(path) and not _DEVICE.search(f"/{path}"):
        return None
    categories = set() if path.isprintable() else {unicodedata.category(letter) for letter in path}
    faults = {
        "it has a backslash, which some systems treat as a separator": "\\" in path,
        "it begins with a drive letter": _DRIVE.match(path),
        "its name is not UTF-8": "Cs" in categories,
        "it has a control character": "Cc" in categories,
        "a part of it is a reserved device name": _DEVICE.search(f"/{path}"),
        f"a part of it is longer than {NAME_BYTES} bytes": _longest_part(path) > NAME_BYTES,
        "a part of it ends with a space or dot, which some systems remove": _LOST_END.search(path),
    }
    return next((fault for fault, present in faults.items() if present), None)


def _longest_part(path: str) -> int:
    return max(map(len, os.fsencode(path).split(b"/")))


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
