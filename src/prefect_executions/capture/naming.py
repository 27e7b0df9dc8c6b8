"""Names of output files, in which a secret would stand in every list of them: manifest, history, events, ledger."""

from __future__ import annotations

import os
from pathlib import Path

from prefect_executions.capture.secrets import MASK, SecretMask

# A star in a file's name is refused by some systems.
_IN_NAMES = "_" * len(MASK)


def mask_names(folder: Path, mask: SecretMask) -> tuple[str, ...]:
    """Rename what lies below *folder* with a known secret in its name; return the new names, relative to it.

    No file is lost: one whose new name is taken gets a number. Done again it changes nothing.

    Raises:
        OSError: If something cannot be renamed.
    """
    renamed: list[str] = []
    # From the leaves: a secret may have a slash in it, and so lie in the names of a folder and its file.
    for path, folders, files in os.walk(folder, topdown=False) if mask else ():
        for name in (*files, *folders):
            place = Path(path, name)
            told = place.relative_to(folder).as_posix()
            clean = mask.mask(told)
            if clean != told:
                renamed += _move(place, folder / clean.replace(MASK, _IN_NAMES), folder)
    return tuple(sorted(renamed))


def _move(place: Path, to: Path, folder: Path) -> list[str]:
    if place.is_dir() and not place.is_symlink():
        to.mkdir(parents=True, exist_ok=True)
        _leave_empty(place, folder)
        return []
    if not os.path.lexists(place):  # a folder that was left empty
        return []
    to.parent.mkdir(parents=True, exist_ok=True)
    free, number = to, 1
    while os.path.lexists(free):
        number += 1
        free = to.with_name(f"{to.stem}-{number}{to.suffix}")
    place.rename(free)
    _leave_empty(place.parent, folder)
    return [free.relative_to(folder).as_posix()]


def _leave_empty(place: Path, top: Path) -> None:
    while place != top and not any(place.iterdir()):
        place.rmdir()
        place = place.parent
