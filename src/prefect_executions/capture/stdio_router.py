"""Python's sys.stdout and sys.stderr while executions share a process: each write goes to its own execution.

Whose a write is:

1. The innermost open capture of the writer's context. Threads with a copied
   context, asyncio tasks and nested Methods have their own.
2. A thread without a context (a plain `threading.Thread`, a pool's worker): the
   capture that owns the process, if one does. Else the open capture, if there is
   only one (or a nested chain, of which the innermost that is older than the
   thread) and the thread was started after it was opened.
3. Else nobody's: it goes to the original stream alone. With two executions open,
   a thread without a context is never guessed to belong to one of them.

Code that has kept the original stream object (a `logging.StreamHandler` made
before) writes past the router, and so does what writes to file descriptors.
"""

from __future__ import annotations

import io
import sys
import threading
import weakref
from collections.abc import Iterable
from contextvars import ContextVar, Token
from typing import Any, Literal, Protocol, TextIO

Name = Literal["stdout", "stderr"]
NAMES: tuple[Name, Name] = ("stdout", "stderr")


class Receiver(Protocol):
    """A capture, as the router sees it."""

    @property
    def closed(self) -> bool: ...

    def take(self, name: Name, data: str | bytes, original: TextIO | None) -> None:
        """Record what was written to the stream *name*, and show it."""


class CaptureScope:
    """A capture in the tree of nested ones, with the threads that are older than it."""

    def __init__(self, receiver: Receiver, parent: CaptureScope | None, *, owns_process: bool) -> None:
        self.receiver = receiver
        self.parent = parent
        self.owns_process = owns_process
        self._older = weakref.WeakSet(threading.enumerate())

    def nearest_open(self) -> CaptureScope | None:
        """Return this place or its next outer one that is still open."""
        place: CaptureScope | None = self
        while place is not None and place.receiver.closed:
            place = place.parent
        return place

    def saw(self, thread: threading.Thread) -> bool:
        """Whether *thread* was there before the capture."""
        return thread in self._older


_lock = threading.Lock()
_open: tuple[CaptureScope, ...] = ()
_here: ContextVar[CaptureScope | None] = ContextVar("prefect_executions_capture", default=None)
_NOWHERE: ContextVar[bool] = ContextVar("prefect_executions_no_capture", default=False)


def enter(receiver: Receiver, *, owns_process: bool) -> tuple[CaptureScope, Token[CaptureScope | None]]:
    """Make *receiver* the capture of this context, inside the one that is its capture now."""
    global _open  # noqa: PLW0603 - the process's streams are global, and so is who has captured them
    outer = _here.get()
    place = CaptureScope(receiver, outer.nearest_open() if outer else None, owns_process=owns_process)
    with _lock:
        _open = (*_open, place)
    return place, _here.set(place)


def leave(place: CaptureScope, token: Token[CaptureScope | None]) -> None:
    """Undo `enter`; contexts that were copied meanwhile fall back to the outer capture."""
    global _open  # noqa: PLW0603 - see enter
    with _lock:
        _open = tuple(other for other in _open if other is not place)
    try:
        _here.reset(token)
    except ValueError:
        # Closed from another context; there the closed place is passed over.
        return


def step_outside() -> None:
    """Let nothing that this context writes from now on be captured; for our own threads."""
    _NOWHERE.set(True)


def owner() -> Receiver | None:
    """Return the capture that owns the process, if one does."""
    return next((place.receiver for place in _open if place.owns_process), None)


def whose() -> Receiver | None:
    """Return the capture that a write of this thread and context belongs to."""
    if not _open or _NOWHERE.get():
        return None
    place = _here.get()
    if place is not None:
        place = place.nearest_open()
        return place.receiver if place else owner()
    return owner() or _of_a_stranger(_open, threading.current_thread())


def _of_a_stranger(places: tuple[CaptureScope, ...], thread: threading.Thread) -> Receiver | None:
    found: CaptureScope | None = None
    outer: CaptureScope | None = None
    remaining = list(places)
    while remaining:
        inside = [
            place for place in remaining if place.parent is outer or (outer is None and place.parent not in places)
        ]
        if len(inside) != 1 or inside[0].saw(thread):
            # Several at the top are strangers to each other; several inside one still are its own.
            return found.receiver if found else None
        found = outer = inside[0]
        remaining.remove(found)
    return found.receiver if found else None


class Router(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr and behaves like the stream it stands for."""

    def __init__(self, name: Name, original: TextIO | None) -> None:
        super().__init__()
        self.original = original
        self.stream_name: Name = name
        self.users = 0

    def write(self, text: str) -> int:
        receiver = whose()
        if receiver is not None:
            if not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            receiver.take(self.stream_name, text, self.original)
        elif self.original is not None:
            self.original.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]  # typeshed wants bytes here
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.original is None:
            return
        try:
            self.original.flush()
        except (OSError, ValueError):
            # The capture has the text; a terminal that is gone is no reason to fail the run.
            if whose() is None:
                raise

    def close(self) -> None:
        """Do nothing: the original is not ours to close."""

    @property
    def closed(self) -> bool:
        return bool(getattr(self.original, "closed", False))

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.original is not None and self.original.isatty()

    def fileno(self) -> int:
        if self.original is None:
            raise io.UnsupportedOperation("fileno")
        return self.original.fileno()

    @property
    def buffer(self) -> RoutedBuffer:
        return RoutedBuffer(self, None if self.original is None else self.original.buffer)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        return getattr(self.original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # typeshed has an attribute
        return getattr(self.original, "errors", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class RoutedBuffer(io.BufferedIOBase):
    """The router's stream of bytes."""

    def __init__(self, router: Router, original: Any) -> None:
        super().__init__()
        self._router = router
        self._original = original

    def write(self, data: Any) -> int:
        receiver = whose()
        whole = bytes(data)
        if receiver is not None:
            receiver.take(self._router.stream_name, whole, self._router.original)
        elif self._original is not None:
            self._original.write(whole)
        return len(whole)

    def flush(self) -> None:
        self._router.flush()

    def close(self) -> None:
        """Do nothing: the original is not ours to close."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._router.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def install(name: Name) -> Router:
    """Put a router in the place of ``sys.<name>``, or use the one that is there."""
    with _lock:
        current = getattr(sys, name)
        router = current if isinstance(current, Router) else Router(name, current)
        router.users += 1
        setattr(sys, name, router)
    return router


def release(router: Router) -> None:
    """Put the original back once nobody uses *router*; what others have put over it stays."""
    with _lock:
        router.users -= 1
        if router.users == 0 and getattr(sys, router.stream_name) is router:
            setattr(sys, router.stream_name, router.original)
