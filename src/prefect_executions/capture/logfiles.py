"""Log files of the output streams, and the thread that copies growing logs to the terminal and to Prefect's log.

Law: the file is the buffer. A writer never waits for a reader, and the content survives the
death of the process.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import shutil
import signal
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from prefect_executions.capture.secrets import MaskedStream, SecretMask
from prefect_executions.capture.stdio_router import step_outside
from prefect_executions.errors import BundleError

CHUNK = 192 * 1024
# Lower numbers are stdin, stdout and stderr, which user code may close and reopen.
_LOWEST_DESCRIPTOR = 3
TICK = 0.5
# A record of Prefect's log should end at a line end; a longer line is split.
LONGEST_LINE = 64 * 1024
# A writable pipe accepts this many bytes without blocking (POSIX: PIPE_BUF).
_SLICE = 4096
# Limits for Prefect's log, in bytes per second and per burst: its client keeps all unsent records in memory.
# The log file has everything.
FORWARD_RATE, FORWARD_BURST = 1 << 20, 8 << 20
# A terminal that accepts nothing (Ctrl-S, a stuck worker) must not delay the end of a run longer than this.
PATIENCE_AT_END = 2.0

Forward = Callable[[str, str], None]


class LogFile:
    """An append-only log; each write is appended as a unit."""

    def __init__(self, path: Path, mask: SecretMask) -> None:
        self.path = path
        self._masked = mask.stream()
        self._mask = mask
        self._lock = threading.Lock()
        self._followers: list[Follower] = []
        self._descriptor = _open_to_append(path)
        _logs.add(self)

    def put_at(self, number: int) -> None:
        """Install the log as file descriptor *number* of this process and its children."""
        # Open it again instead of duplicating: with a shared file position, `append` could not locate its own bytes.
        descriptor = _open_to_append(self.path)
        os.dup2(descriptor, number)
        os.close(descriptor)

    def follow(self, sink: Sink) -> Follower:
        """Return a follower that copies all later output to *sink*."""
        follower = Follower(self, sink, self._mask.stream(), self.size)
        self._followers.append(follower)
        return follower

    def write(self, data: bytes, *, hidden_from: Iterable[Follower] = ()) -> bytes:
        """Append *data*, masked as a stream; return the appended bytes.

        A possible beginning of a secret is held back until the next write or `close`.
        """
        with self._lock:
            return self._append(self._masked.feed(data), hidden_from)

    def append(self, data: bytes) -> None:
        """Append *data*, masked, between other writes; followers skip it."""
        with self._lock:
            self._append(self._mask.mask(data), self._followers)

    def close(self) -> bytes:
        """Append and return the bytes that were held back."""
        with self._lock:
            return self._append(self._masked.finish(), ())

    def close_permanently(self) -> None:
        """Close the file, mask its secrets, and detach other writers from it."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        seal_log(self.path, self._mask)

    def read(self, offset: int, hidden: deque[tuple[int, int]]) -> tuple[bytes, bytes]:
        """Return at most `CHUNK` bytes from *offset* on, and the same bytes without the hidden ranges."""
        with self._lock:
            data = os.pread(self._descriptor, CHUNK, offset)
            return data, _without(data, offset, hidden)

    @property
    def size(self) -> int:
        """The current size in bytes."""
        return os.fstat(self._descriptor).st_size

    @property
    def ends_a_line(self) -> bool:
        """Whether the next byte starts a line."""
        size = self.size
        return size == 0 or os.pread(self._descriptor, 1, size - 1) == b"\n"

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where its holder does not exist."""
        self._lock = threading.Lock()

    def _append(self, data: bytes, hidden_from: Iterable[Follower]) -> bytes:
        rest = data
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # A full disk must not fail the user's print; the missing end of the log shows it.
            pass
        written = len(data) - len(rest)
        if written:
            # Only the position of this descriptor shows where O_APPEND placed the bytes.
            end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            for follower in hidden_from:
                follower.hide(end - written, end)
        return data


class Sink(Protocol):
    """A target for the bytes of a growing log."""

    def write(self, data: bytes, *, patience: float) -> int:
        """Accept bytes for at most *patience* seconds; return the number of accepted bytes."""

    def finish(self) -> None:
        """Note the end of the log."""


class Follower:
    """Reads a log at its own pace and copies it, masked, to a sink."""

    def __init__(self, log: LogFile, sink: Sink, masked: MaskedStream, offset: int) -> None:
        self._log = log
        self._sink = sink
        self._masked = masked
        self._offset = offset
        self._hidden: deque[tuple[int, int]] = deque()
        self._waiting = b""

    def hide(self, start: int, end: int) -> None:
        """Skip the bytes from *start* to *end* of the file."""
        if self._hidden and self._hidden[-1][1] == start:
            self._hidden[-1] = (self._hidden[-1][0], end)
        else:
            self._hidden.append((start, end))

    def catch_up(self, *, patience: float = 0.0) -> None:
        """Copy new bytes; stop when the sink accepts no more, and continue the next time."""
        # Another process may write without pause; stop at the current end.
        end = self._log.size
        while self._deliver(patience) and self._offset < end:
            data, visible = self._log.read(self._offset, self._hidden)
            if not data:
                return
            self._offset += len(data)
            self._waiting = self._masked.feed(visible)

    def finish(self, *, patience: float) -> None:
        """Copy all remaining bytes that the sink accepts within *patience* seconds."""
        self.catch_up(patience=patience)
        self._waiting += self._masked.finish()
        self._deliver(patience)
        self._sink.finish()

    def _deliver(self, patience: float) -> bool:
        if self._waiting:
            self._waiting = self._waiting[self._sink.write(self._waiting, patience=patience) :]
        return not self._waiting


def seal_log(path: Path, mask: SecretMask) -> None:
    """Mask and detach a log that this process does not write, for instance the log of a killed process; idempotent.

    Afterwards it contains no secret of *mask*, and a process that still has it open (an orphaned
    child) cannot change it.
    """
    with suppress(FileNotFoundError):
        if not mask.mask_file(path) and _is_held(path):
            _replace_by_copy(path)


def _open_to_append(path: Path) -> int:
    try:
        return above_streams(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
    except OSError as error:
        raise BundleError(f"The log {path} cannot be opened: {error.strerror}. Nothing was run.") from error


def above_streams(descriptor: int) -> int:
    """Return *descriptor*, or a duplicate if it has the number of a closed standard stream."""
    if descriptor >= _LOWEST_DESCRIPTOR:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LOWEST_DESCRIPTOR)
    os.close(descriptor)
    return moved


def _without(data: bytes, offset: int, hidden: deque[tuple[int, int]]) -> bytes:
    if not hidden:
        return data
    end = offset + len(data)
    visible: list[bytes] = []
    position = offset
    while hidden and hidden[0][0] < end:
        start, stop = hidden[0]
        visible.append(data[position - offset : max(start, position) - offset])
        position = min(stop, end)
        if stop > end:
            break
        hidden.popleft()
    visible.append(data[position - offset :])
    return b"".join(visible)


def is_open_for_writing(descriptor: int) -> bool:
    """Whether any process has the file of *descriptor*, which is open for reading only, open or mapped for writing.

    False if the file system or the file's owner does not let this process know.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # The default signal for a broken lease, SIGIO, would kill the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        # Linux grants a read lease only if no process has the file open for writing.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        # A network file system without leases: unknown.
        return False
    return False


