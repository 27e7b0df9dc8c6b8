"""A run in a pod: all that is known of it is asked of the cluster, each time anew.

The data of a run on its way to its pod, and back.

Law: a script begins at most once. Its pod begins with the data that it is given,
and the Job names the one pod that it was given to; a pod that Kubernetes makes in
the place of a lost one waits in vain, and is removed.
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

_TRIES = 5

# Into a folder of its own until it is whole: two who hand it over at once do not meet, and one of them wins.
_RECEIVE = f"""
cd {OWN_FOLDER} && mkdir "in.$1" && head -c "$2" | tar -xf - -C "in.$1" || exit 2
if mkdir gate 2>/dev/null; then mv "in.$1" data && : >ready; else rm -rf "in.$1"; fi
"""
_OPEN = f": >{OWN_FOLDER}/ready"
_FETCH = f"tar -cf - -C {OWN_FOLDER}/data ."


def send_data(job: Job) -> None:
    """Wait until a pod of *job* waits for its data, and give it; a second caller changes nothing.

    What fails for good becomes the end of the run, for whoever waits for it.
    """
    failures = 0
    for _ in backoff():
        try:
            look = job.look()
            if look is None or look.begun or CANCELLED in look.notes or job.end() is not None:
                return
            if look.receives and _is_chosen(job, look):
                _give(job, look)
                return
        except (ExecutionsError, Refused, OSError) as error:
            failures += 1
            if failures >= _TRIES:
                _give_up(job, error)
                return


def fetch_data(job: Job) -> None:
    """Bring back what a script left, once; what was lost stays lost.

    Raises:
        InfrastructureError: If it cannot be brought back, though the script has ended.
    """
    look = job.look()
    if look is None or DATA_FOLDER not in look.notes or ASSIGNED_POD not in look.notes or FETCHED in look.notes:
        return
    end = look.end()
    if end is None or end.status is RunStatus.LOST or end.code is None:
        return
    folder = Path(look.notes[DATA_FOLDER])
    if not folder.is_dir():
        raise InfrastructureError(f"What {job.name} left belongs into {folder}, which is not here; ask where that is")
    command = job.command(look, KEEPER, _FETCH) if look.keeps else None
    if command is None:
        raise InfrastructureError(f"What {job.name} left cannot be brought back: its pod is gone")

    def check() -> None:
        if command.code() != 0:
            raise InfrastructureError(f"What {job.name} left cannot be brought back whole: {command.said}")

    with closing(command):
        unpack(_Output(command), folder, check=check)
    job.annotate(FETCHED, datetime.now(UTC).isoformat())


def _is_chosen(job: Job, look: JobSnapshot) -> bool:
    """Whether the pod of *look* is the one that gets the data; decided once, whoever asks."""
    pod = look.pod
    if pod is None:
        return False
    name = f"{pod['metadata']['name']} {pod['metadata']['uid']}"
    job.annotate(ASSIGNED_POD, name, unless=(ASSIGNED_POD, END, CANCELLED))
    now = job.look()
    return now is not None and now.notes.get(ASSIGNED_POD) == name


def _give(job: Job, look: JobSnapshot) -> None:
    where = look.notes.get(DATA_FOLDER)
    load = None if where is None else TarStream.of(Path(where))
    if load is None:
        command = job.command(look, RECEIVER, _OPEN)
    else:
        command = job.command(look, RECEIVER, _RECEIVE, uuid4().hex, str(load.size), talks=True)
    if command is None:
        raise InfrastructureError(f"The pod of {job.name} does not take its data")
    with closing(command):
        if load is not None:
            for chunk in load.chunks():
                command.send(chunk)
        if command.code() != 0:
            raise InfrastructureError(
                f"The data of {job.name} cannot be handed over; the image needs sh, head and tar: {command.said}"
            )


def _give_up(job: Job, error: Exception) -> None:
    end = Exit(status=RunStatus.FAILED, why=str(error))
    with suppress(InfrastructureError):
        job.annotate(END, end.model_dump_json(by_alias=True, exclude_none=True), unless=(END,), parallelism=0)


class _Output:
    """What a command writes, to be read as a file."""

    def __init__(self, command: Command) -> None:
        self._pieces = command.pieces()
        self._command = command
        self._left = bytearray()

    def read(self, size: int) -> bytes:
        """Return the next *size* bytes, fewer only at the end."""
        while len(self._left) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            stream, data = piece
            if stream == "stdout":
                self._left += data
            else:
                self._command.said += data.decode(errors="replace")
        read = bytes(self._left[:size])
        del self._left[:size]
        return read


_AFTER_KILL = 120.0  # a node on a busy machine
_OVER = 0

# Until it is over, or for some seconds (3), so that a lost connection or a script's lost container is noticed.
_TELL = f"""
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
  [ "$over" ] && exit {_OVER}
  rounds=$((rounds + 1)); [ "$rounds" -ge 100 ] && exit 3
  sleep 0.1
