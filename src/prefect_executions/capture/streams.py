"""Captures stdout and stderr of an execution in log files, and still shows them on the terminal.

A run that owns its process gets the log files as its file descriptors 1 and 2: output of
subprocesses and C code is captured, and written output survives ``kill -9``.
Executions that share a process are distinguished by context (`stdio_router`); only output
through Python's sys.stdout and sys.stderr can be captured there.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from prefect_executions.capture import stdio_router
from prefect_executions.capture.logfiles import Follower, Forwarding, LogFile, Tail, Terminal, above_streams
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.capture.stdio_router import NAMES, Name, Router
from prefect_executions.errors import BundleError

_DESCRIPTORS: dict[Name, int] = {"stdout": 1, "stderr": 2}
_C_STREAMS = (("stdout", "stderr"), ("__stdoutp", "__stderrp"))

_owning = threading.Lock()


def open_streams(
    folder: Path, *, owns_process: bool, mask: SecretMask, forward: Callable[[str, str], None] | None = None
) -> Streams:
    """Capture stdout and stderr in ``stdout.log`` and ``stderr.log`` of *folder*, the bundle's ``outputs``.

    A background thread calls *forward* with the stream's name and a chunk of masked text, at
    most every half second and at the end; exceptions are ignored. Output of *forward* is not
    captured, but in an owned process it must not write to file descriptor 1 or 2, which
    would be a feedback loop: give its console `Streams.terminal`. A second attempt appends.
    Only one capture can own a process; another one is nested in it and shares the process.

    Raises:
        BundleError: If the logs cannot be opened; then nothing is captured.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"The folder {folder} cannot be created: {error.strerror}. Nothing was run.") from error
    if owns_process and _owning.acquire(blocking=False):
        try:
            return OwnedStreams(folder, mask, forward)
        except BaseException:
            _owning.release()
            raise
    return SharedStreams(folder, mask, forward)


class Streams(ABC):
    """The open logs of one execution; a context manager."""

    def __init__(self, folder: Path, mask: SecretMask, forward: Callable[[str, str], None] | None) -> None:
        self.closed = False
        self._process = os.getpid()
        self._mask = mask
        self._closing = threading.Lock()
        self._logs: dict[Name, LogFile] = {name: LogFile(folder / f"{name}.log", mask) for name in NAMES}
        self._forwards = [
            log.follow(Forwarding(name, forward)) for name, log in self._logs.items() if forward is not None
        ]
        self._terminals: dict[Name, SafeStream] = {}

    @abstractmethod
    def take(self, name: Name, data: str | bytes, original: TextIO | None) -> None:
        """Record and show text that Python code wrote to the stream *name*."""

    @abstractmethod
    def _restore(self) -> None: ...

    def append_line(self, stream: Name, text: str) -> None:
        """Append a line, for instance from Prefect's run logger, to the log of *stream*.

        The line is masked, but neither forwarded nor shown on the terminal.
        """
        if not self.closed:
            self._logs[stream].append(as_bytes(text if text.endswith("\n") else text + "\n"))

    def mark(self, headline: str) -> None:
        """Append a separator line to both logs, except to an empty log."""
        for log in self._logs.values():
            if log.size:
                log.append(as_bytes(("" if log.ends_a_line else "\n") + f"--- {headline} ---\n"))

    def terminal(self, stream: Name) -> SafeStream:
        """Return a stream to the original terminal of *stream*, bypassing the log; writing to it never raises."""
        return self._terminals[stream]

    def close(self) -> None:
        """Restore the streams, flush the remaining output, and close the logs permanently.

        Secrets that reached a log through a file descriptor are masked now. A log that another
        process still holds open is replaced by a copy, so it cannot change afterwards.
        Idempotent; does nothing in a forked child.
        """
        with self._closing:
            if self.closed or os.getpid() != self._process:
                return
            self.closed = True
            try:
                self._restore()
            finally:
                for log in self._logs.values():
                    log.close_permanently()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SharedStreams(Streams):
    """The logs of an execution that shares its process with other executions."""

    def __init__(self, folder: Path, mask: SecretMask, forward: Callable[[str, str], None] | None) -> None:
        super().__init__(folder, mask, forward)
        self._routers = tuple(map(stdio_router.install, NAMES))
        self._shown: dict[Name, TextIO | SafeStream | None] = {
            router.stream_name: _original_stream(router) for router in self._routers
        }
        self._terminals = {name: _safe(shown) for name, shown in self._shown.items()}
        self._tail = Tail(self._forwards, _nothing) if self._forwards else None
        self._scope, self._token = stdio_router.enter(self, owns_process=False)

    def take(self, name: Name, data: str | bytes, original: TextIO | None) -> None:
        """Write *data* to the log, masked, and show the masked text."""
        written = self._logs[name].write(as_bytes(data) if isinstance(data, str) else data)
        shown = self._shown[name] if isinstance(self._shown[name], SafeStream) else original
        _show(shown, data if not self._mask else written)

    def _restore(self) -> None:
        stdio_router.leave(self._scope, self._token)
        for router in self._routers:
            _show(self._shown[router.stream_name], self._logs[router.stream_name].close())
            stdio_router.release(router)
        if self._tail:
            self._tail.close()


