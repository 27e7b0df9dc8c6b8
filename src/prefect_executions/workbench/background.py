"""What this process still does for executions that are sealed here: archiving, indexing, telling.

Law: no run waits for it. Who opens a Workbench in this process does, and so does
the end of the process, both for a bounded time; what is left then, settle does.

Who tells the world that an execution ended, and what is done where nobody does.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import NamedTuple, Protocol

from prefect_executions.lifecycle.history import JobStatus

GIVEN_WAY = 0.02
"""Seconds for which work lets the run go first: they share one interpreter."""


class _Work(NamedTuple):
    until: float
    """When nobody waits for it any more, by the monotonic clock."""
    awaited: threading.Event
    """Set when somebody waits for it."""


_works: dict[threading.Thread, _Work] = {}


def start(work: Callable[[], None], *, name: str, patience: float) -> threading.Thread:
    """Begin *work*, which may not raise, in a thread of the caller's context; it is waited for *patience* seconds."""
    context = copy_context()

    def run() -> None:
        try:
            context.run(work)
        finally:
            _works.pop(threading.current_thread(), None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    _works[thread] = _Work(time.monotonic() + patience, threading.Event())
    _finish_at_exit()
    thread.start()
    return thread


def give_way(seconds: float = GIVEN_WAY) -> None:
    """Let the run return to its caller before this work goes on, unless somebody waits for the work."""
    work = _works.get(threading.current_thread())
    if work is not None:
        work.awaited.wait(seconds)


def finish() -> None:
    """Return when nothing is pending any more, or has taken longer than it may."""
    for thread, work in tuple(_works.items()):
        # A forked child has the names of its parent's threads, and one of these may be asking.
        if thread.is_alive() and thread is not threading.current_thread():
            work.awaited.set()
            thread.join(max(0.0, work.until - time.monotonic()))


@cache
def _finish_at_exit() -> None:
    """Ask once to be waited for, while thread pools still take work: `atexit` comes too late for that.

    Prefect's services and anyio ask in the same way; who asks last is waited for first.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    with suppress(RuntimeError):  # the interpreter is ending already
        register(finish)


class EventDelivery(Protocol):
    """The telling of one sealed execution's end, which goes on beside its archiving."""

    def archived(self, manifest_sha256: str) -> None:
        """Say that the archive has all of the record."""

    def not_archived(self, why: str) -> None:
        """Say why the archive did not take the record."""

    def withdraw(self) -> None:
        """Tell nothing: another sealed the execution before."""

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        """Do *act* as soon as all is told and heard; what is not, settle tells again."""


DeliverEvents = Callable[[JobStatus], EventDelivery]


class _Nobody:
    def archived(self, manifest_sha256: str) -> None:
        pass

    def not_archived(self, why: str) -> None:
        pass

    def withdraw(self) -> None:
        pass

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        act()


def tell_nobody(job_status: JobStatus) -> EventDelivery:  # noqa: ARG001 - it is a `Tell`
    """Tell nobody, where a workbench stands by itself."""
    return _Nobody()
