"""A run in a Kubernetes pod, and the transfer of its data; each call reads its state from the cluster.

Law: a script starts at most once. Its pod starts it when the data arrives, and the
Job names the only pod that gets the data. A pod that Kubernetes creates to replace
a lost one gets none, and is removed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from prefect_executions.errors import ExecutionsError, InfrastructureError
from prefect_executions.runtimes.container_init import OWN_FOLDER
from prefect_executions.runtimes.interface import GRACE, Exit, LogChunk, RunLocation, RunStatus
from prefect_executions.runtimes.kubernetes.api import Cluster, Command, Refused
from prefect_executions.runtimes.kubernetes.job import (
    ASSIGNED_POD,
    CANCELLED,
    DATA_FOLDER,
    END,
    FETCHED,
    KEEPER,
    RECEIVER,
    SCRIPT,
    Job,
    JobSnapshot,
    backoff,
)
from prefect_executions.runtimes.kubernetes.transfer import TarStream, unpack

_MAX_FAILURES = 5

# Each sender unpacks into a folder of its own; if two race, one of them wins.
_RECEIVE = f"""
cd {OWN_FOLDER} && mkdir "in.$1" && head -c "$2" | tar -xf - -C "in.$1" || exit 2
if mkdir gate 2>/dev/null; then mv "in.$1" data && : >ready; else rm -rf "in.$1"; fi
"""
_OPEN = f": >{OWN_FOLDER}/ready"
_FETCH = f"tar -cf - -C {OWN_FOLDER}/data ."
_KILL_TIMEOUT = 120.0  # seconds; the node may be a busy machine
_ALL_READ = 0  # an exit code

# Until the script has ended, or for ten seconds (3), to notice a lost connection or container.
_FOLLOW_LOGS = f"""
cd {OWN_FOLDER}; out=$1; err=$2; rounds=0
while :; do
  over=; [ -e over ] && over=1
  if [ -e stdout ]; then
    size=$(wc -c <stdout)
    if [ "$size" -gt "$out" ]; then tail -c "+$((out + 1))" stdout | head -c "$((size - out))"; out=$size; fi
  fi
  if [ -e stderr ]; then
    size=$(wc -c <stderr)
    if [ "$size" -gt "$err" ]; then tail -c "+$((err + 1))" stderr | head -c "$((size - err))" >&2; err=$size; fi
  fi
  [ "$over" ] && exit {_ALL_READ}
  rounds=$((rounds + 1)); [ "$rounds" -ge 100 ] && exit 3
  sleep 0.1