class OwnedStreams(Streams):
    """The logs of a run that owns its process, installed as file descriptors 1 and 2.

    Output written to a descriptor is masked only at the end; shown and forwarded output is
    masked immediately.
    """

    def __init__(self, folder: Path, mask: SecretMask, forward: Callable[[str, str], None] | None) -> None:
        super().__init__(folder, mask, forward)
        _flush_python()
        flush_c()
        self._saved = {name: _saved_descriptor(number) for name, number in _DESCRIPTORS.items()}
        _release_in_forks()
        _saved_descriptors.update(saved for saved in self._saved.values() if saved is not None)
        self._terminals = {name: SafeStream(saved) for name, saved in self._saved.items()}
        self._shows: dict[Name, Follower] = {
            name: self._logs[name].follow(Terminal(saved)) for name, saved in self._saved.items() if saved is not None
        }
        self._buffered: list[tuple[Any, bool]] = []
        self._routers: list[Router] = []
        self._tail = Tail((*self._shows.values(), *self._forwards), flush_c)
        for name, number in _DESCRIPTORS.items():
            self._logs[name].put_at(number)
            self._capture_python(name, number)
        self._scope, self._token = stdio_router.enter(self, owns_process=True)

    def take(self, name: Name, data: str | bytes, original: TextIO | None) -> None:
        """Write *data* to the log; a stream without a descriptor (in a notebook) shows it itself."""
        if not any(router.stream_name == name and router.original is original for router in self._routers):
            _show(original, data)
            return
        hidden = [self._shows[name]] if original is not None and name in self._shows else []
        written = self._logs[name].write(as_bytes(data) if isinstance(data, str) else data, hidden_from=hidden)
        _show(original, data if not self._mask else written)

    def _capture_python(self, name: Name, number: int) -> None:
        stream = getattr(sys, name)
        if _number_of(stream) != number or isinstance(stream, Router):
            self._routers.append(stdio_router.install(name))
        elif hasattr(stream, "reconfigure"):
            self._buffered.append((stream, stream.line_buffering))
            # Python writes to a file in blocks of 8 kB, and loses the last block when it is killed.
            stream.reconfigure(line_buffering=True)

    def _restore(self) -> None:
        stdio_router.leave(self._scope, self._token)
        _flush_python()
        flush_c()
        for router in self._routers:
            _show(router.original, self._logs[router.stream_name].close())
            stdio_router.release(router)
        try:
            for name, number in _DESCRIPTORS.items():
                _restore_descriptor(self._saved[name], number)
                self._terminals[name].retarget(number if self._saved[name] is not None else None)
            for stream, line_buffering in self._buffered:
                with suppress(OSError, ValueError):
                    stream.reconfigure(line_buffering=line_buffering)
            self._tail.close()
        finally:
            for saved in self._saved.values():
                if saved is not None:
                    _saved_descriptors.discard(saved)
                    os.close(saved)
            _owning.release()


