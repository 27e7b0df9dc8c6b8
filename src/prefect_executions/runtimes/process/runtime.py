"""The process runtime: scripts as processes of this machine, each with a launcher that outlives the caller.

The state folder has one folder for each run with all of its state, so any process
of this machine that can read it finds the run. It holds the script's output, and
no secret.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from prefect_executions.capture.processes import kill_execution_processes, send
from prefect_executions.errors import InfrastructureError, NotFoundError, PlanError
from prefect_executions.executions.record import Process
from prefect_executions.runtimes.interface import (
    DATA,
    GRACE,
    RUN_ID_ENV,
    Capability,
    Exit,
    LogChunk,
    Plan,
    RunLocation,
    RunRequest,
    RunStatus,
    RuntimeOptions,
    StreamName,
    check_run_id,
    common_reasons,
    full_environment,
    refusal,
)
from prefect_executions.runtimes.process import launcher

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""The only variables of this process that a script inherits; the request may override them."""

_POLL = (0.02, 0.25)  # seconds, at first and at most
_CHUNK = 192 * 1024
_KILL_TIMEOUT = 10.0  # seconds that the launcher may need beyond the grace period
_EXIT_TIMEOUT = 1.0  # seconds that a launcher that just ended may need to write the exit
_STATUS_OF = {None: None, "cancelled": RunStatus.CANCELLED, "expired": RunStatus.EXPIRED, "stopped": RunStatus.FAILED}
_WHY = {
    "cancelled": "it was cancelled",
    "expired": "it exceeded its time limit",
    "stopped": "its launcher was stopped, as when a machine shuts down",
}