done
"""


class PodRun:
    """A run whose Job is known."""

    def __init__(self, cluster: Cluster, run_id: str) -> None:
        """Know the run; as long as its pod waits for its data, this process will give it."""
        self.id = run_id
        self._job = Job(cluster, run_id)
        threading.Thread(target=send_data, args=(self._job,), name=f"data of {run_id}", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and when nobody saw it."""
        end = self._job.end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return how it stands now."""
        end = self._job.end()
        if end is not None:
            return end.status
        look = self._job.look()
        return RunStatus.RUNNING if look is not None and look.begun else RunStatus.WAITING

    def seen(self) -> RunLocation:
        """Return the pod, its node and its image, as the cluster says them."""
        look = self._job.look()
        return RunLocation() if look is None else look.seen()

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has and what it left is back in the data folder."""
        end = self._ended(timeout)
        if end is None:
            raise TimeoutError(f"The run {self.id} still runs after {timeout:g} s")
        fetch_data(self._job)
        return end

    def logs(self) -> Iterator[LogChunk]:
        """Yield what it has written and will write; after the last piece what it left is in the data folder."""
        told = {"stdout": 0, "stderr": 0}
        failures = 0
        for _ in backoff():
            over = self._job.end() is not None
            look = self._job.look()
            command = None if look is None else self._telling(look, told)
            if command is not None:
                try:
                    with closing(command):
                        for stream, data in command.pieces():
                            told[stream] += len(data)
                            yield LogChunk(stream, data)
                        over = command.code() == _OVER or over
                except InfrastructureError:
                    failures += 1
                    if failures >= _TRIES:
                        raise
                    continue
            if over:
                break
        self.wait()

    def cancel(self, grace: float = GRACE) -> Exit:
        """End every process of it; return its end when none is left and what it left is back."""
        if self._job.end() is None:
            self._job.annotate(CANCELLED, datetime.now(UTC).isoformat(), unless=(END,))
            look = self._job.look()
            if look is not None and not look.begun and look.end() is None:
                self.discard()
                return Exit(status=RunStatus.CANCELLED, why="it was cancelled before it began")
            self._kill(grace)
        return self.wait(_AFTER_KILL)

    def discard(self) -> None:
        """Forget it: end what is left of it, and remove its Job, its pod and its Secret."""
        self._job.remove()

    def _ended(self, timeout: float | None) -> Exit | None:
        for _ in backoff(timeout):
            end = self._job.end()
            if end is not None:
                return end
        return None

    def _telling(self, look: JobSnapshot, told: dict[str, int]) -> Command | None:
        """A command that tells the logs from where they were told; None when nobody has them, or not yet."""
        if not look.keeps or not look.begun:
            return None
        return self._job.command(look, KEEPER, _TELL, str(told["stdout"]), str(told["stderr"]))

    def _kill(self, grace: float) -> None:
        for number, patience in (("TERM", grace), ("KILL", _AFTER_KILL)):
            look = self._job.look()
            if look is None or look.end() is not None:
                return
            if not self._signal(look, number):
                self._excuse()
            if self._ended(patience) is not None:
                return
        raise InfrastructureError(f"The script of {self.id} does not end; is its node away?")

    def _signal(self, look: JobSnapshot, number: str) -> bool:
        """Send a signal to every process of the script's container but the first, which ends with the script."""
        with suppress(InfrastructureError):
            command = self._job.command(look, SCRIPT, f"kill -{number} -1")
            if command is not None:
                with closing(command):
                    command.code()
                return True
        return False

    def _excuse(self) -> None:
        """A script that had ended by itself before it could be told stays as it ended."""
        look = self._job.look()
        if look is not None and look.script.get("terminated") and END not in look.notes:
            self._job.annotate(CANCELLED, None, unless=(END,))
