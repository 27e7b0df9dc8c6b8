"""A log file of one stream that many write to and that is followed as it grows.

Law: the file is the buffer. Nothing waits for a reader, and what is in the file
survives the death of the process.

The thread that hands growing logs to the terminal and to Prefect's log, in chunks.
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
# Numbers below are those of the process's own streams, which user code may close and reopen.
_LOWEST_DESCRIPTOR = 3


class LogFile:
    """An append-only log; each writer's bytes go to its end, whole."""

    def __init__(self, path: Path, mask: SecretMask) -> None:
        self.path = path
        self._masked = mask.stream()
        self._mask = mask
        self._lock = threading.Lock()
        self._followers: list[Follower] = []
        self._descriptor = _open_to_append(path)
        _logs.add(self)

    def put_at(self, number: int) -> None:
        """Make the log the file descriptor *number* of this process and of its children."""
        # Not a copy of our own: writers that share a position would hide from `append` where its bytes are.
        descriptor = _open_to_append(self.path)
        os.dup2(descriptor, number)
        os.close(descriptor)

    def follow(self, sink: Sink) -> Follower:
        """Return a follower that hands *sink* what is written from now on."""
        follower = Follower(self, sink, self._mask.stream(), self.size)
        self._followers.append(follower)
        return follower

    def write(self, data: bytes, *, hidden_from: Iterable[Follower] = ()) -> bytes:
        """Append *data*, masked as a stream is; return what was appended.

        What may be the beginning of a secret waits for the next write or for `close`.
        """
        with self._lock:
            return self._append(self._masked.feed(data), hidden_from)

    def append(self, data: bytes) -> None:
        """Append *data*, masked, between the writes of others; no follower is told."""
        with self._lock:
            self._append(self._mask.mask(data), self._followers)

    def close(self) -> bytes:
        """Append what still waited, and return it; `settle` comes after."""
        with self._lock:
            return self._append(self._masked.finish(), ())

    def settle(self) -> None:
        """Close the file for good: no secret in it, and no way left for others to change it."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        settle_log(self.path, self._mask)

    def read(self, offset: int, hidden: deque[tuple[int, int]]) -> tuple[bytes, bytes]:
        """Return the bytes from *offset* on, at most `CHUNK`, and those of them that are not hidden."""
        with self._lock:
            data = os.pread(self._descriptor, CHUNK, offset)
            return data, _without(data, offset, hidden)

    @property
    def size(self) -> int:
        """The file's size by now, in bytes."""
        return os.fstat(self._descriptor).st_size

    @property
    def ends_a_line(self) -> bool:
        """Whether the next byte begins a line."""
        size = self.size
        return size == 0 or os.pread(self._descriptor, 1, size - 1) == b"\n"

    def renew_lock(self) -> None:
        """Make the lock anew in a forked child, where its holder does not exist."""
        self._lock = threading.Lock()

    def _append(self, data: bytes, hidden_from: Iterable[Follower]) -> bytes:
        rest = data
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # A full disk must not fail the user's print; what is missing at the end shows it.
            pass
        written = len(data) - len(rest)
        if written:
            # Only this descriptor's own position tells where O_APPEND has put the bytes.
            end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            for follower in hidden_from:
                follower.hide(end - written, end)
        return data


class Sink(Protocol):
    """What takes the bytes of a log as it grows."""

    def write(self, data: bytes, *, patience: float) -> int:
        """Take what can be taken within *patience* seconds; return how many bytes that was."""

    def finish(self) -> None:
        """Take note that no more will come."""


class Follower:
    """Reads a log at its own pace and hands it, masked, to one sink."""

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
        """Hand over what is new; stop, to go on next time, when the sink takes no more."""
        # Another process may write for ever; what comes after this moment is for the next time.
        end = self._log.size
        while self._hand_over(patience) and self._offset < end:
            data, visible = self._log.read(self._offset, self._hidden)
            if not data:
                return
            self._offset += len(data)
            self._waiting = self._masked.feed(visible)

    def finish(self, *, patience: float) -> None:
        """Hand over all that is left, as far as the sink takes it within *patience* seconds."""
        self.catch_up(patience=patience)
        self._waiting += self._masked.finish()
        self._hand_over(patience)
        self._sink.finish()

    def _hand_over(self, patience: float) -> bool:
        if self._waiting:
            self._waiting = self._waiting[self._sink.write(self._waiting, patience=patience) :]
        return not self._waiting


