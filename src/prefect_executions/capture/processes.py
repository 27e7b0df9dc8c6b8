"""Identifies processes of this machine, tests whether they are alive, and kills the processes that a run left behind.

Law: a pid alone does not identify a process, because pids are reused. A process is identified by
its pid, its start time and the boot of the machine; only such a process ever gets a signal.

Forks of a dead process are recognised by their memory layout: the kernel randomises it for each
exec, and only a fork shares it. (Environment variables of Prefect are not enough: hooks and
supervisors have them too.) A process that is itself one of several forks, or whose layout is not
randomised, records no layout, and only forks are killed by layout.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from prefect_executions.capture.procfs import content
from prefect_executions.documents import clean_text
from prefect_executions.executions.record import Instance, Process

EXECUTION_ID_ENV = "EXECUTION_ID"
"""The environment variable with the execution id that all processes of a run inherit."""

GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""

_POLL_SECONDS = 0.05
_ROUNDS = 3  # a process may fork while it is being killed
_ZOMBIES = frozenset("ZXx")
# include/linux/sched.h of the kernel: forked without exec; randomised address space.
_PF_FORKNOEXEC = 0x00000040
_PF_RANDOMIZE = 0x00400000
# The resource tracker ends by itself after its process, and removes shared memory that the process left.
_TRACKER = b"multiprocessing.resource_tracker"


def this_process() -> Process:
    """Return the identity of the calling process."""
    pid = os.getpid()
    if pid not in _own:
        _own.clear()  # inherited from the parent at a fork
        _own[pid] = _identity(pid)
    return _own[pid]


def this_process_with_layout() -> Process:
    """Return the identity of the calling process, with its memory layout if that identifies its forks."""
    process, row = this_process(), _row(os.getpid()) if sys.platform == "linux" else None
    is_fork = row is not None and row.flags & _PF_FORKNOEXEC and process.pid not in _alone
    if row is None or is_fork or not row.flags & _PF_RANDOMIZE:
        return process
    return process.model_copy(update={"layout": _layout(process.pid)})


def this_fork_is_alone() -> None:
    """Declare that the parent of the calling process forks no other, so that the memory layout identifies its forks."""
    _alone.add(os.getpid())


def alive(process: Process) -> bool | None:
    """Return whether *process* is running, or None if that is unknown here.

    It is unknown for processes of another machine, another boot, or another container.
    """
    if process.boot is None or (process.boot, process.pids) != (_boot(), _pids()):
        return None
    return process.started is not None and process.started == _started(process.pid)


def mark() -> str:
    """Return a short identity of the calling process for file names, to be tested with `gone`."""
    pid = os.getpid()
    if pid not in _marks:
        _marks.clear()  # inherited from the parent at a fork
        _marks[pid] = _mark(pid, _started(pid))
    return _marks[pid]


def gone(process_mark: str) -> bool:
    """Whether the process of *process_mark* has certainly ended; False if that is unknown."""
    namespace, _, pid = process_mark.rpartition("-")[0].partition("-")
    if _boot() is None or namespace != _namespace() or not pid.isdigit():
        return False
    started = _started(int(pid))
    return started is None or _mark(int(pid), started) != process_mark


def send(process: Process, number: signal.Signals) -> bool:
    """Send *process* a signal; return False if it has ended or cannot be identified.

    Raises:
        PermissionError: If it belongs to another user.
    """
    try:
        # Opened before the check, so that the pid cannot be reused in between (pidfd_open(2)).
        pidfd = os.pidfd_open(process.pid) if sys.platform == "linux" else None
    except ProcessLookupError:
        return False
    except OSError:  # an old kernel
        pidfd = None
    try:
        if not alive(process):
            return False
        if pidfd is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return True


def clock_ticks_since_boot() -> int:
    """Return the current time in the unit of process start times (proc(5)).

    0 on systems without that clock; if it cannot be read, a time after the start of every process.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0
    with suppress(Exception):  # a sandbox may forbid the call
        return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
    return sys.maxsize


def kill_execution_processes(
    execution_id: str, *, instance: Instance | None = None, grace: float = GRACE, cookie: str = EXECUTION_ID_ENV
) -> int:
    """Kill every process of this user whose environment variable *cookie* is *execution_id*; return their number.

    Also kill the forks of the process of *instance* and of its earlier processes, dead or alive,
    if these processes were started for the execution alone. The calling process and its ancestors
    are spared. Does nothing without ``/proc``. A process whose environment and layout are
    unreadable is not found.
    """
    own = tuple(_own_processes(instance)) if instance else ()

    def find(table: Mapping[int, _Row]) -> Iterator[int]:
        yield from _with_variable(table, f"{cookie}={execution_id}".encode())
        for process in own:
            yield from _forks(table, process)

    return _kill(find, grace)


def end_descendants(since: int, *, grace: float = GRACE) -> int:
    """Kill the descendants that this process started since *since* (clock ticks); return their number."""
    return _kill(lambda table: _descendants(table, os.getpid(), since), grace)


class _Row(NamedTuple):
    """A row of the process table."""

    parent: int
    started: int
    flags: int