done
"""


def send_data(job: Job) -> None:
    """Wait until a pod of *job* waits for its data, and send it; a second caller changes nothing.

    A permanent failure becomes the end of the run, for all callers that wait for it.
    """
    failures = 0
    for _ in backoff():
        try:
            snapshot = job.snapshot()
            if snapshot is None or snapshot.started or CANCELLED in snapshot.annotations or job.end() is not None:
                return
            if snapshot.waits_for_data and _is_assigned(job, snapshot):
                _send(job, snapshot)
                return
        except (ExecutionsError, Refused, OSError) as error:
            failures += 1
            if failures >= _MAX_FAILURES:
                _record_failure(job, error)
                return


def fetch_data(job: Job) -> None:
    """Fetch the data folder after the script has ended, once; lost data stays lost.

    Raises:
        InfrastructureError: If the script has ended, but the folder cannot be fetched.
    """
    snapshot = job.snapshot()
    if snapshot is None or not {DATA_FOLDER, ASSIGNED_POD} <= snapshot.annotations.keys():
        return
    if FETCHED in snapshot.annotations:
        return
    end = snapshot.end()
    if end is None or end.status is RunStatus.LOST or end.code is None:
        return
    folder = Path(snapshot.annotations[DATA_FOLDER])
    if not folder.is_dir():
        raise InfrastructureError(
            f"The data of {job.name} belongs into {folder}, which is missing here; wait for the run on its own machine"
        )
    command = job.command(snapshot, KEEPER, _FETCH) if snapshot.keeps_data else None
    if command is None:
        raise InfrastructureError(f"The data of {job.name} cannot be fetched: its pod is gone")

    def check() -> None:
        if command.code() != 0:
            raise InfrastructureError(f"The data of {job.name} cannot be fetched completely: {command.errors}")

    with closing(command):
        unpack(_Output(command), folder, check=check)
    job.annotate(FETCHED, datetime.now(UTC).isoformat())


def _is_assigned(job: Job, snapshot: JobSnapshot) -> bool:
    """Whether the pod of *snapshot* gets the data; all callers make this decision only once."""
    pod = snapshot.pod
    if pod is None:
        return False
    name = f"{pod['metadata']['name']} {pod['metadata']['uid']}"
    job.annotate(ASSIGNED_POD, name, unless=(ASSIGNED_POD, END, CANCELLED))
    current = job.snapshot()
    return current is not None and current.annotations.get(ASSIGNED_POD) == name


def _send(job: Job, snapshot: JobSnapshot) -> None:
    folder = snapshot.annotations.get(DATA_FOLDER)
    packed = None if folder is None else TarStream.of(Path(folder))
    if packed is None:
        command = job.command(snapshot, RECEIVER, _OPEN)
    else:
        command = job.command(snapshot, RECEIVER, _RECEIVE, uuid4().hex, str(packed.size), stdin=True)
    if command is None:
        raise InfrastructureError(f"The pod of {job.name} does not accept its data")
    with closing(command):
        if packed is not None:
            for chunk in packed.chunks():
                command.send(chunk)
        if command.code() != 0:
            raise InfrastructureError(
                f"The data of {job.name} cannot be sent; the image needs sh, head and tar: {command.errors}"
            )


def _record_failure(job: Job, error: Exception) -> None:
    end = Exit(status=RunStatus.FAILED, why=str(error))
    with suppress(InfrastructureError):
        job.annotate(END, end.model_dump_json(by_alias=True, exclude_none=True), unless=(END,), parallelism=0)


class _Output:
    """The stdout of a command as a readable file."""

    def __init__(self, command: Command) -> None:
        self._output = command.output()
        self._command = command
        self._buffer = bytearray()

    def read(self, size: int) -> bytes:
        """Return the next *size* bytes, fewer only at the end."""
        while len(self._buffer) < size:
            chunk = next(self._output, None)
            if chunk is None:
                break
            stream, data = chunk
            if stream == "stdout":
                self._buffer += data
            else:
                self._command.errors += data.decode(errors="replace")
        read = bytes(self._buffer[:size])
        del self._buffer[:size]
        return read


class PodRun:
    """A run with an existing Job."""

    def __init__(self, cluster: Cluster, run_id: str) -> None:
        """Open the run; if its pod waits for its data, this process sends it."""
        self.id = run_id
        self._job = Job(cluster, run_id)
        threading.Thread(target=send_data, args=(self._job,), name=f"data of {run_id}", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and if its end was not observed."""
        end = self._job.end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return its status now."""
        end = self._job.end()
        if end is not None:
            return end.status
        snapshot = self._job.snapshot()
        return RunStatus.RUNNING if snapshot is not None and snapshot.started else RunStatus.WAITING

    def seen(self) -> RunLocation:
        """Return the pod, its node and its image, as the cluster reports them."""
        snapshot = self._job.snapshot()
        return RunLocation() if snapshot is None else snapshot.seen()

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has and its data folder was fetched."""
        end = self._wait_end(timeout)
        if end is None:
            raise TimeoutError(f"The run {self.id} still runs after {timeout:g} s")
        fetch_data(self._job)
        return end

    def logs(self) -> Iterator[LogChunk]:
        """Yield its output, live; after the last chunk the data folder has been fetched."""
        offsets = {"stdout": 0, "stderr": 0}
        failures = 0
        for _ in backoff():
            over = self._job.end() is not None
            snapshot = self._job.snapshot()
            command = None if snapshot is None else self._follow_logs(snapshot, offsets)
            if command is not None:
                try:
                    with closing(command):
                        for stream, data in command.output():
                            offsets[stream] += len(data)
                            yield LogChunk(stream, data)
                        over = command.code() == _ALL_READ or over
                except InfrastructureError:
                    failures += 1
                    if failures >= _MAX_FAILURES:
                        raise
                    continue
            if over:
                break
        self.wait()

    def cancel(self, grace: float = GRACE) -> Exit:
        """End all of its processes; return its end when none is left and the data folder was fetched."""
        if self._job.end() is None:
            self._job.annotate(CANCELLED, datetime.now(UTC).isoformat(), unless=(END,))
            snapshot = self._job.snapshot()
            if snapshot is not None and not snapshot.started and snapshot.end() is None:
                self.discard()
                return Exit(status=RunStatus.CANCELLED, why="it was cancelled before it started")
            self._kill(grace)
        return self.wait(_KILL_TIMEOUT)

    def discard(self) -> None:
        """End what remains of it, and remove its Job, its pod and its Secret."""
        self._job.remove()

    def _wait_end(self, timeout: float | None) -> Exit | None:
        for _ in backoff(timeout):
            end = self._job.end()
            if end is not None:
                return end
        return None

    def _follow_logs(self, snapshot: JobSnapshot, offsets: dict[str, int]) -> Command | None:
        """Start a command that sends the logs from *offsets* on; None if they are unavailable."""
        if not snapshot.keeps_data or not snapshot.started:
            return None
        return self._job.command(snapshot, KEEPER, _FOLLOW_LOGS, str(offsets["stdout"]), str(offsets["stderr"]))

    def _kill(self, grace: float) -> None:
        for signal_name, timeout in (("TERM", grace), ("KILL", _KILL_TIMEOUT)):
            snapshot = self._job.snapshot()
            if snapshot is None or snapshot.end() is not None:
                return
            if not self._signal(snapshot, signal_name):
                self._undo_cancel()
            if self._wait_end(timeout) is not None:
                return
        raise InfrastructureError(f"The script of {self.id} does not end; its node may be unavailable")

    def _signal(self, snapshot: JobSnapshot, name: str) -> bool:
        """Send a signal to all processes of the script's container except its init, which ends with the script."""
        with suppress(InfrastructureError):
            command = self._job.command(snapshot, SCRIPT, f"kill -{name} -1")
            if command is not None:
                with closing(command):
                    command.code()
                return True
        return False

    def _undo_cancel(self) -> None:
        """Remove the cancel annotation if the script ended by itself first: it keeps its own end."""
        snapshot = self._job.snapshot()
        if snapshot is not None and snapshot.script.get("terminated") and END not in snapshot.annotations:
            self._job.annotate(CANCELLED, None, unless=(END,))
