"""Processes of this machine: which one is meant, whether it lives, and how what a run has left behind is ended.

Law: a pid alone names nobody, because it is given again. A process is named by
its start and the boot of the machine as well, and only one that is so named is
ever sent a signal.

What a dead process forked is known by its layout in memory, which the system draws
by lot for each program that it starts and which only a fork shares; Prefect's own
variables name a run's hooks and supervisors, too. So no layout is told of a process
that is itself a fork, or that was laid out without chance, and none but a fork
is ended for it.
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
from prefect_executions.executions.record import Instance, Process

EXECUTION_ID_ENV = "EXECUTION_ID"
"""The environment variable that a run's processes inherit: the id of the execution that they work for."""

GRACE = 3.0
"""Seconds that a process has to end by itself after SIGTERM."""

_LOOK = 0.05
_ROUNDS = 3  # a process may fork while it is being ended
_ZOMBIES = frozenset("ZXx")
# The kernel's include/linux/sched.h: forked but did not exec; the address space was drawn by lot.
_PF_FORKNOEXEC = 0x00000040
_PF_RANDOMIZE = 0x00400000
# It ends by itself when the process is gone that it serves, and removes what that one left in shared memory.
_TRACKER = b"multiprocessing.resource_tracker"


def this_process() -> Process:
    """Return the process that is calling, told so that no other can be taken for it."""
    pid = os.getpid()
    if pid not in _own:
        _own.clear()  # that of a parent, before it forked
        _own[pid] = _named(pid)
    return _own[pid]


def this_process_with_layout() -> Process:
    """Return the process that is calling, with its layout in memory where that tells its forks from all others."""
    named, row = this_process(), _row(os.getpid()) if sys.platform == "linux" else None
    if row is None or row.flags & _PF_FORKNOEXEC or not row.flags & _PF_RANDOMIZE:
        return named
    return named.model_copy(update={"layout": _layout(named.pid)})


def alive(process: Process) -> bool | None:
    """Return whether *process* still runs, or None when that cannot be said from here.

    It cannot of a process of another machine, of another boot, or of another
    container, whose pids mean nothing here.
    """
    if process.boot is None or (process.boot, process.pids) != (_boot(), _pids()):
        return None
    return process.started is not None and process.started == _started(process.pid)


def mark() -> str:
    """Return a short name of the calling process that a file's name may hold, so that `gone` can tell whose it is."""
    pid = os.getpid()
    if pid not in _marks:
        _marks.clear()  # those of a parent, before it forked
        _marks[pid] = _mark(pid, _started(pid))
    return _marks[pid]


def gone(told: str) -> bool:
    """Return whether the process of the mark *told* is known to be gone; False also where that cannot be said."""
    place, _, pid = told.rpartition("-")[0].partition("-")
    if _boot() is None or place != _place() or not pid.isdigit():
        return False
    started = _started(int(pid))
    return started is None or _mark(int(pid), started) != told


def send(process: Process, number: signal.Signals) -> bool:
    """Send *process* a signal; return False when it is gone, or when it cannot be said that it is this one.

    Raises:
        PermissionError: If it belongs to somebody else.
    """
    try:
        # Taken before the look, so that the pid cannot be given to another in between (pidfd_open(2)).
        taken = os.pidfd_open(process.pid) if sys.platform == "linux" else None
    except ProcessLookupError:
        return False
    except OSError:  # an old kernel
        taken = None
    try:
        if not alive(process):
            return False
        if taken is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(taken, number)
    except ProcessLookupError:
        return False
    finally:
        if taken is not None:
            os.close(taken)
    return True


