"""The history of an execution: its entries, its rules, and how Prefect's state history is merged into it.

Law: a status never goes back. After a terminal status only notes are added.
Retries, pauses, progress and messages are entries in the history, not statuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple, Self
from uuid import UUID

from pydantic import Field, model_validator

from prefect_executions.documents import Document, OgcLink, Part, Time
from prefect_executions.errors import TransitionError
from prefect_executions.lifecycle.status import (
    AS_OGC,
    FOLLOWS,
    FROM_PREFECT,
    PREFECT_TERMINAL,
    Observer,
    OgcStatus,
    Phase,
    Reason,
    Status,
)

CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of a server and a worker may differ before `faults` reports it."""

_TURNED_BACK = "a clock was turned back"
# NTP may step a clock back by less, which is not worth a note.
_SLEWED = timedelta(seconds=1)


class PrefectState(Part):
    """A state as Prefect reported it."""

    type: str
    name: str
    id: UUID | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the flow run has ended."""
        return self.type in PREFECT_TERMINAL

    @property
    def is_cancelling(self) -> bool:
        """Whether a cancel request has not taken effect yet."""
        return self.type == "CANCELLING"

    @property
    def is_cancelled(self) -> bool:
        """Whether a cancel request has taken effect."""
        return self.type == "CANCELLED"


class ObservedState(NamedTuple):
    """A state of a flow run in Prefect's state history, with Prefect's time."""

    state: PrefectState
    time: datetime
    message: str | None = None


class EntryKind(StrEnum):
    """The kind of an entry in the history."""

    STATUS = "status"
    ATTEMPT = "attempt"
    """Another attempt begins."""
    ATTEMPT_FAILED = "attempt-failed"
    """An attempt failed and will be retried."""
    PAUSED = "paused"
    RESUMED = "resumed"
    PROGRESS = "progress"
    NOTE = "note"
    PHASE = "phase"
    """A phase of a descriptor Method begins."""
    PHASE_ENDED = "phase-ended"


INTERRUPTED = "Interrupted"
"""The state name of a step that had not ended when its execution was stopped."""

TURNS = frozenset({EntryKind.ATTEMPT, EntryKind.ATTEMPT_FAILED, EntryKind.PAUSED, EntryKind.RESUMED})
"""The entries that begin or end an attempt or a pause."""


class StatusEntry(Part):
    """One entry in the history."""

    kind: EntryKind
    status: Status
    time: Time
    observer: Observer
    attempt: int = Field(default=1, ge=1)
    prefect_state: PrefectState | None = None
    reason: Reason | None = None
    progress: float | None = Field(default=None, ge=0, le=100)
    message: str | None = None
    phase: Phase | None = None
    task: str | None = None
    """The task id of the replica that the phase belongs to."""
    exit_code: int | None = None
    """The exit code of the phase's script; 0 or 1 for a phase without a script. Absent if it was not observed."""


class OutputFile(Part):
    """An output file of the execution, or a log.

    `path` is relative to the bundle (``outputs/table.csv``), `size` is in bytes.
    """

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    media_type: str


class Step(Part):
    """A task run of the flow, read from Prefect's API when the record was closed; `state` is Prefect's state type.

    A step that had not ended when its execution was stopped is CRASHED or CANCELLED as its execution is, its
    `state_name` is `INTERRUPTED`, and `finished` is absent.
    """

    id: UUID
    name: str
    state: str
    state_name: str
    started: Time | None = None
    finished: Time | None = None
    flow_run_id: UUID | None = None
    """The flow run of the called flow, if the step is a call of another flow."""
    attempts: int | None = None
    """How often it was run, if more than once."""

    @property
    def ended(self) -> bool:
        """Whether Prefect reports the task run as ended."""
        status = FROM_PREFECT.get(self.state)
        return status is not None and status.terminal


