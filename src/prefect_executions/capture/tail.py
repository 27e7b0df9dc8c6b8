"""The thread that hands growing logs to the terminal and to Prefect's log, in chunks."""

from __future__ import annotations

import codecs
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from prefect_executions.capture.logfiles import Follower
from prefect_executions.capture.stdio_router import step_outside

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
