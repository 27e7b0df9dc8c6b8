"""What happened to an execution, entry by entry, and what the law forbids in it.

Law: a status never goes back; what comes after a terminal status is kept as a
note and changes nothing. Retries, pauses, progress and messages are entries in
the history, not statuses.

What Prefect's state history tells of an execution, put into the execution's own.
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

_TURNED_BACK = "a clock was turned back"
# What keeps a clock right may turn it back by less; nobody has to be told.
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
    """A state of a flow run as Prefect keeps it, with Prefect's time."""

    state: PrefectState
    time: datetime
    message: str | None = None


class EntryKind(StrEnum):
    """What kind of thing an entry of the history tells."""

    STATUS = "status"
    ATTEMPT = "attempt"
    """Another attempt begins."""
    ATTEMPT_FAILED = "attempt-failed"
    """An attempt ended, and another one is to come."""
    PAUSED = "paused"
    RESUMED = "resumed"
    PROGRESS = "progress"
    NOTE = "note"
    PHASE = "phase"
    """A phase of a descriptor Method begins."""
    PHASE_ENDED = "phase-ended"


TURNS = frozenset({EntryKind.ATTEMPT, EntryKind.ATTEMPT_FAILED, EntryKind.PAUSED, EntryKind.RESUMED})
"""By what an attempt or a pause begins or ends."""


class StatusEntry(Part):
    """One line of the history."""

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
    """The task id of the replica that the phase is of."""
    exit_code: int | None = None
    """How the phase ended: as its script did; 0 or 1 where it has none. Absent where nobody saw it."""


class OutputFile(Part):
    """A file that the execution left, or a log of it.

    `path` is relative to the bundle (``outputs/table.csv``), `size` is in bytes.
    """

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    media_type: str


class Step(Part):
    """A task run of the flow, as Prefect's API told it when the record was closed; `state` is Prefect's type."""

    id: UUID
    name: str
    state: str
    state_name: str
    started: Time | None = None
    finished: Time | None = None
    flow_run_id: UUID | None = None
    """The flow run that it stands for, where the step is the call of another flow."""

    @property
    def ended(self) -> bool:
        """Whether Prefect says that it has ended."""
        status = FROM_PREFECT.get(self.state)
        return status is not None and status.terminal