class JobStatus(Document):
    """Status and full history of one execution, which is also an OGC 1.0 ``statusInfo``.

    `finished` is the time of the end. If nothing observed the end, it is the last evidence of life,
    and the execution ended between `finished` and `finished_before`.
    """

    file_name: ClassVar[str] = "metadata/jobStatus.json"

    job_id: str = Field(alias="jobID")
    process_id: str = Field(alias="processID")
    type: Literal["process"] = "process"
    status: OgcStatus
    message: str | None = None
    created: Time | None = None
    started: Time | None = None
    finished: Time | None = None
    finished_before: Time | None = None
    """When the end was found, if nothing observed the end itself; else absent."""
    updated: Time
    progress: int | None = Field(default=None, ge=0, le=100)
    links: tuple[OgcLink, ...] = ()
    execution_status: Status
    reason: Reason | None = None
    attempt: int = Field(default=1, ge=1)
    cached_from: str | None = None
    partial: bool | None = None
    """True if the execution was stopped from outside; its outputs may be incomplete."""
    outputs: tuple[OutputFile, ...] = Field(default=(), fail_fast=True)
    steps: tuple[Step, ...] | None = Field(default=None, fail_fast=True)
    """The task runs of the flow in the order in which they started; absent if there are none."""
    history: tuple[StatusEntry, ...] = Field(fail_fast=True)

    @model_validator(mode="after")
    def _statuses_agree(self) -> Self:
        if self.status != AS_OGC[self.execution_status]:
            raise ValueError(f"status {self.status!r} does not match executionStatus {self.execution_status}")
        return self

    @property
    def end_found(self) -> datetime | None:
        """When the end was observed or found; None if the execution has not ended."""
        return self.finished_before or self.finished


def new_job_status(
    execution_id: str,
    method_id: str,
    *,
    status: Status,
    at: datetime,
    observer: Observer,
    prefect_state: PrefectState | None = None,
    message: str | None = None,
) -> JobStatus:
    """Return the job status of an execution whose first observed status is *status*."""
    entry = StatusEntry(
        kind=EntryKind.STATUS, status=status, time=at, observer=observer, prefect_state=prefect_state, message=message
    )
    return JobStatus(
        job_id=execution_id,
        process_id=method_id,
        status=AS_OGC[status],
        execution_status=status,
        updated=at,
        history=(entry,),
        message=message,
        **_times(status, at),
    )


def advance(
    job_status: JobStatus,
    to: Status,
    at: datetime,
    *,
    observer: Observer,
    prefect_state: PrefectState | None = None,
    reason: Reason | None = None,
    message: str | None = None,
) -> JobStatus:
    """Return *job_status* with the status *to* at its end.

    Prefect may report a state twice (a worker retries its call), so repeating the
    current status changes nothing. A status after a terminal status becomes a note.

    Raises:
        TransitionError: If *to* may not follow the current status.
    """
    current = job_status.execution_status
    if to is current:
        return job_status
    if current.terminal:
        note = f"{to} was reported after the end" + (f": {message}" if message else "")
        return add_entry(job_status, EntryKind.NOTE, at, observer=observer, prefect_state=prefect_state, message=note)
    if to not in FOLLOWS[current]:
        raise TransitionError(f"{to} may not follow {current} in execution {job_status.job_id}")
    job_status, at = _in_order(job_status, at, observer)
    entry = StatusEntry(
        kind=EntryKind.STATUS,
        status=to,
        time=at,
        observer=observer,
        attempt=job_status.attempt,
        prefect_state=prefect_state,
        reason=reason,
        message=message,
    )
    changes: dict[str, Any] = {
        "status": AS_OGC[to],
        "execution_status": to,
        "updated": max(at, job_status.updated),
        "history": (*job_status.history, entry),
        "reason": reason,
        "message": message if message is not None or to.terminal else job_status.message,
        **_times(to, at),
    }
    if to is Status.COMPLETED and job_status.progress is not None:
        changes["progress"] = 100
    return job_status.model_copy(update=changes)


