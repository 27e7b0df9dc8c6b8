"""A folder to measure in, where the disk is as fast as it is for those who have not just removed many files.

ext4 gives no inode away again in the minutes after its file was removed, and
steps over those one by one: where a test run removed some 5,000 files, making one
takes 0.5 ms and not 0.01 ms, for up to six minutes, and a small bundle is some 40
files (seen on Linux 6.18 by timing `open`; `recently_deleted` in fs/ext4/ialloc.c).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_SPREAD = 0x00020000
"""ext4 then puts each folder inside into another part of the disk, as it does with those in its root."""

_QUIET = 0.015
_TRIES = 12


class Place(NamedTuple):
    """A folder, and how many milliseconds the making of an empty file takes in it."""

    folder: Path
    making: float


@contextmanager
def quiet_place() -> Iterator[Place]:
    """Make a folder where temporary files go, in a quiet part of the disk if there is one, and remove it at the end."""
    above = tempfile.mkdtemp(prefix="bench-")
    try:
        _spread(above)
        places: list[Place] = []
        while len(places) < _TRIES and (not places or places[-1].making > _QUIET):
            places.append(_tried(Path(above, str(len(places)))))
        yield min(places, key=lambda place: place.making)
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _tried(folder: Path) -> Place:
    folder.mkdir()
    times = []
    for path in (f"{folder}/{number}" for number in range(9)):
        begun = time.perf_counter()
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        times.append(time.perf_counter() - begun)
    return Place(folder, statistics.median(times) * 1000)


def _spread(folder: str) -> None:
    with suppress(OSError):  # another file system, which needs no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("l", 0)))
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _SPREAD))
        finally:
            os.close(descriptor)