class JobStatus(Document):
    """Status and full history of one execution, which is also an OGC 1.0 ``statusInfo``."""

    file_name: ClassVar[str] = "metadata/jobStatus.json"

    job_id: str = Field(alias="jobID")
    process_id: str = Field(alias="processID")
    type: Literal["process"] = "process"
    status: OgcStatus
    message: str | None = None
    created: Time | None = None
    started: Time | None = None
    finished: Time | None = None
    updated: Time
    progress: int | None = Field(default=None, ge=0, le=100)
    links: tuple[OgcLink, ...] = ()
    execution_status: Status
    reason: Reason | None = None
    attempt: int = Field(default=1, ge=1)
    cached_from: str | None = None
    partial: bool | None = None
    """True when the execution was stopped from outside, so that outputs may be incomplete."""
    outputs: tuple[OutputFile, ...] = Field(default=(), fail_fast=True)
    steps: tuple[Step, ...] | None = Field(default=None, fail_fast=True)
    """The task runs of the flow in the order in which they began; absent where none is known."""
    history: tuple[StatusEntry, ...] = Field(fail_fast=True)

    @model_validator(mode="after")
    def _tells_one_status(self) -> Self:
        if self.status != AS_OGC[self.execution_status]:
            raise ValueError(f"status {self.status!r} does not say what executionStatus {self.execution_status} says")
        return self


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
    """Return the job status of an execution whose first known status is *status*."""
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

    Prefect may report a state twice (a worker retries its call), so hearing the
    current status again changes nothing. What comes after a terminal status is
    kept as a note.

    Raises:
        TransitionError: If *to* may not follow the current status.
    """
    current = job_status.execution_status
    if to is current:
        return job_status
    if current.terminal:
        heard = f"heard {to} after the end" + (f": {message}" if message else "")
        return add_entry(job_status, EntryKind.NOTE, at, observer=observer, prefect_state=prefect_state, message=heard)
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
    """Return *job_status* with an entry that moves no status: an attempt, a pause, progress or a note.

    After the end only notes are taken; any other kind is refused.

    Raises:
        TransitionError: If the execution has ended and *kind* is not a note.
    """
    if job_status.execution_status.terminal and kind is not EntryKind.NOTE:
        raise TransitionError(f"execution {job_status.job_id} has ended; a {kind} entry comes too late")
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


def _in_order(job_status: JobStatus, at: datetime, observer: Observer) -> tuple[JobStatus, datetime]:
    """Return the time that an entry can have behind the others: a clock may be turned back while a run is under way.

    Then it is that of the entry above, the last that is known, and a note tells once what the clock said.
    """
    last = job_status.history[-1]
    if at >= last.time - _allowance(last.observer, observer):
        return job_status, at
    told = any((entry.message or "").startswith(_TURNED_BACK) for entry in job_status.history)
    if last.time - at > _SLEWED and not told:
        words = f"{_TURNED_BACK}: it said {at.isoformat()} here, and later entries may have the time of the one above"
        job_status = add_entry(job_status, EntryKind.NOTE, last.time, observer=last.observer, message=words)
    return job_status, last.time


def faults(history: Sequence[StatusEntry]) -> Iterator[str]:
    """Tell, one sentence each, what in *history* the law forbids; nothing when it is legal.

    The order of times is our own check: no PROV validator makes it. Between two
    observers, and among Prefect's states, which its clients and its server time by
    their own clocks, a difference up to `CLOCK_SKEW` is no fault.
    """
    current: Status | None = None
    last: StatusEntry | None = None
    for number, entry in enumerate(history, start=1):
        if entry.kind is EntryKind.STATUS:
            if current is not None and entry.status not in FOLLOWS[current]:
                yield f"entry {number}: {entry.status} may not follow {current}"
            current = entry.status
        elif current is not None and entry.status is not current:
            yield f"entry {number}: a {entry.kind} entry says {entry.status} while the status is {current}"
        if last is not None and last.time - entry.time > _allowance(last.observer, entry.observer):
            yield f"entry {number}: {entry.time.isoformat()} is before the entry above it"
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
    """Return *job_status* with what Prefect's state history tells, up to but not including the end.

    States that are in the history already (by their ids) are passed over, so the
    whole state history may be given again at each attempt. Terminal states are
    left to `ending`; after the end nothing is added.
    """
    if job_status.execution_status.terminal:
        return job_status
    known = {entry.prefect_state.id for entry in job_status.history if entry.prefect_state and entry.prefect_state.id}
    for one in sorted(states, key=lambda one: one.time):
        if one.state.id not in known:
            job_status = _follow_one(job_status, one)
    return job_status


def _follow_one(job_status: JobStatus, one: ObservedState) -> JobStatus:
    told: dict[str, Any] = {"observer": Observer.PREFECT, "prefect_state": one.state}
    current = job_status.execution_status
    if one.state.name == "AwaitingRetry":
        known = _confirmed(job_status, one.state)
        return known or add_entry(job_status, EntryKind.ATTEMPT_FAILED, one.time, message=one.message, **told)
    if one.state.type == "PAUSED":
        return _inserted(job_status, EntryKind.PAUSED, one, message=one.state.name)
    if one.state.type == "RUNNING" and (last := _last_turn(job_status, one.time)):
        if last.kind is EntryKind.PAUSED:
            return _inserted(job_status, EntryKind.RESUMED, one)
        if last.kind is EntryKind.ATTEMPT_FAILED:
            return add_entry(job_status, EntryKind.ATTEMPT, one.time, attempt=job_status.attempt + 1, **told)
    to = FROM_PREFECT.get(one.state.type)
    if to is None or to.terminal or to not in FOLLOWS[current]:
        return job_status
    return advance(job_status, to, one.time, message=one.message, **told)


def _inserted(job_status: JobStatus, kind: EntryKind, one: ObservedState, *, message: str | None = None) -> JobStatus:
    """Return *job_status* with an entry where its time belongs: a pause may be heard of when it is long over."""
    number = _place(job_status, one.time)
    before = job_status.history[number - 1]
    entry = StatusEntry(
        kind=kind,
        status=before.status,
        time=one.time,
        observer=Observer.PREFECT,
        attempt=before.attempt,
        prefect_state=one.state,
        message=message,
    )
    history = (*job_status.history[:number], entry, *job_status.history[number:])
    return job_status.model_copy(update={"updated": max(one.time, job_status.updated), "history": history})


def _place(job_status: JobStatus, time: datetime) -> int:
    number = len(job_status.history)
    while job_status.history[number - 1].time > time and job_status.history[number - 1].kind is not EntryKind.STATUS:
        number -= 1
    return number


def _confirmed(job_status: JobStatus, state: PrefectState) -> JobStatus | None:
    """The same with Prefect's *state* beside the failed attempt that our own code told; None when it told none."""
    for number, entry in reversed(list(enumerate(job_status.history))):
        if entry.kind is EntryKind.ATTEMPT_FAILED and entry.attempt == job_status.attempt and not entry.prefect_state:
            confirmed = entry.model_copy(update={"prefect_state": state})
            history = (*job_status.history[:number], confirmed, *job_status.history[number + 1 :])
            return job_status.model_copy(update={"history": history})
    return None


def _last_turn(job_status: JobStatus, time: datetime) -> StatusEntry | None:
    turns = (entry for entry in reversed(job_status.history[: _place(job_status, time)]) if entry.kind in TURNS)
    return next(turns, None)