def add_entry(
    job_status: JobStatus,
    kind: EntryKind,
    at: datetime,
    *,
    observer: Observer,
    prefect_state: PrefectState | None = None,
    attempt: int | None = None,
    progress: float | None = None,
    reason: Reason | None = None,
    message: str | None = None,
) -> JobStatus:
    """Return *job_status* with an entry that changes no status: an attempt, a pause, progress or a note.

    Raises:
        TransitionError: If the execution has ended and *kind* is not a note.
    """
    if job_status.execution_status.terminal and kind is not EntryKind.NOTE:
        raise TransitionError(f"execution {job_status.job_id} has ended; add a note instead of a {kind} entry")
    job_status, at = _in_order(job_status, at, observer)
    entry = StatusEntry(
        kind=kind,
        status=job_status.execution_status,
        time=at,
        observer=observer,
        attempt=attempt or job_status.attempt,
        prefect_state=prefect_state,
        progress=progress,
        reason=reason,
        message=message,
    )
    changes: dict[str, Any] = {
        "attempt": attempt or job_status.attempt,
        "updated": max(at, job_status.updated),
        "history": (*job_status.history, entry),
    }
    if progress is not None:
        changes |= {"progress": int(progress), "message": message or job_status.message}
    return job_status.model_copy(update=changes)


def with_end_after(job_status: JobStatus, alive_until: datetime) -> JobStatus:
    """Return the ended *job_status*, whose end nothing observed, with *alive_until* as the earliest time of the end.

    Entries of the run itself and of Prefect before the end, and the times of steps, are evidence of life as well.
    """
    *before, end = job_status.history
    evidence = [alive_until, *(entry.time for entry in before if entry.observer is not Observer.SETTLE)]
    steps = (time for step in job_status.steps or () for time in (step.started, step.finished))
    finished = max([*evidence, *(time for time in steps if time and time < end.time)])
    if finished >= end.time:
        return job_status
    return job_status.model_copy(update={"finished": finished, "finished_before": end.time})


def with_steps_ended(job_status: JobStatus) -> JobStatus:
    """Return *job_status*, whose execution was stopped, without steps that are still running."""
    if not any(not step.ended for step in job_status.steps or ()):
        return job_status
    state = "CANCELLED" if job_status.execution_status is Status.CANCELLED else "CRASHED"
    changes = {"state": state, "state_name": INTERRUPTED}
    steps = (step if step.ended else step.model_copy(update=changes) for step in job_status.steps or ())
    return job_status.model_copy(update={"steps": tuple(steps)})


def _in_order(job_status: JobStatus, at: datetime, observer: Observer) -> tuple[JobStatus, datetime]:
    """Return the time for a new last entry.

    If a clock was turned back during the run, this is the time of the last entry, and
    a note records the clock's time once.
    """
    last = job_status.history[-1]
    if at >= last.time - _allowance(last.observer, observer):
        return job_status, at
    noted = any((entry.message or "").startswith(_TURNED_BACK) for entry in job_status.history)
    if last.time - at > _SLEWED and not noted:
        message = f"{_TURNED_BACK} to {at.isoformat()}; later entries may repeat the time of the entry before them"
        job_status = add_entry(job_status, EntryKind.NOTE, last.time, observer=last.observer, message=message)
    return job_status, last.time


def faults(history: Sequence[StatusEntry]) -> Iterator[str]:
    """Yield one sentence for each violation of the rules in *history*.

    PROV validators do not check the order of times, so this does. Two observers have
    their own clocks, and so have Prefect's clients and server, which time its states:
    there a difference of up to `CLOCK_SKEW` is allowed.
    """
    current: Status | None = None
    last: StatusEntry | None = None
    for number, entry in enumerate(history, start=1):
        if entry.kind is EntryKind.STATUS:
            if current is not None and entry.status not in FOLLOWS[current]:
                yield f"entry {number}: {entry.status} may not follow {current}"
            current = entry.status
        elif current is not None and entry.status is not current:
            yield f"entry {number}: a {entry.kind} entry has status {entry.status}; the current status is {current}"
        if last is not None and last.time - entry.time > _allowance(last.observer, entry.observer):
            yield f"entry {number}: {entry.time.isoformat()} is earlier than the entry before it"
        last = entry


