"""What Prefect's state history tells of an execution, put into the execution's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prefect_executions.lifecycle.history import (
    TURNS,
    Happening,
    JobStatus,
    PrefectState,
    Seen,
    StatusEntry,
    advance,
    remark,
)
from prefect_executions.lifecycle.status import FOLLOWS, FROM_PREFECT, Observer


def follow(job_status: JobStatus, states: Sequence[Seen]) -> JobStatus:
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


def _follow_one(job_status: JobStatus, one: Seen) -> JobStatus:
    told: dict[str, Any] = {"observer": Observer.PREFECT, "prefect_state": one.state}
    current = job_status.execution_status
    if one.state.name == "AwaitingRetry":
        known = _confirmed(job_status, one.state)
        return known or remark(job_status, Happening.ATTEMPT_FAILED, one.time, message=one.message, **told)
    if one.state.type == "PAUSED":
        return _inserted(job_status, Happening.PAUSED, one, message=one.state.name)
    if one.state.type == "RUNNING" and (last := _last_turn(job_status, one.time)):
        if last.kind is Happening.PAUSED:
            return _inserted(job_status, Happening.RESUMED, one)
        if last.kind is Happening.ATTEMPT_FAILED:
            return remark(job_status, Happening.ATTEMPT, one.time, attempt=job_status.attempt + 1, **told)
    to = FROM_PREFECT.get(one.state.type)
    if to is None or to.terminal or to not in FOLLOWS[current]:
        return job_status
    return advance(job_status, to, one.time, message=one.message, **told)


def _inserted(job_status: JobStatus, kind: Happening, one: Seen, *, message: str | None = None) -> JobStatus:
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
    while job_status.history[number - 1].time > time and job_status.history[number - 1].kind is not Happening.STATUS:
        number -= 1
    return number


def _confirmed(job_status: JobStatus, state: PrefectState) -> JobStatus | None:
    """The same with Prefect's *state* beside the failed attempt that our own code told; None when it told none."""
    for number, entry in reversed(list(enumerate(job_status.history))):
        if entry.kind is Happening.ATTEMPT_FAILED and entry.attempt == job_status.attempt and not entry.prefect_state:
            confirmed = entry.model_copy(update={"prefect_state": state})
            history = (*job_status.history[:number], confirmed, *job_status.history[number + 1 :])
            return job_status.model_copy(update={"history": history})
    return None


def _last_turn(job_status: JobStatus, time: datetime) -> StatusEntry | None:
    turns = (entry for entry in reversed(job_status.history[: _place(job_status, time)]) if entry.kind in TURNS)
    return next(turns, None)
