"""An execution that is open goes on: its next attempt, or its resumption, in this process or in a new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_executions.executions.record import ExecutionRecord, Instance, Process, Usage
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.opening import infrastructure, instance, now, the_method
from prefect_executions.lifecycle.following import follow
from prefect_executions.lifecycle.history import Happening, JobStatus, Seen, StatusEntry, remark
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import CodeIdentity
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


class Turn(NamedTuple):
    """The record as it goes on, and the line that tells in the logs where that is."""

    record: ExecutionRecord
    headline: str


def continued(
    record: ExecutionRecord, declared: Declared, run: FlowRun, heard: Sequence[Seen], settings: Settings
) -> Turn:
    """Return the *record* of an open execution whose Method begins once more; *heard* are Prefect's states so far.

    Where it runs is told anew when it is another process, with a note that says
    where it ran before. What was used before stays in `usage`; how the attempt
    before ended is in the history, and in `usage` no more.
    """
    here, before = instance(run, settings), record.instance
    job_status = _begun(record.job_status, heard)
    if (here.hostname, here.pid) != (before.hostname, before.pid):
        job_status = _moved(job_status, before, here)
        for changed in _changed(record.method.code, the_method(declared, run, settings)[0].code):
            note = f"{changed} was changed since it began; the bundle keeps it as it was then"
            job_status = remark(job_status, Happening.NOTE, now(), observer=Observer.HOOK, message=note)
    used = (before.usage or Usage()).model_copy(update={"exit_code": None, "exception": None})
    return Turn(
        replace(
            record,
            job_status=job_status,
            infrastructure=infrastructure(run, settings),
            instance=here.model_copy(update={"usage": used, "earlier_processes": _earlier(before, here)}),
        ),
        _headline(job_status),
    )


def taken_over(opened: ExecutionRecord, before: ExecutionRecord, heard: Sequence[Seen]) -> Turn:
    """Return the record that was *opened* here with the history of *before*, which another machine left in the archive.

    What was written there is on a disk that cannot be reached from here. Whether
    that process has ended is not known, so nothing is said of it.
    """
    job_status = _begun(before.job_status, heard, unheard="it was begun again elsewhere")
    there, here = _place(before.instance), _place(opened.instance)
    note = f"goes on in {here}; before, it ran in {there}, and what it wrote there is not here"
    job_status = remark(job_status, Happening.NOTE, now(), observer=Observer.HOOK, message=note)
    return Turn(replace(opened, job_status=job_status), _headline(job_status))


def _place(instance: Instance) -> str:
    return f"pod {instance.pod}" if instance.pod else f"process {instance.pid} of {instance.hostname}"


def _begun(
    job_status: JobStatus, heard: Sequence[Seen], *, unheard: str = "the process before it ended without a word"
) -> JobStatus:
    """Tell that it goes on; where Prefect tells no reason, tell what is *unheard* of."""
    told = follow(job_status, heard)
    if any(_is_turn(entry) for entry in told.history[len(job_status.history) :]):
        return told
    lost: dict[str, Any] = {"attempt": told.attempt + 1, "message": unheard}
    if heard and heard[-1].state.type == "RUNNING":
        state, at, _ = heard[-1]
        return remark(told, Happening.ATTEMPT, at, observer=Observer.PREFECT, prefect_state=state, **lost)
    return remark(told, Happening.ATTEMPT, now(), observer=Observer.HOOK, **lost)


def _moved(job_status: JobStatus, before: Instance, here: Instance) -> JobStatus:
    note = f"goes on in {_place(here)}"
    if before.pid is not None:
        note += f"; before, it ran in {_place(before)}"
    return remark(job_status, Happening.NOTE, now(), observer=Observer.HOOK, message=note)


def _earlier(before: Instance, here: Instance) -> tuple[Process, ...] | None:
    """The processes before, whose forks may live on: who ends the execution ends them as well."""
    left = before.process if before.own_process and before.process != here.process else None
    known = (*(before.earlier_processes or ()), *([left] if left and left.layout else ()))
    return known or None


def _changed(before: CodeIdentity | None, here: CodeIdentity | None) -> Iterator[str]:
    """Which files are another now; which are loaded may differ between two processes."""
    known = {file.path: file.sha256 for file in (before.files if before else ())}
    for file in here.files if here else ():
        if known.get(file.path, file.sha256) != file.sha256:
            yield file.path


def _headline(job_status: JobStatus) -> str:
    turn = next(entry for entry in reversed(job_status.history) if _is_turn(entry))
    what = f"attempt {turn.attempt}" if turn.kind is Happening.ATTEMPT else "resumed"
    return f"{what}, {turn.time.isoformat(timespec='milliseconds')}"


def _is_turn(entry: StatusEntry) -> bool:
    return entry.kind in {Happening.ATTEMPT, Happening.RESUMED}
