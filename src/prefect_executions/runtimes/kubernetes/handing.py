"""The data of a run on its way to its pod, and back.

Law: a script begins at most once. Its pod begins with the data that it is given,
and the Job names the one pod that it was given to; a pod that Kubernetes makes in
the place of a lost one waits in vain, and is removed.
"""

from __future__ import annotations

from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from prefect_executions.errors import ExecutionsError, InfrastructureError
from prefect_executions.runtimes.container_init import OWN_FOLDER
from prefect_executions.runtimes.interface import Exit, RunStatus
from prefect_executions.runtimes.kubernetes.api import Command, Refused
from prefect_executions.runtimes.kubernetes.job import Job, pauses
from prefect_executions.runtimes.kubernetes.looking import (
    CANCELLED,
    DATA_NOTE,
    END,
    FETCHED,
    GIVEN,
    KEEPER,
    RECEIVER,
    Look,
)
from prefect_executions.runtimes.kubernetes.transfer import Load, unpack

_TRIES = 5

# Into a folder of its own until it is whole: two who hand it over at once do not meet, and one of them wins.
_RECEIVE = f"""
cd {OWN_FOLDER} && mkdir "in.$1" && head -c "$2" | tar -xf - -C "in.$1" || exit 2
if mkdir gate 2>/dev/null; then mv "in.$1" data && : >ready; else rm -rf "in.$1"; fi
"""
_OPEN = f": >{OWN_FOLDER}/ready"
_FETCH = f"tar -cf - -C {OWN_FOLDER}/data ."


def hand_over(job: Job) -> None:
    """Wait until a pod of *job* waits for its data, and give it; a second caller changes nothing.

    What fails for good becomes the end of the run, for whoever waits for it.
    """
    failures = 0
    for _ in pauses():
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


def fetch(job: Job) -> None:
    """Bring back what a script left, once; what was lost stays lost.

    Raises:
        InfrastructureError: If it cannot be brought back, though the script has ended.
    """
    look = job.look()
    if look is None or DATA_NOTE not in look.notes or GIVEN not in look.notes or FETCHED in look.notes:
        return
    end = look.end()
    if end is None or end.status is RunStatus.LOST or end.code is None:
        return
    folder = Path(look.notes[DATA_NOTE])
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
    job.note(FETCHED, datetime.now(UTC).isoformat())


def _is_chosen(job: Job, look: Look) -> bool:
    """Whether the pod of *look* is the one that gets the data; decided once, whoever asks."""
    pod = look.pod
    if pod is None:
        return False
    name = f"{pod['metadata']['name']} {pod['metadata']['uid']}"
    job.note(GIVEN, name, unless=(GIVEN, END, CANCELLED))
    now = job.look()
    return now is not None and now.notes.get(GIVEN) == name


def _give(job: Job, look: Look) -> None:
    where = look.notes.get(DATA_NOTE)
    load = None if where is None else Load.of(Path(where))
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
        job.note(END, end.model_dump_json(by_alias=True, exclude_none=True), unless=(END,), parallelism=0)


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
