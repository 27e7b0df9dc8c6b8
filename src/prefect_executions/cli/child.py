"""The child process in which a command runs a Method, so that the command survives the Method's death.

The parent does nothing but wait. It imports Prefect only if the child dies without a result: the child
is a fork, made before Prefect is imported, so a run starts as fast as in one process.

- Ctrl-C and Ctrl-Z reach both processes, because they share the terminal; a signal to the parent alone is
  passed on to the child. The child's exit code is that of the command. The parent notes SIGINT in shared memory,
  so that the child can distinguish it from a KeyboardInterrupt of the Method (`was_interrupted`).
- If the parent is killed, the kernel kills the child (prctl(2), PR_SET_PDEATHSIG).

Only Linux tells the parent whether a signal came from the terminal; elsewhere, and in a process that has threads
or has imported Prefect, there is no child.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from prefect_executions.cli.exit_codes import INTERRUPTED

_PASSED_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_SI_KERNEL = 0x80  # siginfo.h: sent by the kernel, as for Ctrl-C
_PR_SET_PDEATHSIG = 1  # prctl.h
_NOTE_SECONDS = 1.0
"""How long the parent may take to note a signal that this process has received as well."""

_sigint_noted: mmap.mmap | None = None
"""In a child: one byte that the parent sets when it receives SIGINT."""


class DeadChild(NamedTuple):
    """A child that died: its process id, how it ended, and when."""

    pid: int
    how: str
    at: datetime


def run_in_child(work: Callable[[], int], on_death: Callable[[DeadChild], int]) -> int:
    """Call *work* in a child process and return its exit code; if the child dies without a result, that of *on_death*.

    In the child, this returns to its caller, or raises what *work* raises.
    """
    if not hasattr(signal, "sigwaitinfo") or "prefect" in sys.modules or threading.active_count() > 1:
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    noted = mmap.mmap(-1, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the end of a child is not reported to a process that ignores it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    parent, oom_kills = os.getpid(), _oom_kills()
    child = os.fork()
    if child == 0:
        os.close(read)
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _work(work, write, noted)
    os.close(write)
    status, received = _wait(child, noted)
    at = datetime.now(UTC)
    result = _read_result(read)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if result and os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in received:
        on_death(DeadChild(child, f"was ended by {_name(os.WTERMSIG(status))}", at))
        return INTERRUPTED
    code = on_death(DeadChild(child, _how(status, out_of_memory=_oom_kills() > oom_kills), at))
    return int(result) if result.isdigit() else code  # it died as it ended, after it had shown its result


def was_interrupted() -> bool:
    """Whether the command of this child received SIGINT, as by Ctrl-C; call it after a KeyboardInterrupt."""
    until = time.monotonic() + _NOTE_SECONDS
    while _sigint_noted is not None:
        if _sigint_noted[0]:
            return True
        if time.monotonic() >= until:
            break
        time.sleep(_NOTE_SECONDS / 100)
    return False


def _work(work: Callable[[], int], pipe: int, noted: mmap.mmap) -> int:
    from prefect_executions.capture.processes import this_fork_is_alone  # noqa: PLC0415 - start-up time of the CLI

    global _sigint_noted  # noqa: PLW0603 - a process has one parent
    _sigint_noted = noted
    this_fork_is_alone()
    result = "raised"
    try:
        code = work()
        result = str(code)
    finally:
        with suppress(OSError):  # the parent was killed
            os.write(pipe, result.encode())
        os.close(pipe)
    return code


def _read_result(pipe: int) -> str:
    """Return what the child wrote; a fork of it may still have the other end of *pipe*."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 64).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(pipe)


def _wait(child: int, noted: mmap.mmap) -> tuple[int, set[int]]:
    """Wait for the end of *child* and pass signals on to it; return its status and these signals."""
    received: set[int] = set()
    while True:
        info = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            received.add(info.si_signo)
            noted[0] |= info.si_signo == signal.SIGINT
            if info.si_code != _SI_KERNEL:
                with suppress(ProcessLookupError):
                    os.kill(child, info.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return status, received


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends."""
    import ctypes  # noqa: PLC0415 - only the child needs it

    with suppress(OSError, AttributeError):  # a sandbox, or another C library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(INTERRUPTED)


def _how(status: int, *, out_of_memory: bool) -> str:
    if os.WIFEXITED(status):
        return f"exited with code {os.WEXITSTATUS(status)}, by os._exit or in C code"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and out_of_memory:
        return "was killed by SIGKILL; the kernel ended a process for lack of memory meanwhile"
    return f"was killed by {_name(number)}" if number == signal.SIGKILL else f"died of {_name(number)}"


def _name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
    return f"{name} ({signal.strsignal(number)})" if number != signal.SIGKILL else name


def _oom_kills() -> int:
    """Return how many processes of this machine the kernel has ended for lack of memory (/proc/vmstat)."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/vmstat").read_text(encoding="ascii").partition("\noom_kill ")[2].split()[0])
    return 0
