"""Routes Python's sys.stdout and sys.stderr to the right execution when executions share a process.

The owner of a write is:

1. The innermost open capture of the writer's context. Threads with a copied context,
   asyncio tasks and nested Methods have their own context.
2. For a thread without a context (a plain `threading.Thread`, a worker of a pool): the
   capture that owns the process, if any. Otherwise the only open capture, or the innermost
   of a nested chain, provided that the thread started after the capture was opened.
3. Otherwise none: the write goes to the original stream only. With two independent
   executions open, a thread without a context is never assigned to one of them by guess.

Code that holds the original stream object (a `logging.StreamHandler` created earlier)
bypasses the router, and so do writes to file descriptors.
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
    """A capture that takes routed writes."""

    @property
    def closed(self) -> bool: ...

    def take(self, name: Name, data: str | bytes, original: TextIO | None) -> None:
        """Record and show *data*, which was written to the stream *name*."""


class CaptureScope:
    """A capture in the tree of nested captures, with the threads that existed before it."""

    def __init__(self, receiver: Receiver, parent: CaptureScope | None, *, owns_process: bool) -> None:
        self.receiver = receiver
        self.parent = parent
        self.owns_process = owns_process
        self._older = weakref.WeakSet(threading.enumerate())

    def nearest_open(self) -> CaptureScope | None:
        """Return this scope, or the nearest enclosing scope that is open."""
        scope: CaptureScope | None = self
        while scope is not None and scope.receiver.closed:
            scope = scope.parent
        return scope

    def is_newer_than(self, thread: threading.Thread) -> bool:
        """Whether *thread* existed before the capture."""
        return thread in self._older


_lock = threading.Lock()
_open: tuple[CaptureScope, ...] = ()
_current: ContextVar[CaptureScope | None] = ContextVar("prefect_executions_capture", default=None)
_uncaptured: ContextVar[bool] = ContextVar("prefect_executions_no_capture", default=False)


def enter(receiver: Receiver, *, owns_process: bool) -> tuple[CaptureScope, Token[CaptureScope | None]]:
    """Make *receiver* the capture of this context, nested in the current capture."""
    global _open  # noqa: PLW0603 - the streams of a process are global, and so are its captures
    outer = _current.get()
    scope = CaptureScope(receiver, outer.nearest_open() if outer else None, owns_process=owns_process)
    with _lock:
        _open = (*_open, scope)
    return scope, _current.set(scope)


def leave(scope: CaptureScope, token: Token[CaptureScope | None]) -> None:
    """Undo `enter`; contexts copied in the meantime fall back to the outer capture."""
    global _open  # noqa: PLW0603 - see enter
    with _lock:
        _open = tuple(other for other in _open if other is not scope)
    try:
        _current.reset(token)
    except ValueError:
        # Closed from another context, where closed scopes are skipped.
        return


def step_outside() -> None:
    """Exclude this context's writes from every capture; for our own threads."""
    _uncaptured.set(True)


def owner() -> Receiver | None:
    """Return the capture that owns the process, if any."""
    return next((scope.receiver for scope in _open if scope.owns_process), None)


def current_receiver() -> Receiver | None:
    """Return the capture that owns a write of this thread and context."""
    if not _open or _uncaptured.get():
        return None
    scope = _current.get()
    if scope is not None:
        scope = scope.nearest_open()
        return scope.receiver if scope else owner()
    return owner() or _receiver_without_context(_open, threading.current_thread())


def _receiver_without_context(scopes: tuple[CaptureScope, ...], thread: threading.Thread) -> Receiver | None:
    innermost: CaptureScope | None = None
    remaining = list(scopes)
    while remaining:
        nested = [
            scope
            for scope in remaining
            if scope.parent is innermost or (innermost is None and scope.parent not in scopes)
        ]
        if len(nested) != 1 or nested[0].is_newer_than(thread):
            # Several scopes on one level are ambiguous; their common parent, if any, is certain.
            return innermost.receiver if innermost else None
        innermost = nested[0]
        remaining.remove(innermost)
    return innermost.receiver if innermost else None


class Router(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr and behaves like the original stream."""

    def __init__(self, name: Name, original: TextIO | None) -> None:
        super().__init__()
        self.original = original
        self.stream_name: Name = name
        self.users = 0

    def write(self, text: str) -> int:
        receiver = current_receiver()
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
            # The capture has the text; a missing terminal must not fail the run.
            if current_receiver() is None:
                raise

    def close(self) -> None:
        """Do nothing: the original stream is borrowed."""

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
    """The binary buffer of a router."""

    def __init__(self, router: Router, original: Any) -> None:
        super().__init__()
        self._router = router
        self._original = original

    def write(self, data: Any) -> int:
        receiver = current_receiver()
        content = bytes(data)
        if receiver is not None:
            receiver.take(self._router.stream_name, content, self._router.original)
        elif self._original is not None:
            self._original.write(content)
        return len(content)

    def flush(self) -> None:
        self._router.flush()

    def close(self) -> None:
        """Do nothing: the original stream is borrowed."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._router.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def install(name: Name) -> Router:
    """Replace ``sys.<name>`` by a router, or reuse the installed router."""
    with _lock:
        current = getattr(sys, name)
        router = current if isinstance(current, Router) else Router(name, current)
        router.users += 1
        setattr(sys, name, router)
    return router


def release(router: Router) -> None:
    """Restore the original when *router* has no more users, unless other code has replaced the stream since."""
    with _lock:
        router.users -= 1
        if router.users == 0 and getattr(sys, router.stream_name) is router:
            setattr(sys, router.stream_name, router.original)