def flush_c() -> None:
    """Flush C's stdout and stderr buffers; do nothing without a suitable libc.

    Flushing all C streams would block on a thread that reads stdin.
    """
    for flush, pointer in _c_streams():
        flush(pointer)


@cache
def _c_streams() -> tuple[tuple[Callable[[ctypes.c_void_p], int], ctypes.c_void_p], ...]:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for names in _C_STREAMS:
            with suppress(ValueError):
                return tuple((libc.fflush, ctypes.c_void_p.in_dll(libc, name)) for name in names)
    return ()


def _flush_python() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _number_of(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _saved_descriptor(number: int) -> int | None:
    try:
        return above_streams(os.dup(number))
    except OSError:
        # The process was started with this stream closed, like some daemons.
        return None


_saved_descriptors: set[int] = set()
"""The original stdout and stderr of this process, while logs replace them."""


@cache
def _release_in_forks() -> None:
    os.register_at_fork(after_in_child=_close_terminals)


def _close_terminals() -> None:
    """In a forked child, replace the saved descriptors by /dev/null.

    A supervisor waits for the end of its pipe, not of its process, so a child must not hold the pipe
    open. The numbers stay in use, so that a file which the child opens cannot get one of them.
    """
    with suppress(OSError):
        devnull = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        for saved in _saved_descriptors:
            os.dup2(devnull, saved, inheritable=False)
        os.close(devnull)
    _saved_descriptors.clear()


def _restore_descriptor(saved: int | None, number: int) -> None:
    if saved is None:
        os.close(number)
    else:
        os.dup2(saved, number)


def _original_stream(router: Router) -> TextIO | SafeStream | None:
    # In an owned process the descriptors are the log of the outer execution, not of this one.
    outer = stdio_router.owner()
    return outer.terminal(router.stream_name) if isinstance(outer, Streams) else router.original


def _safe(stream: TextIO | SafeStream | None) -> SafeStream:
    return stream if isinstance(stream, SafeStream) else SafeStream(stream)


def _show(stream: TextIO | SafeStream | None, data: str | bytes) -> None:
    if stream is None or not data:
        return
    buffer = getattr(stream, "buffer", None)
    if isinstance(data, str) or buffer is None:
        _safe(stream).write(data if isinstance(data, str) else data.decode("utf-8", "replace"))
        return
    with suppress(OSError, ValueError):
        stream.flush()
        buffer.write(data)


def _nothing() -> None: ...


class SafeStream(io.TextIOBase):
    """Writes text to a file descriptor or stream, and ignores a broken or closed target.

    For Prefect's console handler: its rich console raises ``SystemExit`` on a broken pipe,
    and a dead worker leaves a broken pipe. The target is borrowed and never closed. A target of
    None discards everything.
    """

    def __init__(self, target: int | TextIO | None) -> None:
        super().__init__()
        self._target = target

    def retarget(self, target: int | TextIO | None) -> None:
        """Change the target."""
        self._target = target

    def write(self, text: str) -> int:
        try:
            if isinstance(self._target, int):
                _write_all(self._target, as_bytes(text))
            elif self._target is not None:
                _write_replacing(self._target, text)
        except (OSError, ValueError):
            pass
        return len(text)

    def flush(self) -> None:
        try:
            if self._target is not None and not isinstance(self._target, int):
                self._target.flush()
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        """Flush; the borrowed target stays open."""
        self.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return os.isatty(self.fileno())
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if isinstance(self._target, int):
            return self._target
        if self._target is None:
            raise io.UnsupportedOperation("fileno")
        return self._target.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only here, an attribute in typeshed
        return getattr(self._target, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # read-only here, an attribute in typeshed
        return getattr(self._target, "errors", None) or "backslashreplace"


def as_bytes(text: str) -> bytes:
    """Return *text* as UTF-8; undecodable bytes of file names are restored, other surrogates escaped."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _write_replacing(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