def _kill(find: Callable[[Mapping[int, _Row]], Iterable[int]], grace: float) -> int:
    killed: set[tuple[int, int]] = set()
    for _ in range(_ROUNDS):
        table = _table()
        spared = {os.getpid(), *_ancestors(table, os.getpid())}
        found = {pid: table[pid] for pid in find(table) if pid not in spared and not _is_tracker(pid)}
        if not found:
            break
        killed |= {(pid, row.started) for pid, row in found.items()}
        for number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 1.0)):
            for pid, row in found.items():
                with suppress(OSError):
                    send(_identity(pid, row.started), number)
            found = _survivors(found, timeout)
    return len(killed)


def _survivors(found: Mapping[int, _Row], timeout: float) -> dict[int, _Row]:
    """Wait up to *timeout* seconds for the processes to end; return those that are still running."""
    until = time.monotonic() + timeout
    left = dict(found)
    while left and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        left = {pid: row for pid, row in left.items() if (now := _row(pid)) and now.started == row.started}
    return left


def _own_processes(instance: Instance) -> Iterator[Process]:
    yield from instance.earlier_processes or ()
    if instance.process is not None and instance.own_process:
        yield instance.process


def _with_variable(table: Mapping[int, _Row], cookie: bytes) -> Iterator[int]:
    for pid in table:
        with suppress(OSError):  # it has ended, or belongs to another user
            if _is_ours(pid) and cookie in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


def _forks(table: Mapping[int, _Row], process: Process) -> Iterator[int]:
    """Yield the forks of *process*, and their forks, that have not called exec."""
    if process.layout is None or not (process.started or "").isdigit() or alive(process) is None:
        return
    since = int(process.started or 0)
    for pid, row in table.items():
        if pid != process.pid and row.flags & _PF_FORKNOEXEC and row.started >= since:
            with suppress(OSError):  # it has ended, or belongs to another user
                if _is_ours(pid) and _layout(pid) == process.layout:
                    yield pid


def _is_ours(pid: int) -> bool:
    return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()


def _layout(pid: int) -> str | None:
    """Return a digest of the addresses of a process's program, loader and stack.

    The auxiliary vector (getauxval(3)) contains these addresses, and a fork inherits it. Only
    a digest is recorded, because the addresses would help an attacker of the process.
    """
    try:
        auxv = Path(f"/proc/{pid}/auxv").read_bytes()
    except OSError:  # it has ended, or is not readable
        return None
    return sha256(f"{_boot()} {_pids()} ".encode() + auxv).hexdigest() if auxv else None


def _descendants(table: Mapping[int, _Row], top: int, since: int) -> set[int]:
    """Return the descendants of *top* that are linked to it only by processes started since *since*."""
    found: set[int] = set()
    level = {top}
    while level:
        level = {pid for pid, row in table.items() if row.parent in level and row.started >= since} - found
        found |= level
    return found


def _ancestors(table: Mapping[int, _Row], pid: int) -> Iterator[int]:
    seen = {pid}
    while pid in table and (pid := table[pid].parent) not in seen:
        seen.add(pid)
        yield pid


def _table() -> dict[int, _Row]:
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - only names are needed
    except OSError:
        return {}
    return {pid: row for pid in pids if (row := _row(pid)) is not None}


def _row(pid: int) -> _Row | None:
    """Return the row of a running process; None for zombies and ended processes."""
    # proc(5), /proc/pid/stat: the name in parentheses may contain anything; fields 3, 4, 9, 22 are state, parent, flags
    # and start.
    fields = content(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in _ZOMBIES:  # noqa: PLR2004 - proc(5)
        return None
    return _Row(parent=int(fields[1]), started=int(fields[19]), flags=int(fields[6]))


def _is_tracker(pid: int) -> bool:
    with suppress(OSError):
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _identity(pid: int, started: int | None = None) -> Process:
    return Process(
        host=_hostname(),
        boot=_boot(),
        pids=_pids(),
        pid=pid,
        started=_started(pid) if started is None else str(started),
    )


def _hostname() -> str | None:
    with suppress(Exception):
        return clean_text(socket.gethostname())
    return None


_own: dict[int, Process] = {}
_alone: set[int] = set()
_marks: dict[int, str] = {}


def _mark(pid: int, started: str | None) -> str:
    return f"{_namespace()}-{pid}-{_short(str(started))}"


def _namespace() -> str:
    """Return a short id of the scope of pids: this boot of this machine, and this container."""
    return _short(f"{_boot()} {_pids()}")


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    """Return the start time of a process in the system's format; None if it is not running."""
    if sys.platform == "linux":
        row = _row(pid)
        return None if row is None else str(row.started)
    output = _output_of("ps", "-o", "stat=,lstart=", "-p", str(pid)).strip()
    state, _, started = output.partition(" ")
    return None if not started or state.startswith("Z") else re.sub(r"\s+", " ", started.strip())


@cache
def _boot() -> str | None:
    if sys.platform == "linux":
        return content("/proc/sys/kernel/random/boot_id").strip() or None
    return _output_of("sysctl", "-n", "kern.bootsessionuuid").strip() or None


def _pids() -> str | None:
    """Return the pid namespace of this process; on Linux each container has its own."""
    with suppress(Exception):  # as `content`
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def _output_of(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=5).stdout  # noqa: S603 - constant commands
    except (OSError, subprocess.SubprocessError):
        return ""