def moment_of_processes() -> int:
    """Return this moment as the start of a process is told (proc(5): clock ticks since boot); 0 where there is none."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def kill_execution_processes(
    execution_id: str, *, instance: Instance | None = None, grace: float = GRACE, cookie: str = EXECUTION_ID_ENV
) -> int:
    """End every process of this user whose variable *cookie* is *execution_id*; return how many there were.

    So is what the process of *instance* forked, dead as it may be, and those before it,
    where they were started for the execution alone. This process and those above it are spared.
    Nothing is done where there is no ``/proc``. A process that shows nothing of its
    environment or its layout is not found.
    """
    own = tuple(_own_processes(instance)) if instance else ()

    def found(table: Mapping[int, _Row]) -> Iterator[int]:
        yield from _carriers(table, f"{cookie}={execution_id}".encode())
        for process in own:
            yield from _forks(table, process)

    return _end(found, grace)


def end_descendants(since: int, *, grace: float = GRACE) -> int:
    """End what this process has started since the moment *since*, with all below it; return how many there were."""
    return _end(lambda table: _below(table, os.getpid(), since), grace)


class _Row(NamedTuple):
    """A line of the table of processes."""

    parent: int
    started: int
    flags: int


def _end(find: Callable[[Mapping[int, _Row]], Iterable[int]], grace: float) -> int:
    ended: set[tuple[int, int]] = set()
    for _ in range(_ROUNDS):
        table = _table()
        spared = {os.getpid(), *_above(table, os.getpid())}
        found = {pid: table[pid] for pid in find(table) if pid not in spared and not _is_tracker(pid)}
        if not found:
            break
        ended |= {(pid, row.started) for pid, row in found.items()}
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 1.0)):
            for pid, row in found.items():
                with suppress(OSError):
                    send(_named(pid, row.started), number)
            found = _after(found, patience)
    return len(ended)


def _after(found: Mapping[int, _Row], patience: float) -> dict[int, _Row]:
    """Return those of *found* that still run after *patience* seconds, or nothing as soon as none does."""
    until = time.monotonic() + patience
    left = dict(found)
    while left and time.monotonic() < until:
        time.sleep(_LOOK)
        left = {pid: row for pid, row in left.items() if (now := _row(pid)) and now.started == row.started}
    return left


def _own_processes(instance: Instance) -> Iterator[Process]:
    yield from instance.earlier_processes or ()
    if instance.process is not None and instance.own_process:
        yield instance.process


def _carriers(table: Mapping[int, _Row], cookie: bytes) -> Iterator[int]:
    for pid in table:
        with suppress(OSError):  # it is gone, or somebody else's
            if _is_ours(pid) and cookie in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


def _forks(table: Mapping[int, _Row], process: Process) -> Iterator[int]:
    """The processes that *process* forked, and their forks, as far as they have started no program of their own."""
    if process.layout is None or not (process.started or "").isdigit() or alive(process) is None:
        return
    since = int(process.started or 0)
    for pid, row in table.items():
        if pid != process.pid and row.flags & _PF_FORKNOEXEC and row.started >= since:
            with suppress(OSError):  # it is gone, or somebody else's
                if _is_ours(pid) and _layout(pid) == process.layout:
                    yield pid


def _is_ours(pid: int) -> bool:
    return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()


def _layout(pid: int) -> str | None:
    """A digest of where a process's program, its libraries' loader and its stack were laid when it was started.

    The auxiliary vector (getauxval(3)) tells these addresses, and a fork has that of
    its parent. They stay secret: an attacker of the process could use them.
    """
    try:
        told = Path(f"/proc/{pid}/auxv").read_bytes()
    except OSError:  # it is gone, or not to be looked into
        return None
    return sha256(f"{_boot()} {_pids()} ".encode() + told).hexdigest() if told else None


def _below(table: Mapping[int, _Row], top: int, since: int) -> set[int]:
    """The processes under *top* whose way up to it leads only through those that started after *since*."""
    found: set[int] = set()
    level = {top}
    while level:
        level = {pid for pid, row in table.items() if row.parent in level and row.started >= since} - found
        found |= level
    return found


def _above(table: Mapping[int, _Row], pid: int) -> Iterator[int]:
    seen = {pid}
    while pid in table and (pid := table[pid].parent) not in seen:
        seen.add(pid)
        yield pid


def _table() -> dict[int, _Row]:
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names are enough
    except OSError:
        return {}
    return {pid: row for pid in pids if (row := _row(pid)) is not None}


def _row(pid: int) -> _Row | None:
    """The line of a process that runs; one that has ended and was not waited for runs no more."""
    # proc(5), /proc/pid/stat: the name in parentheses may hold anything; state, parent, flags, start are 3, 4, 9, 22.
    fields = content(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in _ZOMBIES:  # noqa: PLR2004 - proc(5)
        return None
    return _Row(parent=int(fields[1]), started=int(fields[19]), flags=int(fields[6]))


def _is_tracker(pid: int) -> bool:
    with suppress(OSError):
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _named(pid: int, started: int | None = None) -> Process:
    return Process(
        host=socket.gethostname(),
        boot=_boot(),
        pids=_pids(),
        pid=pid,
        started=_started(pid) if started is None else str(started),
    )


_own: dict[int, Process] = {}
_marks: dict[int, str] = {}


def _mark(pid: int, started: str | None) -> str:
    return f"{_place()}-{pid}-{_short(str(started))}"


def _place() -> str:
    """What pids are counted in: this boot of this machine, and in it this container."""
    return _short(f"{_boot()} {_pids()}")


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    """When a process started, in the system's own words; None when there is none that runs."""
    if sys.platform == "linux":
        row = _row(pid)
        return None if row is None else str(row.started)
    told = _said("ps", "-o", "stat=,lstart=", "-p", str(pid)).strip()
    state, _, started = told.partition(" ")
    return None if not started or state.startswith("Z") else re.sub(r"\s+", " ", started.strip())


@cache
def _boot() -> str | None:
    if sys.platform == "linux":
        return content("/proc/sys/kernel/random/boot_id").strip() or None
    return _said("sysctl", "-n", "kern.bootsessionuuid").strip() or None


def _pids() -> str | None:
    """The namespace that this process's pids are counted in; on Linux each container has its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _said(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=5).stdout  # noqa: S603 - our own words
    except (OSError, subprocess.SubprocessError):
        return ""
