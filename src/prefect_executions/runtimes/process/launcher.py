"""The launcher of one script: a detached program that starts it, waits for it, and records its end.

It outlives its caller, and ends all processes that the script leaves behind. It is
run by its path and uses only the standard library, so that it starts in
milliseconds and stays small. The order comes as JSON on standard input, so that
secrets are on no disk.

Law: its lock on the run's folder means "alive". While the lock is held, the script
is watched; once it is free, the files in the folder are final.
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
_ROUNDS = 5  # a process may fork while it is being killed
_POLL = 0.02  # seconds
# The options of prctl(2) by their numbers.
_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
# The flags of unshare(2) and mount(2).
_NEW_MOUNTS = 0x00020000
_NEW_USER = 0x10000000
_BIND = 4096
_PRIVATE_BELOW = 16384 | (1 << 18)


def main() -> None:
    """Read the order, detach, and run the script; the original process returns once the script has started."""
    order = json.load(sys.stdin)
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            message = pipe.read()
        if message:
            raise OSError(message)
        return
    os.close(read)
    with os.fdopen(write, "w") as caller:
        _detach()
        try:
            started = _start(order)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            caller.write(str(error) or type(error).__name__)
            return
    _supervise(order, *started)


def _detach() -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    # A caller that reads our output to its end must not wait for the script.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


def _start(order: dict[str, Any]) -> tuple[int, datetime]:
    """Start the script, and record both processes in ``begun.json``; return its pid and start time."""
    folder = Path(order["folder"])
    cpus = _choose_cpus(order["cpus"])
    if order["shown_at"]:
        _mount(order["data"], order["shown_at"])

    def limit() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if cpus:
            os.sched_setaffinity(0, cpus)
        if order["memory"]:
            resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))

    started = datetime.now(UTC)
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        script = subprocess.Popen(  # noqa: S603 - the requested script
            order["command"],
            cwd=order["working_folder"],
            env=order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=limit,  # noqa: PLW1509 - there is one thread
        )
    script.returncode = 0  # we wait for all children ourselves, so Popen must not
    begun = {"launcher": _identity(os.getpid()), "script": _identity(script.pid), "started": started.isoformat()}
    _write(folder / "begun.json", begun)
    return script.pid, started


def _supervise(order: dict[str, Any], script: int, started: datetime) -> None:
    folder = Path(order["folder"])
    limit = order["time_limit"]
    until = None if limit is None else time.monotonic() + limit
    ended_by = None
    code, ended = _reap(script), datetime.now(UTC)
    while code is None and ended_by is None:
        left = 3600.0 if until is None else until - time.monotonic()
        if left <= 0:
            ended_by = "expired"
        elif (received := signal.sigtimedwait(_SIGNALS, left)) and received.si_signo == signal.SIGTERM:
            ended_by = "cancelled" if (folder / "cancel").exists() else "stopped"
        code, ended = _reap(script), datetime.now(UTC)
    if code is not None:  # it ended by itself first
        ended_by = None
    code = _end_all(_grace(folder, order["grace"]), script, code)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Until exec, a fork counts with our own memory.
    valid = usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = {
        "code": code,
        "ended_by": ended_by,
        "started": started.isoformat(),
        "ended": (datetime.now(UTC) if ended_by else ended).isoformat(),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) if valid else None,
    }
    _write(folder / "exit.json", end)


def _end_all(grace: float, script: int, code: int | None) -> int | None:
    """End all descendants, and return the script's exit code."""
    for _ in range(_ROUNDS):
        for number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            _send_to_all(script, number)
            until = time.monotonic() + timeout
            while time.monotonic() < until:
                reaped = _reap(script)
                code = code if reaped is None else reaped
                if not _has_children():
                    return code
                time.sleep(_POLL)
        grace = 0.0
    return code


def _send_to_all(script: int, number: int) -> None:
    # Parents first: a script whose child ends may end with it before it gets its own signal.
    descendants = list(_descendants(os.getpid()))
    for pid in descendants:
        with suppress(OSError):
            os.kill(pid, number)
    if not descendants:  # no /proc
        with suppress(OSError):
            os.killpg(script, number)


def _descendants(top: int) -> Iterator[int]:
    """Yield the processes below *top*. As a subreaper we adopt orphans, so no process of the script escapes."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
            if name.isdigit() and (parent := _parent(int(name))):
                children.setdefault(parent, []).append(int(name))
    waiting = [top]
    while waiting:
        below = children.get(waiting.pop(), [])
        yield from below
        waiting += below


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5) stat after a process's name: state, parent, …, start time at 19."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _reap(script: int) -> int | None:
    """Reap all children that have ended; return the script's exit code, as in a shell, if it is one of them."""
    code = None
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            if child[0] == script:
                status = os.waitstatus_to_exitcode(child[1])
                code = 128 - status if status < 0 else status
    return code


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _grace(folder: Path, default: float) -> float:
    """Return the grace period, which a cancel request writes into the file ``cancel``."""
    try:
        return float((folder / "cancel").read_text())
    except (OSError, ValueError):
        return default


def _mount(data: str, target: str) -> None:
    """Bind-mount the folder *data* at *target*, for this process and its descendants only."""
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEW_MOUNTS)
    except PermissionError:
        # Without root this needs a user namespace of our own, in which user and group stay unchanged.
        _call("unshare", _NEW_MOUNTS | _NEW_USER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    _call("mount", None, b"/", None, _PRIVATE_BELOW, None)
    _call("mount", os.fsencode(data), os.fsencode(target), None, _BIND, None)


def _call(name: str, *arguments: bytes | int | None) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"the data folder cannot be mounted ({name}: {os.strerror(number)})")


def _choose_cpus(number: int | None) -> set[int]:
    """Return CPUs that vary by run, so that parallel runs do not share the first ones."""
    if not number:
        return set()
    allowed = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(allowed)
    return set((allowed[first:] + allowed[:first])[:number])


def _identity(pid: int) -> dict[str, Any]:
    """Return a process in the form of `executions.record.Process`."""
    identity: dict[str, Any] = {"pid": pid, "host": socket.gethostname()}
    with suppress(OSError, IndexError):
        identity["started"] = _stat(pid)[19]
        identity["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity["pids"] = str(Path("/proc/self/ns/pid").readlink())
    return identity


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _prctl(option: int, value: int) -> None:
    """Set a Linux process option; other systems rely on the process group."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
