"""Starts one script, outlives whoever asked for that, ends all that the script leaves behind, and writes how it ended.

Run as a program, by its path and with the standard library alone, because it
has to start in milliseconds and stays small while the script runs. Its order
comes as JSON on its standard input, so that secrets are on no disk.

Law: its own lock on the run's folder says "alive". While it is held somebody
still watches the script; once it is free, what is written is all there will be.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}
_ROUNDS = 5  # a process may fork while it is being ended
_LOOK = 0.02
# The options of prctl(2) by their numbers.
_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
# The flags of unshare(2) and mount(2).
_NEW_MOUNTS = 0x00020000
_NEW_USER = 0x10000000
_BIND = 4096
_PRIVATE_BELOW = 16384 | (1 << 18)


def main() -> None:
    """Read the order, leave the caller, and see the script through; return to the caller once the script has begun."""
    order = json.load(sys.stdin)
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        with os.fdopen(read) as told:
            problem = told.read()
        if problem:
            raise OSError(problem)
        return
    os.close(read)
    with os.fdopen(write, "w") as caller:
        _leave_the_caller()
        try:
            begun = _begin(order)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            caller.write(str(error) or type(error).__name__)
            return
    _see_through(order, *begun)


def _leave_the_caller() -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    # Who waits for the end of our output, as a pipe of the caller, must not wait for the script.
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)


def _begin(order: dict[str, Any]) -> tuple[int, datetime]:
    """Start the script, and write who it is and who watches it; return its pid and its start."""
    folder = Path(order["folder"])
    cpus = _chosen_cpus(order["cpus"])
    if order["shown_at"]:
        _show(order["data"], order["shown_at"])

    def limit() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if cpus:
            os.sched_setaffinity(0, cpus)
        if order["memory"]:
            resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))

    started = datetime.now(UTC)
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        script = subprocess.Popen(  # noqa: S603 - what was asked for
            order["command"],
            cwd=order["working_folder"],
            env=order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=limit,  # noqa: PLW1509 - there is one thread
        )
    script.returncode = 0  # we wait for all children at once, so that it never does
    told = {"launcher": _told_of(os.getpid()), "script": _told_of(script.pid), "started": started.isoformat()}
    _write(folder / "begun.json", told)
    return script.pid, started


def _see_through(order: dict[str, Any], script: int, started: datetime) -> None:
    folder = Path(order["folder"])
    limit = order["time_limit"]
    until = None if limit is None else time.monotonic() + limit
    ended_by = None
    code, ended = _reap(script), datetime.now(UTC)
    while code is None and ended_by is None:
        left = 3600.0 if until is None else until - time.monotonic()
        if left <= 0:
            ended_by = "expired"
        elif (got := signal.sigtimedwait(_SIGNALS, left)) and got.si_signo == signal.SIGTERM:
            ended_by = "cancelled" if (folder / "cancel").exists() else "stopped"
        code, ended = _reap(script), datetime.now(UTC)
    if code is not None:  # it was over before anybody could end it
        ended_by = None
    code = _end_all(_grace(folder, order["grace"]), script, code)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # A fork is counted with our own memory until it becomes the script.
    seen = used.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {
        "code": code,
        "ended_by": ended_by,
        "started": started.isoformat(),
        "ended": (datetime.now(UTC) if ended_by else ended).isoformat(),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) if seen else None,
    }
    _write(folder / "exit.json", told)


def _end_all(grace: float, script: int, code: int | None) -> int | None:
    """End all that is below us, and return the script's code."""
    for _ in range(_ROUNDS):
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            _send_to_all(script, number)
            until = time.monotonic() + patience
            while time.monotonic() < until:
                now = _reap(script)
                code = code if now is None else now
                if not _children_left():
                    return code
                time.sleep(_LOOK)
        grace = 0.0
    return code


def _send_to_all(script: int, number: int) -> None:
    # From the top down: a script whose child ends first may end with it before it has heard anything.
    below = list(_below(os.getpid()))
    for pid in below:
        with suppress(OSError):
            os.kill(pid, number)
    if not below:  # no /proc
        with suppress(OSError):
            os.killpg(script, number)


def _below(top: int) -> Iterator[int]:
    """The processes under *top*: we adopt what lost its parent, so that nothing of the script is anywhere else."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
            if name.isdigit() and (parent := _parent(int(name))):
                children.setdefault(parent, []).append(int(name))
    waiting = [top]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str]:
    """What proc(5) tells after a process's name: state, parent, … and its start at 19."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _reap(script: int) -> int | None:
    """Wait for all children that have ended; return the script's code, as a shell tells it, if it is one of them."""
    code = None
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == script:
                ended = os.waitstatus_to_exitcode(found[1])
                code = 128 - ended if ended < 0 else ended
    return code


def _children_left() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _grace(folder: Path, otherwise: float) -> float:
    """Whoever cancels says in the file how long the processes have."""
    try:
        return float((folder / "cancel").read_text())
    except (OSError, ValueError):
        return otherwise


def _show(data: str, place: str) -> None:
    """Let the folder *data* be seen at *place* by us and all below us, and by nobody else."""
    user, group = os.getuid(), os.getgid()
    try:
        _called("unshare", _NEW_MOUNTS)
    except PermissionError:
        # Who is not root may in a namespace of users of its own, in which it stays who it is.
        _called("unshare", _NEW_MOUNTS | _NEW_USER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    _called("mount", None, b"/", None, _PRIVATE_BELOW, None)
    _called("mount", os.fsencode(data), os.fsencode(place), None, _BIND, None)


def _called(name: str, *arguments: bytes | int | None) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"the data folder cannot be shown ({name}: {os.strerror(number)})")


def _chosen_cpus(number: int | None) -> set[int]:
    """Other CPUs for each run, so that several do not share the first."""
    if not number:
        return set()
    allowed = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(allowed)
    return set((allowed[first:] + allowed[:first])[:number])


def _told_of(pid: int) -> dict[str, Any]:
    """A process, told as `executions.Process` has it."""
    told: dict[str, Any] = {"pid": pid, "host": socket.gethostname()}
    with suppress(OSError, IndexError):
        told["started"] = _stat(pid)[19]
        told["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        told["pids"] = str(Path("/proc/self/ns/pid").readlink())
    return told


def _write(path: Path, told: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _prctl(option: int, value: int) -> None:
    """Ask the kernel; where it is not Linux, the process group has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
