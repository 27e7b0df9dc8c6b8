"""Names that mean the same file on every system, so that nobody who unpacks a bundle is surprised."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import count

from prefect_executions.bundles.layout import NAME_BYTES
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError

# Windows, "Naming Files, Paths, and Namespaces": with any extension, in capitals or not.
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³])(\.|$)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")


def check_names(paths: Iterable[str], most_folders: int = Limits().entries) -> None:
    """Refuse paths of which one is no plain relative path on every system, or two are one file on some.

    Memory does not grow with the length of a path, but with the parts that are new in it.

    Raises:
        BundleError: If there is such a path, which the message names and says why, or
            if they lie in more folders than may be there.
    """
    numbers = count(1)
    folders: dict[tuple[int, str], tuple[int, str]] = {}
    known: dict[tuple[int, str], str] = {}
    for path in paths:
        fault = _fault(path)
        if fault:
            raise BundleError(f"{path!r}: {fault}")
        *above, name = path.split("/")
        inside = 0
        for part in above:
            key = (inside, _key(part))
            if key not in folders:
                folders[key] = (next(numbers), part)
            inside, other = folders[key]
            if other != part:
                raise BundleError(f"{path!r}: some systems take its folder {part!r} and {other!r} for the same")
        if len(folders) > most_folders:
            raise BundleError(f"{path!r}: with it there are more than {most_folders} folders")
        key = (inside, _key(name))
        if key in known:
            raise BundleError(f"{path!r}: some systems take it and {known[key]!r} for the same file")
        known[key] = path
    for key in known.keys() & folders.keys():
        raise BundleError(f"{known[key]!r}: it is a file, and a folder of that name is there, too")


def _fault(path: str) -> str | None:
    parts = path.split("/")
    faults = {
        "it has a backslash, which some systems take for the end of a folder's name": "\\" in path,
        "it begins with the name of a drive": _DRIVE.match(path),
        "it has a control character": any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in path),
        "it has the name of a device": any(_DEVICE.match(part) for part in parts),
        f"a part of it is longer than {NAME_BYTES} bytes": any(len(part.encode()) > NAME_BYTES for part in parts),
        "a part of it ends with a space or dot, which some systems take away": any(
            part.endswith((" ", ".")) for part in parts
        ),
    }
    return next((fault for fault, found in faults.items() if found), None)


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
