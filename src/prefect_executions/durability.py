"""Makes files outlive a power cut: many at once, because a disk writes its journal once for all that wait.

Twelve files one after the other cost twelve journal writes; together they cost
one or two (measured on ext4: 48 ms and 4.5 ms on a busy machine).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_AT_ONCE = 16

_pools: dict[int, ThreadPoolExecutor] = {}


def sync(places: Iterable[str | Path]) -> None:
    """Return when all *places*, files and folders, are on the disk.

    Raises:
        OSError: If one of them cannot be synced; the others may or may not be.
    """
    waiting = list(places)
    if len(waiting) == 1:
        _sync_one(waiting[0])
    elif waiting:
        for _ in _pool().map(_sync_one, waiting):
            pass


def _sync_one(place: str | Path) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pool() -> ThreadPoolExecutor:
    """The process's own threads: a forked child has none of its parent's."""
    process = os.getpid()
    if process not in _pools:
        _pools.clear()
        _pools[process] = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sync")
    return _pools[process]
