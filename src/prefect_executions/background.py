"""Background threads of this process: the only place that starts threads for work beside or after a run.

- `submit(work, name=…)` starts *work* at once, for example a heartbeat, a watcher or a cache to fill.
- `submit(work, name=…, patience=60)` is work that must be finished, for example archiving or
  event delivery: `drain` waits for it, for at most that many seconds from now.
- `defer(work, name=…, delay=0.5)` starts *work* after a delay; `cancel()` on the result prevents it.
- `drain()` waits for the submitted work that has patience. `Workbench.of` calls it, so that a
  reader sees what this process did, and the interpreter calls it when it ends.
- `at_exit(work)` runs *work* when the interpreter ends.
- `yield_briefly()`, called by work that `drain` waits for, lets the flow return first.

All threads are daemon threads and run in a copy of the caller's context. *work* must not raise.

Law: no run waits for background work, and every wait has a time limit. `settle` finishes the rest.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import NamedTuple

BRIEFLY = 0.02
"""Seconds for which `yield_briefly` waits: flow and background work share one interpreter."""

Work = Callable[[], object]


class _Wait(NamedTuple):
    """How `drain` waits for a thread: until a time of the monotonic clock; `awaited` is set when it begins to."""

    until: float
    awaited: threading.Event


_waits: dict[threading.Thread, _Wait] = {}


def submit(work: Work, *, name: str, patience: float = 0.0) -> threading.Thread:
    """Start *work* in a background thread and return the thread; `drain` waits up to *patience* seconds for it."""
    context = copy_context()

    def run() -> None:
        try:
            context.run(work)
        finally:
            _waits.pop(threading.current_thread(), None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    if patience > 0:
        _waits[thread] = _Wait(time.monotonic() + patience, threading.Event())
        at_exit(drain)
    thread.start()
    return thread


def defer(work: Work, *, name: str, delay: float) -> threading.Timer:
    """Start *work* in a background thread after *delay* seconds, unless the returned timer is cancelled before."""
    timer = threading.Timer(delay, copy_context().run, [work])
    timer.name, timer.daemon = name, True
    timer.start()
    return timer


def yield_briefly(seconds: float = BRIEFLY) -> None:
    """Let the run return to its caller before this work goes on, unless `drain` already waits for the work."""
    wait = _waits.get(threading.current_thread())
    if wait is not None:
        wait.awaited.wait(seconds)


def drain() -> None:
    """Return when no submitted work that has patience is left, or its patience is over."""
    for thread, wait in tuple(_waits.items()):
        # A forked child inherits the entries of its parent's threads; and background work may itself call `drain`.
        if thread.is_alive() and thread is not threading.current_thread():
            wait.awaited.set()
            thread.join(max(0.0, wait.until - time.monotonic()))


@cache
def at_exit(work: Work) -> None:
    """Run *work* at the end of the interpreter, while thread pools still accept work; idempotent.

    `atexit` runs too late for that. Prefect's services and anyio register in the same way; the last
    registration runs first.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    with suppress(RuntimeError):  # the interpreter is shutting down already
        register(work)