def _allowance(earlier: Observer, later: Observer) -> timedelta:
    one_clock = earlier is later is not Observer.PREFECT
    return timedelta(0) if one_clock else CLOCK_SKEW


def _times(status: Status, at: datetime) -> dict[str, Any]:
    if status is Status.CREATED:
        return {"created": at}
    if status is Status.STARTED:
        return {"started": at}
    return {"finished": at} if status.terminal else {}


def merge_states(job_status: JobStatus, states: Sequence[ObservedState]) -> JobStatus:
    """Return *job_status* with Prefect's *states* merged into its history.

    Idempotent: states whose ids are in the history are skipped, so each attempt may
    pass the full state history. Terminal states are skipped (see
    `terminal_status_of`). After the end, nothing is added.
    """
    if job_status.execution_status.terminal:
        return job_status
    known = {entry.prefect_state.id for entry in job_status.history if entry.prefect_state and entry.prefect_state.id}
    for observed in sorted(states, key=lambda observed: observed.time):
        if observed.state.id not in known:
            job_status = _merge_state(job_status, observed)
    return job_status


def _merge_state(job_status: JobStatus, observed: ObservedState) -> JobStatus:
    state, time, message = observed
    source: dict[str, Any] = {"observer": Observer.PREFECT, "prefect_state": state}
    if state.name == "AwaitingRetry":
        confirmed = _confirm_failed_attempt(job_status, state)
        return confirmed or add_entry(job_status, EntryKind.ATTEMPT_FAILED, time, message=message, **source)
    if state.type == "PAUSED":
        return _insert_entry(job_status, EntryKind.PAUSED, observed, message=state.name)
    if state.type == "RUNNING" and (last := _last_turn(job_status, time)):
        if last.kind is EntryKind.PAUSED:
            return _insert_entry(job_status, EntryKind.RESUMED, observed)
        if last.kind is EntryKind.ATTEMPT_FAILED:
            return add_entry(job_status, EntryKind.ATTEMPT, time, attempt=job_status.attempt + 1, **source)
    to = FROM_PREFECT.get(state.type)
    if to is None or to.terminal or to not in FOLLOWS[job_status.execution_status]:
        return job_status
    return advance(job_status, to, time, message=message, **source)


def _insert_entry(
    job_status: JobStatus, kind: EntryKind, observed: ObservedState, *, message: str | None = None
) -> JobStatus:
    """Return *job_status* with an entry inserted by its time: a pause may be reported long after it ended."""
    number = _position(job_status, observed.time)
    before = job_status.history[number - 1]
    entry = StatusEntry(
        kind=kind,
        status=before.status,
        time=observed.time,
        observer=Observer.PREFECT,
        attempt=before.attempt,
        prefect_state=observed.state,
        message=message,
    )
    history = (*job_status.history[:number], entry, *job_status.history[number:])
    return job_status.model_copy(update={"updated": max(observed.time, job_status.updated), "history": history})


def _position(job_status: JobStatus, time: datetime) -> int:
    number = len(job_status.history)
    while job_status.history[number - 1].time > time and job_status.history[number - 1].kind is not EntryKind.STATUS:
        number -= 1
    return number


def _confirm_failed_attempt(job_status: JobStatus, state: PrefectState) -> JobStatus | None:
    """Add Prefect's *state* to the failed attempt that the run itself recorded; None if it recorded none."""
    for number, entry in reversed(list(enumerate(job_status.history))):
        if entry.kind is EntryKind.ATTEMPT_FAILED and entry.attempt == job_status.attempt and not entry.prefect_state:
            confirmed = entry.model_copy(update={"prefect_state": state})
            history = (*job_status.history[:number], confirmed, *job_status.history[number + 1 :])
            return job_status.model_copy(update={"history": history})
    return None


def _last_turn(job_status: JobStatus, time: datetime) -> StatusEntry | None:
    turns = (entry for entry in reversed(job_status.history[: _position(job_status, time)]) if entry.kind in TURNS)
    return next(turns, None)