class ProcessRuntime:
    """Runs each script with this machine's ``/bin/sh``, in a session of its own, as the calling user."""

    name = "process"
    capabilities: Mapping[Capability, str] = MappingProxyType(
        {
            Capability.DATA: "the script starts in it; "
            f"mounted at `{DATA}` if the worker has that folder, else at its own path",
            Capability.ENVIRONMENT: f"with {', '.join(INHERITED)} of the worker, and none of its other variables",
            Capability.SECRETS: "never written to a disk",
            Capability.OPEN_NETWORK: "the machine's own",
            Capability.CPUS: "whole CPUs, as the CPU affinity of each process; only on Linux",
            Capability.MEMORY: "limit of the address space of each process (RLIMIT_AS)",
            Capability.TIME_LIMIT: "SIGTERM, then SIGKILL, to every process",
        }
    )

    def __init__(self, state: Path, *, shown_at: str = DATA) -> None:
        """Keep runs in the folder *state*, which is created on first use.

        If the folder *shown_at* exists, each script sees its own data there, in a mount
        namespace (Linux).
        """
        self._state = state.absolute()
        self._shown_at = shown_at

    @classmethod
    def open(cls, options: RuntimeOptions) -> ProcessRuntime:
        """Return the runtime with *options*."""
        return cls(options.state)

    def mount_path(self, data: Path) -> str:
        """Return `DATA` if this machine has that folder, else *data* itself."""
        return self._shown_at if self._can_mount() else str(data)

    def _can_mount(self) -> bool:
        return sys.platform == "linux" and Path(self._shown_at).is_dir()

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan of *request*, and write it into the folder *into*."""
        reasons = [*common_reasons(request, self.capabilities), *_machine_reasons(request)]
        if self._shown_at in request.script and not self._can_mount():
            reasons.append(
                f"data folder: the script uses {self._shown_at}, which is missing here; make that folder once, empty, "
                "or let the script use the folder that it starts in"
            )
        if reasons:
            raise refusal(self.name, request, reasons)
        limits = request.resources
        spec = {
            "command": ["/bin/sh", str(self._folder(request.id) / "entrypoint.sh")],
            "data": str(request.data),
            "shown_at": self._shown_at if self._can_mount() else None,
            "working_folder": self.mount_path(request.data),
            "inherited": [name for name in INHERITED if name in os.environ],
            "cpus": None if limits.cpus is None else int(limits.cpus),
            "memory": limits.memory,
            "time_limit": limits.time_limit,
        }
        plan = Plan(runtime=self.name, request=request, secret_names=tuple(sorted(request.secrets)), spec=spec)
        plan.write(into)
        return plan

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:  # noqa: ARG002 - a process has no image
        """Return None."""
        return None

    def run(self, plan: Plan) -> ProcessRun:
        """Start the script of *plan*; return once it has started."""
        environment = {name: os.environ[name] for name in plan.spec["inherited"] if name in os.environ}
        environment |= full_environment(plan)
        folder = self._folder(plan.id)
        try:
            with _claimed(folder, plan) as lock:
                _launch(plan, folder, environment, lock)
        except OSError as error:
            raise InfrastructureError(f"The run {plan.id} cannot be stored in {folder}: {error}") from error
        return ProcessRun(folder)

    def find(self, run_id: str) -> ProcessRun:
        """Return the run with this id."""
        folder = self._folder(run_id)
        if not folder.is_dir():
            raise NotFoundError(f"There is no run {run_id} in {self._state}; the runtime 'process' finds its own only")
        return ProcessRun(folder)

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _folder(self, name: str) -> Path:
        return self._state / check_run_id(name)


class ProcessRun:
    """A run with its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.id = folder.name

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and if its end was not observed."""
        end = self._end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return its status now."""
        end = self._end()
        if end is not None:
            return end.status
        return RunStatus.RUNNING if self._read("begun.json") else RunStatus.WAITING

    def seen(self) -> RunLocation:
        """Return the script's process."""
        begun = self._read("begun.json")
        if begun is None:
            return RunLocation()
        process = Process.model_validate(begun["script"])
        return RunLocation(process=process, node=process.host)

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has."""
        until = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            end = self._end()
            if end is not None:
                return end
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"The run {self.id} still runs after {timeout:g} s")
            time.sleep(pause)
        raise AssertionError

    def logs(self) -> Iterator[LogChunk]:
        """Yield its output, live, until it has ended and everything was read."""
        offsets: dict[StreamName, int] = {"stdout": 0, "stderr": 0}
        for pause in _pauses():
            # Checked before the files are read, so that the last output is not missed.
            over = self._end() is not None
            for stream, offset in offsets.items():
                for data in self._read_log(stream, offset):
                    offsets[stream] += len(data)
                    yield LogChunk(stream, data)
            if over:
                return
            time.sleep(pause)

    def cancel(self, grace: float = GRACE) -> Exit:
        """End all of its processes; return its end when none is left."""
        end = self._end()
        if end is None:
            (self._folder / "cancel").write_text(str(grace))
            self._stop_launcher(grace)
            end = self._end() or _lost()
        if end.status is RunStatus.LOST:
            # Its launcher is gone: the run id in their environment identifies the remaining processes.
            kill_execution_processes(self.id, grace=grace, cookie=RUN_ID_ENV)
        return end

    def discard(self) -> None:
        """End what remains of it, and remove its folder."""
        if self._folder.is_dir():
            self.cancel()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop_launcher(self, grace: float) -> None:
        begun = self._read("begun.json")
        try:
            sent = begun is not None and send(Process.model_validate(begun["launcher"]), signal.SIGTERM)
        except PermissionError:
            sent = False
        with suppress(TimeoutError):
            self.wait(grace + _KILL_TIMEOUT if sent else _EXIT_TIMEOUT)
        if self._end() is None:
            raise InfrastructureError(
                f"The run {self.id} cannot be ended from here: its launcher runs on another machine, in another "
                "container or as another user, or one of its processes hangs in the kernel; cancel it there, or later"
            )

    def _end(self) -> Exit | None:
        """Return how it ended; None while its launcher is alive."""
        end = self._read("exit.json")
        if end is None and not _is_held(self._folder):
            # The file may have been written between the two checks.
            end = self._read("exit.json")
            if end is None:
                return _lost()
        return None if end is None else _exit_of(end)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        return content

    def _read_log(self, stream: StreamName, offset: int) -> Iterator[bytes]:
        with suppress(FileNotFoundError), (self._folder / stream).open("rb") as log:
            log.seek(offset)
            while data := log.read(_CHUNK):
                yield data


def _machine_reasons(request: RunRequest) -> Iterator[str]:
    limits = request.resources
    if limits.cpus is not None:
        if not hasattr(os, "sched_setaffinity"):
            yield "cpus: this system has no process affinity"
        elif limits.cpus != int(limits.cpus):
            yield f"cpus: {limits.cpus:g} is not a whole number, and a process has whole CPUs"
        elif limits.cpus > len(os.sched_getaffinity(0)):
            yield f"cpus: {limits.cpus:g} were requested, and {len(os.sched_getaffinity(0))} are available"
    maximum = resource.getrlimit(resource.RLIMIT_AS)[1]
    if limits.memory is not None and maximum != resource.RLIM_INFINITY and limits.memory > maximum:
        yield f"memory: {limits.memory} bytes are more than the limit of this process ({maximum})"


def _launch(plan: Plan, folder: Path, environment: Mapping[str, str], lock: int) -> None:
    order = plan.spec | {"folder": str(folder), "environment": environment, "grace": GRACE}
    result = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-I", "-S", "-X", "utf8", launcher.__file__],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
        # An inherited environment would make the launcher look like a process of the execution.
        env={},
        pass_fds=[lock],
    )
    if result.returncode:
        last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        shutil.rmtree(folder, ignore_errors=True)
        raise InfrastructureError(f"The script of {plan.id} cannot be started: {last}")


@contextmanager
def _claimed(folder: Path, plan: Plan) -> Iterator[int]:
    """Create the run's folder, locked before it gets its name; yield the lock, which the launcher inherits."""
    new = folder.with_name(f".{folder.name}.{uuid4().hex}")
    new.mkdir(parents=True, mode=0o700)
    lock = os.open(new / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan.write(new)
        try:
            new.rename(folder)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            raise PlanError(f"A run with the id {plan.id} was started before; find it, or use another id") from None
        yield lock
    finally:
        os.close(lock)


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _exit_of(end: Mapping[str, Any]) -> Exit:
    code = end["code"]
    status = _STATUS_OF[end["ended_by"]] or (RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED)
    return Exit(
        status=status,
        code=code,
        why=_WHY.get(end["ended_by"]),
        started=end["started"],
        ended=end["ended"],
        cpu_seconds=end["cpu_seconds"],
        peak_memory=end["peak_memory"],
    )


def _lost() -> Exit:
    return Exit(status=RunStatus.LOST, why="its end was not observed: its launcher was killed, or never started")


def _pauses() -> Iterator[float]:
    pause, longest = _POLL
    while True:
        yield pause
        pause = min(pause * 1.3, longest)