def _is_held(path: Path) -> bool:
    with path.open("rb") as log:
        return is_open_for_writing(log.fileno())


def _replace_by_copy(path: Path) -> None:
    part = path.with_name(path.name + ".part")
    shutil.copyfile(path, part)
    shutil.copymode(path, part)
    part.replace(path)


class Terminal:
    """The original file descriptor of a stream; its reader may be slow, stuck or dead."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._plain = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def write(self, data: bytes, *, patience: float) -> int:
        """Write for at most *patience* seconds; output for a dead reader is dropped."""
        if self._plain:
            return self._put(data)
        done = 0
        until = time.monotonic() + patience
        while done < len(data):
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return done
            put = self._put(data[done : done + _SLICE])
            if not put:
                return done
            done += put
        return done

    def finish(self) -> None:
        """Do nothing: the descriptor is borrowed."""

    def _put(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)


class Forwarding:
    """Calls a function with the text of a stream, in chunks that end at a line end where possible.

    Text beyond the rate limit is left out, except its end; a line reports the number of omitted bytes.
    """

    def __init__(self, stream: str, forward: Forward) -> None:
        self._stream = stream
        self._forward = forward
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._budget, self._updated = float(FORWARD_BURST), time.monotonic()
        self._omitted, self._latest = 0, b""

    def write(self, data: bytes, *, patience: float) -> int:  # noqa: ARG002 - a callback cannot time out
        if not self._has_budget(len(data)):
            self._omitted += len(self._latest)
            self._latest = data
            return len(data)
        self._omitted += len(self._latest)
        self._latest = b""
        self._report_omitted()
        self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        text = self._line + self._decoder.decode(data)
        cut = text.rfind("\n") + 1
        if len(text) - cut > LONGEST_LINE:
            cut = len(text)
        self._line = text[cut:]
        self._call(text[:cut])

    def finish(self) -> None:
        """Forward the last line, complete or not."""
        self._report_omitted()
        self._take(self._latest)
        self._forward_line()

    def _has_budget(self, size: int) -> bool:
        now = time.monotonic()
        self._budget = min(FORWARD_BURST, self._budget + (now - self._updated) * FORWARD_RATE)
        self._updated = now
        if size > self._budget:
            return False
        self._budget -= size
        return True

    def _report_omitted(self) -> None:
        if self._omitted:
            self._forward_line()
            self._call(
                f"[{self._omitted} bytes exceeded the rate of this log; they are in outputs/{self._stream}.log]\n"
            )
            self._omitted = 0

    def _forward_line(self) -> None:
        text, self._line = self._line + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        self._call(text)

    def _call(self, text: str) -> None:
        if not text:
            return
        # A logger's exception, even SystemExit from rich's console, must not end this thread.
        with suppress(BaseException):
            self._forward(self._stream, text)


class Tail:
    """A thread that runs the followers twice a second, and once more when it is closed."""

    def __init__(self, followers: Sequence[Follower], before: Callable[[], None]) -> None:
        self._followers = tuple(followers)
        self._before = before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="executions-tail", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy the remaining output and end the thread immediately."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        step_outside()
        # Otherwise a dead terminal would kill a process in which user code restored the default of SIGPIPE.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while not self._stop.wait(TICK):
            self._before()
            for follower in self._followers:
                follower.catch_up()
        until = time.monotonic() + PATIENCE_AT_END
        for follower in self._followers:
            follower.finish(patience=max(0.0, until - time.monotonic()))


_logs: weakref.WeakSet[LogFile] = weakref.WeakSet()


def _renew_locks() -> None:
    for log in _logs:
        log.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)
