"""Scripts as processes of this machine, each watched by a launcher that outlives whoever asked for it.

The state folder holds one folder for each run, which is all there is to know of
it: any process that sees it can find the run, on this machine. It holds what the
script wrote, and no secret.
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
"""The variables of this process that a script gets, unless it was asked for others; no other one."""

_LOOK = (0.02, 0.25)  # seconds between two looks: at first, and in the end
_CHUNK = 192 * 1024
_BEFORE_KILL = 10.0  # what the launcher may need beyond the grace
_MOMENT = 1.0  # what it may need to write the end, when it cannot be found any more
_STATUS_OF = {None: None, "cancelled": RunStatus.CANCELLED, "expired": RunStatus.EXPIRED, "stopped": RunStatus.FAILED}
_WHY = {
    "cancelled": "it was cancelled",
    "expired": "it ran longer than its time limit",
    "stopped": "its launcher was told to stop, as when a machine is shut down",
}


class ProcessRuntime:
    """Runs scripts with this machine's ``/bin/sh``, each in a session of its own, as the user who asks."""

    name = "process"
    capabilities: Mapping[Capability, str] = MappingProxyType(
        {
            Capability.DATA: "the script begins in it; "
            f"seen as `{DATA}` where the worker has one, else by its own path",
            Capability.ENVIRONMENT: f"with {', '.join(INHERITED)} of the worker, and nothing else of it",
            Capability.SECRETS: "on no disk",
            Capability.OPEN_NETWORK: "the machine's own",
            Capability.CPUS: "whole CPUs, as the affinity of each process; Linux",
            Capability.MEMORY: "the address space of each process (RLIMIT_AS)",
            Capability.TIME_LIMIT: "SIGTERM, then SIGKILL, to every process",
        }
    )

    def __init__(self, state: Path, *, shown_at: str = DATA) -> None:
        """Keep the runs under the folder *state*, which is made when it is first needed.

        Where the folder *shown_at* exists, each script sees its own data there, and
        nobody else does (a mount namespace; Linux).
        """
        self._state = state.absolute()
        self._shown_at = shown_at

    @classmethod
    def open(cls, options: RuntimeOptions) -> ProcessRuntime:
        """Return the runtime with *options*."""
        return cls(options.state)

    def mount_path(self, data: Path) -> str:
        """Return `DATA` where this machine has that folder, else *data* itself."""
        return self._shown_at if self._can_show() else str(data)

    def _can_show(self) -> bool:
        return sys.platform == "linux" and Path(self._shown_at).is_dir()

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan of *request*, and write it into the folder *into*."""
        reasons = [*common_reasons(request, self.capabilities), *_reasons_of_machine(request)]
        if self._shown_at in request.script and not self._can_show():
            reasons.append(
                f"data folder: the script names {self._shown_at}, which is not here; make that folder once, empty, "
                "or let the script use the folder that it begins in"
            )
        if reasons:
            raise refusal(self.name, request, reasons)
        limits = request.resources
        spec = {
            "command": ["/bin/sh", str(self._folder(request.id) / "entrypoint.sh")],
            "data": str(request.data),
            "shown_at": self._shown_at if self._can_show() else None,
            "working_folder": self.mount_path(request.data),
            "inherited": [name for name in INHERITED if name in os.environ],
            "cpus": None if limits.cpus is None else int(limits.cpus),
            "memory": limits.memory,
            "time_limit": limits.time_limit,
        }
        plan = Plan(runtime=self.name, request=request, secret_names=tuple(sorted(request.secrets)), spec=spec)
        plan.write(into)
        return plan

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:  # noqa: ARG002 - a process has none
        """Return None."""
        return None

    def run(self, plan: Plan) -> ProcessRun:
        """Start the script of *plan*; return once it has begun."""
        environment = {name: os.environ[name] for name in plan.spec["inherited"] if name in os.environ}
        environment |= full_environment(plan)
        folder = self._folder(plan.id)
        try:
            with _claimed(folder, plan) as lock:
                _launch(plan, folder, environment, lock)
        except OSError as error:
            raise InfrastructureError(f"The run {plan.id} cannot be kept in {folder}: {error}") from error
        return ProcessRun(folder)

    def find(self, run_id: str) -> ProcessRun:
        """Return the run with this id."""
        folder = self._folder(run_id)
        if not folder.is_dir():
            raise NotFoundError(f"No run {run_id} is kept in {self._state}; the runtime 'process' finds its own alone")
        return ProcessRun(folder)

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _folder(self, name: str) -> Path:
        return self._state / check_run_id(name)


class ProcessRun:
    """A run whose folder is at hand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.id = folder.name

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and when nobody saw it."""
        end = self._end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return how it stands now."""
        end = self._end()
        if end is not None:
            return end.status
        return RunStatus.RUNNING if self._told("begun.json") else RunStatus.WAITING

    def seen(self) -> RunLocation:
        """Return the process of the script itself."""
        begun = self._told("begun.json")
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
        """Yield what it has written and will write, until it is over and all was told."""
        offsets: dict[StreamName, int] = {"stdout": 0, "stderr": 0}
        for pause in _pauses():
            # Looked at before the files, so that what it wrote last is not missed.
            over = self._end() is not None
            for stream, offset in offsets.items():
                for data in self._written(stream, offset):
                    offsets[stream] += len(data)
                    yield LogChunk(stream, data)
            if over:
                return
            time.sleep(pause)

    def cancel(self, grace: float = GRACE) -> Exit:
        """End every process of it; return its end when none is left."""
        end = self._end()
        if end is None:
            (self._folder / "cancel").write_text(str(grace))
            self._stop_launcher(grace)
            end = self._end() or _lost()
        if end.status is RunStatus.LOST:
            # Nobody watches it: what carries its cookie is all that can be known of it.
            kill_execution_processes(self.id, grace=grace, cookie=RUN_ID_ENV)
        return end

    def discard(self) -> None:
        """Forget it: end what is left of it, and remove its folder."""
        if self._folder.is_dir():
            self.cancel()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop_launcher(self, grace: float) -> None:
        begun = self._told("begun.json")
        try:
            sent = begun is not None and send(Process.model_validate(begun["launcher"]), signal.SIGTERM)
        except PermissionError:
            sent = False
        with suppress(TimeoutError):
            self.wait(grace + _BEFORE_KILL if sent else _MOMENT)
        if self._end() is None:
            raise InfrastructureError(
                f"The run {self.id} cannot be ended from here: its launcher runs on another machine, in another "
                "container or as another user, or a process of it hangs in the kernel; cancel it there, or later"
            )

    def _end(self) -> Exit | None:
        """How it ended; None while somebody watches it."""
        told = self._told("exit.json")
        if told is None and not _is_held(self._folder):
            # It may have been written between the two looks.
            told = self._told("exit.json")
            if told is None:
                return _lost()
        return None if told is None else _exit_of(told)

    def _told(self, name: str) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = json.loads((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        return told

    def _written(self, stream: StreamName, offset: int) -> Iterator[bytes]:
        with suppress(FileNotFoundError), (self._folder / stream).open("rb") as log:
            log.seek(offset)
            while data := log.read(_CHUNK):
                yield data


def _reasons_of_machine(request: RunRequest) -> Iterator[str]:
    limits = request.resources
    if limits.cpus is not None:
        if not hasattr(os, "sched_setaffinity"):
            yield "cpus: this system has no affinity of processes"
        elif limits.cpus != int(limits.cpus):
            yield f"cpus: {limits.cpus:g} is no whole number, and a process has whole CPUs"
        elif limits.cpus > len(os.sched_getaffinity(0)):
            yield f"cpus: {limits.cpus:g} were asked for, and {len(os.sched_getaffinity(0))} are here"
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    if limits.memory is not None and most != resource.RLIM_INFINITY and limits.memory > most:
        yield f"memory: {limits.memory} bytes are more than this process may have ({most})"


def _launch(plan: Plan, folder: Path, environment: Mapping[str, str], lock: int) -> None:
    order = plan.spec | {"folder": str(folder), "environment": environment, "grace": GRACE}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-I", "-S", "-X", "utf8", launcher.__file__],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
        # What the launcher inherits it would show to whoever looks for processes of the execution.
        env={},
        pass_fds=[lock],
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        shutil.rmtree(folder, ignore_errors=True)
        raise InfrastructureError(f"The script of {plan.id} cannot be started: {last}")


@contextmanager
def _claimed(folder: Path, plan: Plan) -> Iterator[int]:
    """Make the run's folder, which nobody sees before it is locked; yield the lock, which the launcher inherits."""
    made = folder.with_name(f".{folder.name}.{uuid4().hex}")
    made.mkdir(parents=True, mode=0o700)
    lock = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan.write(made)
        try:
            made.rename(folder)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
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


def _exit_of(told: Mapping[str, Any]) -> Exit:
    code = told["code"]
    status = _STATUS_OF[told["ended_by"]] or (RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED)
    return Exit(
        status=status,
        code=code,
        why=_WHY.get(told["ended_by"]),
        started=told["started"],
        ended=told["ended"],
        cpu_seconds=told["cpu_seconds"],
        peak_memory=told["peak_memory"],
    )


def _lost() -> Exit:
    return Exit(status=RunStatus.LOST, why="nobody watches it any more: its launcher was killed, or never started")


def _pauses() -> Iterator[float]:
    pause, longest = _LOOK
    while True:
        yield pause
        pause = min(pause * 1.3, longest)