def settle_log(path: Path, mask: SecretMask) -> None:
    """Close a log for good that nobody of this process writes, such as one that a killed process left; again is safe.

    No secret that *mask* knows is left in it, and whoever still has it open
    (a child that outlived the process) can change it no more.
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
    """Return *descriptor*, moved when it has got the number of a closed standard stream."""
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


def _is_held(path: Path) -> bool:
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    with path.open("rb") as log:
        try:
            # The default signal of a broken lease, SIGIO, would end the process.
            fcntl.fcntl(log, fcntl.F_SETSIG, signal.SIGURG)
            # Linux grants a read lease only while nobody has the file open for writing.
            fcntl.fcntl(log, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(log, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except BlockingIOError:
            return True
        except OSError:
            # A network file system without leases; then nothing can be said.
            return False
    return False


def _replace_by_copy(path: Path) -> None:
    part = path.with_name(path.name + ".part")
    shutil.copyfile(path, part)
    shutil.copymode(path, part)
    part.replace(path)


_logs: weakref.WeakSet[LogFile] = weakref.WeakSet()


def _renew_locks() -> None:
    for log in _logs:
        log.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)

TICK = 0.5
# A record of Prefect's log should end with a line, but a line may never end.
LONGEST_LINE = 64 * 1024
# What a pipe takes without blocking once it reports room (POSIX: PIPE_BUF).
_SLICE = 4096
# What Prefect's log is told at most, in bytes for each second and at once. Its client holds what it has not sent yet in
# memory, all of it; the file has everything.
FORWARD_RATE, FORWARD_BURST = 1 << 20, 8 << 20
# A terminal that takes nothing (Ctrl-S, a stuck worker) may not hold up the end of a run.
PATIENCE_AT_END = 2.0

Forward = Callable[[str, str], None]


class Terminal:
    """The original file descriptor of a stream; its reader may be slow, stuck or dead."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._plain = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def write(self, data: bytes, *, patience: float) -> int:
        """Write what can be written within *patience* seconds; a dead reader takes everything."""
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
    """A callback that takes the text of a stream in chunks that end with a line, as far as lines end.

    What is too much for it is left out but for the end, and how much that was is told.
    """

    def __init__(self, stream: str, forward: Forward) -> None:
        self._stream = stream
        self._forward = forward
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._room, self._counted = float(FORWARD_BURST), time.monotonic()
        self._left_out, self._latest = 0, b""

    def write(self, data: bytes, *, patience: float) -> int:  # noqa: ARG002 - a callback has no patience
        if not self._has_room(len(data)):
            self._left_out += len(self._latest)
            self._latest = data
            return len(data)
        self._left_out += len(self._latest)
        self._latest = b""
        self._tell_left_out()
        self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        text = self._line + self._decoder.decode(data)
        cut = text.rfind("\n") + 1
        if len(text) - cut > LONGEST_LINE:
            cut = len(text)
        self._line = text[cut:]
        self._tell(text[:cut])

    def finish(self) -> None:
        """Hand over the last line, whole or not."""
        self._tell_left_out()
        self._take(self._latest)
        self._tell_line()

    def _has_room(self, size: int) -> bool:
        now = time.monotonic()
        self._room = min(FORWARD_BURST, self._room + (now - self._counted) * FORWARD_RATE)
        self._counted = now
        if size > self._room:
            return False
        self._room -= size
        return True

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._tell_line()
            self._tell(f"[{self._left_out} bytes came too fast for this log; they are in outputs/{self._stream}.log]\n")
            self._left_out = 0

    def _tell_line(self) -> None:
        text, self._line = self._line + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        self._tell(text)

    def _tell(self, text: str) -> None:
        if not text:
            return
        # A logger's failure, be it the SystemExit of rich's console, must not end the tail.
        with suppress(BaseException):
            self._forward(self._stream, text)


class Tail:
    """Lets followers catch up twice a second, and once more when it is closed."""

    def __init__(self, followers: Sequence[Follower], before: Callable[[], None]) -> None:
        self._followers = tuple(followers)
        self._before = before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="executions-tail", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hand over what is left and end the thread; it does not wait for the next tick."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        step_outside()
        # Else a terminal that died would end the process of a user who has restored SIGPIPE's default.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while not self._stop.wait(TICK):
            self._before()
            for follower in self._followers:
                follower.catch_up()
        until = time.monotonic() + PATIENCE_AT_END
        for follower in self._followers:
            follower.finish(patience=max(0.0, until - time.monotonic()))
